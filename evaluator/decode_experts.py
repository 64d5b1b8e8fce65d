"""Mixtures of experts in a decode step, without a loop on the host.

Sorting is by counting: a step has few tokens and few experts, so ranks are sums of comparisons, which a compiler fuses
into a handful of kernels where a library's sort and top-k launch many. Rows then lie grouped by expert and one grouped
product reads the weights of every expert that was chosen once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softmax_route(logits: Tensor, count: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Qwen3-MoE's: softmax over all experts, the `count` largest. Experts and weights, both [tokens, count]."""
    scores = logits.float().softmax(-1)
    experts = best(scores, count)
    weights = scores.gather(1, experts)
    return experts, weights / weights.sum(-1, keepdim=True) if normalised else weights


def sigmoid_route(logits: Tensor, bias: Tensor, count: int, normalised: bool, factor: float) -> tuple[Tensor, Tensor]:
    """GLM's and DeepSeek-V3's with one group of experts: chosen by sigmoid plus bias, weighted by the sigmoid."""
    scores = logits.float().sigmoid()
    experts = best(scores + bias, count)
    weights = scores.gather(1, experts)
    if normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * factor


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
    return ahead.sum(1), (flat[None] <= number[:, None]).sum(1).int()


def arranged(
    x: Tensor, logits: Tensor, bias: Tensor | None, total: int, count: int, normalised: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows of `x` [tokens, hidden] once for each of their experts, grouped by expert: [tokens * count, hidden].

    With them what `grouping` says, and the weights of `softmax_route`, or with a bias of `sigmoid_route`.
    """
    if bias is None:
        experts, weights = softmax_route(logits, count, normalised)
    else:
        experts, weights = sigmoid_route(logits, bias, count, normalised, factor)
    to, ends = grouping(experts, total)
    rows = torch.empty(to.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
    return rows.index_copy(0, to, x.repeat_interleave(count, 0)), to, ends, weights


def combined(rows: Tensor, to: Tensor, weights: Tensor, shared: Tensor | None) -> Tensor:
    """The weighted sum over each token's experts, with that of the shared ones: [tokens, hidden]."""
    found = (rows[to].unflatten(0, weights.shape) * weights[..., None]).sum(1).to(rows.dtype)
    return found if shared is None else found + shared


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows grouped by expert times the transposed weight of their expert: `weight` [experts, out, in]."""
    product = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    return product(rows, weight.transpose(1, 2), offs=ends)
