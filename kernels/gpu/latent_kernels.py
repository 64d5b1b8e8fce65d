"""The kernel of paged decode attention over latent keys (MLA); `latent` launches it and says how it works."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from vortexlab.kernels.gpu.attention_kernels import row_member, tile_entries
from vortexlab.kernels.gpu.device import matrix_operand, round_bf16, start_after_previous
from vortexlab.kernels.gpu.fp8 import stored_operand


@triton.jit
def both(live, channel, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Which of [row, channel] are there: live rows, and of WIDTH channels the first SIZE."""
    if SIZE == WIDTH:
        return live[:, None]
    else:
        return live[:, None] & (channel < SIZE)[None, :]


@triton.jit
def latent_split(
    q, q_row, q_head,
    k, k_block, k_head,
    entries, entry_row, tokens,
    out, out_row, out_head, partial, summit, mass,
    splits, scale,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, LATENT: tl.constexpr, ROTARY: tl.constexpr,
    K_TOKEN: tl.constexpr, ATOM: tl.constexpr, BLOCK: tl.constexpr, IDENTITY: tl.constexpr, DIRECT: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr, TILE: tl.constexpr, PRECISE: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One run of the listed tokens of one list, for as many of its query heads as the rows of a tile hold.

    Lists, DIRECT and what the runs leave behind are those of `attention_kernels.attend_split`, PRECISE rows too.
    Keys are [LATENT | ROTARY] channels, padded to WIDTH and TURNED, K_TOKEN elements apart in a block; their latent
    part is the value, and is read once. `scale` is the softmax scale times log2(e).
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

    REAL: tl.constexpr = ROWS // 2 if PRECISE else ROWS
    PER_BLOCK: tl.constexpr = BLOCK // ATOM
    part = tl.arange(0, ROWS) // 8 % 2 if PRECISE else tl.zeros([ROWS], tl.int32)
    head = tl.program_id(2) * REAL + row_member(tl.arange(0, ROWS), PRECISE)
    channel, turned = tl.arange(0, WIDTH), tl.arange(0, TURNED)
    head_live = head < HEADS
    head_at = q + request * q_row + (first_head + head)[:, None] * q_head
    query = tl.load(head_at + channel[None, :], mask=both(head_live, channel, LATENT, WIDTH), other=0.0)
    rotary = tl.load(head_at + LATENT + turned[None, :], mask=both(head_live, turned, ROTARY, TURNED), other=0.0)
    k += kv_head * k_head
    top = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, WIDTH], tl.float32)
    # The places of a tile's tokens are looked up while the tile before is multiplied.
    following = tile_entries(entries, begin, end, ATOM, TILE)
    for start in range(begin, end, TILE):
        slot = start + tl.arange(0, TILE)
        live = slot < end
        atom = following
        following = tile_entries(entries, start + TILE, end, ATOM, TILE)
        inside = slot % ATOM
        if PER_BLOCK > 1:
            inside += (atom % PER_BLOCK).to(tl.int32) * ATOM
            atom = atom // PER_BLOCK
        at = k + (atom * k_block + inside * K_TOKEN)[:, None]
        keys = tl.load(at + channel[None, :], mask=both(live, channel, LATENT, WIDTH), other=0.0)
        turns = tl.load(at + LATENT + turned[None, :], mask=both(live, turned, ROTARY, TURNED), other=0.0)
        values = stored_operand(keys, query.dtype)
        logits = tl.dot(matrix_operand(query), tl.trans(values), input_precision="ieee")
        turns = tl.trans(stored_operand(turns, query.dtype))
        logits = tl.dot(matrix_operand(rotary), turns, logits, input_precision="ieee") * scale
        logits = tl.where(live[None, :], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 1)
        rounded = weights.to(values.dtype)
        if PRECISE:
            rest = (weights - rounded.to(tl.float32)).to(values.dtype)
            rounded = tl.where(part[:, None] == 0, rounded, rest)
        sums = tl.dot(rounded, values, sums * fade[:, None], input_precision="ieee")
        top = higher

    if PRECISE:
        sums = tl.reshape(tl.sum(tl.reshape(sums, (REAL // 8, 2, 8, WIDTH)), 1), (REAL, WIDTH))
        total = tl.reshape(tl.max(tl.reshape(total, (REAL // 8, 2, 8)), 1), (REAL,))
        top = tl.reshape(tl.max(tl.reshape(top, (REAL // 8, 2, 8)), 1), (REAL,))
        head = tl.program_id(2) * REAL + tl.arange(0, REAL)
        head_live = head < HEADS
    live = both(head_live, channel, LATENT, WIDTH)
    if DIRECT:
        result = tl.where(total[:, None] > 0.0, sums / total[:, None], 0.0)
        if out.dtype.element_ty == tl.bfloat16:
            result = round_bf16(result)
        at = out + request * out_row + (first_head + head)[:, None] * out_head + channel[None, :]
        tl.store(at, result.to(out.dtype.element_ty), mask=live)
    else:
        place = (row * splits + split) * HEADS + head
        tl.store(summit + place, top, mask=head_live)
        tl.store(mass + place, total, mask=head_live)
        if begin < end:
            tl.store(partial + place[:, None] * LATENT + channel[None, :], sums, mask=live)
