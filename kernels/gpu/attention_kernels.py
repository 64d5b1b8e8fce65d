"""The kernels of paged decode attention; `attention` launches them and says how they work together."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from vortexlab.kernels.gpu.device import matrix_operand, round_bf16, start_after_previous
from vortexlab.kernels.gpu.fp8 import stored_operand


@triton.jit
def tile_entries(entries, start, end, ATOM: tl.constexpr, TILE: tl.constexpr):
    """The list entry of each token of a tile; int64 [TILE]. Entries are read once each where atoms fill the tile."""
    if TILE % ATOM == 0 and ATOM > 1:
        EACH: tl.constexpr = TILE // ATOM
        number = start // ATOM + tl.arange(0, EACH)
        entry = tl.load(entries + number, mask=number * ATOM < end, other=0)
        return tl.reshape(tl.broadcast_to(entry[:, None], (EACH, ATOM)), (TILE,)).to(tl.int64)
    else:
        slot = start + tl.arange(0, TILE)
        return tl.load(entries + slot // ATOM, mask=slot < end, other=0).to(tl.int64)


@triton.jit
def tile_weights(weights, weight_row, head, start, end, WEIGHTS: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr):
    """The log-weights of a tile's tokens: [1, TILE], or one for each row's query head."""
    if TILE % PAGE == 0:  # the tile begins with a page
        page = start // PAGE + tl.arange(0, TILE) // PAGE
    else:
        page = (start + tl.arange(0, TILE)) // PAGE
    live = tl.arange(0, TILE) < end - start
    if WEIGHTS == 1:
        return tl.load(weights + page, mask=live, other=0.0)[None, :]
    else:
        at = weights + head[:, None] * weight_row + page[None, :]
        return tl.load(at, mask=(head < WEIGHTS)[:, None] & live[None, :], other=0.0)


@triton.jit
def row_member(row, PRECISE: tl.constexpr):
    """The query head of a row of a tile. PRECISE heads have two rows, 8 apart: those that a thread holds of a tensor
    core's tile, which adds them without asking another."""
    if PRECISE:
        return row // 16 * 8 + row % 8
    else:
        return row


@triton.jit
def attend_split(
    q, q_row, q_head,
    k, k_block, k_head, k_token,
    v, v_block, v_head, v_token,
    entries, entry_row, tokens,
    out, out_row, out_head, partial, summit, mass,
    splits, scale,
    weights, weight_row, k_scales, v_scales, first_run, runs,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, ATOM: tl.constexpr,
    BLOCK: tl.constexpr, IDENTITY: tl.constexpr, DIRECT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, PRECISE: tl.constexpr, CHAINED: tl.constexpr,
    WEIGHTS: tl.constexpr = 0, PAGE: tl.constexpr = 1, SCALED: tl.constexpr = False, JOINED: tl.constexpr = False,
):  # fmt: skip
    """One run of the listed tokens of one list. `scale` is the softmax scale times log2(e).

    A list is a row of `entries`, each of ATOM tokens in memory order of the pool; `tokens` are its live ones. With
    IDENTITY all lists of a request are its row of the block table, and `tokens` its length. DIRECT writes the result
    to `out`; else each of `splits` runs leaves its unnormalised sum in `partial` [rows, splits, HEADS, CHANNELS] and
    its maximum and mass in `summit`, `mass` [rows, splits, HEADS]. JOINED with those of other lists, they are
    `first_run` and on of `runs`.

    With WEIGHTS every PAGE tokens have a log-weight for all heads (1) or for each (HEADS): `weights` has WEIGHTS rows
    for each list, `weight_row` apart, of log-weights times log2(e). SCALED keys and values have a scale for each entry
    and KV head.
    """
    start_after_previous(CHAINED)
    split = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    request = row // (KV_HEADS * LISTS)
    kv_head = row // LISTS % KV_HEADS
    first_head = kv_head * (HEADS * LISTS) + row % LISTS
    listed = request if IDENTITY else row
    live_tokens = tl.load(tokens + listed)
    entries += listed * entry_row
    if WEIGHTS:
        weights += row * WEIGHTS * weight_row
    run = tl.cdiv(tl.cdiv(live_tokens, TILE), splits) * TILE
    begin = split * run
    end = tl.minimum(begin + run, live_tokens)

    # 16-bit products would round the softmax weights. PRECISE rows come twice: one multiplies the rounded weights, the
    # other what the rounding left, in rows of the matrix tile that a small group leaves empty anyway.
    REAL: tl.constexpr = ROWS // 2 if PRECISE else ROWS
    PER_BLOCK: tl.constexpr = BLOCK // ATOM
    part = tl.arange(0, ROWS) // 8 % 2 if PRECISE else tl.zeros([ROWS], tl.int32)
    head = row_member(tl.arange(0, ROWS), PRECISE)
    channel = tl.arange(0, WIDTH)
    head_live = head < HEADS
    channel_live = channel < CHANNELS
    head_at = q + request * q_row + (first_head + head) * q_head
    query = tl.load(head_at[:, None] + channel[None, :], mask=head_live[:, None] & channel_live[None, :], other=0.0)
    k += kv_head * k_head
    v += kv_head * v_head
    top = tl.full([ROWS], -3.0e38 if WEIGHTS else -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, end, TILE):
        slot = start + tl.arange(0, TILE)
        live = slot < end
        atom = tile_entries(entries, start, end, ATOM, TILE)
        inside = slot % ATOM
        if PER_BLOCK > 1:
            inside += (atom % PER_BLOCK).to(tl.int32) * ATOM
            atom = atom // PER_BLOCK
        k_at = atom * k_block + inside * k_token
        v_at = atom * v_block + inside * v_token
        keys = tl.load(k + k_at[None, :] + channel[:, None], mask=live[None, :] & channel_live[:, None], other=0.0)
        logits = tl.dot(matrix_operand(query), stored_operand(keys, query.dtype), input_precision="ieee") * scale
        if SCALED:
            logits *= tl.load(k_scales + atom * KV_HEADS + kv_head, mask=live, other=0.0)[None, :]
        if WEIGHTS:
            logits += tile_weights(weights, weight_row, head, start, end, WEIGHTS, PAGE, TILE)
        logits = tl.where(live[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        shares = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(shares, 1)
        values = tl.load(v + v_at[:, None] + channel[None, :], mask=live[:, None] & channel_live[None, :], other=0.0)
        operand = stored_operand(values, query.dtype)
        if SCALED:
            shares *= tl.load(v_scales + atom * KV_HEADS + kv_head, mask=live, other=0.0)[None, :]
        rounded = shares.to(operand.dtype)
        if PRECISE:
            rest = (shares - rounded.to(tl.float32)).to(operand.dtype)
            rounded = tl.where(part[:, None] == 0, rounded, rest)
        sums = tl.dot(rounded, operand, sums * fade[:, None], input_precision="ieee")
        top = higher

    if PRECISE:
        sums = tl.reshape(tl.sum(tl.reshape(sums, (REAL // 8, 2, 8, WIDTH)), 1), (REAL, WIDTH))
        total = tl.reshape(tl.max(tl.reshape(total, (REAL // 8, 2, 8)), 1), (REAL,))
        top = tl.reshape(tl.max(tl.reshape(top, (REAL // 8, 2, 8)), 1), (REAL,))
        head = tl.arange(0, REAL)
        head_live = head < HEADS
    out += request * out_row + first_head * out_head
    if DIRECT:
        result = tl.where(total[:, None] > 0.0, sums / total[:, None], 0.0)
        if out.dtype.element_ty == tl.bfloat16:
            result = round_bf16(result)
        at = out + head[:, None] * out_head + channel[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=head_live[:, None] & channel_live[None, :])
    else:
        if JOINED:
            place = (row * runs + first_run + split) * HEADS + head
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
    SPLITS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Joins the runs of one list and query head, WIDTH channels at a time. SPLITS is `splits` rounded up to a power of
    two."""
    start_after_previous(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    member = tl.program_id(1)
    split = tl.arange(0, SPLITS)
    channel = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    place = (row * splits + split) * HEADS + member
    total = tl.load(mass + place, mask=split < splits, other=0.0)
    used = total > 0.0
    top = tl.load(summit + place, mask=used, other=-3.0e38)
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
