"""The words of the synthetic tasks and their token ids.

1,024 readable pseudo-words in four disjoint classes, so that a word tells what it is: key halves (``bado``), value
halves (``beki``), noise (``bokun``) and marks (``?``, ``all``, ``trace`` ...). One word is one token; text is words
joined by single blanks, so text and ids convert into each other without loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from pathlib import Path

VOCABULARY_SIZE = 1024

PAD, UNKNOWN, START = 0, 1, 2
ASK, ALL, EACH, ANSWER, MOST, TRACE, LIST, FIRST = 3, 4, 5, 6, 7, 8, 9, 10
MARKS = {
    PAD: "<pad>",
    UNKNOWN: "<unk>",
    START: "<s>",
    ASK: "?",  # one key follows, its value is the answer
    ALL: "all",  # one key follows, all its values in order of appearance are the answer
    EACH: "each",  # several keys follow, their values in the order of the keys are the answer
    ANSWER: "=",  # ends a list of keys
    MOST: "most",  # the most frequent word of the context is the answer
    TRACE: "trace",  # one key follows, every link from it down to the value is the answer
    LIST: "list",  # one key follows, all its numbered values are the answer, each after its number
    FIRST: "first",
    FIRST + 1: "second",
    FIRST + 2: "third",
}

KEY, VALUE, NOISE = 16, 272, 528  # first id of each class
KEY_HALVES, VALUE_HALVES, NOISE_WORDS = 256, 256, 496

_CONSONANTS = "bdfghjklmnprstvz"


@cache
def words() -> tuple[str, ...]:
    """All words, by token id."""
    pairs = list(product(_CONSONANTS, repeat=2))
    table = [MARKS.get(i, f"<mark{i}>") for i in range(KEY)]
    table += [f"{a}a{b}o" for a, b in pairs]
    table += [f"{a}e{b}i" for a, b in pairs]
    noise = [f"{a}o{b}{ending}" for ending in ("un", "ar") for a, b in pairs]
    table += noise[:NOISE_WORDS]
    if len(table) != VOCABULARY_SIZE or len(set(table)) != VOCABULARY_SIZE:
        raise AssertionError("the word classes must give 1,024 distinct words")
    return tuple(table)


@cache
def _ids() -> dict[str, int]:
    return {word: i for i, word in enumerate(words())}


def to_text(ids: Iterable[int]) -> str:
    """Token ids as words joined by single blanks."""
    table = words()
    return " ".join(table[i] for i in ids)


def to_ids(text: str) -> list[int]:
    """The ids of blank-separated words; a word outside the vocabulary becomes ``<unk>``, as in the tokenizer."""
    table = _ids()
    return [table.get(word, UNKNOWN) for word in text.split()]


def write_tokenizer(folder: Path, max_length: int) -> Sequence[Path]:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (Hugging Face format, one word per token) into ``folder``.

    Nothing is added around a text and nothing is cleaned up on decoding, so ``decode(encode(text)) == text`` for any
    text of known words joined by single blanks. ``max_length`` is the model's longest input in tokens.
    """
    plain = ("single_word", "lstrip", "rstrip", "normalized")
    special = [
        {"id": i, "content": MARKS[i], "special": True, **dict.fromkeys(plain, False)} for i in (PAD, UNKNOWN, START)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(_ids()), "unk_token": MARKS[UNKNOWN]},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": MARKS[START],
        "pad_token": MARKS[PAD],
        "unk_token": MARKS[UNKNOWN],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    for path, content in zip(files, (tokenizer, config), strict=True):
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return files
