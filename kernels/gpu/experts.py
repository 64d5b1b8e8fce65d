"""`vortexlab.kernels.experts.route` as one kernel: scores, top-k, and places of rows grouped by expert."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortexlab.kernels import experts
from vortexlab.kernels.experts import TINY, Routing

#: Scores that one program holds: tokens times experts, both rounded up to powers of two.
MOST_SCORES = 1 << 13


@triton.jit
def route_kernel(
    logits, logits_row, bias, to, ends, weights, tokens, factor, tiny,
    TOTAL: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SIGMOID: tl.constexpr,
    NORMALISED: tl.constexpr,
):  # fmt: skip
    """All tokens in one program, a row of scores for each."""
    row = tl.arange(0, ROWS)
    expert = tl.arange(0, WIDTH)
    known = expert < TOTAL
    live = (row < tokens)[:, None] & known[None, :]
    x = tl.load(logits + row[:, None] * logits_row + expert[None, :], mask=live, other=0.0).to(tl.float32)
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-x))
        order = score + tl.load(bias + expert, mask=known, other=0.0)[None, :]
    else:
        x = tl.where(known[None, :], x, float("-inf"))
        score = tl.exp(x - tl.max(x, 1)[:, None])
        score = score / tl.sum(score, 1)[:, None]
        order = score
    order = tl.where(live, order, float("-inf"))
    choice = tl.zeros([ROWS, WIDTH], tl.int32)  # 1 for the best expert, 2 for the next, 0 for those not chosen
    mass = tl.zeros([ROWS], tl.float32)
    for number in tl.static_range(COUNT):
        best = tl.max(order, 1)
        first = tl.min(tl.where((order == best[:, None]) & live, expert[None, :], WIDTH), 1)
        hit = expert[None, :] == first[:, None]
        mass += tl.sum(tl.where(hit, score, 0.0), 1)
        choice = tl.where(hit, number + 1, choice)
        order = tl.where(hit, float("-inf"), order)
    chosen = (choice > 0).to(tl.int32)
    sizes = tl.sum(chosen, 0)
    end = tl.cumsum(sizes, 0)
    place = (end - sizes)[None, :] + tl.cumsum(chosen, 0) - chosen
    if NORMALISED:
        score = score / (mass + tiny)[:, None]
    slot = row[:, None] * COUNT + choice - 1
    tl.store(to + slot, place, mask=choice > 0)
    tl.store(weights + slot, score * factor, mask=choice > 0)
    tl.store(ends + expert, end, mask=known)


def route(logits: Tensor, bias: Tensor | None, how: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """See `vortexlab.kernels.experts.route`, which runs batches that are too large for one program."""
    tokens = logits.shape[0]
    rows, width = triton.next_power_of_2(tokens), triton.next_power_of_2(how.total)
    if rows * width > MOST_SCORES:
        return experts.route(logits, bias, how)
    to = torch.empty(tokens, how.count, dtype=torch.int32, device=logits.device)
    ends = torch.empty(how.total, dtype=torch.int32, device=logits.device)
    weights = torch.empty(tokens, how.count, dtype=torch.float32, device=logits.device)
    route_kernel[(1,)](
        logits, logits.stride(0), logits if bias is None else bias, to, ends, weights, tokens, how.factor, TINY,
        TOTAL=how.total, COUNT=how.count, ROWS=rows, WIDTH=width, SIGMOID=how.sigmoid, NORMALISED=how.normalised,
        num_warps=max(4, min(16, rows * width // 512)),
    )  # fmt: skip
    return to, ends, weights
