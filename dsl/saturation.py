"""How much of what a program stores or casts does not fit the precision, counted on given numbers.

Lint follows constants; what keys, values and scores do is seen only on numbers. The precisions looked at are those
that numbers of fp32 leave easily: the fp8 ones, which saturate, and fp16, in which such a number is infinite. A summary
in fp8 has a scale (rule 10), so it saturates only where that is 1 because the largest magnitude is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vortexlab.dsl import reference
from vortexlab.dsl.ir import FP8, POOL_STAGE, Program, Static
from vortexlab.dsl.reference_memory import Carry, LayerMemory
from vortexlab.dsl.reference_ops import STORED, Value, rounded, summary_scale
from vortexlab.dsl.reference_step import Found

#: Finite numbers from here on are not rounded to a finite number of the precision: half a step beyond the largest.
_BEYOND = {"fp16": 65504.0 + 16, "fp8_e4m3": 448.0 + 16, "fp8_e5m2": 57344.0 + 4096}
NARROW = tuple(_BEYOND)


@dataclass(frozen=True)
class Count:
    """Of `numbers` numbers those that are finite and too large for `dtype`, more than rounding makes of its largest one
    (`over`), those that are not 0 and become 0 (`under`), and those that are not finite to begin with (`not_finite`).

    `what`: ``k``, ``v``, ``summary NAME`` or ``cast``; `line`: of a cast in the program's text, else None.
    """

    what: str
    dtype: str
    line: int | None
    numbers: int = 0
    over: int = 0
    under: int = 0
    not_finite: int = 0

    def __add__(self, other: Count) -> Count:
        return replace(
            self,
            numbers=self.numbers + other.numbers,
            over=self.over + other.over,
            under=self.under + other.under,
            not_finite=self.not_finite + other.not_finite,
        )


def is_narrow(program: Program, cache: str) -> bool:
    """Whether a decode step of the program, over a cache in `cache`, stores or casts anything in such a precision."""
    return cache in NARROW or bool(_inner(program, cache))


def uncounted(program: Program) -> int:
    """Casts that run in sparse prefill alone, which `measure` does not look at."""
    return sum(program.nodes[i].stage == POOL_STAGE and i in _casts(program) for i in program.live())


def measure(program: Program, static: Static, q: Tensor, k: Tensor, v: Tensor, cache: str) -> list[Count]:
    """Counts keys, values, live summaries and casts of one decode step of one layer of a bound program.

    `q`: [query_heads, channel]; `k`, `v`: [kv_heads, tokens, channel], before they are stored in a cache of precision
    `cache`. Only what has a narrow precision is counted. Raises `VortexError` when shapes or parameters do not fit.
    """
    found = [count(x, Count(what, cache, None)) for what, x in (("k", k), ("v", v)) if cache in NARROW]
    inner = _inner(program, cache)
    if not inner:
        return found
    k, v = (rounded(x.double(), STORED[cache]) for x in (k, v))
    values = reference.select_one(
        program, static, q.double(), k, v, cache_dtype=STORED[cache], keep_values=True, memory=LayerMemory(),
        carry=Carry(),
    ).values  # fmt: skip
    for item, source in inner:
        of_item = item
        for of_head in values:
            for tensor in _tensors(of_head.get(source, [])):
                scaled = item.what != "cast" and item.dtype in FP8
                of_item += count(tensor, item, summary_scale(tensor.float(), STORED[item.dtype]) if scaled else None)
        found.append(of_item)
    return found


def count(x: Tensor, item: Count, scale: Tensor | None = None) -> Count:
    """The numbers of `x`, divided by `scale`, held against the precision of `item`."""
    single = x.float() if scale is None else x.float() / scale
    stored = STORED[item.dtype]
    finite = single.isfinite()
    over = finite & (single.abs() >= _BEYOND[item.dtype])
    under = finite & (single != 0) & (rounded(single, stored) == 0)
    return replace(
        item, numbers=single.numel(), over=int(over.sum()), under=int(under.sum()), not_finite=int((~finite).sum())
    )


def _casts(program: Program) -> list[int]:
    return [i for i in program.live() if program.nodes[i].op == "cast" and program.nodes[i].attrs["dtype"] in NARROW]


def _inner(program: Program, cache: str) -> list[tuple[Count, int]]:
    """Summaries and casts of decode in a narrow precision, each with the node whose numbers it takes."""
    stored = cache if program.summary_dtype == "kv" else program.summary_dtype
    fields = program.live_fields() if stored in NARROW else {}
    found = [(Count(f"summary {name}", stored, None), index) for name, index in fields.items()]
    for index in _casts(program):
        node = program.nodes[index]
        if node.stage != POOL_STAGE:
            found.append((Count("cast", str(node.attrs["dtype"]), node.line), node.inputs[0]))
    return found


def _tensors(found: Found) -> Iterator[Tensor]:
    """What a node computed, page by page where it has pages."""
    for item in found if isinstance(found, list) else [found]:
        yield item.tensor if isinstance(item, Value) else torch.tensor(float(item), dtype=torch.float64)  # type: ignore[arg-type]
