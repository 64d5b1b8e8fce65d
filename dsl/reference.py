"""The reference executor: what a program means.

Plain Python loops over requests, KV heads, query heads and pages; small tensors, float64 by default; no batching, no
masks, nothing shared with the executors that are judged by it. Each rule of meaning is stated in one function, whose
docstring names it, here or in `reference_ops` (values) and `reference_sets` (pages):

====  ==========================================  =======================================
rule  about                                       stated in
====  ==========================================  =======================================
1     axes, `split`, `rename`, contractions       `reference_ops`
2     one list per KV head, or per query head     `list_of_head`, `share`
3     the own page                                `own_page`, `finished`
4     selectors and set algebra                   `topk`, `topp`, `above`, `pattern`, `algebra`
5     order of equal scores                       `ranked`, `eligible`
6     random pages                                `random_pages`
7     one at a time                               `select_one` (one request, one query)
8     page state                                  `summaries`
9     compile-time scalars                        `scalars`
11    effective density                           `density`
====  ==========================================  =======================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vortexlab.dsl import reference_ops as ops
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import PAGE_STAGE, SET, Node, Program, Static
from vortexlab.dsl.reference_ops import Result, Value
from vortexlab.dsl.reference_sets import (
    PageList,
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

#: One list per KV head, or one per query head of that KV head.
Lists = list[PageList]
#: A set of pages: one per KV head, or one per query head of that KV head.
PageSet = list[frozenset[int]]


@dataclass
class Selection:
    """What one request selects.

    `lists[kv]`: one page list, or one per query head of the KV head. `scores[node][kv][list]`: the scores that a
    selector saw, by candidate page. `chosen` counts the pages that scored selectors chose, `ties` those among them
    that only the order of equal scores put before a page left out. `nan`: a score or a selector's number was NaN.
    `values[kv][node]`: every intermediate result of the live nodes, kept on request; page-stage nodes hold one
    value per candidate page.
    """

    lists: list[Lists]
    scores: dict[int, list[list[dict[int, float]]]] = field(default_factory=dict)
    chosen: int = 0
    ties: int = 0
    nan: bool = False
    values: list[dict[int, Result | PageSet]] = field(default_factory=list)


@dataclass
class Decode:
    """One decode step of a batch: `output` [batch, query_heads, channel], the rest per request as in `Selection`.

    `density` is the effective density, the mean over requests and KV heads.
    """

    output: Tensor
    selections: list[Selection]
    density: float
    nan: bool

    @property
    def lists(self) -> list[list[Lists]]:
        return [selection.lists for selection in self.selections]

    @property
    def scores(self) -> dict[int, list[list[list[dict[int, float]]]]]:
        """By selector node: [request][kv head][list] -> {candidate page: score}."""
        nodes = self.selections[0].scores if self.selections else {}
        return {node: [selection.scores[node] for selection in self.selections] for node in nodes}

    @property
    def ties(self) -> int:
        return sum(selection.ties for selection in self.selections)

    @property
    def chosen(self) -> int:
        return sum(selection.chosen for selection in self.selections)


def run(
    program: Program,
    static: Static,
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    cache_dtype: torch.dtype | None = None,
    keep_values: bool = False,
) -> Decode:
    """One decode step of a bound program.

    `q`: [batch, query_heads, channel]; `keys[b]`, `values[b]`: [kv_heads, tokens, channel], the query's own token
    last. `dtype` is the precision of all arithmetic; `cache_dtype` that of the cache (the keys' own by default),
    which summaries stored as ``kv`` are rounded to.
    """
    cache_dtype = cache_dtype or keys[0].dtype
    keys = [k.to(cache_dtype).to(dtype) for k in keys]
    values = [v.to(cache_dtype).to(dtype) for v in values]
    q = q.to(dtype)
    selections = [
        select_one(program, static, q[b], keys[b], values[b], cache_dtype=cache_dtype, keep_values=keep_values)
        for b in range(len(keys))
    ]
    lists = [selection.lists for selection in selections]
    output = attend(program.page_size, static, q, keys, values, lists)
    shares = [density(program.page_size, k.shape[1], lists[b]) for b, k in enumerate(keys)]
    nan = any(selection.nan for selection in selections) or bool(output.isnan().any())
    return Decode(output, selections, sum(shares) / len(shares), nan)


def select(
    program: Program,
    static: Static,
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    cache_dtype: torch.dtype | None = None,
) -> list[list[Lists]]:
    """The page lists alone, [request][kv head] -> one list or one per query head. Shapes as in `run`."""
    cache_dtype = cache_dtype or keys[0].dtype
    return [
        select_one(
            program, static, q[b].to(dtype), keys[b].to(cache_dtype).to(dtype), values[b].to(cache_dtype).to(dtype),
            cache_dtype=cache_dtype,
        ).lists
        for b in range(len(keys))
    ]  # fmt: skip


def attend(
    page: int, static: Static, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], lists: list[list[Lists]]
) -> Tensor:
    """Attention under a given selection: softmax(scale * q.k) over the tokens of the listed pages, [B, Hq, D]."""
    output = torch.empty_like(q)
    for b in range(len(keys)):
        length = keys[b].shape[1]
        for head in range(static.kv_heads * static.group):
            kv = head // static.group
            pages = lists[b][kv][list_of_head(head % static.group, lists[b][kv])]
            tokens = [t for p in pages for t in range(p * page, min((p + 1) * page, length))]
            logits = static.scale * (keys[b][kv, tokens] @ q[b, head])
            output[b, head] = torch.softmax(logits, 0) @ values[b][kv, tokens]
    return output


def density(page: int, length: int, lists: list[Lists]) -> float:
    """Rule 11, effective density: tokens read / context tokens, the mean over KV heads.

    Where query heads have lists of their own, the KV head reads their union. The own page counts its live tokens.
    """
    shares = []
    for per_kv in lists:
        union = {p for pages in per_kv for p in pages}
        shares.append(sum(min(page, length - p * page) for p in union) / length)
    return sum(shares) / len(shares)


def summaries(
    program: Program,
    static: Static,
    k_page: Tensor,
    v_page: Tensor,
    *,
    cache_dtype: torch.dtype | None = None,
    values: dict[int, Result] | None = None,
) -> dict[str, Value]:
    """Rule 8, page state: a pure function of the tokens of one complete page, `k_page`, `v_page` [token, channel].

    Each summary that selection uses is rounded to the program's summary precision. `values` receives every
    intermediate result by node.
    """
    dtype = k_page.dtype
    stored = (cache_dtype or dtype) if program.summary_dtype == "kv" else ops.STORED[program.summary_dtype]
    env: dict[int, Result] = {} if values is None else values
    fields = program.live_fields()
    live = set(program.live())
    for index, node in program:
        if node.stage != PAGE_STAGE or index not in live:
            continue
        if node.op in ("k", "v"):
            env[index] = Value(k_page if node.op == "k" else v_page, ("token", "channel"))
        elif is_exact(program, index):
            env[index] = scalar_value(program, index, static, None)
        else:
            env[index] = ops.apply(node, [ops.as_value(_single(env[i]), dtype) for i in node.inputs], dtype)
    result = {}
    for name, index in fields.items():
        value = ops.as_value(_single(env[index]), dtype)
        result[name] = Value(ops.rounded(value.tensor.to(dtype), stored), value.axes)
    return result


def select_one(
    program: Program,
    static: Static,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cache_dtype: torch.dtype | None = None,
    keep_values: bool = False,
) -> Selection:
    """Rule 7, one at a time: one query of one request selects, from `q` [query_heads, channel] and the tokens
    `k`, `v` [kv_heads, tokens, channel] up to and including its own. Nothing else is looked at.
    """
    page, length, kv_heads = program.page_size, k.shape[1], static.kv_heads
    if q.shape[0] != kv_heads * static.group or k.shape[0] != kv_heads or length < 1:
        raise VortexError(
            f"one step of {kv_heads} KV heads with groups of {static.group} needs q of {kv_heads * static.group} "
            f"heads and at least one token; found q {list(q.shape)} and k {list(k.shape)}"
        )
    sizes = program.axis_sizes(static)
    own = own_page(length, page)
    result = Selection(lists=[])
    env: list[dict[int, Result | PageSet]] = [{} for _ in range(kv_heads)]
    fields: list[list[dict[str, Value]]] = []
    for kv in range(kv_heads):
        inside: list[dict[int, Result]] = [{} for _ in range(own)]
        fields.append(
            [
                summaries(
                    program, static, k[kv, p * page : (p + 1) * page], v[kv, p * page : (p + 1) * page],
                    cache_dtype=cache_dtype, values=inside[p],
                )
                for p in range(own)
            ]
        )  # fmt: skip
        if keep_values:
            for index in inside[0] if inside else ():
                env[kv][index] = [ops.as_value(_single(of_page[index]), q.dtype) for of_page in inside]

    for index in program.live():
        node = program.nodes[index]
        if node.stage == PAGE_STAGE:
            continue
        for kv in range(kv_heads):
            inputs = [env[kv][i] for i in node.inputs]
            if is_exact(program, index):
                env[kv][index] = scalars(program, index, static, length)
            elif node.type.kind == SET:
                step = _Step(program, static, index, kv, own, length, result)
                env[kv][index] = step.pages(node, inputs)
            elif node.op == "q":
                env[kv][index] = Value(q[kv * static.group : (kv + 1) * static.group], ("head", "channel"))
            elif node.op == "field":
                env[kv][index] = [of_page[str(node.attrs["name"])] for of_page in fields[kv]]
            elif node.op == "share":
                env[kv][index] = share(node, [env[other][node.inputs[0]] for other in range(kv_heads)], q.dtype)
            else:
                env[kv][index] = _compute(node, inputs, q.dtype, own, list(sizes[index].values()))
    result.lists = [[finished(pages, own) for pages in env[kv][program.output]] for kv in range(kv_heads)]  # type: ignore[union-attr,arg-type]
    if keep_values:
        result.values = env
    return result


def scalars(program: Program, index: int, static: Static, length: int) -> Scalar:
    """Rule 9, specialisation: what depends on constants, layer and length alone is exact, the same in all executors."""
    return scalar_value(program, index, static, length)


def share(node: Node, inputs: list[Result | PageSet], dtype: torch.dtype) -> list[Value]:
    """Rule 2, lists: one score list per request, the sum, max or mean over the KV heads of the layer."""
    how = str(node.attrs["how"])
    return [ops.combine([ops.as_value(v, dtype) for v in page], how, dtype) for page in zip(*inputs, strict=True)]


def _compute(node: Node, inputs: list[Result | PageSet], dtype: torch.dtype, pages: int, shape: list[int]) -> Result:
    """One operation on tensors, done for each candidate page where a value has the axis ``page``."""
    if node.op == "softmax":
        return ops.softmax_pages(inputs[0], dtype)  # type: ignore[arg-type]
    if node.op == "reduce" and node.attrs["axis"] == "page":
        return ops.reduce_pages(node, inputs[0], dtype, shape, str(node.attrs["how"]))  # type: ignore[arg-type]
    paged = any(isinstance(value, list) for value in inputs)

    def on(page: int) -> list[Value]:
        return [ops.as_value(value[page] if isinstance(value, list) else value, dtype) for value in inputs]  # type: ignore[arg-type]

    if not paged:
        return ops.apply(node, on(0), dtype)
    return [ops.apply(node, on(page), dtype) for page in range(pages)]


def _single(result: Result) -> Scalar | Value:
    assert not isinstance(result, list)
    return result


@dataclass
class _Step:
    """One node that makes a set, for one request and KV head."""

    program: Program
    static: Static
    index: int
    kv: int
    own: int
    length: int
    result: Selection

    def pages(self, node: Node, inputs: list[Result | PageSet]) -> PageSet:
        """The node's set for every list that its type asks for."""
        per_head = range(self.static.group) if node.type.axes else range(1)
        seen: list[dict[int, float]] = []
        sets = [self._set(node, inputs, head, seen) for head in per_head]
        if seen:
            self.result.scores.setdefault(self.index, [[] for _ in range(self.static.kv_heads)])[self.kv] = seen
        return sets

    def _set(
        self, node: Node, inputs: list[Result | PageSet], head: int, seen: list[dict[int, float]]
    ) -> frozenset[int]:
        if node.op in ("first", "last", "stride", "everything"):
            return pattern(node.op, [self._number(value, head) for value in inputs], self.own)
        if node.op in ("union", "intersect", "difference", "complement"):
            return algebra(node.op, [self._member(value, head) for value in inputs], self.own)
        if node.op == "where":
            return self._member(inputs[1] if self._number(inputs[0], head) else inputs[2], head)
        if node.op == "random":
            among = self._among(inputs[1:], head)
            salt, n = int(node.attrs.get("salt", 0)), int(self._number(inputs[0], head))  # type: ignore[arg-type]
            chosen = random_pages(self.static, self.program.seed, salt, self.kv, self.length, n, sorted(among))
            return frozenset(chosen)
        scores = {page: self._number(value, head) for page, value in enumerate(inputs[0])}  # type: ignore[arg-type]
        seen.append(scores)
        count = {"topk": 2, "topp": 4, "above": 3}[node.op]
        among = self._among(inputs[count:], head)
        numbers = [self._number(value, head) for value in inputs[1:count]]
        self.result.nan |= bool(scores) and any(math.isnan(x) for x in [*scores.values(), *numbers])
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
        self.result.chosen += len(chosen)
        self.result.ties += sum(scores[page] == best_left for page in chosen)
        return frozenset(chosen)

    def _among(self, inputs: list[Result | PageSet], head: int) -> frozenset[int]:
        candidates = frozenset(range(self.own))
        return candidates & self._member(inputs[0], head) if inputs else candidates

    def _number(self, value: Result | PageSet, head: int) -> float:
        """A scalar, or this query head's part of a value with the axis ``head``."""
        if not isinstance(value, Value):
            assert isinstance(value, (bool, int, float))
            return value
        return value.tensor[head].item() if value.axes else value.tensor.item()

    def _member(self, value: Result | PageSet, head: int) -> frozenset[int]:
        """This query head's part of a set; a set of one list is the same for all heads."""
        assert isinstance(value, list)
        chosen = value[list_of_head(head, value)]
        assert isinstance(chosen, frozenset)
        return chosen
