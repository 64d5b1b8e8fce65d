"""The differential kit itself: it accepts the reference dressed as an executor, and finds faults planted in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.differential import (
    Expected,
    check_causality,
    check_growth,
    check_layouts,
    check_rows,
    check_sharing,
    compare,
    page_lists,
)
from vortexlab.dsl import parse, reference
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.reference import Lists
from vortexlab.dsl.testing import Case, random_case, random_program
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists


class Dressed:
    """The reference as an executor, in fp32: it reads the cache's tokens and keeps no summaries."""

    def __init__(self, program: Program, static: Static) -> None:
        self.program, self.static = program, static

    def new_state(self, cache: PagedKV) -> Any:
        return None

    def summarize(self, state: Any, cache: PagedKV, pages: Tensor | None = None) -> None:
        pass

    def update(self, state: Any, cache: PagedKV) -> None:
        pass

    def context(self, cache: PagedKV) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [cache.dense(row) for row in range(cache.batch)]
        return [k.float() for k, _ in pairs], [v.float() for _, v in pairs]

    def lists(self, q: Tensor, cache: PagedKV) -> list[list[Lists]]:
        keys, values = self.context(cache)
        return reference.select(
            self.program, self.static, q, keys, values, dtype=torch.float32, cache_dtype=cache.k.dtype
        )

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        rows = cache.busy()
        if rows is not None:
            return self.select(q[rows], state, cache.part(rows)).spread(rows, cache.batch)
        return page_lists(self.lists(q, cache))

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        rows = cache.busy()
        if rows is not None:
            out = torch.zeros_like(q)
            out[rows] = self.attend(q[rows], cache.part(rows), PageLists(lists.pages[rows], lists.counts[rows]))
            return out
        keys, values = self.context(cache)
        given = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()]
        return reference.attend(self.program.page_size, self.static, q.float(), keys, values, given).to(q.dtype)

    def decode(self, q: Tensor, state: Any, cache: PagedKV) -> tuple[Tensor, PageLists]:
        lists = self.select(q, state, cache)
        return self.attend(q, cache, lists), lists


SCORED = """
@program(page=8)
class Scored:
    def summarize(k, v):
        return dict(lo=k.min(token), hi=k.max(token), centre=v.mean(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head) + s.centre.max(channel)

    def select(score, ctx):
        return topk(score, ctx.pages // 4 + 1, among=~first(1)) | first(1) | last(2)
"""

PER_HEAD = """
@program(page=8, summaries="bf16")
class PerHead:
    def summarize(k):
        return dict(centre=(k * abs(k)).sum(token))

    def score(q, s):
        return dot(q, s.centre, channel)

    def select(score):
        return topp(score, 0.6, scale=0.25, max=9) | above(score, score.mean(page), max=5)
"""


def cases(kinds: tuple[str, ...], count: int = 12, max_length: int = 200) -> list[Case]:
    return [
        random_case(seed, parse(text), kinds=kinds, max_length=max_length)
        for text in (SCORED, PER_HEAD)
        for seed in range(count)
    ]


def test_the_reference_in_fp32_agrees_with_itself() -> None:
    for seed in range(20):
        case = random_case(seed, parse(random_program(random.Random(seed))), max_length=120)
        assert compare(Dressed, case).disagreements == []


def test_checks_accept_the_reference() -> None:
    for case in cases(("integers", "normal"), 2, 100):
        expected = Expected.of(case)
        for check in (check_layouts, check_rows, check_causality):
            assert check(Dressed, case, expected).disagreements == []
        assert check_growth(Dressed, case, expected, 4).disagreements == []
        assert check_sharing(Dressed, case, 4).disagreements == []


def test_lists_are_determined_where_scores_are_exact() -> None:
    """On integers and pages of a power of two nothing is left open, so every page is judged."""
    for case in cases(("integers", "ties", "zeros")):
        if case.program.name == "Scored" and case.keys[0].dtype == torch.float32:
            report = compare(Dressed, case)
            assert report.open == 0 and report.determined == report.lists and report.differing == 0


def test_real_values_leave_little_open() -> None:
    pages = open_pages = 0
    for case in cases(("normal", "outliers")):
        report = compare(Dressed, case)
        pages, open_pages = pages + report.pages, open_pages + report.open
    assert pages > 500 and open_pages <= pages / 100


def _changed(change: Callable[[list[int], int], list[int]]) -> type[Dressed]:
    """An executor whose lists are changed: pages, own page -> pages."""

    class Changed(Dressed):
        def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
            lists = self.lists(q, cache)
            own = ((cache.lengths - 1) // self.program.page_size).tolist()
            return page_lists(
                [
                    [[tuple(change(list(pages), own[b])) for pages in per_kv] for per_kv in row]
                    for b, row in enumerate(lists)
                ]
            )

    return Changed


class _OtherTieOrder(Dressed):
    def lists(self, q: Tensor, cache: PagedKV) -> list[list[Lists]]:
        from vortexlab.dsl import reference_sets

        kept = reference_sets.ranked
        reference_sets.ranked = lambda scores: sorted(scores, key=lambda page: (-scores[page], -page))
        try:
            return super().lists(q, cache)
        finally:
            reference_sets.ranked = kept


class _WiderSummaries(Dressed):
    """Never rounds summaries."""

    def lists(self, q: Tensor, cache: PagedKV) -> list[list[Lists]]:
        from vortexlab.dsl import reference_ops

        kept = reference_ops.rounded
        reference_ops.rounded = lambda tensor, stored: tensor
        try:
            return super().lists(q, cache)
        finally:
            reference_ops.rounded = kept


class _ReadsPastTheEnd(Dressed):
    def context(self, cache: PagedKV) -> tuple[list[Tensor], list[Tensor]]:
        longer = (cache.lengths + 1).clamp(max=cache.capacity)
        return super().context(PagedKV(cache.k, cache.v, cache.table, longer, cache.block))


class _BlocksInOrder(Dressed):
    """Ignores the table."""

    def context(self, cache: PagedKV) -> tuple[list[Tensor], list[Tensor]]:
        order = torch.arange(cache.table.numel()).view_as(cache.table).int() % cache.k.shape[0]
        return super().context(PagedKV(cache.k, cache.v, order, cache.lengths, cache.block))


class _FirstRowsLength(Dressed):
    """Takes every row to be as long as the first, budgets included."""

    def lists(self, q: Tensor, cache: PagedKV) -> list[list[Lists]]:
        lists = super().lists(q, cache)
        return [lists[0] for _ in lists]


class _FirstHeadsList(Dressed):
    def lists(self, q: Tensor, cache: PagedKV) -> list[list[Lists]]:
        return [[[per_kv[0]] * len(per_kv) for per_kv in row] for row in super().lists(q, cache)]


class _ScaleForgotten(Dressed):
    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q / self.static.scale, cache, lists)


class _HeadsInterleaved(Dressed):
    """Takes query head h to belong to KV head ``h % kv_heads``."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        order = torch.arange(q.shape[1]).view(self.static.group, self.static.kv_heads).T.flatten()
        out = super().attend(q[:, order], cache, lists)
        return out[:, order.argsort()]


class _LowPrecisionAttention(Dressed):
    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q.half(), cache, lists).half().to(q.dtype)


class _NanOutput(Dressed):
    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        out = super().attend(q, cache, lists)
        out[-1, -1, -1] = torch.nan
        return out


class _UnwrittenOutput(Dressed):
    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        out = torch.empty_like(q)
        out[:, 1:] = super().attend(q, cache, lists)[:, 1:]
        return out


FAULTS: dict[str, type[Dressed]] = {
    "own page missing": _changed(lambda pages, own: pages[:-1] or [own]),
    "a page too few": _changed(lambda pages, own: pages[1:] if len(pages) > 1 else pages),
    "a page too many": _changed(lambda pages, own: sorted({*pages, *range(own)} if own < 3 else {*pages, 1, 2})),
    "one page on": _changed(lambda pages, own: sorted({min(own, page + 1) for page in pages} | {own})),
    "unordered": _changed(lambda pages, own: pages[::-1]),
    "a page twice": _changed(lambda pages, own: [pages[0], *pages]),
    "ties to the later page": _OtherTieOrder,
    "summaries in full precision": _WiderSummaries,
    "reads past the end": _ReadsPastTheEnd,
    "ignores the block table": _BlocksInOrder,
    "one length for all rows": _FirstRowsLength,
    "one list for all heads": _FirstHeadsList,
    "softmax scale left out": _ScaleForgotten,
    "query heads interleaved": _HeadsInterleaved,
    "attention in half precision": _LowPrecisionAttention,
    "NaN in the output": _NanOutput,
    "output not written": _UnwrittenOutput,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str) -> None:
    for case in cases(("dyadic", "ties", "normal")):
        try:
            if compare(FAULTS[fault], case).disagreements:
                return
        except IndexError:  # a crash is a finding too
            return
    pytest.fail(f"no case finds: {fault}")


class _Remembers(Dressed):
    """Keeps what it read when a page was complete: right from scratch, wrong in what the parameters say."""

    batch_matters = False
    layout_matters = False
    never_updates = False

    def new_state(self, cache: PagedKV) -> Any:
        return {}

    def summarize(self, state: Any, cache: PagedKV, pages: Tensor | None = None) -> None:
        state["lengths"] = cache.lengths.tolist()

    def update(self, state: Any, cache: PagedKV) -> None:
        if not self.never_updates:
            state["lengths"] = cache.lengths.tolist()

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        rows = cache.busy()
        if rows is not None:
            some = {"lengths": [state["lengths"][row] for row in rows]}
            return self.select(q[rows], some, cache.part(rows)).spread(rows, cache.batch)
        lists = self.lists(q, cache)
        page = self.program.page_size
        wrong = (self.batch_matters and cache.batch == 1) or (self.layout_matters and cache.block == 1)
        known = [-(-length // page) for length in state["lengths"]]
        return page_lists(
            [
                [[tuple(p for p in pages if p < max(1, known[b]) or p == pages[-1]) if not wrong else pages[-1:]
                  for pages in per_kv] for per_kv in row]
                for b, row in enumerate(lists)
            ]
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("batch_matters", check_rows),
        ("layout_matters", check_layouts),
        ("never_updates", lambda executor, case, expected: check_growth(executor, case, expected, 9)),
    ],
)
def test_faults_that_only_a_change_shows_are_found(fault: str, check: Callable[..., Any]) -> None:
    broken = type("Broken", (_Remembers,), {fault: True})
    found = False
    for case in cases(("integers",), 3, 100):
        expected = Expected.of(case)
        assert check(_Remembers, case, expected).disagreements == []
        found = found or bool(check(broken, case, expected).disagreements)
    assert found


class _LooksAhead(Dressed):
    """Summarises with the tokens that lie in the cache now, whatever the length will be."""

    def summarize(self, state: Any, cache: PagedKV, pages: Tensor | None = None) -> None:
        self.longest = cache.lengths.clone()

    def lists(self, q: Tensor, cache: PagedKV) -> list[list[Lists]]:
        page = self.program.page_size
        ahead = torch.minimum(self.longest, (cache.lengths // page + 1) * page + 1)
        longer = super().lists(q, PagedKV(cache.k, cache.v, cache.table, ahead.int(), cache.block))
        own = ((cache.lengths - 1) // page).tolist()
        return [
            [[tuple(sorted({p for p in pages if p < own[b]} | {own[b]})) for pages in per_kv] for per_kv in row]
            for b, row in enumerate(longer)
        ]


def test_looking_ahead_is_found() -> None:
    found = []
    for case in cases(("integers",), 3):
        found += check_causality(_LooksAhead, case, Expected.of(case)).disagreements
    assert found
