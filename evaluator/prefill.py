"""Sparse prefill: a program reads contexts by itself, and how long that takes beside dense attention.

What a program reads decides what the layers above see, so its keys and values are its own: nothing of the dense
prefill is used for its answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.models import LoadedModel, Prefill
from vortexlab.evaluator.speed import TOLERANCE, SpeedError, Timing
from vortexlab.evaluator.timing import Clock
from vortexlab.evaluator.traits import depends_on_layer
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists, PrefillExecutor
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.precision import cache_dtype, cast

PAIRS = 3
_SECONDS = 30.0
_CHECKED_QUERIES = 16


class SparsePrefill(Prefill):
    """Reads one context with a program, block of queries after block, layer after layer."""

    def __init__(self, executors: Sequence[PrefillExecutor], page: int):
        super().__init__()
        self._executors, self._page, self._carry = executors, page, Carry()

    def attend(self, module: torch.nn.Module, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.k[layer], self.v[layer], self.scale[layer] = k, v, scale
        out, _ = _read(self._executors[layer], q, k[0], v[0], self._page, self._carry)
        return out.transpose(1, 2)


def reader(model: LoadedModel, executors: Sequence[PrefillExecutor], page: int) -> Callable[[Tensor], Prefill]:
    """What `ContextStore` reads contexts with."""
    return lambda tokens: model.prefill(tokens, SparsePrefill(executors, page))


def _read(
    executor: PrefillExecutor, q: Tensor, k: Tensor, v: Tensor, page: int, carry: Carry
) -> tuple[Tensor, Sequence[PageLists]]:
    """`q`: [1, query_heads, tokens, channel]; `k`, `v`: [kv_heads, tokens, channel], cast as the cache wants them."""
    cache = PagedKV.from_dense([k], [v], page).stored_in(cache_dtype(executor.program, k.dtype))
    memory = executor.new_memory(cache, carry=carry)
    return executor.prefill(q, cache, memory=memory)


@torch.inference_mode()
def measure(
    program: Program,
    executor: Callable[[Program, Static], PrefillExecutor],
    geometry: Geometry,
    length: int,
    *,
    layers: int,
    device: str,
    dtype: torch.dtype,
    seed: int,
    pairs: int = PAIRS,
) -> Timing:
    """Times reading one context of `length` tokens, summaries included, against the fastest dense causal attention.

    Sparse and dense calls alternate on fresh queries, keys and values; outputs of timed calls are checked afterwards.
    Where layers differ, one ratio is over all `layers`. Raises `SpeedError` when a timed output is wrong.
    """
    clock, generator = Clock(torch.device(device)), torch.Generator(device).manual_seed(seed)
    static = Static(geometry.kv_heads, geometry.group, geometry.head_dim, geometry.scale, 0, layers)
    count = layers if depends_on_layer(program) else 1
    executors = [executor(program, replace(static, layer=i)) for i in range(count)]

    def drawn(heads: int) -> Tensor:
        return torch.randn(1, heads, length, geometry.head_dim, generator=generator, device=device).to(dtype)

    def fresh() -> tuple[Tensor, Tensor, Tensor]:
        return drawn(geometry.kv_heads * geometry.group), drawn(geometry.kv_heads), drawn(geometry.kv_heads)

    paths = {"sdpa_gqa": partial(_dense, static, True), "sdpa_repeated": partial(_dense, static, False)}
    result = Timing(batch=1)
    for name, path in paths.items():
        tensors = fresh()
        result.baselines_ms[name] = min(clock(partial(path, *tensors))[0] for _ in range(2))
    result.baseline = min(result.baselines_ms, key=result.baselines_ms.__getitem__)
    dense = paths[result.baseline]
    q, k, v = fresh()
    _read(executors[0], q, k[0], v[0], program.page_size, Carry())  # allocates workspaces
    dense_times, times, seen = [clock(partial(dense, q, k, v))[0]], [], []
    began = time.perf_counter()
    while not result.ratios or (len(result.ratios) < pairs and time.perf_counter() - began < _SECONDS):
        carry = Carry()
        for item in executors:
            q, k, v = fresh()
            spent, (out, lists) = clock(partial(_read, item, q, k[0], v[0], program.page_size, carry))
            times.append(spent)
            seen.append((q, *(cast(x, cache_dtype(program, dtype)) for x in (k, v)), out, lists))
            dense_times.append(clock(partial(dense, q, k, v))[0])
        around = sum((dense_times[i] + dense_times[i + 1]) / 2 for i in range(-count - 1, -1))
        result.ratios.append(around / sum(times[-count:]))
        del seen[:-2]
    result.dense_ms = median(dense_times)
    result.sparse_ms = result.attend_ms = median(times)
    for q, k, v, out, lists in seen:
        result.worst_error = max(result.worst_error, _error(program, static, q, k, v, out, lists, seed))
        result.density = _density(program, lists, length)
    if result.worst_error > TOLERANCE[dtype]:
        raise SpeedError(f"a timed output is off by {result.worst_error:.2g} of its norm")
    return result


def _dense(static: Static, is_grouped: bool, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not is_grouped:
        k, v = (x.repeat_interleave(static.group, 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=static.scale, enable_gqa=is_grouped)


def _density(program: Program, lists: Sequence[PageLists], length: int) -> float:
    """Pages that blocks read up to their first own one, as a share of all of these; 1 where prefill is dense."""
    if not lists:
        return 1.0
    assert isinstance(program.block, int)
    read = whole = 0.0
    for number, item in enumerate(lists):
        own = number * program.block // program.page_size
        whole += own + 1
        read += float(item.union().counts.double().mean())
    return min(1.0, read / whole)


def _error(
    program: Program, static: Static, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lists: Sequence[PageLists],
    seed: int,
) -> float:  # fmt: skip
    """The worst relative error over some queries, recomputed in float64 from the lists of their blocks."""
    if not bool(out.isfinite().all()):
        raise SpeedError("a timed output is not finite")
    if program.result is not None:
        return 0.0
    worst, length = 0.0, q.shape[2]
    generator = torch.Generator().manual_seed(seed)
    plain: dict[int, Any] = {}
    for position in torch.randint(length, (_CHECKED_QUERIES,), generator=generator).tolist():
        head = int(torch.randint(q.shape[1], (1,), generator=generator))
        kv, member = head // static.group, head % static.group
        tokens = torch.arange(position + 1)
        if lists:
            assert isinstance(program.block, int)
            block = position // program.block
            if block not in plain:
                plain[block] = lists[block].to_list()[0]
            per_head = plain[block][kv]
            pages = torch.tensor(per_head[member if len(per_head) > 1 else 0])
            touched = block * program.block // program.page_size
            number = tokens // program.page_size
            tokens = tokens[torch.isin(number, pages) | (number >= touched)]
        tokens = tokens.to(k.device)
        weights = torch.softmax(k[0, kv, tokens].double() @ q[0, head, position].double() * static.scale, 0)
        expected = weights @ v[0, kv, tokens].double()
        worst = max(worst, float((out[0, head, position].double() - expected).norm() / expected.norm()))
    return worst
