"""One step of one layer of one request: every live node of a program, in order, in plain Python.

A `Step` holds what the nodes may look at; `Step.run` evaluates nodes for all KV heads. A value that has the axis
``page`` is a list of one `Value` per candidate page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vortexlab.dsl import reference_ops as ops
from vortexlab.dsl.ir import PAGE_STAGE, POOL_STAGE, QUERY_STAGE, SET, Node, Program, Static
from vortexlab.dsl.parameters import parameter
from vortexlab.dsl.reference_attention import Lists, Operands, attention
from vortexlab.dsl.reference_memory import Carry, LayerMemory, PageSet, is_computed, is_due, read, recalled, reused
from vortexlab.dsl.reference_ops import Result, Value
from vortexlab.dsl.reference_pages import apply_over_pages, is_over_pages
from vortexlab.dsl.reference_sets import (
    above,
    algebra,
    eligible,
    finished,
    list_of_head,
    own_page,
    pattern,
    random_pages,
    topk,
    topp,
)
from vortexlab.dsl.scalars import Scalar, is_exact, scalar_value

#: What a node of one KV head is: a number, a tensor, one tensor per candidate page, or sets of pages.
Found = Result | PageSet


@dataclass
class Selection:
    """What one request selects.

    `lists[kv]`: one page list, or one per query head of the KV head. `scores[node][kv][list]`: the scores that a
    selector saw, by candidate page. `chosen` counts the pages that scored selectors chose, `ties` those among them
    that only the order of equal scores put before a page left out. `nan`: a score or a selector's number was NaN.
    `output` [query heads, value channel] is what the program's `attend` gives; None is plain attention over `lists`.
    `values[kv][node]`: every intermediate result of the live nodes, kept on request; page-stage nodes hold one
    value per candidate page.
    """

    lists: list[Lists]
    scores: dict[int, list[list[dict[int, float]]]] = field(default_factory=dict)
    chosen: int = 0
    ties: int = 0
    nan: bool = False
    output: Tensor | None = None
    values: list[dict[int, Found]] = field(default_factory=list)


@dataclass
class Step:
    """What the nodes of one step see: the tokens `k`, `v` [KV heads, tokens, channel], and `length`, that of those up
    to and with the query's own, which decides the candidates. `env[kv][node]` receives the results.
    """

    program: Program
    static: Static
    k: Tensor
    v: Tensor
    length: int
    cache_dtype: torch.dtype
    layer: LayerMemory
    carry: Carry
    result: Selection
    env: list[dict[int, Found]]

    def __post_init__(self) -> None:
        self.sizes = self.program.axis_sizes(self.static)
        self.own = own_page(self.length, self.program.page_size)
        self.dtype = self.k.dtype

    # --- pages

    def summarize(self) -> list[list[dict[str, Value]]]:
        """Rule 8, page state: the summaries of every candidate page, [kv head][page] -> name -> value."""
        page = self.program.page_size
        for kv in range(self.static.kv_heads):
            for p in range(self.own):
                if (kv, p) not in self.layer.pages:
                    span = slice(p * page, (p + 1) * page)
                    inside: dict[int, Result] = {}
                    fields = summaries(
                        self.program, self.static, self.k[kv, span], self.v[kv, span], cache_dtype=self.cache_dtype,
                        values=inside, kv=kv,
                    )  # fmt: skip
                    self.layer.pages[kv, p] = (fields, inside)
        return [[self.layer.pages[kv, p][0] for p in range(self.own)] for kv in range(self.static.kv_heads)]

    def keep_summaries(self) -> None:
        """Puts the results of page-stage nodes beside those of the others, one value per candidate page."""
        for kv in range(self.static.kv_heads):
            inside = [self.layer.pages[kv, p][1] for p in range(self.own)]
            for index in inside[0] if inside else ():
                self.env[kv][index] = [ops.as_value(of_page[index], self.dtype) for of_page in inside]

    # --- nodes

    def run(self, nodes: Iterable[int], q: Tensor, seen: int, own: range) -> None:
        """Evaluates `nodes` for every KV head and the query `q` [query heads, channel].

        Attention sees the first `seen` tokens and always reads the pages `own`.
        """
        fields = self.summarize()
        for index in nodes:
            node = self.program.nodes[index]
            for kv in range(self.static.kv_heads):
                inputs = [self.env[kv][i] for i in node.inputs]
                if node.op == "attention":
                    self.env[kv][index] = self.attend(node, inputs, kv, q, seen, own)
                else:
                    self.env[kv][index] = self.compute(index, node, inputs, kv, q, fields[kv])

    def compute(
        self, index: int, node: Node, inputs: list[Found], kv: int, q: Tensor, fields: list[dict[str, Value]]
    ) -> Found:
        program, group = self.program, self.static.group
        sizes = self.sizes[index]
        if is_exact(program, index):
            return scalars(program, index, self.static, self.length)
        if node.op == "memory":
            memory = program.memories[str(node.attrs["name"])]
            heads = {"head": group} if node.type.axes else {}
            written = read(program, node, self.layer, self.carry, kv)
            return recalled(memory, written, self.own, heads if node.type.kind == SET else sizes, self.dtype)
        if node.op == "reuse":
            if node.attrs["over"] == "steps":
                fresh = is_due(int(node.attrs["every"]), self.length - 1, not self.layer.begun)  # type: ignore[arg-type]
            else:
                fresh = is_computed(program, node, self.static)
            return reused(program, index, inputs[0], (self.layer, self.carry), fresh, kv, self.own)  # type: ignore[arg-type]
        if node.type.kind == SET:
            return _Sets(self, index, kv).pages(node, inputs)
        if node.op == "q":
            return Value(q[kv * group : (kv + 1) * group], ("head", "channel"))
        if node.op == "member":
            return member(inputs[0], self.own, bool("head" in node.type.axes))  # type: ignore[arg-type]
        if node.op == "param":
            return learned(program, node, self.static, kv, self.dtype)
        if node.op == "field":
            return [of_page[str(node.attrs["name"])] for of_page in fields]
        if node.op == "share":
            return share(node, [self.env[other][node.inputs[0]] for other in range(self.static.kv_heads)], self.dtype)
        if node.op == "sort" and _any_nan(inputs[0]):
            self.result.nan = True
        if is_over_pages(node):
            return apply_over_pages(node, inputs, self.dtype, self.own, sizes)  # type: ignore[arg-type]
        return self.by_page(node, inputs, sizes)  # type: ignore[arg-type]

    def by_page(self, node: Node, inputs: list[Result], sizes: Mapping[str, int]) -> Result:
        """One operation on tensors, done for each candidate page where a value has the axis ``page``."""

        def on(page: int) -> Value:
            values = [ops.as_value(item[page] if isinstance(item, list) else item, self.dtype) for item in inputs]
            return ops.apply(node, values, self.dtype, sizes, self.static)

        if not any(isinstance(value, list) for value in inputs):
            return on(0)
        return [on(page) for page in range(self.own)]

    def attend(self, node: Node, inputs: list[Found], kv: int, q: Tensor, seen: int, own: range) -> Value:
        """The attention operation, one query head at a time."""
        given, group = Operands.of(node, inputs), self.static.group
        rows = [
            attention(
                self.program.page_size, self.static, q[kv * group + head], self.k[kv, :seen], self.v[kv, :seen], given,
                head, self.own, own,
            )
            for head in range(group)
        ]  # fmt: skip
        return Value(torch.stack(rows), ("head", "channel"))

    def pool(self, queries: Tensor) -> Tensor:
        """The query that stands for a block of `queries` [query heads, query, channel]: [query heads, channel]."""
        assert self.program.pooled is not None
        group, live = self.static.group, queries.shape[1]
        rows = []
        for kv in range(self.static.kv_heads):
            env: dict[int, Result] = {}
            for index in self.program.live():
                node = self.program.nodes[index]
                if node.stage != POOL_STAGE:
                    continue
                sizes = {**self.sizes[index], **({"query": live} if "query" in node.type.axes else {})}
                if is_exact(self.program, index):
                    env[index] = scalars(self.program, index, self.static, self.length)
                elif node.op == "q":
                    env[index] = Value(queries[kv * group : (kv + 1) * group], ("head", "query", "channel"))
                elif node.op == "param":
                    env[index] = learned(self.program, node, self.static, kv, self.dtype)
                else:
                    env[index] = self.by_page(node, [env[i] for i in node.inputs], sizes)
            pooled = ops.as_value(env[self.program.pooled], self.dtype)  # type: ignore[arg-type]
            rows.append(pooled.along(("head", "channel")).expand(group, -1))
        return torch.cat(rows)

    # --- results

    def lists(self, own: range) -> list[Lists]:
        """Rules 2 and 11: what attention reads, the selected set, every set that `attend` reads, the pages `own`."""
        nodes = [self.program.output]
        for index in self.program.live():
            node = self.program.nodes[index]
            if node.op == "attention" and "pages" in str(node.attrs["parts"]).split():
                nodes.append(node.inputs[0])
        result = []
        for kv in range(self.static.kv_heads):
            sets = [self.env[kv][index] for index in nodes]
            heads = max(len(chosen) for chosen in sets)  # type: ignore[arg-type]
            union = [frozenset[int]().union(*(_of_list(chosen, head) for chosen in sets)) for head in range(heads)]
            result.append([finished(pages, own) for pages in union])
        return result

    def output(self) -> Tensor | None:
        """What the program's own attention gives: [query heads, value channel]."""
        if self.program.result is None:
            return None
        width = self.static.value_dim
        found = [ops.as_value(of_head[self.program.result], self.dtype) for of_head in self.env]  # type: ignore[arg-type]
        return torch.cat([item.along(("head", "channel")).expand(self.static.group, width) for item in found])

    def written(self) -> dict[tuple[str, int], object]:
        """What the step writes to the memories that are read: a value per candidate page, or a set."""
        result: dict[tuple[str, int], object] = {}
        for name, index in self.program.live_memories().items():
            for kv in range(self.static.kv_heads):
                found = self.env[kv][index]
                is_set = self.program.memories[name].type.kind == SET
                result[name, kv] = found if is_set else dict(enumerate(found))  # type: ignore[arg-type]
        return result


def query_nodes(program: Program) -> list[int]:
    return [index for index in program.live() if program.nodes[index].stage == QUERY_STAGE]


def summaries(
    program: Program,
    static: Static,
    k_page: Tensor,
    v_page: Tensor,
    *,
    cache_dtype: torch.dtype | None = None,
    values: dict[int, Result] | None = None,
    kv: int = 0,
) -> dict[str, Value]:
    """Rule 8, page state: a pure function of the tokens of one complete page, `k_page`, `v_page` [token, channel].

    Each summary that selection uses is rounded to the program's summary precision. `values` receives every
    intermediate result by node.
    """
    dtype = k_page.dtype
    stored = (cache_dtype or dtype) if program.summary_dtype == "kv" else ops.STORED[program.summary_dtype]
    env: dict[int, Result] = {} if values is None else values
    fields = program.live_fields()
    sizes = program.axis_sizes(static)
    for index in program.live():
        node = program.nodes[index]
        if node.stage != PAGE_STAGE:
            continue
        if node.op in ("k", "v"):
            env[index] = Value(k_page if node.op == "k" else v_page, ("token", "channel"))
        elif node.op == "param":
            env[index] = learned(program, node, static, kv, dtype)
        elif is_exact(program, index):
            env[index] = scalar_value(program, index, static, None)
        else:
            inputs = [ops.as_value(env[i], dtype) for i in node.inputs]  # type: ignore[arg-type]
            env[index] = ops.apply(node, inputs, dtype, sizes[index], static)
    result = {}
    for name, index in fields.items():
        value = ops.as_value(env[index], dtype)  # type: ignore[arg-type]
        result[name] = Value(ops.summary(value.tensor.to(dtype), stored), value.axes)
    return result


def learned(program: Program, node: Node, static: Static, kv: int, dtype: torch.dtype) -> Value:
    """A learned constant: this layer's and KV head's part of its tensor."""
    tensor = parameter(program, str(node.attrs["name"]), static, kv)
    return Value(ops.of_kind(tensor, node.type.kind, dtype), node.type.axes)


def scalars(program: Program, index: int, static: Static, length: int) -> Scalar:
    """Rule 9, specialisation: what depends on constants, layer and length alone is exact, the same in all executors."""
    return scalar_value(program, index, static, length)


def share(node: Node, inputs: list[Found], dtype: torch.dtype) -> list[Value]:
    """Rule 2, lists: one score list per request, the sum, max or mean over the KV heads of the layer."""
    how = str(node.attrs["how"])
    return [ops.combine([ops.as_value(v, dtype) for v in page], how, dtype) for page in zip(*inputs, strict=True)]


def member(chosen: PageSet, own: int, per_head: bool) -> list[Value]:
    """Which candidate pages a set holds: a truth value, or one per query head."""
    held = [torch.tensor([page in pages for pages in chosen]) for page in range(own)]
    return [Value(of_page, ("head",)) if per_head else Value(of_page[0]) for of_page in held]


def _of_list(chosen: object, head: int) -> frozenset[int]:
    """A query head's part of a set; a set of one list is the same for all heads."""
    assert isinstance(chosen, list)
    pages = chosen[list_of_head(head, chosen)]
    assert isinstance(pages, frozenset)
    return pages


def _any_nan(found: Found) -> bool:
    values = found if isinstance(found, list) else [found]
    return any(isinstance(value, Value) and bool(value.tensor.double().isnan().any()) for value in values)


@dataclass
class _Sets:
    """One node that makes a set, for one request and KV head."""

    step: Step
    index: int
    kv: int

    def pages(self, node: Node, inputs: list[Found]) -> PageSet:
        """The node's set for every list that its type asks for."""
        per_head = range(self.step.static.group) if node.type.axes else range(1)
        seen: list[dict[int, float]] = []
        sets = [self._set(node, inputs, head, seen) for head in per_head]
        if seen:
            scores = self.step.result.scores
            scores.setdefault(self.index, [[] for _ in range(self.step.static.kv_heads)])[self.kv] = seen
        return sets

    def _set(self, node: Node, inputs: list[Found], head: int, seen: list[dict[int, float]]) -> frozenset[int]:
        step, own, result = self.step, self.step.own, self.step.result
        if node.op in ("first", "last", "stride", "everything"):
            return pattern(node.op, [self._number(value, head) for value in inputs], own)
        if node.op in ("union", "intersect", "difference", "complement"):
            return algebra(node.op, [_of_list(value, head) for value in inputs], own)
        if node.op == "where":
            return _of_list(inputs[1] if self._number(inputs[0], head) else inputs[2], head)
        if node.op == "random":
            among = self._among(inputs[1:], head)
            salt, n = int(node.attrs.get("salt", 0)), int(self._number(inputs[0], head))  # type: ignore[arg-type]
            seed = step.program.seed
            return frozenset(random_pages(step.static, seed, salt, self.kv, step.length, n, sorted(among)))
        scores = {page: self._number(value, head) for page, value in enumerate(inputs[0])}  # type: ignore[arg-type]
        seen.append(scores)
        count = {"topk": 2, "topp": 4, "above": 3}[node.op]
        among = self._among(inputs[count:], head)
        numbers = [self._number(value, head) for value in inputs[1:count]]
        result.nan |= bool(scores) and any(math.isnan(x) for x in [*scores.values(), *numbers])
        if node.op == "topk":
            chosen = topk(scores, int(numbers[0]), among)
        elif node.op == "topp":
            chosen = topp(scores, numbers[0], numbers[1], int(numbers[2]), among)
        else:
            chosen = above(scores, numbers[0], int(numbers[1]), among)
        left = eligible(scores, among - frozenset(chosen))
        if node.op == "above":
            left = {page: score for page, score in left.items() if score > numbers[0]}
        best_left = max(left.values(), default=-math.inf)
        result.chosen += len(chosen)
        result.ties += sum(scores[page] == best_left for page in chosen)
        return frozenset(chosen)

    def _among(self, inputs: list[Found], head: int) -> frozenset[int]:
        candidates = frozenset(range(self.step.own))
        return candidates & _of_list(inputs[0], head) if inputs else candidates

    def _number(self, value: Found, head: int) -> float:
        """A scalar, or this query head's part of a value with the axis ``head``."""
        if not isinstance(value, Value):
            assert isinstance(value, (bool, int, float))
            return value
        return value.tensor[head].item() if value.axes else value.tensor.item()
