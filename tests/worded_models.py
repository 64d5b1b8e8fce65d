"""Tokenizers and a checkpoint for tasks in words: small, random, and made here."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from vortexlab.evaluator.ruler.words import all_words, novel

CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% if enable_thinking is false %}<quiet>{% endif %}{% endif %}"
)


def byte_tokenizer(vocabulary: int = 1500, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the shipped texts: it spells every text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([novel()[:100_000], " ".join(all_words()[::5]), " ".join(map(str, range(3000)))], trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found.chat_template = chat_template
    return found


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word for a token, and one token for all that it does not know."""
    vocabulary = {word: place for place, word in enumerate(["<unk>", "the", "grass", "is", "green", "sky", "."])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, tokens: int = 4096) -> Path:
    """A random Qwen3 checkpoint that reads `tokens`, with its tokenizer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=tokens, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
