"""Distinct two-token keys, and keys that nearly match them.

A key is a pair of key halves (256 x 256). The keys of a sample are the images of 0, 1, 2, ... under a random bijection
of the 65,536 pairs: a Feistel network of four rounds with random round tables (Luby and Rackoff, 1988). So they are
distinct by construction, and the inverse tells at once whether some other pair is a key of the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vortexlab.evaluator.tasks.draws import Draws
from vortexlab.evaluator.tasks.vocabulary import KEY, KEY_HALVES

_ROUNDS = 4
_CANDIDATES = 4


class KeyRing:
    """The keys of a batch of samples; key number ``i`` of a row is a pair of token ids."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self._rounds = draws.integers(_ROUNDS * KEY_HALVES, KEY_HALVES).view(draws.rows, _ROUNDS, KEY_HALVES)

    def keys(self, count: int, start: int = 0) -> Tensor:
        """Keys number ``start`` to ``start + count - 1``: int64 token ids [rows, count, 2]."""
        number = torch.arange(start, start + count, device=self._draws.device).expand(self._draws.rows, count)
        left, right = number // KEY_HALVES, number % KEY_HALVES
        for i in range(_ROUNDS):
            left, right = right, left ^ self._rounds[:, i].gather(1, right)
        return torch.stack([left, right], dim=-1) + KEY

    def _numbers(self, left: Tensor, right: Tensor) -> Tensor:
        """The inverse of :meth:`keys`: the number of each pair of halves (without the class offset), [rows, n]."""
        for i in reversed(range(_ROUNDS)):
            left, right = right ^ self._rounds[:, i].gather(1, left), left
        return left * KEY_HALVES + right

    def near_misses(self, keys: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """For each of ``keys`` [rows, n, 2], a pair that shares exactly one half with it.

        The pair is none of the first ``used`` keys of its row. Returns token ids [rows, n, 2] and a bool mask
        [rows, n]; where it is False no such pair was found among the few tried.
        """
        rows, count, _ = keys.shape
        halves = keys - KEY
        side = self._draws.integers(count, 2)  # which half is replaced
        found = torch.zeros(rows, count, dtype=torch.bool, device=keys.device)
        result = halves
        for _ in range(_CANDIDATES):
            shift = 1 + self._draws.integers(count, KEY_HALVES - 1)  # never zero, so the half does change
            candidate = halves.clone()
            candidate.scatter_add_(2, side[..., None], shift[..., None])
            candidate %= KEY_HALVES
            free = self._numbers(candidate[..., 0], candidate[..., 1]) >= used
            result = torch.where((free & ~found)[..., None], candidate, result)
            found = found | free
        return result + KEY, found
