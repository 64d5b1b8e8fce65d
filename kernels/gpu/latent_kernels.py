"""The kernels of paged decode attention over latent keys (MLA); `latent` launches them and says how they work."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from vortexlab.kernels.gpu.device import round_bf16, token_offset
from vortexlab.kernels.gpu.fp8 import stored_operand


@triton.jit
def latent_split(
    q, q_row, q_head,
    k, k_block, k_head,
    table, table_row, lengths, pages, counts, most,
    out, out_row, out_head, partial, summit, mass,
    splits, scale,
    KV_HEADS: tl.constexpr, LISTS: tl.constexpr, HEADS: tl.constexpr, LATENT: tl.constexpr, ROTARY: tl.constexpr,
    K_TOKEN: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, IDENTITY: tl.constexpr, DIRECT: tl.constexpr,
    COLUMNS: tl.constexpr, QUARTER: tl.constexpr, TURNED: tl.constexpr, TILE: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """One run of the listed tokens of one list for at most COLUMNS of its query heads. `scale` is the softmax scale
    times log2(e).

    Products are transposed, tokens or channels in the rows and query heads in the columns, since a matrix tile has 64
    rows and few columns where there are few heads. The latent channels come in quarters, whose rows of memory a thread
    finds through few addresses. DIRECT writes the result to `out`; else each of `splits` runs leaves its unnormalised
    sum in `partial` [rows, splits, HEADS, LATENT] and its maximum and mass in `summit`, `mass` [rows, splits, HEADS].
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

    head = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    head_live = head < HEADS
    channel = tl.arange(0, QUARTER)
    turned = tl.arange(0, TURNED)
    query = q + request * q_row + (first_head + head)[None, :] * q_head
    q0 = _queries(query, head_live, channel, LATENT)
    q1 = _queries(query, head_live, channel + QUARTER, LATENT)
    q2 = _queries(query, head_live, channel + 2 * QUARTER, LATENT)
    q3 = _queries(query, head_live, channel + 3 * QUARTER, LATENT)
    q4 = _queries(query, head_live, LATENT + turned, LATENT + ROTARY)
    blocks = table + request * table_row
    keys = k + kv_head * k_head
    top = tl.full([COLUMNS], -1.0e30, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    sum0 = tl.zeros([QUARTER, COLUMNS], tl.float32)
    sum1 = tl.zeros([QUARTER, COLUMNS], tl.float32)
    sum2 = tl.zeros([QUARTER, COLUMNS], tl.float32)
    sum3 = tl.zeros([QUARTER, COLUMNS], tl.float32)
    for start in range(begin, end, TILE):
        slot = start + tl.arange(0, TILE)
        live = slot < end
        if IDENTITY:
            position = slot
        else:
            page = tl.load(pages + row * most + slot // PAGE, mask=live, other=0)
            position = page * PAGE + slot % PAGE
        live = live & (position < length)
        at = keys + token_offset(blocks, position, live, k_block, K_TOKEN, BLOCK)[:, None]
        # One quarter is on its way while another is multiplied.
        k0 = _keys(at, live, channel, LATENT, q0.dtype)
        k1 = _keys(at, live, channel + QUARTER, LATENT, q0.dtype)
        logits = tl.dot(k0, q0, input_precision="ieee")
        k2 = _keys(at, live, channel + 2 * QUARTER, LATENT, q0.dtype)
        logits = tl.dot(k1, q1, logits, input_precision="ieee")
        k3 = _keys(at, live, channel + 3 * QUARTER, LATENT, q0.dtype)
        logits = tl.dot(k2, q2, logits, input_precision="ieee")
        k4 = _keys(at, live, LATENT + turned, LATENT + ROTARY, q0.dtype)
        logits = tl.dot(k3, q3, logits, input_precision="ieee")
        logits = tl.dot(k4, q4, logits, input_precision="ieee") * scale
        logits = tl.where(live[:, None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 0))
        weights = tl.exp2(logits - higher[None, :])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weights, 0)
        sum0 = _weighed(k0, weights, sum0 * fade[None, :], PRECISE)
        sum1 = _weighed(k1, weights, sum1 * fade[None, :], PRECISE)
        sum2 = _weighed(k2, weights, sum2 * fade[None, :], PRECISE)
        sum3 = _weighed(k3, weights, sum3 * fade[None, :], PRECISE)
        top = higher

    if DIRECT:
        target = out + request * out_row + (first_head + head)[None, :] * out_head
        share = tl.where(total > 0.0, 1.0 / total, 0.0)[None, :]
        _put(target, sum0 * share, head_live, channel, LATENT)
        _put(target, sum1 * share, head_live, channel + QUARTER, LATENT)
        _put(target, sum2 * share, head_live, channel + 2 * QUARTER, LATENT)
        _put(target, sum3 * share, head_live, channel + 3 * QUARTER, LATENT)
    else:
        place = (row * splits + split) * HEADS + head
        tl.store(summit + place, top, mask=head_live)
        tl.store(mass + place, total, mask=head_live)
        if begin < end:
            target = partial + place[None, :] * LATENT
            _put(target, sum0, head_live, channel, LATENT)
            _put(target, sum1, head_live, channel + QUARTER, LATENT)
            _put(target, sum2, head_live, channel + 2 * QUARTER, LATENT)
            _put(target, sum3, head_live, channel + 3 * QUARTER, LATENT)


@triton.jit
def _queries(query, head_live, channel, END: tl.constexpr):
    """[channel, head] of some channels; 0 from END on."""
    x = tl.load(query + channel[:, None], mask=(channel < END)[:, None] & head_live[None, :], other=0.0)
    return stored_operand(x, query.dtype.element_ty)


@triton.jit
def _keys(at, live, channel, END: tl.constexpr, dtype: tl.constexpr):
    """[token, channel] of some channels; 0 from END on and for tokens that are not there."""
    x = tl.load(at + channel[None, :], mask=live[:, None] & (channel < END)[None, :], other=0.0)
    return stored_operand(x, dtype)


@triton.jit
def _weighed(keys, weights, sums, PRECISE: tl.constexpr):
    """`sums` [channel, head] and what the weights [token, head] make of the keys. 16-bit products round the weights;
    with PRECISE what the rounding lost is multiplied too."""
    values = tl.trans(keys)
    rounded = weights.to(values.dtype)
    if PRECISE:
        lost = (weights - rounded.to(tl.float32)).to(values.dtype)
        sums = tl.dot(values, lost, sums, input_precision="ieee")
    return tl.dot(values, rounded, sums, input_precision="ieee")


@triton.jit
def _put(target, x, head_live, channel, END: tl.constexpr):
    """Stores [channel, head] of some channels that lie before END."""
    if target.dtype.element_ty == tl.bfloat16:
        x = round_bf16(x)
    mask = (channel < END)[:, None] & head_live[None, :]
    tl.store(target + channel[:, None], x.to(target.dtype.element_ty), mask=mask)
