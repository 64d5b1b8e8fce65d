"""Which programs fit the op set of the original Vortex (arXiv 2606.06453, Infini-AI-Lab/vortex_torch), and what of the
others falls outside.

A flow there makes fields of a page from its keys and values by ops of the *cache* set, scores pages for the query heads
of one KV head by ops of the *indexer* set, and ends in one top-k, beside which the first and the last pages are always
read. The tables below are its documented op sets, in our words; what takes a detour of ops there (a sum over tokens is
a mean times their number, a slice that is summed up is a mask) counts as fitting.

``python -m vortexlab.search_spaces.carrying`` prints the table of `docs/carrying.md`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from vortexlab.dsl.ir import PAGE_STAGE, POOL_STAGE, SET, Node, Program
from vortexlab.search_spaces.library import LIBRARY, load

#: Ops with a counterpart of the same meaning in both sets: Add (of multiples, so sub and neg), Multiply, Maximum, ...
_BOTH = frozenset({
    "const", "k", "v", "q", "field", "neg", "abs", "exp", "log", "relu", "sigmoid", "silu", "add", "sub", "mul",
    "maximum", "minimum", "split", "merge", "rename", "slice", "dot", "reduce", "float",
})  # fmt: skip
#: Ops of the indexer alone: Softmax over pages; Conv1d over pages.
_INDEXER = frozenset({"softmax", "shift", "window"})
_WORDS = {
    "sqrt": "square roots", "tanh": "tanh", "floor": "rounding to whole numbers", "ceil": "rounding to whole numbers",
    "cast": "rounding to another precision in between", "div": "division by what is not a constant",
    "floordiv": "whole-number arithmetic", "mod": "whole-number arithmetic", "lt": "a comparison as a value",
    "le": "a comparison as a value", "eq": "a comparison as a value", "ne": "a comparison as a value",
    "and": "logic on values", "or": "logic on values", "not": "logic on values",
    "where": "a choice between two values", "concat": "joining values", "gather": "taking by index",
    "index": "positions as values", "scan": "running sums and extremes", "sort": "sorting", "argmax": "argmax",
    "share": "one list for all KV heads", "member": "a chosen set as a value", "stride": "strided pages",
    "random": "random pages", "topp": "top-p", "above": "a threshold", "intersect": "intersections of sets",
    "difference": "differences of sets", "complement": "complements of sets",
    "reuse": "a selection kept for other steps or layers", "softmax": "softmax over pages in a summary",
    "shift": "neighbours of a page in a summary", "window": "neighbours of a page in a summary",
}  # fmt: skip
#: What a sliced axis may pass through on its way to a sum over it, as zeros behind a mask would.
_KEEPS_ZEROS = frozenset({
    "mul", "add", "sub", "neg", "maximum", "minimum", "field", "rename", "reduce", "abs", "relu", "split", "merge",
})  # fmt: skip
#: Facts that are constants of a flow, and those that its budget may follow.
_FIXED = frozenset({"scale", "group", "head_dim", "page", "latent", "kv_heads", "layers", "prefill"})
_BUDGETED = _FIXED | {"pages", "length"}


def outside_vortex(program: Program) -> tuple[str, ...]:
    """What of a program, its knobs at their defaults, no flow of the original Vortex says; empty where it fits."""
    return tuple(dict.fromkeys(_Reading(program if program.is_bound else program.bind()).faults()))


class _Reading:
    def __init__(self, program: Program):
        self.program, self.nodes = program, program.nodes

    @cached_property
    def live(self) -> list[int]:
        return self.program.live()

    @cached_property
    def users(self) -> dict[int, list[int]]:
        """Who reads a node, a summary's field among them."""
        found: dict[int, list[int]] = {index: [] for index in self.live}
        for index in self.live:
            node = self.nodes[index]
            sources = node.inputs
            if node.op == "field":
                sources = (self.program.fields[str(node.attrs["name"])],)
            for source in sources:
                found[source].append(index)
        return found

    def faults(self) -> Iterable[str]:
        if self.program.pooled is not None:
            yield "sparse prefill"
        if self.program.result is not None:
            yield "an attention output of its own"
        yield from self._selection()
        budgets = self._budgets()
        for index in self.live:
            node = self.nodes[index]
            if node.stage != POOL_STAGE and index not in budgets and node.type.kind != SET and node.op != "attention":
                yield from self._value(index, node)

    # the selected set

    def _selection(self) -> Iterable[str]:
        chosen: list[int] = []
        yield from self._set(self.program.output, chosen)
        if self.nodes[self.program.output].type.axes:
            yield "a list for every query head"
        if not chosen:
            yield "a selection without a score"
        if len(chosen) > 1:
            yield "several choices united"

    def _set(self, index: int, chosen: list[int]) -> Iterable[str]:
        node = self.nodes[index]
        if node.op == "union":
            for part in node.inputs:
                yield from self._set(part, chosen)
        elif node.op in ("first", "last"):
            if not self._is_count(node.inputs[0]):
                yield f"{node.op} pages whose number is no constant from 1"
        elif node.op in ("topk", "topp", "above"):
            chosen.append(index)
            if node.op != "topk":
                yield _WORDS[node.op]
            yield from self._budget(node.inputs[1 if node.op == "topk" else -1], node)
            if len(node.inputs) == (3 if node.op == "topk" else 5 if node.op == "topp" else 4):
                yield from self._among(node.inputs[-1])
        elif node.op == "reuse":
            yield _WORDS["reuse"]
            yield from self._set(node.inputs[0], chosen)
        elif node.op == "where":
            yield from self._where(node, chosen)
        elif node.op != "everything":
            yield _WORDS.get(node.op, node.op)
            for part in node.inputs:
                if self.nodes[part].type.kind == SET:
                    yield from self._set(part, chosen)

    def _where(self, node: Node, chosen: list[int]) -> Iterable[str]:
        """Layers can be left dense by number, and decode is all that a flow is about."""
        condition, *branches = node.inputs
        read = {self.nodes[part].attrs.get("name") for part in self._below(condition) if self.nodes[part].op == "ctx"}
        sparse = [part for part in branches if self.nodes[part].op != "everything"]
        if self.nodes[condition].op == "ctx" and read == {"prefill"}:
            sparse = branches[1:]
        elif read != {"layer"} or len(sparse) == 2:
            yield "one selection here and another there"
        for part in sparse:
            yield from self._set(part, chosen)

    def _among(self, index: int) -> Iterable[str]:
        """Chosen are pages that are not read anyway; any other set is a choice before the choice."""
        node, forced = self.nodes[index], True
        if node.op == "complement":
            stack = [node.inputs[0]]
            while stack:
                part = self.nodes[stack.pop()]
                if part.op == "union":
                    stack += part.inputs
                else:
                    forced &= part.op in ("first", "last")
        if node.op != "complement" or not forced:
            yield "a choice among chosen pages"

    def _is_count(self, index: int) -> bool:
        value = self.nodes[index].attrs.get("value")
        return self.nodes[index].op == "const" and isinstance(value, int) and value >= 1

    def _budget(self, index: int, node: Node) -> Iterable[str]:
        if node.op != "topk":
            return
        for part in self._below(index):
            op, name = self.nodes[part].op, self.nodes[part].attrs.get("name")
            if (op == "ctx" and name not in _BUDGETED) or op in ("reduce", "memory", "field", "param"):
                yield f"a budget that follows {f'ctx.{name}' if op == 'ctx' else 'scores'}"

    def _budgets(self) -> set[int]:
        """The nodes that only numbers of pages are made of: a planner's function there may be any arithmetic."""
        counts: set[int] = set()
        for index in self.live:
            node = self.nodes[index]
            if node.type.kind == SET:
                counts |= {
                    part for top in node.inputs if self.nodes[top].type.kind != SET and not self.nodes[top].type.axes
                    for part in self._below(top)
                }  # fmt: skip
        others = {i for i in self.live if i not in counts for i in self.nodes[i].inputs if i in counts}
        shared = {
            part for top in others if self.nodes[top].type.kind != SET for part in self._below(top)
            if any(user not in counts and self.nodes[user].type.kind != SET for user in self.users[part])
        }  # fmt: skip
        return counts - shared

    def _below(self, index: int) -> set[int]:
        found, stack = set(), [index]
        while stack:
            part = stack.pop()
            if part not in found:
                found.add(part)
                stack += self.nodes[part].inputs
        return found

    # summaries and scores

    def _value(self, index: int, node: Node) -> Iterable[str]:
        op, page = node.op, node.stage == PAGE_STAGE
        if not node.type.axes and self._is_fixed(index):
            return
        if len([axis for axis in node.type.axes if axis != "page"]) > 3:
            yield "values of more than three axes"
        if op == "ctx":
            if node.attrs["name"] not in _FIXED:
                yield f"ctx.{node.attrs['name']} in a score"
        elif op == "param":
            param = self.program.params[str(node.attrs["name"])]
            if param.per_kv_head:
                yield "learned constants of each KV head"
            if any(self.nodes[user].op != "dot" for user in self.users[index]):
                yield "learned constants outside of products"
        elif op == "memory":
            memory = self.program.memories[str(node.attrs["name"])]
            if (memory.scope, memory.type.kind, memory.init, memory.every) != ("step", "float", 0.0, 1):
                yield "a memory other than numbers of a page from step to step"
        elif op == "div":
            if not self._is_fixed(node.inputs[1]) and not self._is_normalised(node):
                yield _WORDS["div"]
        elif op == "slice":
            if not self._is_masked(index, str(node.attrs["axis"])):
                yield "slices that are not summed up"
        elif op in ("shift", "window"):
            if page or node.attrs["fill"] != 0 or not (op == "shift" or self._is_summed(index, node)):
                yield "neighbours of a page other than weighted sums"
        elif op == "softmax":
            if page:
                yield _WORDS["softmax"]
        elif op not in _BOTH:
            yield _WORDS.get(op, op)

    def _is_fixed(self, index: int) -> bool:
        """Whether a number is known before anything runs."""
        below = [self.nodes[part] for part in self._below(index)]
        return all(
            x.op in ("const", "float", "add", "sub", "mul", "div", "sqrt", "neg")
            or (x.op == "ctx" and x.attrs["name"] in _FIXED)
            for x in below
        )

    def _is_normalised(self, node: Node) -> bool:
        """Whether it is x / x.sum(page): Normalize."""
        over = self.nodes[node.inputs[1]]
        return over.op == "reduce" and over.attrs == {"how": "sum", "axis": "page"} and over.inputs[0] == node.inputs[0]

    def _is_masked(self, index: int, axis: str) -> bool:
        """Whether all that comes of a slice is summed up over its axis, where zeros in its place do as well."""
        for user in self.users[index]:
            node = self.nodes[user]
            if node.attrs.get("axis") == axis and (node.op == "dot" or node.attrs.get("how") in ("sum", "norm")):
                continue
            if node.op not in _KEEPS_ZEROS or node.attrs.get("axis") == axis or not self._is_masked(user, axis):
                return False
        return True

    def _is_summed(self, index: int, node: Node) -> bool:
        """Whether a window is summed up over its neighbours, plainly or with weights: Conv1d."""
        name = node.attrs["name"]
        return all(
            self.nodes[user].attrs.get("axis") == name
            and (self.nodes[user].op == "dot" or self.nodes[user].attrs.get("how") in ("sum", "mean"))
            for user in self.users[index]
        )


def table() -> str:
    """Every published program and what of it falls outside, as Markdown."""
    lines = ["| program | outside the op set of the original Vortex |", "|---|---|"]
    for group in LIBRARY.values():
        lines += [f"| `{name}` | {', '.join(outside_vortex(load(name))) or 'nothing'} |" for name in group]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
