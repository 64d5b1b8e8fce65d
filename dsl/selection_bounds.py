"""What selectors and set algebra may do when the numbers they see are only known within bounds.

A set is a pair of masks over pages 0..own: what every correct executor has in it, and what some correct executor
may have in it (three-valued logic). Used by `tolerance` to judge executors; with bounds of 0 it is the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.ir import Node, Program, Static
from vortexlab.dsl.reference_sets import own_page, random_pages

UNIT = 2.0**-24


@dataclass(frozen=True)
class Uncertain:
    """A number, or one per candidate page, known within `error`."""

    value: Tensor
    error: Tensor

    @property
    def low(self) -> Tensor:
        return self._end(self.value - self.error, -math.inf)

    @property
    def high(self) -> Tensor:
        return self._end(self.value + self.error, math.inf)

    def _end(self, moved: Tensor, unknown: float) -> Tensor:
        """An infinite value with an infinite error may be anything."""
        return torch.where(self.error == 0, self.value, torch.where(moved.isnan(), unknown, moved))


@dataclass(frozen=True)
class PageMask:
    """bool [own + 1] each: pages that are surely in the set, and pages that may be."""

    must: Tensor
    may: Tensor


def open_set(
    program: Program, static: Static, node: Node, operands: Sequence[PageMask | Uncertain], kv: int, length: int
) -> PageMask:
    """The set that `node` makes for one list; `operands` are its inputs as that list sees them."""
    own = own_page(length, program.page_size)
    page = torch.arange(own + 1)
    sets = [item for item in operands if isinstance(item, PageMask)]
    numbers = [item for item in operands if isinstance(item, Uncertain)]
    if node.op == "everything":
        return _certain(torch.ones(own + 1, dtype=torch.bool))
    if node.op == "first":
        return PageMask(page < numbers[0].low, page < numbers[0].high)
    if node.op == "last":
        return PageMask(page > own - numbers[0].low, page > own - numbers[0].high)
    if node.op == "stride":
        if any(item.error.item() > 0 for item in numbers):
            return PageMask(torch.zeros(own + 1, dtype=torch.bool), torch.ones(own + 1, dtype=torch.bool))
        n = max(1, int(numbers[0].value))
        return _certain(page % n == int(numbers[1].value) % n)
    if node.op == "union":
        return PageMask(sets[0].must | sets[1].must, sets[0].may | sets[1].may)
    if node.op == "intersect":
        return PageMask(sets[0].must & sets[1].must, sets[0].may & sets[1].may)
    if node.op == "difference":
        return PageMask(sets[0].must & ~sets[1].may, sets[0].may & ~sets[1].must)
    if node.op == "complement":
        return PageMask(~sets[0].may, ~sets[0].must)
    if node.op == "where":
        if numbers[0].error.item() > 0:
            return PageMask(sets[0].must & sets[1].must, sets[0].may | sets[1].may)
        return sets[0] if numbers[0].value.item() else sets[1]
    among = sets[0] if sets else _certain(torch.ones(own + 1, dtype=torch.bool))
    must, may = among.must[:own], among.may[:own]
    if node.op == "random":
        salt = int(node.attrs.get("salt", 0))  # type: ignore[arg-type]
        order = random_pages(static, program.seed, salt, kv, length, own, list(range(own)))
        drawn = torch.zeros(own, dtype=torch.float64)
        drawn[order] = -torch.arange(own, dtype=torch.float64)
        score = Uncertain(drawn, torch.zeros_like(drawn))
        return _with_own(_contest(score, must, may, numbers[0]))
    score = numbers[0]
    if node.op == "topk":
        return _with_own(_contest(score, must, may, numbers[1]))
    if node.op == "above":
        over, maybe = score.low > numbers[1].high, score.high > numbers[1].low
        return _with_own(_contest(score, must & over, may & maybe, numbers[2]))
    assert node.op == "topp"
    return _with_own(_mass_contest(score, must, may, *numbers[1:]))


def _certain(mask: Tensor) -> PageMask:
    return PageMask(mask, mask)


def _with_own(mask: PageMask) -> PageMask:
    """Selectors of candidates never choose the own page."""
    no = torch.zeros(1, dtype=torch.bool)
    return PageMask(torch.cat([mask.must, no]), torch.cat([mask.may, no]))


@dataclass(frozen=True)
class _Ranks:
    """Who stands before whom: [page, other page]; and who can be chosen at all."""

    surely: Tensor
    possibly: Tensor
    before_surely: Tensor
    before_possibly: Tensor


def _ranks(score: Uncertain, must: Tensor, may: Tensor) -> _Ranks:
    nan = score.value.isnan() & (score.error == 0)
    surely, possibly = must & (score.low > -math.inf), may & (score.high > -math.inf) & ~nan
    low, high = score.low[:, None], score.high[:, None]
    page = torch.arange(must.shape[0])
    smaller = page[None, :] < page[:, None]
    other = page[None, :] != page[:, None]
    sure = (score.low > high) | ((score.low == high) & smaller)
    open_ = (score.high > low) | ((score.high == low) & smaller)
    return _Ranks(surely, possibly, sure & surely & other, open_ & possibly & other)


def _contest(score: Uncertain, must: Tensor, may: Tensor, count: Uncertain) -> PageMask:
    """The `count` best of the allowed pages."""
    ranks = _ranks(score, must, may)
    sure = ranks.surely & (ranks.before_possibly.sum(1) < count.low)
    possible = ranks.possibly & (ranks.before_surely.sum(1) < count.high)
    return PageMask(sure, possible)


def _mass_contest(
    score: Uncertain, must: Tensor, may: Tensor, mass: Uncertain, scale: Uncertain, most: Uncertain
) -> PageMask:
    """The best of the allowed pages until their softmax mass reaches `mass`."""
    ranks = _ranks(score, must, may)
    if not ranks.possibly.any():
        return PageMask(ranks.surely, ranks.possibly)
    logit = torch.where(ranks.possibly, scale.value * score.value, -math.inf)
    error = scale.value.abs() * score.error + (score.value.abs() + score.error) * scale.error
    top = logit.max()
    error = (error + UNIT * (2 * logit.abs() + top.abs() + 4)).nan_to_num(nan=math.inf, posinf=math.inf)
    error = torch.where(ranks.possibly, error, 0.0)
    heavy, light = torch.exp(logit - top + error), torch.exp(logit - top - error)
    heavy, light = heavy.nan_to_num(nan=math.inf, posinf=math.inf), light.nan_to_num(nan=0.0)
    sure_light, open_heavy = torch.where(ranks.surely, light, 0.0), torch.where(ranks.possibly, heavy, 0.0)
    slack = (must.shape[0] + 16) * UNIT

    def part(before: Tensor, rest: Tensor) -> Tensor:
        return (before / (before + rest)).nan_to_num(nan=1.0)

    most_before = torch.where(ranks.before_possibly, open_heavy, 0.0).sum(1)
    least_rest = torch.where(ranks.before_possibly, 0.0, sure_light).sum(1)
    least_before = torch.where(ranks.before_surely, sure_light, 0.0).sum(1)
    most_rest = torch.where(ranks.before_surely, 0.0, open_heavy).sum(1)
    upper = part(most_before, least_rest) * (1 + slack) + slack
    lower = torch.where(most_rest.isinf(), 0.0, part(least_before, most_rest)) * (1 - slack) - slack
    rank_high, rank_low = ranks.before_possibly.sum(1), ranks.before_surely.sum(1)
    sure = ranks.surely & ((upper < mass.low) | (rank_high == 0)) & (rank_high < most.low)
    possible = ranks.possibly & ((lower < mass.high) | (rank_low == 0)) & (rank_low < most.high)
    return PageMask(sure, possible)
