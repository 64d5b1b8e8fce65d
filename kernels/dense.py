"""Dense attention on the CPU: what a sparse step has to beat.

Keys and values lie contiguous, one request after the other, as dense attention likes them best; there are no tables and
no pages. Which path is fastest depends on machine, dtype and size, so whoever compares takes the fastest in the same
run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

#: (q [batch, query_heads, channel], k, v [batch, kv_heads, tokens, channel], scale) -> [batch, query_heads, channel]
DensePath = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def sdpa_gqa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's fused attention with its own grouping of query heads (`enable_gqa`)."""
    return scaled_dot_product_attention(q[:, :, None], k, v, scale=scale, enable_gqa=True)[:, :, 0]


def sdpa_folded(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's fused attention with the query heads of a KV head as its rows, so that keys are read once a group."""
    rows = q.view(q.shape[0], k.shape[1], -1, q.shape[-1])
    return scaled_dot_product_attention(rows, k, v, scale=scale).reshape(q.shape)


def matmul_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Two batched products around a softmax in fp32.

    The first is written keys times queries: with a handful of query rows, that order streams the keys at twice the
    speed of the other one.
    """
    batch, heads, tokens, channel = k.shape
    rows = q.view(batch * heads, -1, channel)
    scores = torch.bmm(k.view(-1, tokens, channel), (rows * scale).transpose(1, 2))
    weights = scores.transpose(1, 2).float().softmax(-1).to(v.dtype)
    return torch.bmm(weights, v.view(-1, tokens, channel)).view(q.shape)


#: Every dense path by name; the fastest of them in a run is the baseline of that run.
DENSE_PATHS: dict[str, DensePath] = {
    "sdpa_gqa": sdpa_gqa,
    "sdpa_folded": sdpa_folded,
    "matmul_softmax": matmul_softmax,
}
