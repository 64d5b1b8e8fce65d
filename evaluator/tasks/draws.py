"""Where the task families take their randomness from.

A family is a pure function of random tensors with one row per sample. Evaluation draws every row from a NumPy generator
of its own, so a sample depends on its seed and index alone; training draws whole batches on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Draws(Protocol):
    """A source of random tensors with ``rows`` rows on ``device``."""

    rows: int
    device: torch.device

    def uniform(self, count: int) -> Tensor:
        """float32 [rows, count] in [0, 1)."""

    def integers(self, count: int, high: int) -> Tensor:
        """int64 [rows, count] in [0, high)."""


class SeededDraws:
    """One NumPy generator per row, on the CPU: row ``i`` does not depend on which other rows are drawn with it."""

    def __init__(self, seeds: Sequence[np.random.SeedSequence]) -> None:
        self._generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self.rows = len(self._generators)
        self.device = torch.device("cpu")

    def uniform(self, count: int) -> Tensor:
        return torch.from_numpy(np.stack([g.random(count, dtype=np.float32) for g in self._generators]))

    def integers(self, count: int, high: int) -> Tensor:
        return torch.from_numpy(np.stack([g.integers(0, high, count, dtype=np.int64) for g in self._generators]))


class BatchDraws:
    """One torch generator for the whole batch, on any device: fast enough to feed training."""

    def __init__(self, rows: int, generator: torch.Generator) -> None:
        self._generator = generator
        self.rows = rows
        self.device = generator.device

    def uniform(self, count: int) -> Tensor:
        return torch.rand(self.rows, count, generator=self._generator, device=self.device)

    def integers(self, count: int, high: int) -> Tensor:
        return torch.randint(high, (self.rows, count), generator=self._generator, device=self.device)
