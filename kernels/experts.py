"""Mixtures of experts in a decode step, without a loop on the host.

Rows are grouped by expert, and one grouped product reads the weights of every expert that was chosen once. Sorting is
by counting: a step has few tokens and few experts, so ranks are sums of comparisons. `vortexlab.kernels.gpu.experts`
does `route` in one kernel; this is what it must equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

#: Keeps a sum of weights from being zero.
TINY = 1e-20


@dataclass(frozen=True)
class Routing:
    """How tokens choose `count` of `total` experts: those with the highest scores, of equals the first.

    Scores are the softmax over all experts (Qwen3-MoE) or, with `sigmoid`, the sigmoid of each, to which a bias is
    added for the choice alone (GLM, DeepSeek-V3 with one group of experts). Weights are the chosen scores, divided by
    their sum where `normalised`, times `factor`.
    """

    total: int
    count: int
    sigmoid: bool
    normalised: bool
    factor: float


def route(logits: Tensor, bias: Tensor | None, how: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Where each of a token's choices goes when rows are grouped by expert, where the groups end, and its weight.

    `logits`: [tokens, total]; `bias`: fp32 [total] with sigmoid scores. Returns int32 [tokens, count], int32 [total]
    and fp32 [tokens, count], choices in the order of their scores.
    """
    scores = logits.float().sigmoid() if how.sigmoid else logits.float().softmax(-1)
    experts = best(scores if bias is None else scores + bias, how.count)
    weights = scores.gather(1, experts)
    if how.normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    to, ends = grouping(experts, how.total)
    return to.view(experts.shape), ends, weights * how.factor


def best(scores: Tensor, count: int) -> Tensor:
    """The `count` highest of every row, highest first, of equals the first: int64 [rows, count]."""
    number = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores[:, None, :] > scores[:, :, None]) | (
        (scores[:, None, :] == scores[:, :, None]) & (number[None, None, :] < number[None, :, None])
    )
    rank = ahead.sum(-1)
    places = torch.arange(count, device=scores.device)
    return torch.where(rank[:, None, :] == places[None, :, None], number, 0).sum(-1)


def grouping(experts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Where each choice goes when choices are grouped by expert, and where the groups end.

    `experts`: [tokens, count] of `total`. Returns int64 [tokens * count] and int32 [total].
    """
    flat = experts.flatten()
    order = torch.arange(flat.shape[0], device=flat.device)
    ahead = (flat[None] < flat[:, None]) | ((flat[None] == flat[:, None]) & (order[None] < order[:, None]))
    number = torch.arange(total, device=flat.device)
    return ahead.sum(1).int(), (flat[None] <= number[:, None]).sum(1).int()


def spread(x: Tensor, to: Tensor) -> Tensor:
    """The rows of `x` [tokens, hidden] once for each choice, grouped by expert: [tokens * count, hidden]."""
    rows = torch.empty(to.numel(), x.shape[1], dtype=x.dtype, device=x.device)
    return rows.index_copy(0, to.flatten().long(), x.repeat_interleave(to.shape[1], 0))


def combined(rows: Tensor, to: Tensor, weights: Tensor, shared: Tensor | None) -> Tensor:
    """The weighted sum over each token's experts, with that of the shared ones: [tokens, hidden]."""
    found = (rows[to.long()] * weights[..., None]).sum(1).to(rows.dtype)
    return found if shared is None else found + shared


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows grouped by expert times the transposed weight of their expert: `weight` [experts, out, in]."""
    product = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    return product(rows, weight.transpose(1, 2), offs=ends)
