"""Kernels of mixtures of experts in a decode step: routing, and products that read each chosen expert's weights once.

A step has few rows for an expert, so its products are bound by reading weights: a program takes some output channels of
one expert and streams their weights past all of its rows. What each computes is said in `vortexlab.kernels.experts`.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortexlab.kernels import experts
from vortexlab.kernels.experts import TINY, Routed, Routing
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.device import matrix_operand, round_bf16, start_after_previous

#: Scores that one program holds: tokens times experts, both rounded up to powers of two.
MOST_SCORES = 1 << 13


@triton.jit
def route_kernel(
    logits, logits_row, bias, to, weights, whose, ends, tokens, factor, tiny,
    TOTAL: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SIGMOID: tl.constexpr,
    NORMALISED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """All tokens in one program, a row of scores for each."""
    start_after_previous(CHAINED)
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
    tl.store(whose + place, tl.broadcast_to(row[:, None], [ROWS, WIDTH]), mask=choice > 0)
    tl.store(weights + slot, score * factor, mask=choice > 0)
    tl.store(ends + expert, end, mask=known)


def route(logits: Tensor, bias: Tensor | None, how: Routing) -> Routed:
    """See `vortexlab.kernels.experts.route`, which runs batches that are too large for one program."""
    tokens = logits.shape[0]
    rows, width = triton.next_power_of_2(tokens), triton.next_power_of_2(how.total)
    if rows * width > MOST_SCORES:
        return experts.route(logits, bias, how)
    made = {"dtype": torch.int32, "device": logits.device}
    found = Routed(
        torch.empty(tokens, how.count, **made), torch.empty(tokens, how.count, device=logits.device),  # type: ignore[call-overload]
        torch.empty(tokens * how.count, **made), torch.empty(how.total, **made),  # type: ignore[call-overload]
    )  # fmt: skip
    route_kernel[(1,)](
        logits, logits.stride(0), logits if bias is None else bias, found.to, found.weights, found.tokens, found.ends,
        tokens, how.factor, TINY,
        TOTAL=how.total, COUNT=how.count, ROWS=rows, WIDTH=width, SIGMOID=how.sigmoid, NORMALISED=how.normalised,
        num_warps=max(4, min(16, rows * width // 512)), **launch.chained(logits.device),
    )  # fmt: skip
    return found


@triton.jit
def expert_kernel(
    x, x_row, tokens, weight, ends, out, wide, long,
    ROWS: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, GATED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """TILE of the `long` output channels of one expert's rows, from `wide` input channels.

    GATED: row r reads row `tokens[r]` of `x`, and the weight holds the channels of the gate, then those of up.
    """
    start_after_previous(CHAINED)
    expert = tl.program_id(1)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends + expert)
    channel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = channel < long
    step = tl.arange(0, STEP)
    weight += expert.to(tl.int64) * long * wide * (2 if GATED else 1)
    first = weight + channel[None, :] * wide + step[:, None]
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        live = row < end
        source = tl.load(tokens + row, mask=live, other=0) if GATED else row
        at = x + source.to(tl.int64)[:, None] * x_row + step[None, :]
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
        place = out + row.to(tl.int64)[:, None] * long + channel[None, :]
        tl.store(place, sums.to(out.dtype.element_ty), mask=live[:, None] & known[None, :])


def _launch(x: Tensor, weight: Tensor, tokens: Tensor, ends: Tensor, out: Tensor, gated: bool) -> Tensor:
    # Most experts have a few rows: tiles of 16 where these are enough for twice the mean.
    rows = min(64, max(16, triton.next_power_of_2(2 * out.shape[0] // len(ends))))
    tile = 32 if gated else 64
    expert_kernel[(-(-out.shape[1] // tile), len(ends))](
        x, x.stride(0), tokens, weight, ends, out, x.shape[1], out.shape[1],
        ROWS=rows, TILE=tile, STEP=128, GATED=gated, num_warps=4, num_stages=4, **launch.chained(x.device),
    )  # fmt: skip
    return out


def gated_product(x: Tensor, weight: Tensor, tokens: Tensor, ends: Tensor) -> Tensor:
    """See `vortexlab.kernels.experts.gated_product`; gate and up stay in fp32 until they are multiplied."""
    out = torch.empty(tokens.shape[0], weight.shape[1] // 2, dtype=x.dtype, device=x.device)
    return _launch(x.contiguous(), weight.contiguous(), tokens, ends, out, True)


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """See `vortexlab.kernels.experts.grouped_product`."""
    out = torch.empty(rows.shape[0], weight.shape[1], dtype=rows.dtype, device=rows.device)
    return _launch(rows.contiguous(), weight.contiguous(), ends, ends, out, False)
