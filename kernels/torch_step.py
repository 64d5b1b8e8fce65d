"""One step's selection and output: a plan evaluated on a whole batch.

Values are laid out as `vortexlab.kernels.torch_ops` says, with rows and KV heads in front; the page axis of every value
runs over the candidates of the longest row, and columns past a row's own candidates hold anything. A row is a request
in a decode step, and a block of queries, or one query of it, in prefill.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vortexlab.dsl.ir import BOOL, FLOAT, SET, Node, Program, Static
from vortexlab.kernels import torch_select
from vortexlab.kernels.lanes import Lanes
from vortexlab.kernels.plan import Plan, Sweep, over_pages
from vortexlab.kernels.torch_ops import as_kind, operand_kind
from vortexlab.kernels.torch_pages import across_pages
from vortexlab.kernels.torch_shapes import Kernel, Value

#: Bytes of the largest intermediate while sweeping: about a CPU core's second-level cache, plenty for a GPU.
SWEEP_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}

Exact = int | float | bool


@dataclass(frozen=True)
class Summaries:
    """What is stored of the pages: `fields` by name, [kv_heads, physical pages, *axes]; those in fp8 have `scales`,
    [kv_heads, physical pages]."""

    fields: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]


class Step:
    """Evaluates the query stage of a program for one query of every row.

    `q`: fp32 [rows, kv_heads, group, channel]; `table`: the physical page of each logical page; `lengths`: int64
    [rows]; `exact`: the values of exact scalars by row; `lanes`: where pieces of the work run; `given`: the values of
    nodes that are known before; `kept`: by `reuse` node, the rows for which the set is found afresh (None: all) and
    what the others keep. `attention` is what computes an attention node, if there is one. With `whole` the step goes
    through all nodes even if no row has a candidate page.
    """

    def __init__(
        self,
        program: Program,
        static: Static,
        plan: Plan,
        kernels: Mapping[int, Kernel],
        widths: Sequence[int],
        *,
        q: Tensor,
        summaries: Summaries,
        table: Tensor,
        lengths: Tensor,
        exact: Sequence[Mapping[int, Exact]],
        lanes: Lanes,
        given: Mapping[int, Tensor] | None = None,
        kept: Mapping[int, tuple[Tensor | None, Tensor | None]] | None = None,
        whole: bool = False,
    ):
        self.program, self.static, self.plan, self.kernels, self.widths = program, static, plan, kernels, widths
        self.q, self.summaries, self.lengths, self.exact, self.lanes = q, summaries, lengths, exact, lanes
        self.kept = kept or {}
        self.attention: Callable[[Step, Node], Tensor] | None = None
        self.device = q.device
        self.own = (lengths - 1) // program.page_size
        self.candidates = max(int(self.own.max()), int(whole))
        number = torch.arange(self.candidates, device=self.device)
        self.live = number < self.own[:, None, None]
        table = pad(table, (0, max(0, self.candidates - table.shape[1])))[:, : self.candidates]
        self.pages = torch.where(self.live[:, 0], table, 0)
        # Rows whose candidates lie one after the other in memory are read in place, without a gather.
        steps = (self.pages[:, 1:] - self.pages[:, :-1] == 1) | ~self.live[:, 0, 1:]
        self.in_place = steps.all(1).tolist()
        self.own_pages = [max(own, int(whole)) for own in self.own.tolist()]
        self.values: dict[int, Tensor] = dict(given or {})

    def run(self) -> None:
        """Evaluates the plan; `values` then holds what it keeps. Sets are bool, broadcastable to [rows, kv_heads,
        lists, candidates + 1]."""
        for item in self.plan.steps:
            if isinstance(item, Sweep):
                self._sweep(item)
            elif item not in self.values:
                self.values[item] = self._evaluate(item)

    # operands

    def _numbers(self, index: int) -> list[Exact]:
        """An exact scalar: one number, or one for each request where they differ."""
        numbers = [row[index] for row in self.exact]
        return numbers[:1] if all(n == numbers[0] for n in numbers) else numbers

    def _operand(self, node: Node, source: int) -> Value:
        """An input of a numeric op: a tensor, or an exact scalar as a number or a tensor [batch, 1]."""
        if source not in self.plan.exact:
            return self.values[source]
        kind = operand_kind(self.program, node, source)
        numbers = [as_kind(n, kind) for n in self._numbers(source)]
        if len(numbers) == 1:
            return numbers[0]
        dtype = {FLOAT: torch.float32, BOOL: torch.bool}.get(kind, torch.int64)
        return torch.tensor(numbers, dtype=dtype, device=self.device)[:, None]

    def scalar(self, source: int) -> Tensor:
        """A scalar (or one number per query head) that selectors compare with: broadcastable to sets."""
        if source in self.plan.exact:
            numbers = self._numbers(source)
            dtype = torch.float64 if self.program.nodes[source].type.kind == FLOAT else torch.int64
            return torch.tensor(numbers, dtype=dtype, device=self.device).view(-1, 1, 1, 1)
        value = self.values[source]
        return value[:, :, :, None] if value.dim() == 3 else value[:, :, None, None]

    def score(self, source: int) -> Tensor:
        """A score as [rows, kv_heads, lists, candidates]."""
        value = self.values[source].float()
        return value[:, :, None] if value.dim() == 3 else value.transpose(2, 3)

    # ops

    def _evaluate(self, index: int) -> Tensor:
        node = self.program.nodes[index]
        if node.op == "q":
            return self.q
        if node.op == "field":
            return self._field(node, slice(0, self.q.shape[0]), slice(0, self.q.shape[1]), slice(0, self.candidates))
        if node.type.kind == SET:
            return self._set(index, node)
        if node.op == "attention":
            assert self.attention is not None
            return self.attention(self, node)
        if node.op == "member":
            held = self.values[node.inputs[0]][..., : self.candidates].expand(len(self.own), -1, -1, -1)
            return held.transpose(2, 3) if "head" in node.type.axes else held[:, :, 0]
        if node.op == "index" and node.attrs["axis"] == "page":
            return torch.arange(self.candidates, device=self.device)[None, None]
        if over_pages(node):
            first, *rest = node.inputs
            others = [self._operand(node, i) for i in rest]
            kind = self.program.nodes[first].type.kind
            heads = self.q.shape[1]
            return across_pages(node, self.values[first], others, kind, self.live, heads, self.kernels.get(index))
        return self.kernels[index]([self._operand(node, i) for i in node.inputs])

    def _field(self, node: Node, rows: slice, heads: slice, pages: slice) -> Tensor:
        """fp32 [rows, kv_heads, pages, *axes] of a summary."""
        name = str(node.attrs["name"])
        field, scale = self.summaries.fields[name], self.summaries.scales.get(name)
        listed = self.pages[rows, pages]
        if rows.stop - rows.start == 1 and self.in_place[rows.start] and pages.stop <= self.own_pages[rows.start]:
            start = int(listed[0, 0])
            found = field[None, heads, start : start + listed.shape[1]].float()
            scale = None if scale is None else scale[None, heads, start : start + listed.shape[1]]
        else:
            number = torch.arange(heads.start, heads.stop, device=self.device)
            index = listed[:, None] + number[:, None] * field.shape[1]
            found = field.view(field.shape[0] * field.shape[1], -1).index_select(0, index.flatten()).float()
            found = found.view(*index.shape, *field.shape[2:])
            scale = None if scale is None else scale.flatten()[index]
        return found if scale is None else found * scale.view(*scale.shape, *[1] * (found.dim() - 3))

    def _sweep(self, sweep: Sweep) -> None:
        """Evaluates wide nodes on a few requests, KV heads and pages at a time, and keeps the outputs whole.

        Columns past the candidates of a row may stay unwritten.
        """
        batch, heads = self.q.shape[:2]
        inside = set(sweep.nodes)
        outside = {
            (n, i): self._operand(self.program.nodes[n], i)
            for n in sweep.nodes
            for i in self.program.nodes[n].inputs
            if i not in inside
        }
        fields = [i for i in sweep.nodes if self.program.nodes[i].op == "field"]
        widest = max((self.widths[i] for i in sweep.nodes if i not in fields), default=1)
        widest_field = max((self.widths[i] for i in fields), default=1)
        stored = [self.summaries.fields[str(self.program.nodes[i].attrs["name"])] for i in fields]
        converted = any(field.dtype != torch.float32 for field in stored)
        kept: dict[int, Tensor] = {}
        lock = threading.Lock()

        def sweep_piece(piece: tuple[slice, slice, slice]) -> None:
            found = self._sweep_part(sweep, outside, *piece)
            for i in sweep.outputs:
                with lock:
                    if i not in kept:
                        kept[i] = self._whole(found[i], batch, heads)
                kept[i][piece] = found[i]

        pieces: list[tuple[slice, slice, slice]] = []
        for rows in self._row_groups(heads * widest_field):
            pages = max(self.own_pages[rows])
            read_in_place = rows.stop - rows.start == 1 and self.in_place[rows.start]
            width = widest if read_in_place and not converted else max(widest, widest_field)
            budget = max(1, SWEEP_BYTES.get(self.device.type, 16 << 20) // (4 * width))
            few_heads = max(1, min(heads, budget // 64))
            few_pages = max(1, budget // (few_heads * (rows.stop - rows.start)))
            if batch == 1:  # the lanes share the pages
                few_pages = min(few_pages, max(256, -(-pages // self.lanes.count)))
            for some in _slices(0, heads, few_heads):
                pieces += [(rows, some, run) for run in _slices(0, pages, few_pages)]
        self.lanes.run(sweep_piece, pieces)
        self.values.update(kept)

    def _row_groups(self, width: int) -> list[slice]:
        """Requests swept together: small ones share the cost of a launch, large ones may be read in place."""
        limit = SWEEP_BYTES.get(self.device.type, 16 << 20) // (4 * width)
        limit = min(limit, max(limit // 8, sum(self.own_pages) // self.lanes.count))
        groups: list[slice] = []
        start = 0
        for row in range(1, len(self.own_pages) + 1):
            longest = max(self.own_pages[start : row + 1], default=0)
            if row == len(self.own_pages) or longest * (row + 1 - start) > limit:
                if max(self.own_pages[start:row]) > 0:
                    groups.append(slice(start, row))
                start = row
        return groups

    def _whole(self, part: Tensor, batch: int, heads: int) -> Tensor:
        """An uninitialised tensor for all pages, laid out in memory as a part of it is."""
        if part.dim() == 4 and part.stride(2) == 1:
            return part.new_empty(batch, heads, part.shape[3], self.candidates).transpose(2, 3)
        return part.new_empty(batch, heads, self.candidates, *part.shape[3:])

    def _sweep_part(
        self, sweep: Sweep, outside: Mapping[tuple[int, int], Value], rows: slice, heads: slice, run: slice
    ) -> dict[int, Tensor]:
        def part(source: int, value: Value) -> Value:
            if not isinstance(value, Tensor):
                return value
            value = value[rows] if value.shape[0] > 1 else value
            value = value[:, heads] if value.shape[1] > 1 else value
            return value[:, :, run] if "page" in self.program.nodes[source].type.axes else value

        found: dict[int, Tensor] = {}
        for index in sweep.nodes:
            node = self.program.nodes[index]
            if node.op == "field":
                found[index] = self._field(node, rows, heads, run)
            else:
                inputs = [found[i] if i in found else part(i, outside[index, i]) for i in node.inputs]
                found[index] = self.kernels[index](inputs)
        return found

    # sets

    def _set(self, index: int, node: Node) -> Tensor:
        column = torch.arange(self.candidates + 1, device=self.device)
        own = self.own[:, None, None, None]
        inputs: list[Any] = [self.values.get(i) for i in node.inputs]
        if node.op == "everything":
            return column <= own
        if node.op in ("first", "last"):
            return torch_select.static_set(node.op, column, own, self.scalar(node.inputs[0]))
        if node.op == "stride":
            return torch_select.static_set(node.op, column, own, *(self.scalar(i) for i in node.inputs))
        if node.op == "union":
            return inputs[0] | inputs[1]
        if node.op == "intersect":
            return inputs[0] & inputs[1]
        if node.op == "difference":
            return inputs[0] & ~inputs[1]
        if node.op == "complement":
            return (column <= own) & ~inputs[0]
        if node.op == "where":
            return torch.where(self.scalar(node.inputs[0]).bool(), inputs[1], inputs[2])
        if node.op == "reuse":
            afresh, before = self.kept[index]
            found = inputs[0] & pad(self.live[:, :, None], (0, 1))
            if afresh is None or before is None:
                return found
            return torch.where(afresh[:, None, None, None], found, before)
        return pad(self._chosen(node), (0, 1))

    def _chosen(self, node: Node) -> Tensor:
        """`topk`, `topp`, `above` and `random`: bool [batch, kv_heads, lists, candidates]."""
        fixed = {"topk": 2, "topp": 4, "above": 3, "random": 1}[node.op]
        allowed = self.live[:, :, None]
        if len(node.inputs) > fixed:
            allowed = allowed & self.values[node.inputs[fixed]][..., : self.candidates]
        operands = [self.scalar(i) for i in node.inputs[(0 if node.op == "random" else 1) : fixed]]
        if node.op == "random":
            keys = torch_select.random_keys(
                self.program.seed,
                int(node.attrs["salt"]),  # type: ignore[arg-type]
                self.static.layer,
                self.q.shape[1],
                self.lengths - 1,
                self.candidates,
                allowed,
            )
            return torch_select.choose(keys, operands[0])
        score = self.score(node.inputs[0])
        shape = torch.broadcast_shapes(score.shape, allowed.shape, *(x.shape for x in operands))
        score, allowed = score.expand(shape), allowed.expand(shape)
        if node.op == "topk":
            return torch_select.topk(score, operands[0], allowed)
        if node.op == "topp":
            mass, scale, most = operands
            return torch_select.topp(score, mass, scale, most, allowed)
        threshold, most = operands
        return torch_select.above(score, threshold, most, allowed)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
