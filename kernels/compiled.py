"""A bound program on one layer as the torch executor runs it: rewritten, sized, and with a function for every node."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vortexlab.dsl.ir import FLOAT, QUERY_STAGE, SET, Node, Program, Static
from vortexlab.dsl.parameters import parameter
from vortexlab.dsl.scalars import scalar_value
from vortexlab.kernels.lowering import contract
from vortexlab.kernels.plan import Plan, make_plan, over_pages, reads, roots_of
from vortexlab.kernels.torch_ops import aligner, as_kind, make_kernel, operand_kind
from vortexlab.kernels.torch_shapes import Kernel, Value

Exact = int | float | bool
_LEAVES = ("q", "k", "v", "field", "const", "ctx", "param", "memory", "index")


class Compiled:
    """`program` is the rewritten one; `own_scales` tells that summaries are stored with a scale of their own each."""

    def __init__(self, program: Program, static: Static, own_scales: bool):
        self.static, self._source, self._own_scales = static, program, own_scales
        self.program = program = contract(program, static, own_scales)
        self.sizes = program.axis_sizes(static)
        self.widths = [math.prod(sizes.values()) for sizes in self.sizes]
        self._plans: dict[object, Plan] = {}
        self.default = self.plan(roots_of(program))
        live = program.live()
        self.kernels: dict[int, Kernel] = {}
        for index in live:
            node = program.nodes[index]
            numeric = index not in self.default.exact and node.type.kind != SET and node.op not in _LEAVES
            if numeric and (not over_pages(node) or node.op in ("gather", "shift", "window", "scan", "sort", "argmax")):
                self.kernels[index] = make_kernel(program, index, self.sizes, static)
        query = [i for i in live if i not in self.default.exact and program.nodes[i].stage == QUERY_STAGE]
        self._read_scalars = sorted({i for index in query for i in program.nodes[index].inputs} & self.default.exact)
        self._exact: dict[int, dict[int, Exact]] = {}
        #: Nodes whose values come from memory, and those attending (all of them part of the output).
        self.carried = [i for i in live if program.nodes[i].op in ("memory", "reuse")]
        self.attending = [i for i in live if program.nodes[i].op == "attention"]
        self.attended = [program.nodes[i].inputs[0] for i in self.attending if "pages" in parts_of(program, i)]
        self.lists = static.group if any(program.nodes[i].type.axes for i in (program.output, *self.attended)) else 1
        self.per_query = self._per_query()
        #: What the queries of a block find done: inputs of their own nodes that are none of these.
        self.common = {i for own in self.per_query for i in reads(program.nodes[own])} - self.per_query - set(
            self.default.exact
        )
        self.is_plain = is_plain(program)
        self._blocks: dict[int, Compiled] = {}
        self._constants: dict[torch.device, dict[int, Tensor]] = {}
        self._fixed = [i for i in live if self._is_constant(i)]

    def _per_query(self) -> set[int]:
        """The numbers that every query of a prefill block has for itself: those that the output is made of and that
        depend on the query. Sets are the block's."""
        nodes, end = self.program.nodes, self.program.result
        reached: set[int] = set()
        stack = [] if end is None else [end]
        while stack:
            index = stack.pop()
            if index not in reached and nodes[index].type.kind != SET and nodes[index].stage == QUERY_STAGE:
                reached.add(index)
                stack.extend(reads(nodes[index]))
        found: set[int] = set()
        for index in sorted(reached):
            if nodes[index].op in ("q", "attention") or any(i in found for i in reads(nodes[index])):
                found.add(index)
        return found

    def _is_constant(self, index: int) -> bool:
        node = self.program.nodes[index]
        return node.op == "param" or (node.op == "index" and node.attrs["axis"] != "page")

    def plan(self, roots: Iterable[int], given: Iterable[int] = ()) -> Plan:
        key = (frozenset(roots), frozenset(given))
        if key not in self._plans:
            self._plans[key] = make_plan(self.program, sorted(key[0]), key[1])
        return self._plans[key]

    def constants(self, device: torch.device) -> dict[int, Tensor]:
        """The values of parameters and numbered axes, as the query stage has them: [1, kv_heads or 1, *axes].

        Raises `VortexError` when a parameter is missing or does not fit.
        """
        if device not in self._constants:
            found: dict[int, Tensor] = {}
            for index in self._fixed:
                node = self.program.nodes[index]
                if node.op == "index":
                    axis = str(node.attrs["axis"])
                    found[index] = torch.arange(self.sizes[index][axis], device=device)[None, None]
                else:
                    name, heads = str(node.attrs["name"]), range(self.static.kv_heads)
                    of_heads = torch.stack([parameter(self.program, name, self.static, kv) for kv in heads])
                    kind = torch.float32 if node.type.kind == FLOAT else torch.int64
                    found[index] = of_heads[None].to(device, kind)
            self._constants[device] = found
        return self._constants[device]

    def scalars(self, length: int) -> dict[int, Exact]:
        """The exact scalars of the query stage for a request of `length` tokens."""
        if length not in self._exact:
            if len(self._exact) >= 1 << 16:
                self._exact.clear()
            self._exact[length] = {i: scalar_value(self.program, i, self.static, length) for i in self._read_scalars}
        return self._exact[length]

    def settled(self, indices: Iterable[int], leaves: dict[int, Value]) -> dict[int, Value]:
        """Evaluates nodes of the page or pool stage in order; `leaves` are the values of those without inputs."""
        found: dict[int, Value] = {}
        for index in indices:
            node = self.program.nodes[index]
            if index in leaves:
                found[index] = leaves[index]
            elif index in self.default.exact:
                found[index] = scalar_value(self.program, index, self.static, None)
            else:
                inputs = []
                for i in node.inputs:
                    value = found[i]
                    if not isinstance(value, torch.Tensor):
                        value = as_kind(value, operand_kind(self.program, node, i))
                    inputs.append(value)
                found[index] = self.kernels[index](inputs)
        return found

    def as_output(self, value: Tensor) -> Tensor:
        """The value of `program.result` as [rows, kv_heads, group, value channel]."""
        return self._of_heads(self.program.result, value, self.static.value_dim)

    def pool(self, q: Tensor) -> Tensor:
        """The queries that stand for blocks: fp32 [rows, kv_heads, group, query, channel] -> the same without query."""
        nodes, pooled = self.program.nodes, self.program.pooled
        assert pooled is not None
        leaves: dict[int, Value] = {**self.constants(q.device)}
        leaves |= {i: q for i in self.default.pool if nodes[i].op == "q"}
        value = self.settled(self.default.pool, leaves)[pooled]
        assert isinstance(value, Tensor)
        return self._of_heads(pooled, value, self.static.head_dim)

    def _of_heads(self, index: int | None, value: Tensor, width: int) -> Tensor:
        assert index is not None
        fitted = aligner(self.program.nodes[index].type.axes, ("head", "channel"))(value)
        assert isinstance(fitted, Tensor)
        return fitted.expand(value.shape[0], self.static.kv_heads, self.static.group, width)

    def for_block(self, queries: int) -> Compiled:
        """The same for blocks of this many queries."""
        if queries not in self._blocks:
            program = replace(self._source, block=queries)
            self._blocks[queries] = Compiled(program, self.static, self._own_scales)
        return self._blocks[queries]


def is_plain(program: Program) -> bool:
    """Whether the output is attention over the selected pages and nothing else."""
    end = program.result
    if end is None:
        return True
    return (
        program.nodes[end].op == "attention"
        and parts_of(program, end) == ("pages",)
        and program.nodes[end].inputs[0] == program.output
    )


def parts_of(program: Program, index: int) -> tuple[str, ...]:
    """Which inputs an attention node has, in order."""
    return tuple(str(program.nodes[index].attrs["parts"]).split())


def operands_of(node: Node, inputs: Sequence[int]) -> dict[str, int]:
    """The inputs of an attention node by name. A log-weight beside entries alone is that of the entries."""
    found = dict(zip(str(node.attrs["parts"]).split(), inputs, strict=True))
    if "pages" not in found and "log_weight" in found:
        found["entry_log_weight"] = found.pop("log_weight")
    return found
