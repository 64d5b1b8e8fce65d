"""What the speed gate runs on and with: synthetic contexts, a clock, and CUDA graphs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from vortexlab.evaluator.geometries import Geometry
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.precision import cast

T = TypeVar("T")
#: Runs of a call before it is captured in a CUDA graph: they compile and allocate.
WARM_UP = 3


@dataclass(frozen=True)
class Workload:
    """Synthetic contexts of one length: `k`, `v` [kv_heads, batch, length, channel], contiguous for each request.

    KV heads come first so that one memory serves dense attention, which reads it as is, and the paged cache, whose
    requests lie one after the other. `dtype` is the precision of queries, and of the cache unless that is a program's.
    """

    geometry: Geometry
    length: int
    k: Tensor
    v: Tensor
    dtype: torch.dtype

    @staticmethod
    def make(
        geometry: Geometry, length: int, batch_tokens: int, device: str, dtype: torch.dtype, seed: int
    ) -> Workload:
        batch = max(1, batch_tokens // length)
        shape = (geometry.kv_heads, batch, length, geometry.head_dim)
        generator = torch.Generator(device).manual_seed(seed)
        k, v = (torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
        return Workload(geometry, length, k, v, dtype)

    def stored_in(self, dtype: torch.dtype) -> Workload:
        """The same contexts for a cache of another precision, in memory of their own."""
        if dtype == self.k.dtype:
            return self
        pools = [torch.empty(pool.shape, dtype=dtype, device=pool.device) for pool in (self.k, self.v)]
        for pool, source in zip(pools, (self.k, self.v), strict=True):
            for head in range(source.shape[0]):  # one at a time: a cast passes through fp32
                pool[head] = cast(source[head], dtype)
        return replace(self, k=pools[0], v=pools[1])

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    def fresh(self, generator: torch.Generator) -> Tensor:
        """A new newest token in every request, and a new query: [batch, query_heads, channel]."""
        for pool in (self.k, self.v):
            newest = pool[:, :, self.length - 2]
            newest.copy_(cast(torch.randn(newest.shape, generator=generator, device=pool.device), pool.dtype))
        shape = (self.batch, self.geometry.kv_heads * self.geometry.group, self.geometry.head_dim)
        return torch.randn(shape, generator=generator, device=self.k.device).to(self.dtype)

    def newest(self) -> tuple[Tensor, Tensor]:
        """Copies of key and value of the newest token: two of [kv_heads, batch, channel]."""
        return self.k[:, :, self.length - 2].clone(), self.v[:, :, self.length - 2].clone()

    def restore(self, k_new: Tensor, v_new: Tensor) -> None:
        """Puts back a newest token."""
        self.k[:, :, self.length - 2], self.v[:, :, self.length - 2] = k_new, v_new

    def cache(self, page: int, tokens: int) -> PagedKV:
        """The first `tokens` tokens of every request as a cache. The page must divide the length or be cut to fit."""
        block = math.gcd(page, self.length)
        heads, batch, length, channel = self.k.shape
        starts = [i * length for i in range(batch)]
        return PagedKV.from_contiguous(
            self.k.view(heads, batch * length, channel),
            self.v.view(heads, batch * length, channel),
            starts,
            [tokens] * batch,
            block,
        )


@dataclass(frozen=True)
class RecordedWorkload(Workload):
    """Contexts of a model in the place of random ones, stretched to the geometry. `queries`: [any, head, channel]."""

    queries: Tensor

    @staticmethod
    def like(plain: Workload, contexts: Sequence[tuple[Tensor, Tensor]], queries: Tensor) -> RecordedWorkload:
        """`contexts`: keys and values [kv_heads, tokens, channel] of at least the workload's length, taken in turn; KV
        heads, query heads and channels are repeated, or left out, until they are as many as the geometry has."""
        pools = [torch.empty_like(pool) for pool in (plain.k, plain.v)]
        heads, batch, length, channel = plain.k.shape
        for row in range(batch):
            for pool, side in zip(pools, contexts[row % len(contexts)], strict=True):
                pool[:, row] = cast(_stretched(side[:, :length], heads, channel).to(pool.device), pool.dtype)
        asked = _stretched(queries.transpose(0, 1), heads * plain.geometry.group, channel).transpose(0, 1)
        return RecordedWorkload(plain.geometry, length, pools[0], pools[1], plain.dtype, asked.to(plain.k.device))

    def fresh(self, generator: torch.Generator) -> Tensor:
        """A token of the context again as the newest one, and a recorded query, changed by a hundredth of its size."""
        device, batch = self.k.device, self.batch
        old = torch.randint(max(1, self.length - 2), (batch,), generator=generator, device=device)
        for pool in (self.k, self.v):
            pool[:, :, self.length - 2] = pool[:, torch.arange(batch, device=device), old]
        q = self.queries[torch.randint(len(self.queries), (batch,), generator=generator, device=device)].float()
        noise = torch.randn(q.shape, generator=generator, device=device)
        return (q + 0.01 * q.std() * noise).to(self.dtype)


def _stretched(x: Tensor, heads: int, channel: int) -> Tensor:
    """`x` [head, token, channel] with as many heads and channels as asked for, repeated in turn."""
    head, last = (torch.arange(n, device=x.device) % m for n, m in ((heads, x.shape[0]), (channel, x.shape[2])))
    return x[head][:, :, last]


class Clock:
    """Wall time of a call on a device, in milliseconds; the device is idle before and after.

    On a GPU caches are flushed before each call, so that none finds what another left in L2, and events time it too:
    `pairs` holds what events and the wall clock said of every call.
    """

    def __init__(self, device: torch.device):
        self.pairs: list[tuple[float, float]] = []
        self._wait: Callable[[], None] = lambda: None
        self._scratch: Tensor | None = None
        if device.type == "cuda":
            self._wait = torch.cuda.synchronize
            cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
            self._scratch = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        if self._scratch is None:
            start = time.perf_counter()
            result = call()
            return (time.perf_counter() - start) * 1e3, result
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._scratch.zero_()
        self._wait()
        start = time.perf_counter()
        first.record()
        result = call()
        last.record()
        self._wait()
        wall = (time.perf_counter() - start) * 1e3
        self.pairs.append((first.elapsed_time(last), wall))
        return wall, result


def apart(pairs: Sequence[tuple[float, float]]) -> float:
    """By which share of the wall time events disagree with it, in the median; launching and waiting, 0.1 ms, aside."""
    return median(max(0.0, abs(wall - event) - 0.1) / max(wall, 1e-9) for event, wall in pairs) if pairs else 0.0


def drift(times: Sequence[float]) -> float:
    """How far the same work, timed again and again, moved from the first third of its times to the last, as a share."""
    part = len(times) // 3
    if part == 0:
        return 0.0
    first, last = median(times[:part]), median(times[-part:])
    return abs(last - first) / min(first, last)


def as_served(call: Callable[[Tensor], T], example: Tensor) -> Callable[[Tensor], T]:
    """A step as a serving engine runs it: on a GPU captured once in a CUDA graph and replayed on new queries.

    On a GPU the result's tensors are overwritten by the next call. On the CPU the call itself.
    """
    if example.device.type != "cuda":
        return call
    query = example.clone()
    graph = Captured(lambda: call(query))

    def replay(q: Tensor) -> T:
        query.copy_(q)
        return graph()

    return replay


class Captured(Generic[T]):
    """A call in a CUDA graph, after `WARM_UP` runs; its result's tensors are those of every call.

    It keeps the call, since the graph reads and writes the tensors that the call holds.
    """

    def __init__(self, call: Callable[[], T]):
        self._call = call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = call()

    def __call__(self) -> T:
        self._graph.replay()
        return self._result
