"""The tokenizer in a model's folder, and what tells it from another one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece", "sentencepiece")


def tokenizer_digest(model: str) -> str:
    """SHA-256 over names and contents of the files of a tokenizer, its chat template included."""
    total = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.is_file() and path.name.startswith(_FILES):
            total.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def load_tokenizer(model: str) -> tuple[PreTrainedTokenizerBase, int]:
    """The tokenizer of a model folder, and the most tokens that the model reads.

    Raises `VortexError` when there is none, or it cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        longest = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        most = int(longest.get_text_config().max_position_embeddings)
    except Exception as error:  # whatever a broken folder makes the loaders raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VortexError(f"model {model!r} has no tokenizer that can be loaded: {first[:200]}") from error
    # Without a vocabulary an empty tokenizer is made, not refused.
    names = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((Path(model) / name).is_file() for name in names):
        raise VortexError(f"model {model!r} has no tokenizer; put its {' or '.join(sorted(names))} beside the weights")
    return tokenizer, most
