"""How the GPU benchmarks make caches and take times.

Times are medians over replays of CUDA graphs. A graph goes through the caches of several layers, so that no step finds
its context in L2; their blocks lie shuffled, in an order that all layers share, as they do in a serving engine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Static
from vortexlab.kernels.cache import PagedKV

#: Bytes of keys and values that one graph goes through where they fit: many times the L2 cache. Layers at most.
ROTATED_BYTES, MOST_LAYERS = 1.5e9, 32
#: What one H200 reads at most, bytes a second: the roofline that fractions are of.
ROOFLINE = 4.6e12
#: Seconds that one measurement replays its graph for, and replays at least and at most.
SPAN, FEWEST, MOST = 0.1, 10, 60
#: Pieces of work that one graph does at least: launching it takes 15 microseconds and more.
CALLS = 12


@dataclass(frozen=True)
class Geometry:
    """Attention of one layer: query heads, KV heads, channels of a head."""

    heads: int
    kv_heads: int
    head_dim: int = 128

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's key and value in bf16."""
        return 4 * self.kv_heads * self.head_dim

    @property
    def static(self) -> Static:
        return Static(self.kv_heads, self.heads // self.kv_heads, self.head_dim, self.head_dim**-0.5)

    def __str__(self) -> str:
        return f"{self.heads} / {self.kv_heads} x {self.head_dim}"


#: Qwen3-1.7B, Qwen3-8B and Llama-3.1-8B, Qwen3-30B-A3B.
GEOMETRIES = (Geometry(16, 8), Geometry(32, 8), Geometry(32, 4))


@dataclass
class Pool:
    """Random keys and values of one geometry, made once; cells of every size lie in it.

    `layout`: "NHD" keeps the heads of a token together, "HND" the tokens of a head, block by block.
    """

    geometry: Geometry
    layout: str
    k: Tensor
    v: Tensor

    @staticmethod
    def make(geometry: Geometry, tokens: int, layout: str = "NHD", device: str = "cuda") -> Pool:
        size = tokens * geometry.kv_heads * geometry.head_dim
        pools = [torch.empty(size, dtype=torch.bfloat16, device=device) for _ in "kv"]
        for number, pool in enumerate(pools):
            generator = torch.Generator(device=device).manual_seed(number)
            for part in pool.split(1 << 28):
                part.normal_(generator=generator)
        return Pool(geometry, layout, *pools)

    def cell(self, batch: int, length: int) -> Cell:
        """As many layers of `batch` requests of `length` tokens as are rotated through and fit."""
        tokens = batch * length
        size = tokens * self.geometry.token_bytes
        fit = self.k.numel() // (tokens * self.geometry.kv_heads * self.geometry.head_dim)
        layers = min(fit, MOST_LAYERS, -(-int(ROTATED_BYTES) // size))
        if not layers:
            raise ValueError(f"{batch} requests of {length} tokens do not fit the pool")
        return Cell(self, batch, length, layers)

    def part(self, pool: Tensor, layer: int, tokens: int) -> Tensor:
        each = tokens * self.geometry.kv_heads * self.geometry.head_dim
        return pool[layer * each : (layer + 1) * each]


@dataclass
class Cell:
    """One geometry, batch and context: the caches and queries of several layers."""

    pool: Pool
    batch: int
    length: int
    layers: int
    queries: list[Tensor] = field(init=False)
    _tables: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        generator = torch.Generator(device=self.device).manual_seed(2)
        made: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16, "generator": generator}
        shape = (self.batch, self.geometry.heads, self.geometry.head_dim)
        self.queries = [torch.randn(shape, **made) for _ in range(self.layers)]

    @property
    def geometry(self) -> Geometry:
        return self.pool.geometry

    @property
    def device(self) -> torch.device:
        return self.pool.k.device

    @property
    def scale(self) -> float:
        return float(self.geometry.head_dim**-0.5)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values of one layer."""
        return self.batch * self.length * self.geometry.token_bytes

    def table(self, block: int) -> Tensor:
        """int32 [batch, blocks]: the shuffled blocks of every request, the same in all layers."""
        if block not in self._tables:
            blocks = self.length // block
            generator = torch.Generator(device=self.device).manual_seed(block)
            order = torch.randperm(self.batch * blocks, device=self.device, generator=generator)
            self._tables[block] = order.int().view(self.batch, blocks)
        return self._tables[block]

    def blocks(self, layer: int, block: int) -> tuple[Tensor, Tensor]:
        """Keys and values as FlashInfer's layout has them: [blocks, block, head, channel], or for HND head first."""
        g = self.geometry
        middle = (block, g.kv_heads) if self.pool.layout == "NHD" else (g.kv_heads, block)
        parts = (self.pool.part(pool, layer, self.batch * self.length) for pool in (self.pool.k, self.pool.v))
        k, v = (part.view(-1, *middle, g.head_dim) for part in parts)
        return k, v

    def cache(self, layer: int, block: int = 16) -> PagedKV:
        """The same memory as our kernels take it."""
        k, v = self.blocks(layer, block)
        if self.pool.layout == "NHD":
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        lengths = torch.full((self.batch,), self.length, dtype=torch.int32, device=self.device)
        return PagedKV(k, v, self.table(block), lengths, block)

    def contiguous(self, layer: int) -> tuple[Tensor, Tensor]:
        """The same memory read as [batch, head, token, channel], for attention without pages."""
        shape = (self.batch, self.geometry.kv_heads, self.length, self.geometry.head_dim)
        parts = (self.pool.part(pool, layer, self.batch * self.length) for pool in (self.pool.k, self.pool.v))
        k, v = (part.view(shape) for part in parts)
        return k, v

    def row(self, what: str, page: int) -> dict[str, Any]:
        """What tells a figure of this cell from others, and how it was taken."""
        g = self.geometry
        return {
            "what": what, "heads": g.heads, "kv_heads": g.kv_heads, "head_dim": g.head_dim, "context": self.length,
            "batch": self.batch, "page": page, "dtype": "bf16", "layout": self.pool.layout,
            "layers_rotated": self.layers,
        }  # fmt: skip

    def timed(self, work: Callable[[int], Any]) -> float:
        """Median microseconds of `work(layer)`, taken over a graph that goes through the layers as often as it takes to
        make the launch of the graph itself small beside its `CALLS`."""
        calls = self.layers * -(-CALLS // self.layers)

        def every() -> None:
            for number in range(calls):
                work(number % self.layers)

        return replay_us(every) / calls


def replay_us(work: Callable[[], Any]) -> float:
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

    def once() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end) * 1000)

    warm = statistics.median(once() for _ in range(3))
    return statistics.median(once() for _ in range(replays(warm)))


def replays(us: float) -> int:
    """How often a graph that takes `us` microseconds is replayed."""
    return max(FEWEST, min(MOST, int(SPAN * 1e6 / max(us, 1.0))))


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
