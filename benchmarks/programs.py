"""The sparse programs that the GPU benchmarks time, each reading 2,048 tokens."""

from __future__ import annotations

from typing import Any

from gpu_times import Cell, Geometry

from vortexlab import search_spaces
from vortexlab.dsl.ir import Program
from vortexlab.kernels.cost import predict
from vortexlab.kernels.gpu.executor import TritonExecutor

#: Tokens that a KV head reads, forced pages and own page included.
TOKENS = 2048
#: Programs and their pages.
PROGRAMS = (("quest", 16), ("quest", 64), ("centroid", 16))
_SINK, _RECENT = 1, 2  # the published programs' defaults; the own page is one of the recent ones


def knobs(name: str, page: int) -> dict[str, Any]:
    """Every knob of a published program, so that it reads `TOKENS` tokens in pages of `page`."""
    chosen = {"page": page, "sink": _SINK, "recent": _RECENT, "budget": TOKENS // page - _SINK - _RECENT}
    return search_spaces.load(name).defaults | chosen


def bound(name: str, page: int) -> Program:
    return search_spaces.load(name).bind(knobs(name, page))


def executor_of(program: Program, geometry: Geometry) -> TritonExecutor:
    return TritonExecutor(program, geometry.static)


def least_bytes(program: Program, cell: Cell, pages: float) -> float:
    """Bytes of summaries and of selected keys and values of one step of the cell: what cannot be left out."""
    found = predict(program, cell.geometry.static, cell.length, cell.batch, "h200", pages)
    return sum(stage.read for stage in found.stages if stage.name in ("score", "attend"))
