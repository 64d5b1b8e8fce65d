"""The kernel of paged prefill attention; `prefill` launches it and says what it computes."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from vortexlab.kernels.gpu.device import matrix_operand, round_bf16, token_offset


@triton.jit
def run_start(table, pages, slot, end, PAGE: tl.constexpr, BLOCK: tl.constexpr, IDENTITY: tl.constexpr):
    """Block (int64) of the pool and token inside it of the listed slot; 0 and 0 from `end` on."""
    live = slot < end
    if IDENTITY:
        position = slot
    else:
        position = tl.load(pages + slot // PAGE, mask=live, other=0) * PAGE + slot % PAGE
    return tl.load(table + position // BLOCK, mask=live, other=0).to(tl.int64), position % BLOCK


@triton.jit
def attend_slots(
    query, top, total, sums, begin, end, last,
    k, k_block, k_token, v, v_block, v_token, table, pages, scale,
    CHANNELS: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, IDENTITY: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, PRECISE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over the listed slots `begin` to `end` - 1, a tile at a time.

    Without MASKED they must be whole tiles that every query sees. With it a query sees the slots up to its own, `last`.
    """
    # Tiles of one or two runs of memory need as many look-ups, which are made a tile ahead of their use.
    RUN: tl.constexpr = BLOCK if IDENTITY or BLOCK < PAGE else PAGE
    HALF: tl.constexpr = TILE // 2
    WHOLE: tl.constexpr = RUN % TILE == 0
    HALVES: tl.constexpr = not WHOLE and RUN % HALF == 0
    token = tl.arange(0, TILE)
    channel = tl.arange(0, WIDTH)
    if WHOLE or HALVES:
        next_block, next_token = run_start(table, pages, begin, end, PAGE, BLOCK, IDENTITY)
    if HALVES:
        next_block2, next_token2 = run_start(table, pages, begin + HALF, end, PAGE, BLOCK, IDENTITY)
    upper = (token >= HALF).to(tl.int64)[:, None]
    k_span = token[:, None] * k_token + channel[None, :]
    v_span = token[:, None] * v_token + channel[None, :]
    for start in range(begin, end, TILE):
        slot = start + token
        if WHOLE or HALVES:
            k_at = next_block * k_block + next_token * k_token
            v_at = next_block * v_block + next_token * v_token
            next_block, next_token = run_start(table, pages, start + TILE, end, PAGE, BLOCK, IDENTITY)
            if HALVES:
                k_half = next_block2 * k_block + (next_token2 - HALF) * k_token
                v_half = next_block2 * v_block + (next_token2 - HALF) * v_token
                # A choice in arithmetic, through which the compiler still sees that addresses are aligned.
                k_at = k_at + upper * (k_half - k_at)
                v_at = v_at + upper * (v_half - v_at)
                next_block2, next_token2 = run_start(table, pages, start + TILE + HALF, end, PAGE, BLOCK, IDENTITY)
            k_tile, v_tile = k + k_at + k_span, v + v_at + v_span
        else:
            live = slot < end
            if IDENTITY:
                position = slot
            else:
                position = tl.load(pages + slot // PAGE, mask=live, other=0) * PAGE + slot % PAGE
            k_at = token_offset(table, position, live, k_block, k_token, BLOCK)
            v_at = token_offset(table, position, live, v_block, v_token, BLOCK)
            k_tile, v_tile = k + k_at[:, None] + channel[None, :], v + v_at[:, None] + channel[None, :]
        if MASKED:
            there = (slot < end)[:, None] & (channel < CHANNELS)[None, :]
            keys = tl.load(k_tile, mask=there, other=0.0)
        elif CHANNELS < WIDTH:
            keys = tl.load(k_tile, mask=(channel < CHANNELS)[None, :], other=0.0)
        else:
            keys = tl.load(k_tile)
        logits = tl.dot(query, tl.trans(matrix_operand(keys)), input_precision="ieee")
        if MASKED:
            logits = tl.where(slot[None, :] <= last[:, None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1) * scale)
        weights = tl.exp2(logits * scale - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 1)
        if MASKED:
            values = tl.load(v_tile, mask=there, other=0.0)
        elif CHANNELS < WIDTH:
            values = tl.load(v_tile, mask=(channel < CHANNELS)[None, :], other=0.0)
        else:
            values = tl.load(v_tile)
        operand = matrix_operand(values)
        rounded = weights.to(operand.dtype)
        sums = tl.dot(rounded, operand, sums * fade[:, None], input_precision="ieee")
        if PRECISE:
            rest = (weights - rounded.to(tl.float32)).to(operand.dtype)
            sums = tl.dot(rest, operand, sums, input_precision="ieee")
        top = higher
    return top, total, sums


@triton.jit
def attend_prompt(
    q, q_row, q_head, q_token,
    k, k_block, k_head, k_token,
    v, v_block, v_head, v_token,
    table, table_row, work, pages, counts, most,
    out, out_row, out_head, out_token,
    scale,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, PAGE: tl.constexpr,
    BLOCK: tl.constexpr, IDENTITY: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """QUERIES successive queries of the HEADS query heads of one list. `scale` is the softmax scale times log2(e).

    `work` [programs, 6], by tile of queries: request, first query, end of the queries, number of the block (of the
    lists), first page that the block touches, pages that it touches. A list ends with the pages that its block touches.
    """
    # The last queries read the most: they go first, so that no long program starts when the others end.
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    at = work + number * 6
    request = tl.load(at).to(tl.int64)
    begin, end = tl.load(at + 1), tl.load(at + 2)
    kv_head = tl.program_id(1) // LISTS
    first_head = kv_head * (HEADS * LISTS) + tl.program_id(1) % LISTS
    if IDENTITY:
        shift = 0
    else:
        row = tl.load(at + 3).to(tl.int64) * (KV_HEADS * LISTS) + tl.program_id(1)
        pages += row * most
        # Slot minus position on the pages that the block touches.
        shift = (tl.load(counts + row) - tl.load(at + 5) - tl.load(at + 4)) * PAGE

    member = tl.arange(0, ROWS) // QUERIES
    position = begin + tl.arange(0, ROWS) % QUERIES
    channel = tl.arange(0, WIDTH)
    row_live = (member < HEADS) & (position < end)
    live = row_live[:, None] & (channel < CHANNELS)[None, :]
    head = (first_head + member).to(tl.int64)
    q_at = q + request * q_row + head * q_head + position.to(tl.int64) * q_token
    query = matrix_operand(tl.load(q_at[:, None] + channel[None, :], mask=live, other=0.0))
    k += kv_head.to(tl.int64) * k_head
    v += kv_head.to(tl.int64) * v_head
    table += request * table_row
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    last = position + shift
    seen = (begin + shift + 1) // TILE * TILE  # whole tiles that the first query sees, and so all
    top, total, sums = attend_slots(
        query, top, total, sums, 0, seen, last,
        k, k_block, k_token, v, v_block, v_token, table, pages, scale,
        CHANNELS, PAGE, BLOCK, IDENTITY, WIDTH, TILE, PRECISE, False,
    )  # fmt: skip
    top, total, sums = attend_slots(
        query, top, total, sums, seen, end + shift, last,
        k, k_block, k_token, v, v_block, v_token, table, pages, scale,
        CHANNELS, PAGE, BLOCK, IDENTITY, WIDTH, TILE, PRECISE, True,
    )  # fmt: skip
    result = sums / total[:, None]
    if out.dtype.element_ty == tl.bfloat16:
        result = round_bf16(result)
    out_at = out + request * out_row + head * out_head + position.to(tl.int64) * out_token
    tl.store(out_at[:, None] + channel[None, :], result.to(out.dtype.element_ty), mask=live)
