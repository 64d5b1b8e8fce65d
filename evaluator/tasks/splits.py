"""How a finite number of contexts is divided into splits that share none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

#: Contexts, in the order of their hashes, are dealt out in turn: 3, 1 and 1 of five.
DEAL = ("search", "validation", "search", "sealed", "search")


def deal(items: Iterable[T], key: Callable[[T], str], split: str) -> list[T]:
    """The items of a split, in the order of `key`; it depends on all the items and on nothing else."""
    return [item for place, item in enumerate(sorted(items, key=key)) if DEAL[place % len(DEAL)] == split]
