"""`vortexlab.kernels.place.place_heads` as one kernel: head norm, RoPE and the append to the paged cache."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.gpu.device import token_offset
from vortexlab.kernels.place import HeadNorm


@triton.jit
def place_kernel(
    qkv, qkv_row, cos, sin, angles_row, q_weight, k_weight, eps, out,
    k, k_block, k_head, k_token, v, v_block, v_head, v_token, table, table_row, lengths,
    QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """One head of one row: a query, a key or a value. WIDTH covers half of its channels."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    HALF: tl.constexpr = CHANNELS // 2
    position = tl.load(lengths + row) - 1
    channel = tl.arange(0, WIDTH)
    live = channel < HALF
    at = qkv + row * qkv_row + head * CHANNELS + channel
    a = tl.load(at, mask=live, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=live, other=0.0).to(tl.float32)
    if head < QUERY_HEADS + KV_HEADS:
        if NORM:
            factor = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / CHANNELS + eps)
            weight = q_weight + channel
            if head >= QUERY_HEADS:
                weight = k_weight + channel
            a = a * factor * tl.load(weight, mask=live, other=0.0).to(tl.float32)
            b = b * factor * tl.load(weight + HALF, mask=live, other=0.0).to(tl.float32)
        angle = position.to(tl.int64) * angles_row + channel
        c = tl.load(cos + angle, mask=live, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=live, other=0.0).to(tl.float32)
        first = a * c - b * s
        b = b * c + a * s
        a = first
    if head < QUERY_HEADS:
        to = out + (row * QUERY_HEADS + head) * CHANNELS + channel
        tl.store(to, a.to(out.dtype.element_ty), mask=live)
        tl.store(to + HALF, b.to(out.dtype.element_ty), mask=live)
    else:
        blocks = table + row * table_row
        if head < QUERY_HEADS + KV_HEADS:
            at_k = token_offset(blocks, position, position >= 0, k_block, k_token, BLOCK)
            to = k + at_k + (head - QUERY_HEADS) * k_head + channel
        else:
            at_v = token_offset(blocks, position, position >= 0, v_block, v_token, BLOCK)
            to = v + at_v + (head - QUERY_HEADS - KV_HEADS) * v_head + channel
        tl.store(to, a.to(k.dtype.element_ty), mask=live)
        tl.store(to + HALF, b.to(k.dtype.element_ty), mask=live)


def place_heads(qkv: Tensor, cache: PagedKV, cos: Tensor, sin: Tensor, norm: HeadNorm | None) -> Tensor:
    """See `vortexlab.kernels.place.place_heads`."""
    channels, batch = cache.head_dim, qkv.shape[0]
    heads = qkv.shape[1] // channels
    query_heads = heads - 2 * cache.kv_heads
    out = qkv.new_empty(batch, query_heads, channels)
    place_kernel[(batch, heads)](
        qkv, qkv.stride(0), cos, sin, cos.stride(0),
        cos if norm is None else norm.q, cos if norm is None else norm.k, 0.0 if norm is None else norm.eps, out,
        cache.k, *cache.k.stride()[:3], cache.v, *cache.v.stride()[:3],
        cache.table, cache.table.stride(0), cache.lengths,
        QUERY_HEADS=query_heads, KV_HEADS=cache.kv_heads, CHANNELS=channels,
        WIDTH=triton.next_power_of_2(channels // 2), BLOCK=cache.block, NORM=norm is not None, num_warps=1,
    )  # fmt: skip
    return out
