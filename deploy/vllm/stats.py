"""What an engine's steps read, kept in a JSON file for whoever asked for one (`stats` in the pattern's settings)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass
class Stats:
    """Counts of one worker. A decode step counts once for every request in it."""

    pattern: str
    path: Path
    sparse_steps: int = 0
    dense_steps: int = 0  # decode steps that the gate made dense
    other_tokens: int = 0  # read by the stock kernels: prompts and what is computed again
    read: float = 0.0  # share of its context that a sparse step read, summed over steps and layers
    layers: int = 0

    def count(self, split: Any) -> None:
        """Counts a step, once for all layers."""
        decoding = split.decoding.lengths.numel()
        self.sparse_steps += decoding * split.sparse
        self.dense_steps += decoding * (not split.sparse)
        self.other_tokens += split.others.tokens.numel()

    def write(self, read: float, layers: int) -> None:
        """Written whole, beside it first: a reader finds what was after some step. `density` is the effective density
        of the sparse steps, None before the first."""
        self.read, self.layers = read, layers
        total = self.sparse_steps * layers
        text = json.dumps({**asdict(self), "path": None, "density": read / total if total else None})
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path)
