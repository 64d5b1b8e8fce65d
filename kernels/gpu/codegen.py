"""The source of a program's kernels, written from its schedule.

One module of source holds: `summarize`, which reads every token of a page once and writes all its summaries; the map
kernels, which compute what a page contributes to the choice; `choose`, which makes the choice; and `finish`, which
makes the output of several attentions and gates, where it is made of these. Names are minted here; the only things
taken from a program are numbers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from vortexlab.dsl.ir import FP8, Program, Static
from vortexlab.kernels.compiled import is_plain
from vortexlab.kernels.gpu.choose import write_choose
from vortexlab.kernels.gpu.coverage import check_coverage
from vortexlab.kernels.gpu.emit import PAGE_DIM, Affine, Coords, Dim, Value, coords, runs
from vortexlab.kernels.gpu.graph import Graph, MapKernel, Schedule, lower, schedule
from vortexlab.kernels.gpu.values import Dtypes, KernelText
from vortexlab.kernels.lowering import contract
from vortexlab.kernels.precision import TORCH_DTYPES

#: Of a map kernel's loop without products: one tile's loads are under way while another is worked on.
PLAIN_STAGES = 3
_HEADER = '''"""Kernels generated from a program's typed form; not meant to be edited."""

import triton
import triton.language as tl

from vortexlab.kernels.gpu.device import (
    as_count, chosen, digit_counts, edge_page, floor_divide, floor_mod, is_settled, list_pages, list_places, list_unit,
    mass_cut, next_cut, order_key, page_unit, product_operand, random_key, round_bf16, settled_edge, sigmoid,
    start_after_previous, tanh, ties_needed, to_int, token_offset, top_cut,
)
from vortexlab.kernels.gpu.fp8 import fp8_code, fp8_scale, round_fp8, widened

PAGE = tl.constexpr({page})  # tokens
KV_HEADS = tl.constexpr({kv_heads})
GROUP = tl.constexpr({group})  # query heads of one KV head
CHANNELS = tl.constexpr({head_dim})
'''


@dataclass(frozen=True)
class Kernel:
    """One generated kernel: its parameters in order, the elements of its largest tile per page, those of the largest
    value of the query alone, whether it multiplies matrices, and those of the largest value that learned constants
    make of the query alone."""

    name: str
    params: tuple[str, ...]
    largest: int
    once: int = 1
    has_products: bool = False
    learned: int = 1


@dataclass(frozen=True)
class Kernels:
    """The generated module of one program on one layer geometry and pair of precisions.

    `choose` is generated twice: for rows that one tile holds, and for any row.
    """

    graph: Graph
    plan: Schedule
    text: str
    kernels: dict[str, Kernel] = field(default_factory=dict)
    field_dtypes: dict[str, torch.dtype] = field(default_factory=dict)


def generate(program: Program, static: Static, kv_dtype: str, q_dtype: str) -> Kernels:
    """Writes the kernels of a bound program. `kv_dtype`, `q_dtype`: bf16, fp16 or fp32; a cache also fp8_e4m3 or
    fp8_e5m2.

    Raises `VortexError` when a value is too large for a tile, `NotCovered` for what has no kernels.
    """
    check_coverage(program, static)
    with _deep_recursion():
        stored = kv_dtype if program.summary_dtype == "kv" else program.summary_dtype
        graph = lower(contract(program, static, own_scales=stored in FP8), static)
        plan = schedule(graph)
        dtypes = Dtypes(kv_dtype, stored, q_dtype)
        texts: list[KernelText] = []
        if graph.fields:
            texts.append(_summarize(graph, dtypes))
        texts += [_map(graph, plan, number, dtypes) for number in range(len(plan.maps))]
        texts += [write_choose(graph, plan, dtypes, whole) for whole in (True, False)]
        if graph.result is not None and graph.result not in graph.attentions:
            texts.append(_finish(graph, plan, dtypes))
    header = _HEADER.format(
        page=program.page_size, kv_heads=static.kv_heads, group=static.group, head_dim=static.head_dim
    )
    return Kernels(
        graph, plan, header + "".join(text.source() for text in texts),
        {text.name: _described(text) for text in texts},
        {name: TORCH_DTYPES[stored] for name in graph.fields},
    )  # fmt: skip


def query_dtype(dtype: str) -> str:
    """The precision of queries over a cache of this one."""
    return "bf16" if dtype in FP8 else dtype


def generate_phases(program: Program, static: Static, dtype: str) -> list[Kernels]:
    """The kernels of decode and, where blocks of prefill queries select in kernels, those of prefill, whose query is
    fp32. `dtype`: of the cache.
    """
    found = [generate(program, replace(static, prefill=False), dtype, query_dtype(dtype))]
    if program.pooled is not None and is_plain(program) and not static.latent and dtype not in FP8:
        found.append(generate(program, replace(static, prefill=True), dtype, "fp32"))
    return found


def _described(text: KernelText) -> Kernel:
    """A kernel's tile follows from its largest value: for a map kernel from that of a page, since queries are held
    once. With learned constants nothing is multiplied on tensor cores."""
    learned = any(re.fullmatch(r"w\d+", name) for name in text.params)
    products = text.emitter.has_products
    paged, once = text.emitter.paged, text.emitter.once
    largest = paged if text.name.startswith("map") else max(paged, once)
    if learned and products:  # operands of a product in fp32 take registers as well
        largest *= 2
    return Kernel(text.name, tuple(text.params), largest, once, products and not learned, 2 * once if learned else 1)


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """A program may be a chain of thousands of operations; writing one follows the chain."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 50_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def _summarize(graph: Graph, dtypes: Dtypes) -> KernelText:
    """One program per page and KV head; reads k and v once and writes every summary."""
    kernel = KernelText("summarize", graph, set(), dtypes)
    w = kernel.writer
    for name in ("k", "k_block", "k_head", "k_token", "v", "v_block", "v_head", "v_token"):
        kernel.param(name)
    for name in (
        "table",
        "table_row",
        "lengths",
        "pages_per_row",
        "BLOCK: tl.constexpr",
        "NEWEST: tl.constexpr",
        "wanted",
        "FILTER: tl.constexpr",
        "CHAINED: tl.constexpr",
    ):
        kernel.param(name)
    for line in (
        "start_after_previous(CHAINED)",
        "kv_head = tl.program_id(1)",
        "if NEWEST:  # the page that the newest token completed, if it did",
        "    request = tl.program_id(0)",
        "    logical = tl.load(lengths + request) // PAGE - 1",
        "    complete = (logical >= 0) & (tl.load(lengths + request) % PAGE == 0)",
        "else:  # every complete page",
        "    request = tl.program_id(0) // pages_per_row",
        "    logical = tl.program_id(0) % pages_per_row",
        "    complete = logical < tl.load(lengths + request) // PAGE",
        "if not complete:",
        "    return",
        "blocks = table + request.to(tl.int64) * table_row",
        "unit = page_unit(blocks, logical, True, PAGE, BLOCK)",
        "if FILTER:  # only physical pages that were asked for",
        "    if tl.load(wanted + unit) == 0:",
        "        return",
    ):
        w.line(line)
    for number, index in enumerate(graph.fields.values()):
        _store_summary(kernel, number, index)
    return kernel


def _store_summary(kernel: KernelText, number: int, index: int) -> None:
    """Writes one summary of the page at hand, its long axis in runs."""
    w, e, stored = kernel.writer, kernel.emitter, kernel.dtypes.summary
    op = kernel.graph.ops[index]
    long = next((axis for axis in op.axes if len(runs(op.sizes[axis])) > 1), "")
    place = f"(unit * KV_HEADS + kv_head) * {kernel.rest(op)}"
    kernel.param(f"f{number}")
    parts: list[tuple[Value, str, str]] = []
    for run in runs(op.sizes[long]) if long else [range(0, 1)]:
        dims = {axis: Dim(kernel.axes.get(axis, axis), op.sizes[axis]) for axis in op.axes}
        at: dict[str, Affine] = {axis: ((dim, 1),) for axis, dim in dims.items()}
        if long:
            dims[long], at[long] = e.along_run(dims[long].name, run)
        value = e.broadcast(e.scalar(e.as_float(e.eval(index, coords(**at)))), tuple(dims.values()))
        steps = [(at[axis], stride) for axis, stride in zip(op.axes, kernel.strides(op), strict=True)]
        parts.append((value, e.offset(steps, value.dims), e.mask(value.dims)))
    scale = ""
    if stored in FP8:
        scale = _store_scale(kernel, number, [(value, mask) for value, _, mask in parts])
    for value, offset, mask in parts:
        rounded = {
            "bf16": f"round_bf16({value.text})",
            "fp16": f"{value.text}.to(tl.float16)",
            "fp32": value.text,
        }.get(stored, f'fp8_code(tl.div_rn({value.text}, {scale}), "{stored}")')
        w.line(f"tl.store(f{number} + {place} + {offset}, {rounded}" + (f", mask={mask})" if mask else ")"))


def _store_scale(kernel: KernelText, number: int, parts: list[tuple[Value, str]]) -> str:
    """Writes the scale of a summary in fp8, from all of its parts; returns its name."""
    e, largest, finite = kernel.emitter, [], []
    for value, mask in parts:
        size = e.assign(f"tl.abs({value.text})", value.dims)
        if mask:
            size = e.assign(f"tl.where({mask}, {size.text}, 0.0)", value.dims)
        all_of = "tl.{0}({1}, None)" if value.dims else "{1}"
        largest.append(e.assign(all_of.format("max", size.text), ()).text)
        sound = f'({size.text} < float("inf")).to(tl.int32)'
        finite.append(e.assign(all_of.format("min", sound), (), "int", "0 where a number is infinite or none").text)
    top, sound = largest[0], finite[0]
    for other, another in zip(largest[1:], finite[1:], strict=True):
        top, sound = f"tl.maximum({top}, {other})", f"tl.minimum({sound}, {another})"
    scale = e.assign(f'fp8_scale({top}, {sound} > 0, "{kernel.dtypes.summary}")', (), note="largest number stored")
    kernel.param(f"s{number}")
    kernel.writer.line(f"tl.store(s{number} + unit * KV_HEADS + kv_head, {scale.text})")
    return scale.text


def _map(graph: Graph, plan: Schedule, number: int, dtypes: Dtypes) -> KernelText:
    """One map kernel: strides over the live pages of one request and KV head."""
    step: MapKernel = plan.maps[number]
    before = {i for earlier in plan.maps[:number] for i in earlier.stores + earlier.partials}
    kernel = KernelText(f"map{number}", graph, before, dtypes)
    w, e = kernel.writer, kernel.emitter
    kernel.request_head("tl.program_id(0).to(tl.int64)", "row // KV_HEADS", "(row % KV_HEADS).to(tl.int32)")
    kernel.param("capacity")
    page_at = ((PAGE_DIM, 1),)
    sums: list[tuple[int, Value]] = []
    finish: list[str] = []
    for index in step.partials:
        op = graph.ops[index]
        dims = kernel.dims(op)
        total = e.assign(f"tl.full([{', '.join(d.extent for d in dims)}], {kernel.identity(op)}, tl.float32)", dims)
        sums.append((index, total))
    w.open()
    w.line("page = start + tl.arange(0, TILE)")
    w.line("live = page < own")
    for index in step.stores:
        op = graph.ops[index]
        dims = kernel.dims(op)
        at: Coords = coords(**{axis: ((dim, 1),) for axis, dim in zip(op.axes, dims, strict=True)})
        value = e.broadcast(e.eval(index, at), dims)
        name = kernel.param(f"b{index}")
        place = kernel.buffer_offset(op, dict(at), value.dims)
        w.line(f"tl.store({name} + {place}, {value.text}, mask={e.mask(value.dims)})")
    for index, total in sums:
        op = graph.ops[index]
        at = coords(page=page_at, **{axis: ((dim, 1),) for axis, dim in zip(op.axes, kernel.dims(op), strict=True)})
        tile = kernel.reduce_tile(op, e.eval(op.inputs[0], at), total.dims)
        w.line(kernel.accumulate(op, total.text, tile))
        name = kernel.param(f"p{index}")
        rest = kernel.rest(op)
        strides = [(((dim, 1),), stride) for dim, stride in zip(total.dims, kernel.strides(op), strict=True)]
        place = e.offset(strides, total.dims)
        mask = e.mask(total.dims)
        finish.append(
            f"tl.store({name} + (row * tl.num_programs(1) + tl.program_id(1)) * {rest} + {place}, {total.text}"
            + (f", mask={mask})" if mask else ")")
        )
    lines = w.close()
    # Triton overlaps the loads of a loop without products only where it is told to.
    loop, stages = ("range", "") if e.has_products else ("tl.range", f", num_stages={PLAIN_STAGES}")
    w.line(f"for start in {loop}(tl.program_id(1) * TILE, own, tl.num_programs(1) * TILE{stages}):")
    for line in lines:
        w.line("    " + line)
    for line in finish:
        w.line(line)
    kernel.param("TILE: tl.constexpr")
    kernel.param("BLOCK: tl.constexpr")
    return kernel


def _finish(graph: Graph, plan: Schedule, dtypes: Dtypes) -> KernelText:
    """The output of one request and KV head from its attentions."""
    assert graph.result is not None
    kernel = KernelText("finish", graph, plan.available, dtypes)
    e, op = kernel.emitter, graph.ops[graph.result]
    kernel.request_head("tl.program_id(0).to(tl.int64)", "row // KV_HEADS", "(row % KV_HEADS).to(tl.int32)")
    dims = kernel.dims(op)
    at: Coords = coords(**{axis: ((dim, 1),) for axis, dim in zip(op.axes, dims, strict=True)})
    value = e.broadcast(e.eval(graph.result, at), dims)
    mask = e.mask(dims)
    for name in ("out", "out_row", "out_head"):
        kernel.param(name)
    channel, head = (e.offset([(along, 1)], dims) for _, along in at)
    place = f"out + request * out_row + (kv_head * GROUP + {head}) * out_head + {channel}"
    value = e.assign(f"tl.where(length > 0, {value.text}, 0.0)", dims, note="rows without a token give 0")
    rounded = {"bf16": f"round_bf16({value.text})", "fp16": f"{value.text}.to(tl.float16)"}
    text = rounded.get(dtypes.query, value.text)
    kernel.writer.line(f"tl.store({place}, {text}" + (f", mask={mask})" if mask else ")"))
    return kernel
