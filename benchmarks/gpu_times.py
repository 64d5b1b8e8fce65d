"""Times of the generated kernels on a GPU, as medians over replays of CUDA graphs; used by gpu_check.py.

Caches of several layers are rotated inside one graph, so that no step finds its context in L2. Blocks lie shuffled in
their pools, as they do in a serving engine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from vortexlab.dsl.ir import Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention import AttentionShape, attend, split_count
from vortexlab.kernels.gpu.executor import TritonExecutor
from vortexlab.search_spaces import load

PAGE = 16
#: Bytes of keys and values that one graph goes through: many times the L2 cache.
ROTATED_BYTES = 1.5e9


@dataclass
class Cell:
    """One geometry, batch and context, with the caches and queries of several layers."""

    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: list[PagedKV]
    queries: list[Tensor]

    @staticmethod
    def make(batch: int, length: int, heads: int, kv_heads: int, head_dim: int) -> Cell:
        blocks = -(-length // PAGE)
        size = 4 * batch * length * kv_heads * head_dim
        layers, queries = [], []
        for number in range(max(2, min(16, -(-int(ROTATED_BYTES) // size)))):
            generator = torch.Generator(device="cuda").manual_seed(number)
            made = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
            pools = [torch.randn(batch * blocks, PAGE, kv_heads, head_dim, **made).transpose(1, 2) for _ in "kv"]
            table = torch.randperm(batch * blocks, device="cuda", generator=generator).int().view(batch, blocks)
            lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
            layers.append(PagedKV(pools[0], pools[1], table, lengths, PAGE))
            queries.append(torch.randn(batch, heads, head_dim, **made))
        return Cell(batch, length, heads, kv_heads, head_dim, layers, queries)

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of one layer."""
        return 4 * self.batch * self.length * self.kv_heads * self.head_dim

    def row(self, what: str, us: float, **more: Any) -> dict[str, Any]:
        """One figure, with its conditions."""
        return {
            "what": what, "us": us, "batch": self.batch, "context": self.length, "heads": self.heads,
            "kv_heads": self.kv_heads, "head_dim": self.head_dim, "page": PAGE, "dtype": "bf16",
            "layers_rotated": len(self.layers), **more,
        }  # fmt: skip

    def timed(self, work: Callable[[int], Any], repeats: int = 30, layers: int | None = None) -> float:
        """Median microseconds of `work(layer)`, taken over a graph that does it once for every layer."""
        count = layers or len(self.layers)

        def every() -> None:
            for number in range(count):
                work(number)

        return replay_us(every, repeats) / count


def replay_us(work: Callable[[], None], repeats: int = 30) -> float:
    """Median microseconds of one replay of `work`, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    spans = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spans.append(start.elapsed_time(end) * 1000)
    return statistics.median(spans)


def kernel_times(work: Callable[[], Any]) -> dict[str, float]:
    """Median device microseconds of every kernel that `work` launches, by name, as the profiler sees them."""
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
    spans: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans.setdefault(event.name, []).append(event.device_time)
    return {name: statistics.median(times) for name, times in spans.items() if not name.startswith("Mem")}


def dense_rows(cell: Cell) -> list[dict[str, Any]]:
    """Dense attention: our kernel over all pages, and torch's on contiguous keys and values."""
    us = cell.timed(lambda i: attend(cell.queries[i], cell.layers[i], None, PAGE, cell.scale))
    rows = [cell.row("dense (ours)", us, tb_per_s=cell.kv_bytes / us / 1e6)]
    name = "dense (torch SDPA, contiguous)"
    flat = []
    for cache in cell.layers[:2]:
        pools = [pool.reshape(cell.batch, -1, cell.kv_heads, PAGE, cell.head_dim) for pool in (cache.k, cache.v)]
        flat.append([pool.transpose(1, 2).flatten(2, 3).contiguous() for pool in pools])

    def sdpa(i: int) -> Tensor:
        k, v = flat[i]
        return torch.nn.functional.scaled_dot_product_attention(cell.queries[i][:, :, None], k, v, enable_gqa=True)

    try:
        us = cell.timed(sdpa, layers=len(flat))
        rows.append(cell.row(name, us, tb_per_s=cell.kv_bytes / us / 1e6))
    except Exception as error:
        rows.append(cell.row(name, float("nan"), error=str(error)[:200]))
    return rows


def program_row(cell: Cell, name: str, dense_us: float) -> dict[str, Any]:
    """A whole decode step of a seed program (update, select, attend), its stages and its kernels."""
    program = load(name)
    values = {key: value for key, value in {"page": PAGE, "budget": 64}.items() if key in program.knobs}
    static = Static(cell.kv_heads, cell.heads // cell.kv_heads, cell.head_dim, cell.scale)
    executor = TritonExecutor(program.bind(values), static)
    states = [executor.new_state(cache) for cache in cell.layers]
    for state, cache in zip(states, cell.layers, strict=True):
        executor.summarize(state, cache)
    lists = [executor.decode(*of)[1] for of in zip(cell.queries, states, cell.layers, strict=True)]
    read = [float(x.tokens(c.lengths, PAGE).double().mean()) for x, c in zip(lists, cell.layers, strict=True)]

    def step(i: int) -> None:
        executor.update(states[i], cell.layers[i])
        executor.decode(cell.queries[i], states[i], cell.layers[i])

    us = cell.timed(step)
    stages = {
        "update": cell.timed(lambda i: executor.update(states[i], cell.layers[i])),
        "attend": cell.timed(lambda i: executor.attend(cell.queries[i], cell.layers[i], lists[i])),
    }
    return cell.row(
        name, us, stages=stages, kernels=kernel_times(lambda: step(0)), knobs=program.defaults | values,
        density=statistics.mean(read) / cell.length, speedup=dense_us / us,
    )  # fmt: skip


def time_cell(
    batch: int, length: int, heads: int, kv_heads: int, head_dim: int, names: list[str]
) -> list[dict[str, Any]]:
    """Dense and sparse decode steps of one batch and context, microseconds per layer. A program's error is a row."""
    cell = Cell.make(batch, length, heads, kv_heads, head_dim)
    rows = dense_rows(cell)
    for name in names:
        try:
            rows.append(program_row(cell, name, rows[0]["us"]))
        except Exception as error:
            rows.append(cell.row(name, float("nan"), error=f"{type(error).__name__}: {str(error)[:300]}"))
    return rows


def tune(batch: int, length: int, heads: int, kv_heads: int, head_dim: int) -> list[dict[str, Any]]:
    """The dense kernel under other tile sizes, warps, stages and splits; the selection kernel under other warps."""
    cell = Cell.make(batch, length, heads, kv_heads, head_dim)
    found: list[dict[str, Any]] = []
    width = triton.next_power_of_2(head_dim)
    for tile, warps, stages, precise in (
        (64, 4, 3, True), (64, 4, 3, False), (64, 4, 4, True), (128, 4, 3, True), (128, 4, 4, True), (64, 2, 3, True),
        (32, 4, 4, True),
    ):  # fmt: skip
        usual = split_count(batch * kv_heads, -(-length // tile), launch.processors(cell.queries[0].device))
        shape = AttentionShape(16, width, tile, warps, stages, precise)
        for splits in sorted({usual, max(1, usual // 2), min(128, 2 * usual)}):
            row = {"tile": tile, "warps": warps, "stages": stages, "precise": precise, "splits": splits, "batch": batch}
            try:
                found.append({**row, "us": cell.timed(_dense(cell, splits, shape), 15)})
            except Exception as error:
                found.append({**row, "error": str(error)[:100]})
    found.sort(key=lambda row: row.get("us", 1e9))
    return [*_selection_warps(cell), *found]


def _dense(cell: Cell, splits: int, shape: AttentionShape) -> Callable[[int], Tensor]:
    return lambda i: attend(cell.queries[i], cell.layers[i], None, PAGE, cell.scale, splits=splits, shape=shape)


def _selection_warps(cell: Cell) -> list[dict[str, Any]]:
    """Device microseconds of Quest's selection kernel under several numbers of warps."""
    usual, found = launch.shape, []
    program = load("quest").bind({"page": PAGE, "budget": 64})
    static = Static(cell.kv_heads, cell.heads // cell.kv_heads, cell.head_dim, cell.scale)
    for warps in (2, 4, 8, 16):

        def changed(kernel: Any, capacity: int, warps: int = warps) -> tuple[dict[str, Any], int]:
            constants, used = usual(kernel, capacity)
            return constants, warps if kernel.name.startswith("choose") else used

        launch.shape = changed
        try:
            executor = TritonExecutor(program, static)
            state = executor.new_state(cell.layers[0])
            executor.summarize(state, cell.layers[0])
            times = kernel_times(lambda e=executor, s=state: e.decode(cell.queries[0], s, cell.layers[0]))  # type: ignore[misc]
            found.append({"choose_warps": warps, "batch": cell.batch, "us": times.get("choose_whole", float("nan"))})
        finally:
            launch.shape = usual
    return found
