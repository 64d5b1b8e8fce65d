"""The numerics gate: the executor computes what the program means, for every request by itself.

Small ragged batches of adversarial and random input are run through the executor and through the reference. Besides
equal selections and outputs it checks causality (what lies behind the newest token has no influence), isolation (the
order of requests and what ran before have none), padding (a request alone equals the same request in a batch) and
stepping (tokens appended one at a time equal the whole). What needs more than one step or layer takes a course.
Caches are in the precision that the program wants, else in fp32; the reference reads the same rounded numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl import reference
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.tolerance import attention_tolerance, open_pages
from vortexlab.evaluator import courses
from vortexlab.evaluator.executors import Make, executor_for
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor, PageLists
from vortexlab.kernels.precision import cache_dtype, cast

#: What the numbers of a case are like. On the first two fp32 is exact wherever the program's arithmetic can be.
KINDS = ("integers", "ties", "normal", "outliers", "repeated")
_MANY_PAGES = 96


@dataclass(frozen=True)
class Case:
    """`q`: [batch, query_heads, channel]; `keys[b]`, `values[b]`: [kv_heads, tokens, channel], in fp32 before they go
    into a cache of `dtype`."""

    kind: str
    static: Static
    dtype: torch.dtype
    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    def part(self, rows: Sequence[int]) -> Case:
        keys, values = ([side[i] for i in rows] for side in (self.keys, self.values))
        return replace(self, q=self.q[list(rows)], keys=keys, values=values)

    def read_back(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values as the cache holds them, in fp64."""
        keys, values = ([cast(x, self.dtype).double() for x in side] for side in (self.keys, self.values))
        return keys, values


class Fault(Exception):
    """What the executor got wrong; one line."""


def check(program: Program, model: Static, device: str, seed: int, kind: Make | None = None) -> dict[str, Any]:
    """Runs every case on the device's executor, or on another `kind`. Returns ``failure`` (empty when all hold), the
    number of cases and steps and how many pages were open to rounding."""
    generator = torch.Generator().manual_seed(seed)
    kind = kind or executor_for(device)
    cases = steps = judged = loose = 0
    try:
        if courses.needs_course(program):
            with _poisoned_memory():
                steps += courses.check(program, model, kind, device, generator)
        alone = not program.has_memory and program.result is None  # one step of one layer has a meaning by itself
        for case in _cases(program, model, generator) if alone else ():
            with _poisoned_memory():
                expected = _Expected(program, case)
                for run in _runs(case, kind, program, device, generator):
                    expected.judge(*run)
                    steps += 1
            cases, judged, loose = cases + 1, judged + expected.judged, loose + expected.loose
    except (Fault, courses.Disagreement, VortexError) as error:
        return {"failure": str(error), "cases": cases, "steps": steps, "pages": judged, "open": loose}
    return {"failure": "", "cases": cases, "steps": steps, "pages": judged, "open": loose}


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN inside the block, so that reading what was never written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _cases(program: Program, model: Static, generator: torch.Generator) -> Iterator[Case]:
    page, dtype = program.page_size, cache_dtype(program, torch.float32)
    lengths = [1, page, page + 1, 4 * page + page // 2 + 1, 9 * page]
    for number, kind in enumerate(KINDS):
        # The model's own geometry, in different layers and with few KV heads, since the reference loops over them;
        # learned constants have rows for all of them.
        heads = model.kv_heads if program.params else min(2, model.kv_heads)
        static = replace(model, kv_heads=heads, layer=number % model.layers)
        rows = lengths if number < 2 else [lengths[(number + 1) % 5], lengths[-1] + number]
        shape = (static.kv_heads, static.head_dim)
        keys = [_draw(kind, (shape[0], n, shape[1]), page, generator) for n in rows]
        values = [_draw(kind, (shape[0], n, shape[1]), page, generator) for n in rows]
        q = _draw("integers" if kind == "ties" else kind, (len(rows), shape[0] * static.group, shape[1]), 0, generator)
        yield Case(kind, static, dtype, q, keys, _values(static, keys, values))
    # One request long enough that usual budgets leave pages out; of the same geometry, so of the same kernels.
    static = replace(model, kv_heads=heads, layer=0)
    long = (static.kv_heads, _MANY_PAGES * page + 1, model.head_dim)
    k, v = (_draw("integers", long, page, generator) for _ in range(2))
    q = _draw("integers", (1, static.kv_heads * model.group, model.head_dim), 0, generator)
    yield Case("long integers", static, dtype, q, [k], _values(static, [k], [v]))


def _values(static: Static, keys: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """In MLA values are the latent part of the keys."""
    return [k[..., : static.latent] for k in keys] if static.latent else values


def _draw(kind: str, shape: tuple[int, ...], page: int, generator: torch.Generator) -> Tensor:
    if kind == "integers":
        return torch.randint(-3, 4, shape, generator=generator).float()
    if kind == "ties":
        return torch.randint(0, 2, shape, generator=generator).float()
    real = torch.randn(shape, generator=generator)
    if kind == "outliers":
        real[..., :: max(1, shape[-1] // 4)] *= 30
    if kind == "repeated" and page and shape[1] > page:
        return real[:, :page].repeat(1, -(-shape[1] // page), 1)[:, : shape[1]].contiguous()
    return real


Run = tuple[str, list[int], Tensor, PageLists]


def _runs(case: Case, kind: Make, program: Program, device: str, generator: torch.Generator) -> Iterator[Run]:
    """The case in several ways that must not matter: name, rows, output and lists of each."""
    executor: Executor = kind(program, case.static)
    everyone = list(range(len(case.keys)))
    cache = _cache(case, program.page_size, device, float("nan"))
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    q = case.q.to(device, copy=True)
    before = [_bits(x).clone() for x in (cache.k, cache.v, q)]
    yield "", everyone, *executor.decode(q, state, cache)
    if not all(torch.equal(_bits(x), old) for x, old in zip((cache.k, cache.v, q), before, strict=True)):
        raise Fault(f"the executor wrote into its inputs on {case.kind} input")
    if len(everyone) == 1:
        return
    loud = _cache(case, program.page_size, device, 1e4)
    yield (
        "with other memory behind the newest token (causality)",
        everyone,
        *executor.decode(case.q.to(device), state, loud),
    )
    backwards = everyone[::-1]
    turned = PagedKV(cache.k, cache.v, cache.table.flip(0), cache.lengths.flip(0), cache.block)
    yield (
        "in reversed order (request isolation)",
        backwards,
        *executor.decode(case.q[backwards].to(device), state, turned),
    )
    longest = max(everyone, key=lambda row: case.keys[row].shape[1])
    alone = case.part([longest])
    yield "alone (padding)", [longest], *_fresh(kind, program, alone, device)
    # Far enough back that a page fills up on the way and is out of the reach of the last pages, which are often forced.
    steps = 2 * program.page_size + 3
    stepped = [row for row in everyone if case.keys[row].shape[1] > steps]
    if stepped:
        yield "appended token by token", stepped, *_stepwise(kind, program, case.part(stepped), device, steps)


def _bits(x: Tensor) -> Tensor:
    """The same memory as whole numbers, in which NaN equals itself."""
    return x.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def _cache(case: Case, page: int, device: str, behind: float, spare: int = 0) -> PagedKV:
    """The case's tokens in shuffled blocks; memory that holds none of them is `behind`."""
    cache = PagedKV.from_dense(case.keys, case.values, page, shuffle_seed=1, spare=spare, free_blocks=2)
    courses.fill_unused(cache, behind)
    cache = cache.stored_in(case.dtype)
    return PagedKV(
        cache.k.to(device), cache.v.to(device), cache.table.to(device), cache.lengths.to(device), cache.block
    )


def _fresh(kind: Make, program: Program, case: Case, device: str) -> tuple[Tensor, PageLists]:
    executor: Executor = kind(program, case.static)
    cache = _cache(case, program.page_size, device, float("nan"))
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    return executor.decode(case.q.to(device), state, cache)


def _stepwise(kind: Make, program: Program, case: Case, device: str, steps: int) -> tuple[Tensor, PageLists]:
    """All but the last tokens at once, these one at a time, as in generation."""
    executor: Executor = kind(program, case.static)
    start = replace(case, keys=[k[:, :-steps] for k in case.keys], values=[v[:, :-steps] for v in case.values])
    cache = _cache(start, program.page_size, device, float("nan"), spare=steps)
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    for step in range(steps, 0, -1):
        cache.append(*(torch.stack([x[:, -step] for x in side]).to(device) for side in (case.keys, case.values)))
        executor.update(state, cache)
    return executor.decode(case.q.to(device), state, cache)


class _Expected:
    """What a correct executor may answer to a case: pages it must and may read, and attention over any lists."""

    def __init__(self, program: Program, case: Case):
        self.program, self.case = program, case
        self.judged = self.loose = 0
        self.allowed = []
        self.keys, self.values = case.read_back()
        for row, (k, v) in enumerate(zip(self.keys, self.values, strict=True)):
            found = reference.select_one(
                program, case.static, case.q[row].double(), k, v, cache_dtype=case.dtype, keep_values=True
            )
            if found.nan:
                raise Fault(f"a score is NaN on {case.kind} input; guard divisions, roots and logarithms")
            self.allowed.append(open_pages(program, case.static, found, k.shape[1], case.dtype))

    def judge(self, how: str, rows: list[int], out: Tensor, lists: PageLists) -> None:
        """Raises `Fault` when the output or a list is not one that the reference allows."""
        case, page = self.case, self.program.page_size
        where = f"on {case.kind} input{' ' + how if how else ''}"
        out = out.cpu()
        if not bool(out.isfinite().all()):
            raise Fault(f"the output is not finite {where}")
        plain = PageLists(lists.pages.cpu(), lists.counts.cpu()).to_list()
        for number, row in enumerate(rows):
            for kv, allowed in enumerate(self.allowed[row]):
                for got, must, may in courses.beside(plain[number][kv], allowed):
                    length = case.keys[row].shape[1]
                    if not courses.is_open(got, must, may):
                        raise Fault(
                            f"KV head {kv} of a request of {length} tokens reads pages {_short(got)} {where}; the "
                            f"reference reads {_short(sorted(must))}"
                        )
                    self.judged += len(may)
                    self.loose += len(may - must)
        keys, values = ([side[row] for row in rows] for side in (self.keys, self.values))
        q = case.q[rows].double()
        as_tuples = [[[tuple(pages) for pages in head] for head in request] for request in plain]
        expected = reference.attend(page, case.static, q, keys, values, as_tuples)
        room = attention_tolerance(page, case.static, q, keys, values, as_tuples)
        excess = (out.double() - expected).abs().amax(-1) - room
        if bool((excess > 0).any()):
            raise Fault(f"attention over the selected pages is off by {float(excess.max()):.2g} too much {where}")


def _short(pages: Sequence[int]) -> str:
    text = ", ".join(map(str, pages[:12]))
    return f"[{text}{', ...' if len(pages) > 12 else ''}]"
