"""The reference executor: what a program means.

Plain Python loops over requests, KV heads, query heads and pages; small tensors, float64 by default; no batching, no
masks, nothing shared with the executors that are judged by it. Each rule of meaning is stated in one function, whose
docstring names it:

====  ==========================================  =====================================================
rule  about                                       stated in
====  ==========================================  =====================================================
1     axes, `split`, `rename`, contractions       `reference_ops`, `reference_pages`
2     one list per KV head, or per query head     `reference_sets.list_of_head`, `reference_step.share`
3     the own page                                `reference_sets.own_page`, `finished`
4     selectors and set algebra                   `reference_sets`: `topk`, `topp`, `above`, `pattern`, `algebra`
5     order of equal scores                       `reference_sets.ranked`, `eligible`
6     random pages                                `reference_sets.random_pages`
7     one at a time                               `select_one` (one request, one query), `reference_prefill`
8     page state, step state, layer state         `reference_step.summaries`, `reference_memory`
9     compile-time scalars                        `reference_step.scalars`
10    fp8 summaries                               `reference_ops.scaled`
11    effective density                           `density`
====  ==========================================  =====================================================

`run` is one step of requests that begin with it, `Request` one request over its steps and layers;
`reference_prefill.prefill` is the prompt of one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.reference_attention import Lists, attend
from vortexlab.dsl.reference_memory import Carry, LayerMemory, PageSet, remember
from vortexlab.dsl.reference_ops import rounded
from vortexlab.dsl.reference_step import Selection, Step, query_nodes, share, summaries

__all__ = [
    "Carry", "Decode", "LayerMemory", "Lists", "PageSet", "Request", "Selection", "attend", "decode_steps", "density",
    "run", "select", "select_one", "share", "summaries",
]  # fmt: skip


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
    keys = [rounded(k.to(dtype), cache_dtype) for k in keys]
    values = [rounded(v.to(dtype), cache_dtype) for v in values]
    q = q.to(dtype)
    selections = [
        select_one(program, static, q[b], keys[b], values[b], cache_dtype=cache_dtype, keep_values=keep_values)
        for b in range(len(keys))
    ]
    lists = [selection.lists for selection in selections]
    if program.result is None:
        output = attend(program.page_size, static, q, keys, values, lists)
    else:
        output = torch.stack([selection.output for selection in selections])  # type: ignore[misc]
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
            program, static, q[b].to(dtype), rounded(keys[b].to(dtype), cache_dtype),
            rounded(values[b].to(dtype), cache_dtype), cache_dtype=cache_dtype,
        ).lists
        for b in range(len(keys))
    ]  # fmt: skip


def density(page: int, length: int, lists: list[Lists]) -> float:
    """Rule 11, effective density: tokens read / context tokens, the mean over KV heads.

    Where query heads have lists of their own, the KV head reads their union. The own page counts its live tokens.
    """
    shares = []
    for per_kv in lists:
        union = {p for pages in per_kv for p in pages}
        shares.append(sum(min(page, length - p * page) for p in union) / length)
    return sum(shares) / len(shares)


def select_one(
    program: Program,
    static: Static,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cache_dtype: torch.dtype | None = None,
    keep_values: bool = False,
    memory: LayerMemory | None = None,
    carry: Carry | None = None,
) -> Selection:
    """Rule 7, one at a time: one query of one request selects, from `q` [query_heads, channel] and the tokens
    `k`, `v` [kv_heads, tokens, channel] up to and including its own. Nothing else is looked at.

    `memory` is what this layer remembers of the request and `carry` what the layers below hand up; both are brought
    up to date. Without them the request begins with this step, and with this layer.
    """
    length = k.shape[1]
    check_shapes(program, static, q, k, v)
    layer, carried = memory or LayerMemory(), carry or Carry()
    result = Selection(lists=[])
    env: list[dict[int, object]] = [{} for _ in range(static.kv_heads)]
    step = Step(program, static, k, v, length, cache_dtype or q.dtype, layer, carried, result, env)  # type: ignore[arg-type]
    own = range(step.own, step.own + 1)
    step.run(query_nodes(program), q, length, own)
    result.lists, result.output = step.lists(own), step.output()
    remember(program, step.written(), (layer, carried), length - 1)
    if keep_values:
        step.keep_summaries()
        result.values = step.env
    return result


def check_shapes(program: Program, static: Static, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises `VortexError` when a request's tensors are not those of the layer."""
    heads = static.kv_heads * static.group
    if q.shape[0] != heads or k.shape[0] != static.kv_heads or k.shape[1] < 1 or k.shape[1] != v.shape[1]:
        raise VortexError(
            f"one step of {static.kv_heads} KV heads with groups of {static.group} needs q of {heads} heads and at "
            f"least one token; found q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}"
        )
    if k.shape[2] != static.head_dim or v.shape[2] != static.value_dim:
        raise VortexError(
            f"program {program.name}: keys of {static.head_dim} and values of {static.value_dim} channels are needed; "
            f"found {k.shape[2]} and {v.shape[2]}"
        )


class Request:
    """One request: what it remembers over its steps, in every layer.

    `static` is that of any layer; `layers` are the layers that run sparsely, in order, all of the model by default.
    """

    def __init__(self, program: Program, static: Static, *, layers: Sequence[int] | None = None):
        self.program = program
        self.statics = [replace(static, layer=layer) for layer in (range(static.layers) if layers is None else layers)]
        self.memories = [LayerMemory() for _ in self.statics]

    def step(
        self,
        q: Sequence[Tensor],
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        *,
        cache_dtype: torch.dtype | None = None,
        keep_values: bool = False,
    ) -> list[Selection]:
        """One decode step: for every layer `q` [query_heads, channel] and the tokens up to the query's own, `keys`
        and `values` [kv_heads, tokens, channel]. `output` of each selection is filled in."""
        carry, found = Carry(), []
        for static, memory, q_, k, v in zip(self.statics, self.memories, q, keys, values, strict=True):
            selection = select_one(
                self.program, static, q_, k, v, cache_dtype=cache_dtype, keep_values=keep_values, memory=memory,
                carry=carry,
            )  # fmt: skip
            if selection.output is None:
                plain = attend(self.program.page_size, static, q_[None], [k], [v], [selection.lists])
                selection.output = plain[0]
            found.append(selection)
        return found


def decode_steps(
    program: Program,
    static: Static,
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float64,
    cache_dtype: torch.dtype | None = None,
    keep_values: bool = False,
) -> list[list[Selection]]:
    """The last steps of one request, token by token, from a request that begins with the first of them.

    `q`: [steps, layers, query_heads, channel]; `keys[layer]`, `values[layer]`: [kv_heads, tokens, channel], of which
    step s sees all but the last ``steps - 1 - s`` tokens. Returns [step][layer]; precisions as in `run`.
    """
    cache_dtype = cache_dtype or keys[0].dtype
    request, steps = Request(program, static, layers=range(q.shape[1])), q.shape[0]
    k, v = ([rounded(x.to(dtype), cache_dtype) for x in part] for part in (keys, values))
    result = []
    for s in range(steps):
        seen = k[0].shape[1] - (steps - 1 - s)
        result.append(
            request.step(
                list(q[s].to(dtype)), [x[:, :seen] for x in k], [x[:, :seen] for x in v], cache_dtype=cache_dtype,
                keep_values=keep_values,
            )
        )  # fmt: skip
    return result
