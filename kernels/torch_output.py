"""The attention output of a program: attention over tokens of pages and over summary entries, in one softmax.

A softmax over two kinds of things is the mean of two softmaxes, weighted by their sums of exponentials; so tokens are
attended to by the same code as in a plain step, and entries by a product with the summaries.

Queries come in groups that share a row's pages: [rows, kv_heads, each, group, channel], where `each` is 1 in a decode
step and counts the queries of a block in prefill. What depends on a query of its own has rows * each rows, one query
after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vortexlab.dsl.ir import Node
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.compiled import operands_of
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.torch_attend import Workspace, attend_rows
from vortexlab.kernels.torch_step import Step


@dataclass
class Attending:
    """Computes attention nodes of one step.

    `q`: fp32 [rows, kv_heads, each, group, channel]; `cache`: a row for each row of the step, with the length that its
    last query sees; `own`: bool [rows, pages], the pages that are always read; `shared`: the values of nodes that the
    queries of a row have in common; `last`: int64 [rows, each], the last position that each query sees, None in a
    decode step.
    """

    q: Tensor
    cache: PagedKV
    own: Tensor
    shared: Mapping[int, Tensor]
    last: Tensor | None
    workspace: Workspace

    def __call__(self, step: Step, node: Node) -> Tensor:
        inputs = operands_of(node, node.inputs)
        if "keys" not in inputs:
            found, _ = self._tokens(step, inputs["pages"], inputs.get("log_weight"), False)
        elif "pages" not in inputs:
            found, _ = self._entries(step, inputs)
        else:
            tokens, mass = self._tokens(step, inputs["pages"], inputs.get("log_weight"), True)
            entries, entry_mass = self._entries(step, inputs)
            assert mass is not None
            total = torch.logaddexp(mass, entry_mass)
            shares = [torch.where(total > float("-inf"), (m - total).exp(), 0.0) for m in (mass, entry_mass)]
            found = tokens * shares[0][..., None] + entries * shares[1][..., None]
        return found.transpose(1, 2).flatten(0, 1)

    # what a node says of each query

    def _each(self, step: Step, index: int) -> Tensor:
        """A node's value as [rows or 1, each or 1, ...]."""
        value = self.shared.get(index)
        if value is not None:
            return value[:, None]
        value = step.values[index]
        rows, each = self.q.shape[0], self.q.shape[2]
        return value.unflatten(0, (rows, each)) if value.shape[0] > 1 else value[:, None]

    def widened(self, found: Tensor) -> Tensor:
        """A set with a column for each page of `own`."""
        missing = self.own.shape[1] - found.shape[-1]
        return pad(found, (0, missing)) if missing > 0 else found[..., : self.own.shape[1]]

    def _member(self, step: Step, index: int) -> Tensor:
        """A set as bool [rows or 1, kv_heads or 1, each or 1, lists, pages], over the pages of `own`."""
        return self.widened(self._each(step, index).transpose(1, 2))

    def _weights(self, step: Step, index: int, axes: tuple[str, ...], made: tuple[str, ...]) -> Tensor:
        """A log-weight as fp32 [rows or 1, kv_heads or 1, each or 1, group or 1, pages, *made]."""
        if index in step.plan.exact:
            value = step.scalar(index).float()[:, 0]
            value = value.unflatten(0, (-1, self.q.shape[2])) if value.shape[0] > 1 else value[:, None]
            value = value.transpose(1, 2)[..., 0]
        else:
            value = self._each(step, index).transpose(1, 2).float()
        want = ("head", "page", *made)
        order = [3 + axes.index(axis) for axis in want if axis in axes]
        value = value.permute(0, 1, 2, *order)
        return value[(..., *(slice(None) if axis in axes else None for axis in want))]

    # tokens

    def _tokens(self, step: Step, pages: int, weight: int | None, mass: bool) -> tuple[Tensor, Tensor | None]:
        rows, heads, each, group = self.q.shape[:4]
        own = self.own[:, None, None, None]
        candidate = torch.arange(self.own.shape[1], device=own.device) < step_own(step, rows)[:, None, None, None, None]
        member = (self._member(step, pages) & candidate) | own
        log_weight = None
        if weight is not None:
            given = self._weights(step, weight, step.program.nodes[weight].type.axes, ())
            given = given.expand(*given.shape[:4], step.candidates)
            given = pad(given, (0, self.own.shape[1] - step.candidates))
            log_weight = torch.where(candidate & ~own, given, 0.0)
        if member.shape[2] > 1 or member.shape[3] > 1:
            log_weight = torch.where(member, 0.0 if log_weight is None else log_weight, float("-inf"))
        if log_weight is not None and (log_weight.shape[2] > 1 or log_weight.shape[3] > 1):
            log_weight = log_weight.expand(*log_weight.shape[:2], each, group, -1)
        union = member.any(3).any(2).expand(rows, heads, -1)
        found, total = attend_rows(
            self.q.flatten(2, 3),
            self.cache,
            PageLists.from_mask(union[:, :, None]),
            step.program.page_size,
            step.static.scale,
            log_weight=None if log_weight is None else log_weight.flatten(2, 3),
            last=None if self.last is None else self.last.repeat_interleave(group, 1),
            mass=mass,
            workspace=self.workspace,
        )
        split = (each, group)
        return found.unflatten(2, split), None if total is None else total.unflatten(2, split)

    # entries

    def _entries(self, step: Step, inputs: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        """Attention over summary entries, and the logarithms of its sums of exponentials (-inf where there is none)."""
        nodes = step.program.nodes
        rows = self.q.shape[0]
        axes = {name: nodes[inputs[name]].type.axes for name in ("keys", "values")}
        made = tuple(axis for axis in axes["keys"] if axis not in ("page", "head", "channel"))
        count = step.candidates
        live = torch.arange(count, device=self.q.device) < step_own(step, rows)[:, None]

        def of_entries(name: str) -> Tensor:
            """[rows or 1, kv_heads, each or 1, group or 1, pages * entries, channel]; 0 where there is no candidate."""
            value = self._each(step, inputs[name]).transpose(1, 2).float()
            order = [3 + axes[name].index(axis) for axis in ("head", "page", *made, "channel") if axis in axes[name]]
            value = value.permute(0, 1, 2, *order)
            if "head" not in axes[name]:
                value = value.unsqueeze(3)
            value = value.masked_fill(~live.view(rows, 1, 1, 1, count, *[1] * (value.dim() - 5)), 0.0)
            return value.flatten(4, -2)

        keys, values = of_entries("keys"), of_entries("values")
        shared = keys.shape[2:4] == values.shape[2:4] == (1, 1)
        q = self.q.flatten(2, 3)[:, :, None, None] if shared else self.q.unsqueeze(4)
        logits = torch.matmul(q, keys.transpose(-1, -2)) * step.static.scale
        if shared:
            logits = logits[:, :, 0, 0].unflatten(2, self.q.shape[2:4])
        else:
            logits = logits.squeeze(4)
        sizes = self._each(step, inputs["keys"]).shape[3:]
        logits = logits.unflatten(-1, (count, *(sizes[axes["keys"].index(axis)] for axis in made)))
        if "entry_log_weight" in inputs:
            index = inputs["entry_log_weight"]
            logits = logits + self._weights(step, index, nodes[index].type.axes, made)
        allowed = live[:, None, None, None]
        if "among" in inputs:
            allowed = allowed & self._member(step, inputs["among"])[..., :count]
        allowed = allowed[(..., *(None for _ in made))]
        logits = torch.where(allowed, logits, float("-inf")).flatten(4)
        mass = logits.logsumexp(-1)
        weight = logits.softmax(-1).masked_fill_((mass == float("-inf"))[..., None], 0.0)
        if shared:
            found = torch.matmul(weight.flatten(2, 3), values[:, :, 0, 0]).unflatten(2, self.q.shape[2:4])
        else:
            found = torch.matmul(weight.unsqueeze(4), values).squeeze(4)
        return found, mass


def step_own(step: Step, rows: int) -> Tensor:
    """Candidate pages of every row, int64 [rows], also where the step has several queries a row."""
    return step.own.view(rows, -1)[:, 0]
