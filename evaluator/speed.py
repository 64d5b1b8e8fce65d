"""The speed gate: a program's attention step against the best dense attention, in one run on one machine.

A step is what a serving engine would repeat for every token and layer: summaries of the pages that fill up (their
cost spread over the page), scores, selection, attention over the selected pages. Sparse and dense calls alternate, so
that a drifting clock hits both; every timed call gets queries and a newest token that no call has seen, and outputs
of timed calls are checked afterwards, and so is that nobody wrote into the inputs. Dense attention reads keys and
values in the model's precision, a program those of a cache in its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle, pairwise
from math import fsum
from operator import mul
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.executors import EVERYTHING, decode, new_memories
from vortexlab.evaluator.timing import Clock, Workload, apart, as_served, drift
from vortexlab.evaluator.traits import depends_on_data, depends_on_layer, kinds_of_step
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.dense import DENSE_PATHS, DensePath
from vortexlab.kernels.executor import Executor, PageLists
from vortexlab.kernels.precision import cache_dtype
from vortexlab.kernels.torch_executor import TorchExecutor

#: Sparse calls of a run, each between two dense ones; a noisy run goes on to the second number.
PAIRS, MOST_PAIRS = 9, 27
#: Quartiles of the paired ratios further apart than this share of their median make a run noisy.
NOISY = 0.15
_NOISY_SECONDS = 4.0
#: Dense attention that moves by more than this within a run: a clock was changed.
DRIFT = 0.1
#: Events and the wall clock may disagree by this share of the time.
APART = 0.2
_CHECKED_CALLS, _CHECKED_HEADS = 2, 12
#: Largest error of a timed output, relative to its norm.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass
class Timing:
    """Milliseconds and what was checked, for one length.

    `drift`: how far dense attention moved within the run (`timing.drift`). `inputs`: synthetic or recorded, whichever
    gave the worse ratio; `by_inputs` has the median ratio of each that was timed.
    """

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
    drift: float = 0.0
    inputs: str = "synthetic"
    by_inputs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One timed call: layer and position, what went in (`memories` as they were before), what came out."""

    layer: int
    at: int
    q: Tensor
    out: Tensor
    lists: PageLists
    k_new: Tensor
    v_new: Tensor
    memories: list[Any]


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
    clock: Clock | None = None,
    baseline: str = "",
) -> Timing:
    """Times one program at one length. `counts`: pages that KV heads read in the accuracy run at this length.
    `baseline`: the way of dense attention, where a run on other inputs has just found the fastest.

    Where what is read depends on data, scoring and selection run as always, and attention then reads lists of as many
    pages as real lists had: random keys would give another number. (A program with memory or with an attention output
    of its own reads what it selects here.) Where it depends on the layer, the mean over the `layers` of the model that
    accuracy was measured on counts; where something is renewed every n steps, steps that renew and steps that do not
    count by how often they come. Raises `SpeedError` when a timed output is wrong.
    """
    page, geometry = program.page_size, workload.geometry
    clock = clock or Clock(workload.k.device)
    generator = torch.Generator(workload.k.device).manual_seed(seed)
    static = Static(geometry.kv_heads, geometry.group, geometry.head_dim, geometry.scale, 0, layers)
    executors = [executor(program, replace(static, layer=i)) for i in range(layers if depends_on_layer(program) else 1)]
    # One token short of full pages: the newest token lies in the own page and completes nothing.
    kinds = kinds_of_step(program, workload.length - 1)
    own = workload.stored_in(cache_dtype(program, workload.dtype))
    read = [own] if own is workload else [own, workload]
    prints = [_fingerprint(item) for item in read]  # before anybody could write into them
    caches = [own.cache(page, length) for length, _ in kinds]
    cache = caches[-1]
    states = [item.new_state(cache) for item in executors]
    for item, state in zip(executors, states, strict=True):
        item.summarize(state, cache)
    memories = new_memories(program, executors, [cache] * len(executors))
    imposed = depends_on_data(program) and program.result is None and not program.has_memory
    forced = _lists_like(counts, cache, page, generator) if imposed else None

    def step(layer: int, at: int, q: Tensor) -> tuple[Tensor, PageLists]:
        executors[layer].update(states[layer], caches[at])
        if forced is not None:
            executors[layer].select(q, states[layer], cache)
            return executors[layer].attend(q, cache, forced), forced
        return decode(executors[layer], q, states[layer], caches[at], memories[layer])

    result = Timing(batch=workload.batch)
    whole = own.cache(page, workload.length // page * page)
    result.summary_ms = median(clock(lambda: executors[0].update(states[0], whole))[0] for _ in range(3)) / page
    dense, result.baseline, result.baselines_ms = _fastest_dense(
        executor, static, workload, clock, generator, baseline
    )
    example = workload.fresh(generator)
    turns = [(layer, at) for at in range(len(kinds)) for layer in range(len(executors))]
    shares = [kinds[at][1] / len(executors) for _, at in turns]
    # The torch executor looks at numbers on the host, so its steps cannot be captured in a graph.
    served = _as_called if isinstance(executors[0], TorchExecutor) else as_served
    steps = {turn: served(partial(step, *turn), example) for turn in turns}
    for turn in turns:  # allocates workspaces, as the first steps of a server do
        steps[turn](example)
    seen: list[Call] = []
    times: list[float] = []
    dense_times = [clock(partial(dense, example))[0]]
    began = time.perf_counter()
    while len(result.ratios) < -(-pairs // len(turns)) or (  # each ratio needs a step of every layer and kind
        (_noisy(result.ratios) or drift(dense_times) > DRIFT)
        and len(times) < most_pairs
        and time.perf_counter() - began < _NOISY_SECONDS
    ):
        for layer, at in turns:
            q = own.fresh(generator)
            before = copy.deepcopy(memories)
            asked = q.clone()
            spent, (out, lists) = clock(partial(steps[layer, at], q))
            if type(out) is not Tensor:
                raise SpeedError(f"a timed call gave a {type(out).__name__}, which is no plain tensor")
            if not torch.equal(q, asked):
                raise SpeedError("a timed call wrote into its query")
            kept = PageLists(lists.pages.clone(), lists.counts.clone())
            seen.append(Call(layer, at, q, out.clone(), kept, *own.newest(), before))
            times.append(spent + result.summary_ms)
            q = workload.fresh(generator)
            dense_times.append(clock(partial(dense, q))[0])
        around = dense_times[-len(turns) - 1 :]
        between = _weighted([(before + after) / 2 for before, after in pairwise(around)], shares)
        result.ratios.append(between / _weighted(times[-len(turns) :], shares))
    result.drift = drift(dense_times)
    if (share := apart(clock.pairs)) > APART:
        raise SpeedError(f"events and the wall clock disagree by {100 * share:.0f} % on the time of a call")
    if any(not torch.equal(now, before) for item, prints_of in zip(read, prints, strict=True)
           for now, before in zip(_fingerprint(item), prints_of, strict=True)):  # fmt: skip
        raise SpeedError("a timed call wrote into the keys or values of the cache")
    result.dense_ms, result.sparse_ms = median(dense_times), median(times)
    if len(turns) > 1:
        result.sparse_ms = _weighted(times, shares)
    densities = [
        (call.lists.tokens(caches[call.at].lengths, page).double() / caches[call.at].lengths[:, None]).mean().item()
        for call in seen
    ]
    result.density = _weighted(densities, shares)
    _time_stages(result, program, executors[0], states[0], cache, forced, clock, workload.fresh(generator))

    checked = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))[:_CHECKED_CALLS]
    for call in (seen[i] for i in checked.tolist()):
        own.restore(call.k_new, call.v_new)
        if forced is None:
            _repeat(program, executors[call.layer], states[call.layer], caches[call.at], call)
        if program.result is None:
            result.worst_error = max(result.worst_error, _error(own, caches[call.at], page, call, seed))
        elif not bool(call.out.isfinite().all()):
            raise SpeedError("a timed output is not finite")
    if result.worst_error > TOLERANCE[workload.dtype]:
        raise SpeedError(f"a timed output is off by {result.worst_error:.2g} of its norm")
    return result


def _weighted(found: Sequence[float], shares: Sequence[float]) -> float:
    """The mean over whole rounds, in which every turn counts by its share."""
    return fsum(map(mul, found, cycle(shares))) * len(shares) / len(found)


def _as_called(call: Callable[[Tensor], Any], example: Tensor) -> Callable[[Tensor], Any]:
    return call


def _repeat(program: Program, executor: Executor, state: Any, cache: PagedKV, call: Call) -> None:
    """Raises `SpeedError` when a timed call, made again, does something else."""
    if program.result is None and not program.has_memory:
        out, lists = call.out, executor.select(call.q, state, cache)
    else:
        out, lists = decode(executor, call.q, state, cache, call.memories[call.layer])
    if lists.to_list() != call.lists.to_list():
        raise SpeedError("a timed call selected other pages than the same call made again")
    if float((out - call.out).norm()) > TOLERANCE[call.out.dtype] * float(call.out.norm()):
        raise SpeedError("a timed call gave another output than the same call made again")


def _time_stages(
    result: Timing,
    program: Program,
    executor: Executor,
    state: Any,
    cache: PagedKV,
    forced: PageLists | None,
    clock: Clock,
    q: Tensor,
) -> None:
    """Selection and attention apart; attention that a program composes itself is what its step takes beyond that."""
    extra = [] if not program.has_memory else [executor.new_memory(cache)]
    served = _as_called if isinstance(executor, TorchExecutor) else as_served
    select = served(lambda q: executor.select(q, state, cache, *extra), q)
    lists = forced or select(q)
    result.select_ms = median(clock(lambda: select(q))[0] for _ in range(3))
    if program.result is None:
        attend = served(lambda q: executor.attend(q, cache, lists), q)
        result.attend_ms = median(clock(lambda: attend(q))[0] for _ in range(3))
    else:
        result.attend_ms = max(0.0, result.sparse_ms - result.summary_ms - result.select_ms)


def _fingerprint(workload: Workload) -> list[Tensor]:
    """Sums over the bits of every token's keys and values but the newest one's, which changes from call to call; taken
    eight bytes at a time where the channels fill them, which is as fast as memory is read."""
    found = []
    for pool in (workload.k, workload.v):
        size = pool.element_size()
        wide = 8 if pool.shape[-1] * size % 8 == 0 else size
        whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[wide]
        found.append(torch.stack([head[:, : workload.length - 2].view(whole).sum(-1) for head in pool]))
    return found


def worse(found: Mapping[str, Timing]) -> Timing:
    """Of timings of one program on different inputs the one with the lowest ratio; it carries those of all."""
    by_inputs = {name: median(timing.ratios) for name, timing in found.items()}
    name = min(by_inputs, key=by_inputs.__getitem__)
    return replace(found[name], inputs=name, by_inputs=by_inputs)


def _noisy(ratios: Sequence[float]) -> bool:
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return high - low > NOISY * middle


Dense = Callable[[Tensor], Tensor]


def _dense_paths(executor: Callable[..., Executor], static: Static, workload: Workload) -> dict[str, Dense]:
    """Ways to attend everything. The library's read the pool as it is: requests and KV heads change places, which
    changes nothing but the names. On a GPU our own kernel over all pages is one more."""
    k, v = (pool[:, :, : workload.length - 1] for pool in (workload.k, workload.v))

    def library(path: DensePath) -> Dense:
        def call(q: Tensor) -> Tensor:
            grouped = q.view(workload.batch, static.kv_heads, static.group, -1).transpose(0, 1)
            return path(grouped.reshape(static.kv_heads, workload.batch * static.group, -1), k, v, static.scale)

        return call

    paths = {name: library(path) for name, path in DENSE_PATHS.items()}
    if workload.k.device.type == "cuda":
        cache = workload.cache(EVERYTHING.page_size, workload.length - 1)
        own = executor(EVERYTHING, static)
        state = own.new_state(cache)
        paths["own kernel"] = lambda q: own.decode(q, state, cache)[0]
    return paths


def _fastest_dense(
    executor: Callable[..., Executor],
    static: Static,
    workload: Workload,
    clock: Clock,
    generator: torch.Generator,
    known: str,
) -> tuple[Dense, str, dict[str, float]]:
    """The fastest way to attend everything, its name, and the milliseconds of all of them; of the `known` one alone."""
    calls, times = {}, {}
    for name, path in _dense_paths(executor, static, workload).items():
        if known not in ("", name):
            continue
        call = calls[name] = as_served(path, workload.fresh(generator))
        queries = [workload.fresh(generator) for _ in range(3)]
        times[name] = min(clock(partial(call, q))[0] for q in queries)
    best = min(times, key=times.__getitem__)
    return calls[best], best, times


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
            tokens = tokens[tokens < int(cache.lengths[row])].to(call.q.device)
            keys, values = workload.k[head, row, tokens].double(), workload.v[head, row, tokens].double()
            query, got = (x[row, head * group + member].double() for x in (call.q, call.out))
            expected = torch.softmax(keys @ query * workload.geometry.scale, 0) @ values
            worst = max(worst, float((got - expected).norm() / expected.norm()))
    return worst
