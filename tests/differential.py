"""Compares any executor with the reference on one configuration.

`compare` judges selections, attention under a given selection, and whole steps; the `check_*` functions repeat that
under changes that must not matter: other physical pages and blocks, other row orders, tokens after the end, and a
cache that grew token by token. Disagreements come back as text; an empty list is agreement.

A page may differ from the reference only where the reference's score, or mass, lies within the fp32 error bound of
the cut (`vortexlab.dsl.tolerance`). That bound is 0 where arithmetic is exact, so there lists must be equal. NaN is
never a wildcard: everything that a step may not read is NaN, and so is memory that an executor forgets to write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl import reference
from vortexlab.dsl.reference import Decode, Lists
from vortexlab.dsl.testing import Case
from vortexlab.dsl.tolerance import attention_tolerance, open_pages
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor, PageLists

#: Half a unit in the last place of an output's precision: relative, and for the numbers next to 0.
_OUTPUT = {torch.float32: (2.0**-24, 0.0), torch.bfloat16: (2.0**-8, 0.0), torch.float16: (2.0**-11, 2.0**-25)}


@dataclass
class Report:
    """What a comparison found. Counts are of candidate pages in lists."""

    disagreements: list[str] = field(default_factory=list)
    lists: int = 0
    determined: int = 0
    pages: int = 0
    open: int = 0
    differing: int = 0
    nan: bool = False
    worst_error: float = 0.0

    def add(self, other: Report) -> None:
        self.disagreements += other.disagreements
        for name in ("lists", "determined", "pages", "open", "differing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.nan |= other.nan
        self.worst_error = max(self.worst_error, other.worst_error)


@dataclass
class Expected:
    """The reference's answer to a case: the step, what must and may be selected, and the inputs in float64."""

    case: Case
    step: Decode
    allowed: list[list[list[tuple[frozenset[int], frozenset[int]]]]]
    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @staticmethod
    def of(case: Case) -> Expected:
        q, keys, values = case.q.double(), [k.double() for k in case.keys], [v.double() for v in case.values]
        dtype = case.keys[0].dtype
        step = reference.run(case.program, case.static, q, keys, values, cache_dtype=dtype, keep_values=True)
        allowed = [
            open_pages(case.program, case.static, selection, length, dtype)
            for selection, length in zip(step.selections, case.lengths, strict=True)
        ]
        return Expected(case, step, allowed, q, keys, values)

    def rows(self, order: Sequence[int]) -> Expected:
        """The answer for the case's requests in another order, or for some of them."""
        part = rows_of(self.case, order)
        selections = [self.step.selections[i] for i in order]
        step = Decode(self.step.output[list(order)], selections, self.step.density, self.step.nan)
        return Expected(
            part, step, [self.allowed[i] for i in order], self.q[list(order)], [self.keys[i] for i in order],
            [self.values[i] for i in order],
        )  # fmt: skip


def rows_of(case: Case, order: Sequence[int]) -> Case:
    """The case's requests in another order, or some of them."""
    pick = list(order)
    return replace(case, q=case.q[pick], keys=[case.keys[i] for i in pick], values=[case.values[i] for i in pick])


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out unset holds NaN (or the largest integer)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def make_cache(
    case: Case,
    *,
    block: int | None = None,
    shuffle_seed: int | None = 1,
    spare: int = 0,
    free_blocks: int = 3,
    device: str = "cpu",
) -> PagedKV:
    """The case's context in a paged cache whose every other place holds NaN."""
    cache = PagedKV.from_dense(
        case.keys, case.values, block or case.block, shuffle_seed=shuffle_seed, spare=spare, free_blocks=free_blocks
    )
    used = torch.zeros(cache.k.shape[0], cache.block, dtype=torch.bool)
    for row, length in enumerate(cache.lengths.tolist()):
        tokens = torch.arange(length)
        used[cache.table[row].long()[tokens // cache.block], tokens % cache.block] = True
    for pool in (cache.k, cache.v):
        unused = ~used[:, None, :, None]
        if pool.element_size() == 1:
            pool.view(torch.uint8).masked_fill_(unused, 0x7F)  # NaN in both formats
        else:
            pool.masked_fill_(unused, torch.nan)
    parts = (part.to(device) for part in (cache.k, cache.v, cache.table, cache.lengths))
    return PagedKV(*parts, block=cache.block)


def page_lists(lists: list[list[Lists]], device: str = "cpu") -> PageLists:
    """The reference's lists in the form that executors attend under."""
    most = max(len(pages) for row in lists for per_kv in row for pages in per_kv)
    padded = [[[list(pages) + [-1] * (most - len(pages)) for pages in per_kv] for per_kv in row] for row in lists]
    counts = [[[len(pages) for pages in per_kv] for per_kv in row] for row in lists]
    return PageLists(*(torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (padded, counts)))


def judge_lists(expected: Expected, found: PageLists, what: str = "select") -> Report:
    """Compares selected pages with the reference's."""
    case, report = expected.case, Report(nan=expected.step.nan)
    page = case.program.page_size
    for b, row in enumerate(found.to_list()):
        own = (case.lengths[b] - 1) // page
        for kv, per_kv in enumerate(row):
            wanted, allowed = expected.step.lists[b][kv], expected.allowed[b][kv]
            place = f"{what}: {case}: row {b}, KV head {kv}"
            if len(per_kv) != len(wanted):
                report.disagreements.append(f"{place}: {len(per_kv)} lists where the reference has {len(wanted)}")
                continue
            for number, pages in enumerate(per_kv):
                if pages != sorted(set(pages)) or own not in pages or pages[0] < 0 or pages[-1] > own:
                    report.disagreements.append(f"{place}, list {number}: {pages} is no list of pages 0..{own}")
                    continue
                must, may = allowed[number]
                report.lists += 1
                report.pages += own
                report.open += len(may - must)
                report.determined += must == may
                if expected.step.selections[b].nan:
                    continue
                report.differing += len(set(pages) ^ set(wanted[number]))
                missing, extra = sorted(must - set(pages)), sorted(set(pages) - may)
                if missing or extra:
                    report.disagreements.append(
                        f"{place}, list {number}: misses {missing[:8]}, has beyond {extra[:8]}; reference "
                        f"{list(wanted[number])[:24]}, found {pages[:24]}, open {sorted(may - must)[:24]}"
                    )
    return report


def judge_output(expected: Expected, lists: list[list[Lists]], found: Tensor, what: str = "attend") -> Report:
    """Compares attention with the reference's under the same lists, each row relative to its own RMS."""
    case, report = expected.case, Report()
    shape = (*case.q.shape[:2], case.static.value_dim)
    if found.shape != shape or found.dtype != case.q.dtype:
        report.disagreements.append(
            f"{what}: {case}: {list(found.shape)} {found.dtype} where it should be {list(shape)} {case.q.dtype}"
        )
        return report
    page = case.program.page_size
    wanted = reference.attend(page, case.static, expected.q, expected.keys, expected.values, lists)
    bound = attention_tolerance(page, case.static, expected.q, expected.keys, expected.values, lists)
    relative, least = _OUTPUT[found.dtype]
    bound = bound + relative * wanted.abs().amax(-1) + least
    error = (found.double().cpu() - wanted).abs().amax(-1)
    rms = wanted.square().mean(-1).sqrt()
    over = ~(error <= bound)
    for b, head in over.nonzero().tolist():
        report.disagreements.append(
            f"{what}: {case}: row {b}, head {head}: error {error[b, head]:.3g}, allowed {bound[b, head]:.3g}, "
            f"RMS {rms[b, head]:.3g}"
        )
    report.worst_error = float((error / rms.clamp(min=1e-30)).nan_to_num(nan=torch.inf).where(rms > 0, error).max())
    return report


def prepared(executor_class: type[Executor], case: Case, cache: PagedKV) -> tuple[Executor, Any]:
    """An executor of the case's program and the summaries of the cache's complete pages."""
    executor = executor_class(case.program, case.static)
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    return executor, state


def compare(
    executor_class: type[Executor],
    case: Case,
    *,
    expected: Expected | None = None,
    cache: PagedKV | None = None,
    device: str = "cpu",
    what: str = "",
) -> Report:
    """Selection, attention under the reference's selection, and a whole step, of one executor on one case."""
    expected = expected or Expected.of(case)
    with poisoned():
        cache = cache or make_cache(case, device=device)
        executor, state = prepared(executor_class, case, cache)
        q = case.q.to(device)
        report = judge_lists(expected, executor.select(q, state, cache), what or "select")
        given = executor.attend(q, cache, page_lists(expected.step.lists, device))
        report.add(judge_output(expected, expected.step.lists, given, what or "attend"))
        output, lists = executor.decode(q, state, cache)
    step = judge_lists(expected, lists, what or "decode")
    report.disagreements += step.disagreements
    if not report.disagreements:
        own_lists = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()]
        report.add(judge_output(expected, own_lists, output, what or "decode"))
        page = case.program.page_size
        read = lists.tokens(cache.lengths, page).double().cpu()
        for b, length in enumerate(case.lengths):
            density = reference.density(page, length, own_lists[b])
            if abs(float(read[b].mean()) / length - density) > 1e-9:
                report.disagreements.append(f"density: {case}: row {b}: {read[b].tolist()} tokens, not {density}")
    return report


def check_layouts(executor_class: type[Executor], case: Case, expected: Expected) -> Report:
    """Which physical blocks hold the pages, and how large blocks are, changes nothing."""
    page, report = case.program.page_size, Report()
    blocks = {page: None, 2 * page: 7, 1: 9, **({page // 2: 8} if page % 2 == 0 else {})}
    for block, seed in blocks.items():
        cache = make_cache(case, block=block, shuffle_seed=seed)
        report.add(compare(executor_class, case, expected=expected, cache=cache, what=f"layout with blocks of {block}"))
    return report


def check_rows(executor_class: type[Executor], case: Case, expected: Expected) -> Report:
    """The order of the rows, and who else is in the batch, change nothing."""
    report, count = Report(), len(case.lengths)
    orders = [list(reversed(range(count))), *([row] for row in range(count))] if count > 1 else [[0, 0]]
    for order in orders:
        part = expected.rows(order)
        report.add(compare(executor_class, part.case, expected=part, what=f"rows {order}"))
    report.add(check_idle(executor_class, case, expected))
    return report


def with_idle(cache: PagedKV, places: Sequence[int]) -> PagedKV:
    """The cache with rows of length 0 inserted before the given rows; their table names no block."""
    table, lengths = cache.table, cache.lengths
    for place in sorted(places, reverse=True):
        none = table.new_full((1, table.shape[1]), -1)
        table = torch.cat([table[:place], none, table[place:]])
        lengths = torch.cat([lengths[:place], lengths.new_zeros(1), lengths[place:]])
    return PagedKV(cache.k, cache.v, table, lengths, cache.block)


def check_idle(executor_class: type[Executor], case: Case, expected: Expected) -> Report:
    """Rows without a request read nothing, give 0 and change nothing for the others, whatever their query holds."""
    count, report = len(case.lengths), Report()
    places = [0, count]
    rows = [row + 1 for row in range(count)]
    with poisoned():
        cache = with_idle(make_cache(case), places)
        executor, state = prepared(executor_class, case, cache)
        executor.update(state, cache)
        q = case.q.new_full((count + 2, *case.q.shape[1:]), torch.nan)
        q[rows] = case.q
        selected = executor.select(q, state, cache)
        output, lists = executor.decode(q, state, cache)
        apart = executor.attend(q, cache, lists)
    idle = [0, count + 1]
    for out, what in ((output, "decode"), (apart, "attend")):
        if bool((out[idle] != 0).any()) or bool(out[idle].isnan().any()):
            report.disagreements.append(f"idle rows: {case}: {what} gives them {out[idle].abs().max()}, not 0")
    for found, what in ((selected, "select"), (lists, "decode")):
        if bool(found.counts[idle].any()):
            report.disagreements.append(f"idle rows: {case}: {what} lists {found.counts[idle].tolist()} pages for them")
        part = PageLists(found.pages[rows], found.counts[rows])
        report.add(judge_lists(expected, part, f"{what} beside idle rows"))
    own_lists = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()[1:-1]]
    for out in (output, apart):
        report.add(judge_output(expected, own_lists, out[rows], "beside idle rows"))
    return report


def check_causality(executor_class: type[Executor], case: Case, expected: Expected) -> Report:
    """Tokens after a request's end change nothing, whatever they are; nor do summaries of pages that hold them."""
    generator = torch.Generator().manual_seed(case.seed)
    page = case.program.page_size

    def longer(x: Tensor) -> Tensor:
        more = torch.randn(x.shape[0], 2 * page + 1, x.shape[2], generator=generator) * 8
        return torch.cat([x, more.to(x.dtype)], 1)

    long = replace(case, keys=[longer(k) for k in case.keys], values=[longer(v) for v in case.values])
    cache = make_cache(long)
    executor, state = prepared(executor_class, long, cache)
    cache.lengths = torch.tensor(case.lengths, dtype=torch.int32)
    output, lists = executor.decode(case.q, state, cache)
    report = judge_lists(expected, lists, "causality")
    own_lists = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()]
    report.add(judge_output(expected, own_lists, output, "causality"))
    return report


def check_growth(executor_class: type[Executor], case: Case, expected: Expected, steps: int) -> Report:
    """A cache that grew token by token, summarised as pages were completed, gives what it gives from scratch."""
    short = [max(1, length - steps) for length in case.lengths]
    early = replace(
        case, keys=[k[:, :n] for k, n in zip(case.keys, short, strict=True)],
        values=[v[:, :n] for v, n in zip(case.values, short, strict=True)],
    )  # fmt: skip
    report = Report()
    with poisoned():
        cache = make_cache(early, spare=steps)
        executor, state = prepared(executor_class, early, cache)
        for step in range(min(steps, min(n - s for n, s in zip(case.lengths, short, strict=True)))):
            at = [n + step for n in short]
            cache.append(
                torch.stack([k[:, n] for k, n in zip(case.keys, at, strict=True)]),
                torch.stack([v[:, n] for v, n in zip(case.values, at, strict=True)]),
            )
            executor.update(state, cache)
            fresh, fresh_state = prepared(executor_class, case, cache)
            grown, scratch = executor.select(case.q, state, cache), fresh.select(case.q, fresh_state, cache)
            if grown.to_list() != scratch.to_list():
                report.disagreements.append(f"growth: {case}: after {step + 1} tokens the lists differ from scratch")
    if cache.lengths.tolist() == case.lengths:
        with poisoned():
            output, lists = executor.decode(case.q, state, cache)
        report.add(judge_lists(expected, lists, "growth"))
        own_lists = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()]
        report.add(judge_output(expected, own_lists, output, "growth"))
    return report


def check_sharing(executor_class: type[Executor], case: Case, steps: int) -> Report:
    """Two requests that share the blocks of a common beginning and then part give what they give apart."""
    generator = torch.Generator().manual_seed(case.seed)

    def parted(x: Tensor) -> list[Tensor]:
        shape = (2, x.shape[0], steps, x.shape[2])
        more = torch.randint(-3, 4, shape, generator=generator).to(x.dtype)
        return [torch.cat([x, part], 1) for part in more]

    keys, values = parted(case.keys[0]), parted(case.values[0])
    both = replace(case, q=torch.stack([case.q[0], case.q[-1]]), keys=keys, values=values)
    start = case.lengths[0]
    with poisoned():
        cache = make_cache(rows_of(case, [0]), free_blocks=2 * (steps // case.block + 2)).fork([0, 0], steps)
        executor, state = prepared(executor_class, case, cache)
        for token in range(start, start + steps):
            cache.append(torch.stack([k[:, token] for k in keys]), torch.stack([v[:, token] for v in values]))
            executor.update(state, cache)
        output, lists = executor.decode(both.q, state, cache)
    expected = Expected.of(both)
    report = judge_lists(expected, lists, "sharing")
    own_lists = [[[tuple(pages) for pages in per_kv] for per_kv in row] for row in lists.to_list()]
    report.add(judge_output(expected, own_lists, output, "sharing"))
    return report
