"""What happens to a new token's projections before attention: norm of the heads, RoPE, a place in the paged cache.

Serving steps know their lengths on the device only, so nothing here reads a tensor back to the host. The caller has
advanced the lengths already and made sure that the table has room. `vortexlab.kernels.gpu.place` does `add_norm`,
`place_heads`, `place_latent` and `turn_latent` in one kernel each; this is what they must equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.experts import Mixture


@dataclass(frozen=True)
class Norm:
    """RMSNorm: weight [channel] and epsilon."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Norms:
    """Those of queries and of keys: of every head, or of the two low-rank parts of latent attention."""

    q: Norm
    k: Norm


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, in fp32; result in x's precision."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def add_norm(x: Tensor | Mixture, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x` added to the residual stream, both [rows, channel]: the norm of the sum, and the sum."""
    total = residual + (x.summed() if isinstance(x, Mixture) else x)
    return rms_norm(total, weight, eps), total


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """RoPE (arXiv 2104.09864) over the last axis. `cos`, `sin`: the angles of pairs, twice, as transformers has them.

    A pair is channel i with channel i + half, or (`interleaved`) channels 2 i and 2 i + 1; the result has the first
    ones of all pairs, then the second ones.
    """
    half = x.shape[-1] // 2
    c, s = cos[..., :half], sin[..., :half]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    return torch.cat((a * c - b * s, b * c + a * s), -1)


def _store(cache: PagedKV, k_new: Tensor, v_new: Tensor | None) -> None:
    """Writes the newest token of every row ([batch, kv_heads, channel]) where the lengths say; `v_new` is None where
    values are a part of the keys."""
    position = cache.lengths.long() - 1
    blocks = cache.table.long().gather(1, (position // cache.block)[:, None])[:, 0]
    cache.k[blocks, :, position % cache.block] = k_new.to(cache.k.dtype)
    if v_new is not None:
        cache.v[blocks, :, position % cache.block] = v_new.to(cache.v.dtype)


def place_heads(qkv: Tensor, cache: PagedKV, cos: Tensor, sin: Tensor, norms: Norms | None) -> Tensor:
    """Puts keys and values of the newest tokens into the cache; returns the queries [batch, query_heads, channel].

    `qkv`: [batch, (query_heads + 2 kv_heads) * channel]; `cos`, `sin`: [positions, channel].
    """
    heads = qkv.unflatten(1, (-1, cache.head_dim))
    q, k, v = heads.split((heads.shape[1] - 2 * cache.kv_heads, cache.kv_heads, cache.kv_heads), 1)
    if norms is not None:
        q, k = rms_norm(q, norms.q.weight, norms.q.eps), rms_norm(k, norms.k.weight, norms.k.eps)
    position = cache.lengths.long() - 1
    c, s = cos[position][:, None], sin[position][:, None]
    _store(cache, rotate(k, c, s), v)
    return rotate(q, c, s)


def place_latent(down: Tensor, cache: PagedKV, cos: Tensor, sin: Tensor, norms: Norms, interleaved: bool) -> Tensor:
    """MLA: puts the newest latent keys into the cache; returns the low-rank queries after their norm, [batch, rank].

    `down`: [batch, rank + latent + rotary]; the cache's values are the latent part of its keys.
    """
    rank = down.shape[1] - cache.head_dim
    q, latent, rotary = down.split((rank, cache.value_dim, cache.head_dim - cache.value_dim), 1)
    position = cache.lengths.long() - 1
    turned = rotate(rotary, cos[position], sin[position], interleaved)
    key = torch.cat((rms_norm(latent, norms.k.weight, norms.k.eps), turned), 1)
    _store(cache, key[:, None], None)
    return rms_norm(q, norms.q.weight, norms.q.eps)


def turn_latent(
    q: Tensor, heads: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> Tensor:
    """MLA: fills the last channels of `q` [batch, query_heads, latent + rotary] with those of `heads` [batch,
    query_heads, plain + rotary] after RoPE at the newest token; returns `q`, whose latent part is there already."""
    position, rotary = lengths.long() - 1, cos.shape[1]
    c, s = cos[position][:, None], sin[position][:, None]
    q[..., q.shape[2] - rotary :] = rotate(heads[..., heads.shape[2] - rotary :], c, s, interleaved)
    return q
