"""Kernels of mixtures of experts in a decode step: routing, and products that read each chosen expert's weights once.

A step has few rows for an expert, so its products are bound by reading weights: a program takes some output channels of
one expert, finds which choices are the expert's, and streams the weights past their rows. What each computes is said in
`vortexlab.kernels.experts`.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortexlab.kernels.experts import TINY, Routed, Routing
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.device import matrix_operand, round_bf16, start_after_previous

#: Choices that an expert's program looks through at a time.
CHUNK = 256


@triton.jit
def route_kernel(
    logits, logits_row, bias, experts, weights, factor, tiny,
    TOTAL: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, SIGMOID: tl.constexpr, NORMALISED: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """The choices of one token."""
    start_after_previous(CHAINED)
    row = tl.program_id(0)
    expert = tl.arange(0, WIDTH)
    known = expert < TOTAL
    x = tl.load(logits + row.to(tl.int64) * logits_row + expert, mask=known, other=0.0).to(tl.float32)
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-x))
        order = score + tl.load(bias + expert, mask=known, other=0.0)
    else:
        x = tl.where(known, x, float("-inf"))
        score = tl.exp(x - tl.max(x, 0))
        score = score / tl.sum(score, 0)
        order = score
    order = tl.where(known, order, float("-inf"))
    choice = tl.zeros([WIDTH], tl.int32)  # 1 for the best expert, 2 for the next, 0 for those not chosen
    for number in tl.static_range(COUNT):
        best = tl.max(order, 0)
        hit = expert == tl.min(tl.where((order == best) & known & (choice == 0), expert, WIDTH), 0)
        choice = tl.where(hit, number + 1, choice)
        order = tl.where(hit, float("-inf"), order)
    if NORMALISED:
        score = score / (tl.sum(tl.where(choice > 0, score, 0.0), 0) + tiny)
    slot = row * COUNT + choice - 1
    tl.store(experts + slot, expert, mask=choice > 0)
    tl.store(weights + slot, score * factor, mask=choice > 0)


def route(logits: Tensor, bias: Tensor | None, how: Routing) -> Routed:
    """See `vortexlab.kernels.experts.route`."""
    shape = logits.shape[0], how.count
    found = Routed(*(torch.empty(shape, dtype=kind, device=logits.device) for kind in (torch.int32, torch.float32)))
    route_kernel[(logits.shape[0],)](
        logits, logits.stride(0), logits if bias is None else bias, found.experts, found.weights, how.factor, TINY,
        TOTAL=how.total, COUNT=how.count, WIDTH=triton.next_power_of_2(how.total), SIGMOID=how.sigmoid,
        NORMALISED=how.normalised, num_warps=1, **launch.chained(logits.device),
    )  # fmt: skip
    return found


@triton.jit
def choices_of(expert, experts, choices, start, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """The numbers of ROWS of an expert's choices, from its `start`-th on, 0 past the last, and how many it has."""
    rank = start + tl.arange(0, ROWS)
    found = tl.zeros([ROWS], tl.int32)
    mine = 0
    for first in range(0, choices, CHUNK):
        number = first + tl.arange(0, CHUNK)
        hit = (tl.load(experts + number, mask=number < choices, other=-1) == expert).to(tl.int32)
        place = tl.where(hit > 0, mine + tl.cumsum(hit, 0) - 1, -1)
        found += tl.sum(tl.where(place[None, :] == rank[:, None], number[None, :], 0), 1)
        mine += tl.sum(hit, 0)
    return found, mine


@triton.jit
def expert_kernel(
    x, x_row, experts, choices, weight, out, wide, long,
    COUNT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, CHUNK: tl.constexpr,
    GATED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """TILE of the `long` output channels of one expert's choices, from `wide` input channels.

    GATED: choice n reads row n // COUNT of `x`, and the weight holds the channels of the gate, then those of up.
    """
    start_after_previous(CHAINED)
    expert = tl.program_id(1)
    row, mine = choices_of(expert, experts, choices, 0, ROWS, CHUNK)
    channel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = channel < long
    step = tl.arange(0, STEP)
    weight += expert.to(tl.int64) * long * wide * (2 if GATED else 1)
    first = weight + channel[None, :] * wide + step[:, None]
    for start in range(0, mine, ROWS):
        if start > 0:
            row, mine = choices_of(expert, experts, choices, start, ROWS, CHUNK)
        live = start + tl.arange(0, ROWS) < mine
        at = x + (row // COUNT if GATED else row).to(tl.int64)[:, None] * x_row + step[None, :]
        sums = tl.zeros([ROWS, TILE], tl.float32)
        more = tl.zeros([ROWS, TILE], tl.float32)
        for here in range(0, wide, STEP):
            inside = here + step < wide
            a = matrix_operand(tl.load(at + here, mask=live[:, None] & inside[None, :], other=0.0))
            there = inside[:, None] & known[None, :]
            b = matrix_operand(tl.load(first + here, mask=there, other=0.0))
            sums = tl.dot(a, b, sums, input_precision="ieee")
            if GATED:
                b = matrix_operand(tl.load(first + long * wide + here, mask=there, other=0.0))
                more = tl.dot(a, b, more, input_precision="ieee")
        if GATED:
            sums = sums / (1.0 + tl.exp(-sums)) * more
        if out.dtype.element_ty == tl.bfloat16:
            sums = round_bf16(sums)
        to = out + row.to(tl.int64)[:, None] * long + channel[None, :]
        tl.store(to, sums.to(out.dtype.element_ty), mask=live[:, None] & known[None, :])


def _launch(x: Tensor, weight: Tensor, experts: Tensor, long: int, gated: bool) -> Tensor:
    choices, total = experts.numel(), weight.shape[0]
    x, out = x.contiguous(), torch.empty(choices, long, dtype=x.dtype, device=x.device)
    # Most experts have a few rows: tiles of 16 where these are enough for twice the mean.
    rows = min(64, max(16, triton.next_power_of_2(2 * choices // total)))
    tile = 32 if gated else 64
    expert_kernel[(-(-long // tile), total)](
        x, x.stride(0), experts, choices, weight.contiguous(), out, x.shape[1], long,
        COUNT=experts.shape[1], ROWS=rows, TILE=tile, STEP=128, CHUNK=min(CHUNK, triton.next_power_of_2(choices)),
        GATED=gated, num_warps=4, num_stages=4, **launch.chained(x.device),
    )  # fmt: skip
    return out


def gated_product(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """See `vortexlab.kernels.experts.gated_product`; gate and up stay in fp32 until they are multiplied."""
    return _launch(x, weight, experts, weight.shape[1] // 2, True)


def grouped_product(rows: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """See `vortexlab.kernels.experts.grouped_product`."""
    return _launch(rows, weight, experts, weight.shape[1], False)
