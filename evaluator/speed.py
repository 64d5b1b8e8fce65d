"""The speed gate: a program's attention step against the best dense attention, in one run on one machine.

A step is what a serving engine would repeat for every token and layer: summaries of the pages that fill up (their
cost spread over the page), scores, selection, attention over the selected pages. Sparse and dense calls alternate, so
that a drifting clock hits both; every timed call gets queries and a newest token that no call has seen, and outputs
of timed calls are checked afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.traits import depends_on_data, depends_on_layer
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.dense import DENSE_PATHS
from vortexlab.kernels.executor import Executor, PageLists

#: Sparse calls of a run, each between two dense ones; a noisy run goes on to the second number.
PAIRS, MOST_PAIRS = 9, 27
#: Quartiles of the paired ratios further apart than this share of their median make a run noisy.
NOISY = 0.15
_CHECKED_CALLS, _CHECKED_HEADS = 2, 12
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Workload:
    """Synthetic contexts of one length: `k`, `v` [kv_heads, batch, length, channel], contiguous for each request.

    KV heads come first so that one memory serves dense attention, which reads it as is, and the paged cache, whose
    requests lie one after the other.
    """

    geometry: Geometry
    length: int
    k: Tensor
    v: Tensor

    @staticmethod
    def make(
        geometry: Geometry, length: int, batch_tokens: int, device: str, dtype: torch.dtype, seed: int
    ) -> Workload:
        batch = max(1, batch_tokens // length)
        shape = (geometry.kv_heads, batch, length, geometry.head_dim)
        generator = torch.Generator(device).manual_seed(seed)
        k, v = (torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
        return Workload(geometry, length, k, v)

    @property
    def batch(self) -> int:
        return self.k.shape[1]

    def fresh(self, generator: torch.Generator) -> Tensor:
        """A new newest token in every request, and a new query: [batch, query_heads, channel]."""
        for pool in (self.k, self.v):
            newest = pool[:, :, self.length - 2]
            newest.copy_(torch.randn(newest.shape, generator=generator, device=pool.device).to(pool.dtype))
        shape = (self.batch, self.geometry.kv_heads * self.geometry.group, self.geometry.head_dim)
        return torch.randn(shape, generator=generator, device=self.k.device).to(self.k.dtype)

    def cache(self, page: int, tokens: int) -> PagedKV:
        """The first `tokens` tokens of every request as a cache. The page must divide the length or be cut to fit."""
        block = page if self.length % page == 0 else _largest_common(page, self.length)
        heads, batch, length, channel = self.k.shape
        starts = [i * length for i in range(batch)]
        return PagedKV.from_contiguous(
            self.k.view(heads, batch * length, channel),
            self.v.view(heads, batch * length, channel),
            starts,
            [tokens] * batch,
            block,
        )


def _largest_common(page: int, length: int) -> int:
    while length:
        page, length = length, page % length
    return page


@dataclass
class Timing:
    """Milliseconds and what was checked, for one length."""

    ratios: list[float] = field(default_factory=list)
    dense_ms: float = 0.0
    sparse_ms: float = 0.0
    summary_ms: float = 0.0
    select_ms: float = 0.0
    attend_ms: float = 0.0
    baseline: str = ""
    baselines_ms: dict[str, float] = field(default_factory=dict)
    density: float = 0.0
    batch: int = 0
    worst_error: float = 0.0


@dataclass(frozen=True)
class Call:
    """One timed call: what went in, what came out."""

    layer: int
    q: Tensor
    out: Tensor
    lists: PageLists
    k_new: Tensor
    v_new: Tensor


class Clock:
    """Wall time of a call on a device, in milliseconds; the device is idle before and after."""

    def __init__(self, device: torch.device):
        self._wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        return (time.perf_counter() - start) * 1e3, result


class SpeedError(Exception):
    """A timed call computed something else than it should have."""


@torch.inference_mode()
def measure(
    program: Program,
    executor: Callable[[Program, Static], Executor],
    workload: Workload,
    *,
    layers: int,
    counts: Sequence[int],
    seed: int,
    pairs: int = PAIRS,
    most_pairs: int = MOST_PAIRS,
) -> Timing:
    """Times one program at one length. `counts`: pages of lists seen in the accuracy run at this length.

    Where what is read depends on data, scoring and selection run as always, and attention then reads lists of as many
    pages as real lists had: random keys would give another number. Where it depends on the layer, the mean over the
    `layers` of the model that accuracy was measured on counts. Raises `SpeedError` when a timed output is wrong.
    """
    device = workload.k.device
    clock = Clock(device)
    generator = torch.Generator(device).manual_seed(seed)
    geometry = workload.geometry
    chosen_layers = range(layers) if depends_on_layer(program) else range(1)
    executors = [
        executor(program, Static(geometry.kv_heads, geometry.group, geometry.head_dim, geometry.scale, layer, layers))
        for layer in chosen_layers
    ]
    # One token short of full pages: the newest token lies in the own page and completes nothing.
    cache = workload.cache(program.page_size, workload.length - 1)
    whole = workload.cache(program.page_size, workload.length // program.page_size * program.page_size)
    states = []
    for item in executors:
        state = item.new_state(cache)
        item.summarize(state, cache)
        states.append(state)
    forced = _lists_like(counts, cache, program.page_size, generator) if depends_on_data(program) else None

    result = Timing(batch=workload.batch)
    result.baseline, result.baselines_ms = _fastest_dense(workload, clock, generator)
    dense = DENSE_PATHS[result.baseline]
    result.summary_ms = median(clock(lambda: executors[0].update(states[0], whole))[0] for _ in range(3))
    result.summary_ms /= program.page_size

    def sparse_step(layer: int, q: Tensor) -> tuple[Tensor, PageLists]:
        executors[layer].update(states[layer], cache)
        if forced is None:
            return executors[layer].decode(q, states[layer], cache)
        executors[layer].select(q, states[layer], cache)
        return executors[layer].attend(q, cache, forced), forced

    sparse_step(0, workload.fresh(generator))  # allocates workspaces, as the first step of a server does
    seen: list[Call] = []
    before, _ = clock(_dense_call(dense, workload, workload.fresh(generator)))
    times, dense_times = [], [before]
    spans = len(executors)  # one ratio needs a step of every layer
    while len(result.ratios) < -(-pairs // spans) or (_noisy(result.ratios) and len(times) < most_pairs):
        for layer in range(spans):
            q = workload.fresh(generator)
            spent, (out, lists) = clock(lambda layer=layer, q=q: sparse_step(layer, q))
            newest = (pool[:, :, workload.length - 2].clone() for pool in (workload.k, workload.v))
            seen.append(Call(layer, q, out, lists, *newest))
            times.append(spent + result.summary_ms)
            dense_times.append(clock(_dense_call(dense, workload, workload.fresh(generator)))[0])
        around = sum((dense_times[i] + dense_times[i + 1]) / 2 for i in range(-spans - 1, -1))
        result.ratios.append(around / sum(times[-spans:]))
    result.dense_ms, result.sparse_ms = median(dense_times), median(times)
    last = workload.fresh(generator)
    result.select_ms = median(clock(lambda: executors[0].select(last, states[0], cache))[0] for _ in range(3))
    picked = forced or executors[0].select(last, states[0], cache)
    result.attend_ms = median(clock(lambda: executors[0].attend(last, cache, picked))[0] for _ in range(3))
    shares = [call.lists.tokens(cache.lengths, program.page_size).double().mean() for call in seen]
    result.density = float(torch.stack(shares).mean()) / (workload.length - 1)
    checked = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))[:_CHECKED_CALLS]
    for call in (seen[i] for i in checked.tolist()):
        for pool, newest in ((workload.k, call.k_new), (workload.v, call.v_new)):
            pool[:, :, workload.length - 2] = newest
        if forced is None:
            again = executors[call.layer].select(call.q, states[call.layer], cache)
            if not torch.equal(again.pages, call.lists.pages):
                raise SpeedError("a timed call selected other pages than the same call made again")
        result.worst_error = max(result.worst_error, _error(workload, cache, program.page_size, call, seed))
    if result.worst_error > _TOLERANCE[workload.k.dtype]:
        raise SpeedError(f"a timed output is off by {result.worst_error:.2g} of its norm")
    return result


def _noisy(ratios: Sequence[float]) -> bool:
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return high - low > NOISY * middle


def _dense_call(dense: Callable[..., Tensor], workload: Workload, q: Tensor) -> Callable[[], Tensor]:
    """Dense attention on the workload. Requests and KV heads change places, which changes nothing but the names."""
    heads, group = workload.geometry.kv_heads, workload.geometry.group
    turned = q.view(workload.batch, heads, group, -1).transpose(0, 1).reshape(heads, workload.batch * group, -1)
    k, v = (pool[:, :, : workload.length - 1] for pool in (workload.k, workload.v))
    return lambda: dense(turned, k, v, workload.geometry.scale)


def _fastest_dense(workload: Workload, clock: Clock, generator: torch.Generator) -> tuple[str, dict[str, float]]:
    times = {}
    for name, dense in DENSE_PATHS.items():
        calls = [_dense_call(dense, workload, workload.fresh(generator)) for _ in range(3)]
        times[name] = min(clock(call)[0] for call in calls)
    return min(times, key=times.__getitem__), times


def _lists_like(counts: Sequence[int], cache: PagedKV, page: int, generator: torch.Generator) -> PageLists:
    """Lists of random candidates and the own page, as long as lists drawn from `counts`."""
    if not counts:
        raise SpeedError("no live counts were recorded at this length")
    device = cache.k.device
    own = int(cache.lengths[0] - 1) // page
    pick = torch.randint(len(counts), (cache.batch, cache.kv_heads), generator=generator, device=device)
    wanted = torch.tensor(counts, device=device)[pick].clamp(1, own + 1) - 1
    rank = torch.rand(cache.batch, cache.kv_heads, 1, own, generator=generator, device=device).argsort(-1).argsort(-1)
    mask = rank < wanted[:, :, None, None]
    return PageLists.from_mask(torch.nn.functional.pad(mask, (0, 1), value=True))


def _error(workload: Workload, cache: PagedKV, page: int, call: Call, seed: int) -> float:
    """The worst relative error of a timed output, on some heads recomputed in float64 from the call's own lists."""
    if not bool(call.out.isfinite().all()):
        raise SpeedError("a timed output is not finite")
    worst, heads, group = 0.0, cache.kv_heads, workload.geometry.group
    plain = call.lists.to_list()
    picks = torch.randperm(cache.batch * heads, generator=torch.Generator().manual_seed(seed))[:_CHECKED_HEADS]
    for row, head in (divmod(flat, heads) for flat in picks.tolist()):
        for member in range(group):
            pages = plain[row][head][member if len(plain[row][head]) > 1 else 0]
            tokens = torch.cat([torch.arange(p * page, (p + 1) * page) for p in pages])
            tokens = tokens[tokens < workload.length - 1].to(call.q.device)
            keys, values = workload.k[head, row, tokens].double(), workload.v[head, row, tokens].double()
            query, got = (x[row, head * group + member].double() for x in (call.q, call.out))
            expected = torch.softmax(keys @ query * workload.geometry.scale, 0) @ values
            worst = max(worst, float((got - expected).norm() / expected.norm()))
    return worst
