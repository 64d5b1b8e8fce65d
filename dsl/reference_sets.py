"""The reference meaning of sets of pages: order, selectors, random pages, set algebra, one list at a time.

Scores are plain dictionaries from candidate page to number, sets are frozen sets of page numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vortexlab.dsl.ir import Static
from vortexlab.dsl.scalars import pages_of

#: The pages that one query head reads, ascending.
PageList = tuple[int, ...]


def list_of_head(head: int, lists: Sequence[object]) -> int:
    """Rule 2, lists: one list serves the whole group, or each query head of the group has its own."""
    return 0 if len(lists) == 1 else head


def own_page(length: int, page: int) -> int:
    """Rule 3, the own page: the one that holds the query's token, full or not; always attended, never a candidate.

    The candidates are the pages before it, so a page becomes a candidate at the first step after its last token.
    """
    return pages_of(length, page) - 1


def finished(chosen: frozenset[int], own: Sequence[int]) -> PageList:
    """Rule 3, the own page: the list that attention reads is the selected set and the own page, ascending.

    A block of prefill has for `own` all the pages that it touches.
    """
    return tuple(sorted(chosen | {*own}))


def ranked(scores: dict[int, float]) -> list[int]:
    """Rule 5, order: the higher score first, of equal scores the smaller page; -0 equals +0."""
    return sorted(scores, key=lambda page: (-scores[page], page))


def eligible(scores: dict[int, float], among: frozenset[int]) -> dict[int, float]:
    """Rule 5, order: a page whose score is -inf or NaN is never chosen. Rule 4: nor one outside `among`."""
    return {page: score for page, score in scores.items() if page in among and score > -math.inf}


def random_pages(static: Static, seed: int, salt: int, kv: int, length: int, n: int, allowed: list[int]) -> list[int]:
    """Rule 6, random: a counter-based hash of (seed, salt, layer, KV head, page, position), the n smallest.

    32-bit unsigned arithmetic that wraps around; the position of the query is ``length - 1``.
    """

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    def draw(page: int) -> int:
        h = mix((seed ^ 0x9E3779B9) & 0xFFFFFFFF)
        for fact in (salt, static.layer, kv, page, length - 1):
            h = mix(h ^ fact)
        return h

    return sorted(allowed, key=lambda page: (draw(page), page))[: max(0, n)]


def topk(scores: dict[int, float], n: int, among: frozenset[int]) -> list[int]:
    """Rule 4, selectors: the n candidates of `among` with the highest scores."""
    return ranked(eligible(scores, among))[: max(0, n)]


def topp(scores: dict[int, float], p: float, scale: float, most: int, among: frozenset[int]) -> list[int]:
    """Rule 4, selectors: the smallest set of best candidates whose softmax(scale * score) mass reaches p.

    At least one; over the bound `most` the best scores are kept.
    """
    allowed = eligible(scores, among)
    order = ranked(allowed)
    if not order:
        return []
    logits = torch.tensor([scale * allowed[page] for page in order], dtype=torch.float64)
    mass = torch.softmax(logits, 0).tolist()
    before, taken = 0.0, 0
    while taken < len(order) and (taken == 0 or before < p):
        before += mass[taken]
        taken += 1
    return order[: min(taken, max(0, most))]


def above(scores: dict[int, float], threshold: float, most: int, among: frozenset[int]) -> list[int]:
    """Rule 4, selectors: the candidates whose score exceeds the threshold, the best `most` of them."""
    over = {page: score for page, score in eligible(scores, among).items() if score > threshold}
    return ranked(over)[: max(0, most)]


def pattern(op: str, numbers: list[float], own: int) -> frozenset[int]:
    """Rule 4, selectors: the patterns that look at no score. `last` counts from the own page."""
    every = range(own + 1)
    if op == "first":
        return frozenset(p for p in every if p < numbers[0])
    if op == "last":
        return frozenset(p for p in every if p > own - numbers[0])
    if op == "stride":
        n = max(1, int(numbers[0]))
        return frozenset(p for p in every if p % n == int(numbers[1]) % n)
    assert op == "everything"
    return frozenset(every)


def algebra(op: str, sets: list[frozenset[int]], own: int) -> frozenset[int]:
    """Rule 4, selectors: union, intersection, difference and complement, plain set algebra over pages 0..own."""
    if op == "complement":
        return frozenset(range(own + 1)) - sets[0]
    if op == "union":
        return sets[0] | sets[1]
    return sets[0] & sets[1] if op == "intersect" else sets[0] - sets[1]
