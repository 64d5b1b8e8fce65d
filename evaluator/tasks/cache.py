"""Samples on disk, as a `datasets.Dataset` in a folder named by a hash of everything that they depend on."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.tasks.samples import Sample
from vortexlab.kernels import disk

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "VORTEX_CACHE"
#: Bytes of samples over all tasks; those that were used longest ago go first.
SAMPLES_CAP = 2_000_000_000


def cache_folder() -> Path:
    """`$VORTEX_CACHE`, else `vortex` in the user's cache folder."""
    if chosen := os.environ.get(FOLDER):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vortex"


def cached(
    key: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, make: Callable[[], Sequence[Sample]]
) -> list[Sample]:
    """The samples of `key` from disk, else those that `make` makes, which are then kept.

    A cache that cannot be written or read costs time and nothing else.
    """
    from datasets import Dataset

    from vortexlab.evaluator.tasks.dataset import from_dataset, quiet, to_dataset

    folder = cache_folder() / "tasks" / digest(dict(key))
    if folder.is_dir():
        try:
            found = from_dataset(Dataset.load_from_disk(str(folder)), tokenizer)
            disk.touch(folder)
            return found
        except (OSError, ValueError, KeyError, VortexError):
            shutil.rmtree(folder, ignore_errors=True)  # cut off by a full disk, or of another release
    samples = list(make())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part, quiet():
            to_dataset(samples, tokenizer).save_to_disk(f"{part}/found")
            os.replace(f"{part}/found", folder)
        disk.trim(folder.parent.iterdir(), SAMPLES_CAP)
    except OSError:
        pass  # no room, or another process was faster
    return samples


def samples_digest(samples: Sequence[Sample]) -> str:
    """SHA-256 over token ids, lengths and references of samples, in their order."""
    return digest([
        [item.task, item.length, item.index, item.context,
         [[turn.question, turn.answer, None if turn.reference is None else [*vars(turn.reference).values()]]
          for turn in item.turns]]
        for item in samples
    ])  # fmt: skip
