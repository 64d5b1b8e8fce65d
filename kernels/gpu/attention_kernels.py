"""The kernels of paged decode attention; `attention` launches them and says how they work together."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from vortexlab.kernels.gpu.device import matrix_operand, round_bf16, token_offset
from vortexlab.kernels.gpu.fp8 import stored_operand


@triton.jit
def attend_split(
    q, q_row, q_head,
    k, k_block, k_head, k_token,
    v, v_block, v_head, v_token,
    table, table_row, lengths, pages, counts, most,
    out, out_row, out_head, partial, summit, mass,
    splits, scale,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, PAGE: tl.constexpr,
    BLOCK: tl.constexpr, IDENTITY: tl.constexpr, DIRECT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """One run of the listed tokens of one list. `scale` is the softmax scale times log2(e).

    DIRECT writes the result to `out`; else each of `splits` runs leaves its unnormalised sum in `partial`
    [rows, splits, HEADS, CHANNELS] and its maximum and mass in `summit`, `mass` [rows, splits, HEADS].
    """
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    request = row // (KV_HEADS * LISTS)
    kv_head = row // LISTS % KV_HEADS
    first_head = kv_head * (HEADS * LISTS) + row % LISTS
    length = tl.load(lengths + request)
    if IDENTITY:
        count = tl.cdiv(length, PAGE)
    else:
        count = tl.load(counts + row)
    tokens = tl.maximum(count, 0) * PAGE
    run = tl.cdiv(tl.cdiv(tokens, TILE), splits) * TILE
    begin = split * run
    end = tl.minimum(begin + run, tokens)

    # 16-bit products would round the softmax weights. PRECISE rows come twice: one half multiplies the rounded weights,
    # the other what the rounding left, in rows of the matrix tile that a small group leaves empty anyway.
    REAL: tl.constexpr = ROWS // 2 if PRECISE else ROWS
    part = tl.arange(0, ROWS) // REAL
    head = tl.arange(0, ROWS) % REAL
    channel = tl.arange(0, WIDTH)
    head_live = head < HEADS
    channel_live = channel < CHANNELS
    head_at = q + request * q_row + (first_head + head) * q_head
    query = tl.load(head_at[:, None] + channel[None, :], mask=head_live[:, None] & channel_live[None, :], other=0.0)
    blocks = table + request * table_row
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, end, TILE):
        slot = start + tl.arange(0, TILE)
        live = slot < end
        if IDENTITY:
            position = slot
        else:
            page = tl.load(pages + row * most + slot // PAGE, mask=live, other=0)
            position = page * PAGE + slot % PAGE
        live = live & (position < length)
        k_at = token_offset(blocks, position, live, k_block, k_token, BLOCK) + kv_head * k_head
        v_at = token_offset(blocks, position, live, v_block, v_token, BLOCK) + kv_head * v_head
        keys = tl.load(k + k_at[None, :] + channel[:, None], mask=live[None, :] & channel_live[:, None], other=0.0)
        logits = tl.dot(matrix_operand(query), stored_operand(keys, query.dtype), input_precision="ieee") * scale
        logits = tl.where(live[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 1)
        values = tl.load(v + v_at[:, None] + channel[None, :], mask=live[:, None] & channel_live[None, :], other=0.0)
        operand = stored_operand(values, query.dtype)
        rounded = weights.to(operand.dtype)
        if PRECISE:
            rest = (weights - rounded.to(tl.float32)).to(operand.dtype)
            rounded = tl.where(part[:, None] == 0, rounded, rest)
        sums = tl.dot(rounded, operand, sums * fade[:, None], input_precision="ieee")
        top = higher

    if PRECISE:
        sums = tl.sum(tl.reshape(sums, (2, REAL, WIDTH)), 0)
        total = tl.max(tl.reshape(total, (2, REAL)), 0)
        top = tl.max(tl.reshape(top, (2, REAL)), 0)
        head = tl.arange(0, REAL)
        head_live = head < HEADS
    if DIRECT:
        result = tl.where(total[:, None] > 0.0, sums / total[:, None], 0.0)
        if out.dtype.element_ty == tl.bfloat16:
            result = round_bf16(result)
        at = out + request * out_row + (first_head + head)[:, None] * out_head + channel[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=head_live[:, None] & channel_live[None, :])
    else:
        place = (row * splits + split) * HEADS + head
        tl.store(summit + place, top, mask=head_live)
        tl.store(mass + place, total, mask=head_live)
        if begin < end:
            at = partial + place[:, None] * CHANNELS + channel[None, :]
            tl.store(at, sums, mask=head_live[:, None] & channel_live[None, :])


@triton.jit
def attend_combine(
    partial, summit, mass, out, out_row, out_head, splits,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Joins the runs of one list and query head. SPLITS is `splits` rounded up to a power of two."""
    row = tl.program_id(0).to(tl.int64)
    member = tl.program_id(1)
    split = tl.arange(0, SPLITS)
    channel = tl.arange(0, WIDTH)
    place = (row * splits + split) * HEADS + member
    total = tl.load(mass + place, mask=split < splits, other=0.0)
    used = total > 0.0
    top = tl.load(summit + place, mask=used, other=-1.0e30)
    fade = tl.where(used, tl.exp2(top - tl.max(top, 0)), 0.0)
    at = partial + place[:, None] * CHANNELS + channel[None, :]
    sums = tl.load(at, mask=used[:, None] & (channel < CHANNELS)[None, :], other=0.0)
    whole = tl.sum(total * fade, 0)
    result = tl.where(whole > 0.0, tl.sum(sums * fade[:, None], 0) / whole, 0.0)
    if out.dtype.element_ty == tl.bfloat16:
        result = round_bf16(result)
    request = row // (KV_HEADS * LISTS)
    head = (row // LISTS % KV_HEADS) * (HEADS * LISTS) + row % LISTS + member
    tl.store(
        out + request * out_row + head * out_head + channel, result.to(out.dtype.element_ty), mask=channel < CHANNELS
    )
