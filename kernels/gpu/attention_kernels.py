"""The kernel of paged decode attention; `attention` launches it and says how it works."""

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
def join_runs(
    partial, summit, mass, out, out_head, place, splits,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Joins the runs of one list, of all its heads. `place`: that of the list's first run; `out`: its first head.

    SPLITS is `splits` rounded up to a power of two. Runs were written by other programs: they are read past L1.
    """
    channel = tl.arange(0, WIDTH)
    every = tl.arange(0, SPLITS)
    CHUNK: tl.constexpr = 16 if SPLITS > 16 else SPLITS  # this tail of a kernel shall not cost the rest its registers
    for member in range(HEADS):
        places = place + every * HEADS + member
        ran = (every < splits) & (tl.load(mass + places, mask=every < splits, other=0.0, cache_modifier=".cg") > 0.0)
        highest = tl.max(tl.load(summit + places, mask=ran, other=-1.0e30, cache_modifier=".cg"), 0)
        whole = tl.zeros([CHUNK], tl.float32)
        sums = tl.zeros([CHUNK, WIDTH], tl.float32)
        for first in range(0, splits, CHUNK):
            split = first + tl.arange(0, CHUNK)
            at = place + split * HEADS + member
            total = tl.load(mass + at, mask=split < splits, other=0.0, cache_modifier=".cg")
            used = total > 0.0
            top = tl.load(summit + at, mask=used, other=-1.0e30, cache_modifier=".cg")
            fade = tl.where(used, tl.exp2(top - highest), 0.0)
            part = tl.load(
                partial + at[:, None] * CHANNELS + channel[None, :],
                mask=used[:, None] & (channel < CHANNELS)[None, :], other=0.0, cache_modifier=".cg",
            )  # fmt: skip
            whole += total * fade
            sums += part * fade[:, None]
        mass_of_all = tl.sum(whole, 0)
        result = tl.where(mass_of_all > 0.0, tl.sum(sums, 0) / mass_of_all, 0.0)
        if out.dtype.element_ty == tl.bfloat16:
            result = round_bf16(result)
        tl.store(out + member * out_head + channel, result.to(out.dtype.element_ty), mask=channel < CHANNELS)


@triton.jit
def attend_split(
    q, q_row, q_head,
    k, k_block, k_head, k_token,
    v, v_block, v_head, v_token,
    entries, entry_row, tokens,
    out, out_row, out_head, partial, summit, mass, arrived,
    splits, scale,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr, ATOM: tl.constexpr,
    BLOCK: tl.constexpr, IDENTITY: tl.constexpr, DIRECT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, PRECISE: tl.constexpr, SPLITS: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One run of the listed tokens of one list. `scale` is the softmax scale times log2(e).

    A list is a row of `entries`, each of ATOM tokens in memory order of the pool; `tokens` are its live ones. With
    IDENTITY all lists of a request are its row of the block table, and `tokens` its length. DIRECT writes the result
    to `out`; else each of `splits` runs leaves its unnormalised sum in `partial` [rows, splits, HEADS, CHANNELS] and
    its maximum and mass in `summit`, `mass` [rows, splits, HEADS], and the last to arrive (counted in `arrived`
    [rows], 0 before and after) joins them.
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
    run = tl.cdiv(tl.cdiv(live_tokens, TILE), splits) * TILE
    begin = split * run
    end = tl.minimum(begin + run, live_tokens)

    # 16-bit products would round the softmax weights. PRECISE rows come twice: one half multiplies the rounded weights,
    # the other what the rounding left, in rows of the matrix tile that a small group leaves empty anyway.
    REAL: tl.constexpr = ROWS // 2 if PRECISE else ROWS
    PER_BLOCK: tl.constexpr = BLOCK // ATOM
    part = tl.arange(0, ROWS) // REAL
    head = tl.arange(0, ROWS) % REAL
    channel = tl.arange(0, WIDTH)
    head_live = head < HEADS
    channel_live = channel < CHANNELS
    head_at = q + request * q_row + (first_head + head) * q_head
    query = tl.load(head_at[:, None] + channel[None, :], mask=head_live[:, None] & channel_live[None, :], other=0.0)
    k += kv_head * k_head
    v += kv_head * v_head
    top = tl.full([ROWS], -1.0e30, tl.float32)
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
    out += request * out_row + first_head * out_head
    if DIRECT:
        result = tl.where(total[:, None] > 0.0, sums / total[:, None], 0.0)
        if out.dtype.element_ty == tl.bfloat16:
            result = round_bf16(result)
        at = out + head[:, None] * out_head + channel[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=head_live[:, None] & channel_live[None, :])
    else:
        place = (row * splits + split) * HEADS + head
        tl.store(summit + place, top, mask=head_live)
        tl.store(mass + place, total, mask=head_live)
        if begin < end:
            at = partial + place[:, None] * CHANNELS + channel[None, :]
            tl.store(at, sums, mask=head_live[:, None] & channel_live[None, :])
        tl.debug_barrier()  # every thread has stored before one of them tells the others
        if tl.atomic_add(arrived + row, 1, sem="acq_rel") == splits - 1:
            join_runs(
                partial, summit, mass, out, out_head, row * splits * HEADS, splits, HEADS, CHANNELS, WIDTH, SPLITS
            )
            tl.store(arrived + row, 0)
