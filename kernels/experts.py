"""Mixtures of experts in a decode step, without a loop on the host.

One product reads the weights of every expert that was chosen once. Here rows are grouped by expert for that, sorted by
counting: a step has few tokens and few experts, so ranks are sums of comparisons. `vortexlab.kernels.gpu.experts` has
a kernel for each of `route`, `gated_product` and `grouped_product`; these are what they must equal.
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


@dataclass(frozen=True)
class Routed:
    """The choices of a step: `experts` int32 [tokens, count], in the order of their scores, with `weights` fp32
    [tokens, count]. Choice n of token t is row t * count + n of what the products give."""

    experts: Tensor
    weights: Tensor


def route(logits: Tensor, bias: Tensor | None, how: Routing) -> Routed:
    """The choices from `logits` [tokens, total]; `bias`: fp32 [total] with sigmoid scores."""
    scores = logits.float().sigmoid() if how.sigmoid else logits.float().softmax(-1)
    experts = best(scores if bias is None else scores + bias, how.count)
    weights = scores.gather(1, experts)
    if how.normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return Routed(experts.int(), weights * how.factor)


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


@dataclass(frozen=True)
class Mixture:
    """What a mixture of experts adds to the residual stream, not summed yet: `rows` [tokens * count, hidden] of the
    chosen experts, `weights` [tokens, count] of `Routed`, and the shared experts' [tokens, hidden] where there are
    any."""

    rows: Tensor
    weights: Tensor
    shared: Tensor | None

    def summed(self) -> Tensor:
        """The weighted sum over each token's experts, with that of the shared ones: [tokens, hidden]."""
        rows = self.rows.unflatten(0, self.weights.shape)
        found = (rows * self.weights[..., None]).sum(1).to(rows.dtype)
        return found if self.shared is None else found + self.shared


def gated_product(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """silu(gate) * up of every choice: of `x` [tokens, hidden] the choice's token, times the transposed `weight`
    [experts, gate | up, hidden] of its expert. Returns [tokens * count, inner]."""
    gate, up = grouped_product(x.repeat_interleave(experts.shape[1], 0), weight, experts).chunk(2, -1)
    return functional.silu(gate) * up


def grouped_product(rows: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """The row of every choice times the transposed weight of its expert: `weight` [experts, out, in]."""
    product = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    to, ends = grouping(experts, weight.shape[0])
    grouped = torch.empty_like(rows).index_copy(0, to, rows)
    found: Tensor = product(grouped, weight.transpose(1, 2), offs=ends)[to]
    return found
