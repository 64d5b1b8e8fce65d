"""Which request a decoding row continues. vLLM's attention metadata does not say, and a program that carries something
from step to step has to know.

A request is known by the place in the pool where its newest token lies, which it alone writes: a row continues the
request whose newest token of the step before is its second newest now. Whoever writes a place ends what was known by
it, so blocks that are given back and used again name nobody. A request that is preempted is read as a prompt, in other
places: it begins anew.

A full block may be found by others, or again after a preemption, and its last place with it. A row whose second newest
token is such a last place continues only a request that decoded in the very step before, and only as the single row
that could.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vortexlab.deploy.vllm.pages import Rows


@dataclass(frozen=True)
class Continued:
    """For every decoding row its slot, and the slots of those that begin with this step."""

    slots: list[int]
    begun: list[int]


def slots(config: Any) -> int:
    """Slots for the requests of an engine (vLLM's `VllmConfig`): twice as many as it runs at once."""
    return 2 * int(config.scheduler_config.max_num_seqs)


class Requests:
    """Slots for `count` requests; of more, those that were seen least lately begin anew."""

    def __init__(self, count: int):
        self.count = count
        self._now = 0
        self._slot_at: dict[int, int] = {}  # place of the newest token -> slot, the least lately seen first
        self._seen = [0] * count  # slot -> the step that it was last seen in
        self._free = list(range(count))[::-1]

    def step(self, decoding: Rows, written: Tensor, block: int) -> Continued:
        """After a step's tokens got the places `written` (int [tokens], below 0 for none), those of `decoding` too."""
        self._now += 1
        lengths = decoding.lengths.tolist()
        table = decoding.table.tolist()
        newest = [_place(row, length - 1, block) for row, length in zip(table, lengths, strict=True)]
        before = [_place(row, length - 2, block) for row, length in zip(table, lengths, strict=True)]
        claims = Counter(before)
        found = [self._continued(place, claims[place], block) for place in before]
        self._end([*before, *written.tolist()])
        chosen, begun = [], []
        for slot in found:
            if slot is None:
                slot = self._take()
                begun.append(slot)
            self._seen[slot] = self._now
            chosen.append(slot)
        self._slot_at.update(zip(newest, chosen, strict=True))
        return Continued(chosen, begun)

    def _continued(self, place: int, claims: int, block: int) -> int | None:
        """The slot of the request whose newest token lies there, taken out; None where that is nobody for sure."""
        slot = self._slot_at.get(place)
        shared = place % block == block - 1
        if slot is None or (shared and (claims > 1 or self._seen[slot] != self._now - 1)):
            return None
        del self._slot_at[place]
        return slot

    def _end(self, places: Iterable[int]) -> None:
        for place in places:
            slot = self._slot_at.pop(place, None)
            if slot is not None:
                self._free.append(slot)

    def _take(self) -> int:
        if not self._free:
            self._end([next(iter(self._slot_at))])
        return self._free.pop()


def _place(row: list[int], position: int, block: int) -> int:
    """Where the token at a position lies in the pool; -1 for positions below 0."""
    return row[position // block] * block + position % block if position >= 0 else -1
