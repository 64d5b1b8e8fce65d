"""The functions of `vortexlab.kernels.place` as one kernel each: norms, RoPE and the append to the paged cache."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.experts import Mixture
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.device import round_bf16, start_after_previous, token_offset
from vortexlab.kernels.place import Norms


@triton.jit
def rounded(x, like):
    """fp32 numbers as those of `like` would be stored."""
    if like.dtype.element_ty == tl.bfloat16:
        x = round_bf16(x)
    return x.to(like.dtype.element_ty)


@triton.jit
def add_norm_kernel(
    x, x_row, weights, shared, shared_row, residual, residual_row, weight, out, total, eps,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, SHARED: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One row, in one piece. COUNT: how many rows of `x` the row is a weighted sum of, 0 where it is a row of `x`."""
    start_after_previous(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    live = channel < CHANNELS
    if COUNT == 0:
        a = tl.load(x + row * x_row + channel, mask=live, other=0.0).to(tl.float32)
    else:
        a = tl.zeros([WIDTH], tl.float32)
        for choice in tl.static_range(COUNT):
            factor = tl.load(weights + row * COUNT + choice)
            at = x + (row * COUNT + choice) * x_row + channel
            a += tl.load(at, mask=live, other=0.0).to(tl.float32) * factor
        a = rounded(a, total).to(tl.float32)
    if SHARED:
        a += tl.load(shared + row * shared_row + channel, mask=live, other=0.0).to(tl.float32)
        a = rounded(a, total).to(tl.float32)
    b = tl.load(residual + row * residual_row + channel, mask=live, other=0.0).to(tl.float32)
    both = rounded(a + b, total)
    tl.store(total + row * CHANNELS + channel, both, mask=live)
    both = both.to(tl.float32)
    normed = rounded(both * tl.rsqrt(tl.sum(both * both, 0) / CHANNELS + eps), out).to(tl.float32)
    scale = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row * CHANNELS + channel, rounded(scale * normed, out), mask=live)


@triton.jit
def place_heads_kernel(
    qkv, qkv_row, cos, sin, angles_row, q_weight, k_weight, q_eps, k_eps, out,
    k, k_block, k_head, k_token, v, v_block, v_head, v_token, table, table_row, lengths,
    QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, NORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One head of one row: a query, a key or a value. WIDTH covers half of its channels."""
    start_after_previous(CHAINED)
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
            weight = q_weight + channel
            eps = q_eps
            if head >= QUERY_HEADS:
                weight = k_weight + channel
                eps = k_eps
            factor = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / CHANNELS + eps)
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


@triton.jit
def place_latent_kernel(
    down, down_row, cos, sin, angles_row, q_weight, k_weight, q_eps, k_eps, out, out_row,
    k, k_block, k_token, table, table_row, lengths,
    RANK: tl.constexpr, LATENT: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, RANK_WIDTH: tl.constexpr,
    LATENT_WIDTH: tl.constexpr, ROTARY_WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The low-rank query of one row, or its latent key. ROTARY_WIDTH covers half of the rotary channels."""
    start_after_previous(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    at = down + row * down_row
    if tl.program_id(1) == 0:
        channel = tl.arange(0, RANK_WIDTH)
        live = channel < RANK
        x = tl.load(at + channel, mask=live, other=0.0).to(tl.float32)
        x *= tl.rsqrt(tl.sum(x * x, 0) / RANK + q_eps) * tl.load(q_weight + channel, mask=live, other=0.0).to(
            tl.float32
        )
        tl.store(out + row * out_row + channel, x.to(out.dtype.element_ty), mask=live)
    else:
        position = tl.load(lengths + row) - 1
        to = k + token_offset(table + row * table_row, position, position >= 0, k_block, k_token, BLOCK)
        part = tl.arange(0, LATENT_WIDTH)
        inside = part < LATENT
        c = tl.load(at + RANK + part, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(k_weight + part, mask=inside, other=0.0).to(tl.float32)
        c *= tl.rsqrt(tl.sum(c * c, 0) / LATENT + k_eps) * scale
        tl.store(to + part, c.to(k.dtype.element_ty), mask=inside)
        HALF: tl.constexpr = ROTARY // 2
        pair = tl.arange(0, ROTARY_WIDTH)
        paired = pair < HALF
        first = at + RANK + LATENT + (2 * pair if INTERLEAVED else pair)
        a = tl.load(first, mask=paired, other=0.0).to(tl.float32)
        b = tl.load(first + (1 if INTERLEAVED else HALF), mask=paired, other=0.0).to(tl.float32)
        angle = position.to(tl.int64) * angles_row + pair
        cosine = tl.load(cos + angle, mask=paired, other=0.0).to(tl.float32)
        sine = tl.load(sin + angle, mask=paired, other=0.0).to(tl.float32)
        to += LATENT
        tl.store(to + pair, (a * cosine - b * sine).to(k.dtype.element_ty), mask=paired)
        tl.store(to + HALF + pair, (b * cosine + a * sine).to(k.dtype.element_ty), mask=paired)


@triton.jit
def turn_latent_kernel(
    q, q_row, q_head, heads, heads_row, heads_head, lengths, cos, sin, angles_row,
    LATENT: tl.constexpr, PLAIN: tl.constexpr, ROTARY: tl.constexpr, WIDTH: tl.constexpr, INTERLEAVED: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """One head of one row. WIDTH covers half of the rotary channels."""
    start_after_previous(CHAINED)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    HALF: tl.constexpr = ROTARY // 2
    pair = tl.arange(0, WIDTH)
    live = pair < HALF
    angle = (tl.load(lengths + row) - 1).to(tl.int64) * angles_row + pair
    c = tl.load(cos + angle, mask=live, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=live, other=0.0).to(tl.float32)
    at = heads + row * heads_row + head * heads_head + PLAIN + (2 * pair if INTERLEAVED else pair)
    a = tl.load(at, mask=live, other=0.0).to(tl.float32)
    b = tl.load(at + (1 if INTERLEAVED else HALF), mask=live, other=0.0).to(tl.float32)
    to = q + row * q_row + head * q_head + LATENT + pair
    tl.store(to, (a * c - b * s).to(q.dtype.element_ty), mask=live)
    tl.store(to + HALF, (b * c + a * s).to(q.dtype.element_ty), mask=live)


def add_norm(x: Tensor | Mixture, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `vortexlab.kernels.place.add_norm`."""
    rows, channels = residual.shape
    out, total = (torch.empty(rows, channels, dtype=residual.dtype, device=residual.device) for _ in "ab")
    mixed = x if isinstance(x, Mixture) else Mixture(x, x, None)
    shared = residual if mixed.shared is None else mixed.shared
    count = mixed.weights.shape[1] if mixed is x else 0
    width = triton.next_power_of_2(channels)
    add_norm_kernel[(rows,)](
        mixed.rows, mixed.rows.stride(0), mixed.weights, shared, shared.stride(0),
        residual, residual.stride(0), weight, out, total, eps,
        CHANNELS=channels, WIDTH=width, COUNT=count, SHARED=mixed.shared is not None,
        num_warps=max(1, min(16, width // 512)), **launch.chained(residual.device),
    )  # fmt: skip
    return out, total


def place_heads(qkv: Tensor, cache: PagedKV, cos: Tensor, sin: Tensor, norms: Norms | None) -> Tensor:
    """See `vortexlab.kernels.place.place_heads`."""
    channels, batch = cache.head_dim, qkv.shape[0]
    heads = qkv.shape[1] // channels
    query_heads = heads - 2 * cache.kv_heads
    out = qkv.new_empty(batch, query_heads, channels)
    place_heads_kernel[(batch, heads)](
        qkv, qkv.stride(0), cos, sin, cos.stride(0),
        *((cos, cos, 0.0, 0.0) if norms is None else (norms.q.weight, norms.k.weight, norms.q.eps, norms.k.eps)), out,
        cache.k, *cache.k.stride()[:3], cache.v, *cache.v.stride()[:3],
        cache.table, cache.table.stride(0), cache.lengths,
        QUERY_HEADS=query_heads, KV_HEADS=cache.kv_heads, CHANNELS=channels,
        WIDTH=triton.next_power_of_2(channels // 2), BLOCK=cache.block, NORM=norms is not None, num_warps=1,
        **launch.chained(qkv.device),
    )  # fmt: skip
    return out


def place_latent(down: Tensor, cache: PagedKV, cos: Tensor, sin: Tensor, norms: Norms, interleaved: bool) -> Tensor:
    """See `vortexlab.kernels.place.place_latent`."""
    rank, rotary = down.shape[1] - cache.head_dim, cache.head_dim - cache.value_dim
    out = down.new_empty(down.shape[0], rank)
    place_latent_kernel[(down.shape[0], 2)](
        down, down.stride(0), cos, sin, cos.stride(0),
        norms.q.weight, norms.k.weight, norms.q.eps, norms.k.eps, out, out.stride(0),
        cache.k, cache.k.stride(0), cache.k.stride(2), cache.table, cache.table.stride(0), cache.lengths,
        RANK=rank, LATENT=cache.value_dim, ROTARY=rotary, INTERLEAVED=interleaved,
        RANK_WIDTH=triton.next_power_of_2(rank), LATENT_WIDTH=triton.next_power_of_2(cache.value_dim),
        ROTARY_WIDTH=triton.next_power_of_2(rotary // 2), BLOCK=cache.block, num_warps=4,
        **launch.chained(down.device),
    )  # fmt: skip
    return out


def turn_latent(q: Tensor, heads: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """See `vortexlab.kernels.place.turn_latent`."""
    rotary = cos.shape[1]
    turn_latent_kernel[q.shape[:2]](
        q, *q.stride()[:2], heads, *heads.stride()[:2], lengths, cos, sin, cos.stride(0),
        LATENT=q.shape[2] - rotary, PLAIN=heads.shape[2] - rotary, ROTARY=rotary,
        WIDTH=triton.next_power_of_2(rotary // 2), INTERLEAVED=interleaved, num_warps=1, **launch.chained(q.device),
    )  # fmt: skip
    return q
