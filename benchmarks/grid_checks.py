"""Whether the kernels that are about to be timed are right, on a small cell of the same geometry and layout."""

from __future__ import annotations

import torch
from gpu_times import Cell, Geometry, Pool
from programs import PROGRAMS, bound, executor_of
from torch import Tensor

from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu.attention import attend
from vortexlab.kernels.torch_executor import TorchExecutor

#: Most error of an output in bf16 beside its norm, and most pages that may differ where scores are nearly equal.
BF16, PAGES = 1e-2, 1e-2


def check(geometry: Geometry, layout: str, batch: int = 2, length: int = 4096, device: str = "cuda") -> list[str]:
    """What is wrong, one line each: dense and sparse attention against fp32, selections against the torch executor."""
    wrong = []
    cell = Pool.make(geometry, batch * length, layout, device).cell(batch, length)
    q, cache = cell.queries[0], cell.cache(0)
    error = distance(attend(q, cache, None, 16, cell.scale), exact(q, cache, None, 16, cell.scale))
    if not error < BF16:
        wrong.append(f"dense attention is off by {error:.1e}")
    for name, page in PROGRAMS:
        try:
            wrong += [f"{name} P{page}: {line}" for line in _program(cell, name, page)]
        except Exception as failure:
            wrong.append(f"{name} P{page}: {type(failure).__name__}: {str(failure)[:300]}")
    return wrong


def _program(cell: Cell, name: str, page: int) -> list[str]:
    wrong = []
    program, cache, q = bound(name, page), cell.cache(0, page), cell.queries[0]
    executor = executor_of(program, cell.geometry)
    state = executor.new_state(cache)
    executor.summarize(state, cache)
    out, lists = executor.decode(q, state, cache)
    error = distance(out, exact(q, cache, lists, page, cell.scale))
    if not error < BF16:
        wrong.append(f"attention is off by {error:.1e}")
    oracle = TorchExecutor(program, cell.geometry.static)
    truth = oracle.new_state(cache)
    oracle.summarize(truth, cache)
    expected = oracle.select(q, truth, cache)
    count = cell.length // page
    apart = int((lists.to_mask(count) != expected.to_mask(count)).sum()) / 2
    if apart > PAGES * int(expected.counts.sum()):
        wrong.append(f"{apart:.0f} of {int(expected.counts.sum())} selected pages differ from the torch executor's")
    return wrong


def exact(q: Tensor, cache: PagedKV, lists: PageLists | None, page: int, scale: float) -> Tensor:
    """Attention in fp32 over the listed pages, or all: [batch, query_heads, channel]."""
    rows = []
    for row in range(cache.batch):
        k, v = (item.float() for item in cache.dense(row))
        query = q[row].float().view(cache.kv_heads, -1, q.shape[2])
        logits = query @ k.transpose(1, 2) * scale
        if lists is not None:
            mask = lists.to_mask(-(-k.shape[1] // page))[row, :, 0].repeat_interleave(page, 1)[:, None, : k.shape[1]]
            logits = logits.masked_fill(~mask, float("-inf"))
        rows.append((logits.softmax(-1) @ v).flatten(0, 1))
    return torch.stack(rows)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())
