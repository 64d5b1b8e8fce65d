"""The reference meaning of prefill: blocks of queries, one after the other, each with a query that stands for it.

Without `pool` prefill is dense. With it every block selects once, with the pooled query, among the pages that are
complete before the block begins; then every query of the block attends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import QUERY_STAGE, SET, Program, Static
from vortexlab.dsl.reference import check_shapes
from vortexlab.dsl.reference_attention import Lists, attend
from vortexlab.dsl.reference_memory import Carry, LayerMemory, remember
from vortexlab.dsl.reference_ops import rounded
from vortexlab.dsl.reference_step import Found, Selection, Step, query_nodes


@dataclass
class Block:
    """The queries `start`..`stop` - 1 and what they read; `selection.lists` holds every page that one of them may.

    `alone[query][kv][node]`: with ``keep_values``, the results that each query attends with.
    """

    start: int
    stop: int
    selection: Selection
    alone: list[list[dict[int, Found]]] = field(default_factory=list)

    @property
    def lists(self) -> list[Lists]:
        return self.selection.lists


@dataclass
class Prefill:
    """`output`: [query_heads, tokens, value channel]. `blocks` is empty where prefill is dense.

    `carries[block]`: what the layer hands up to the next one.
    """

    output: Tensor
    blocks: list[Block]
    density: float = 1.0
    carries: list[Carry] = field(default_factory=list)

    @property
    def nan(self) -> bool:
        return any(block.selection.nan for block in self.blocks) or bool(self.output.isnan().any())


def prefill(
    program: Program,
    static: Static,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    dtype: torch.dtype = torch.float64,
    cache_dtype: torch.dtype | None = None,
    keep_values: bool = False,
    carries: Sequence[Carry] | None = None,
) -> Prefill:
    """The prompt of one request in one layer.

    `q`: [query_heads, tokens, channel]; `keys`, `values`: [kv_heads, tokens, channel]. `carries` are those of the
    layer below, one per block. Precisions as in `reference.run`.
    """
    cache_dtype = cache_dtype or keys.dtype
    q, k, v = q.to(dtype), rounded(keys.to(dtype), cache_dtype), rounded(values.to(dtype), cache_dtype)
    static = replace(static, prefill=True)
    check_shapes(program, static, q, k, v)
    tokens = k.shape[1]
    if q.shape[1] != tokens:
        raise VortexError(f"a prompt of {tokens} tokens needs as many queries; found {q.shape[1]}")
    if program.pooled is None:
        every: list[Lists] = [[(0,)] for _ in range(static.kv_heads)]  # the one page that holds everything
        rows = [
            attend(t + 1, static, q[None, :, t], [k[:, : t + 1]], [v[:, : t + 1]], [every])[0] for t in range(tokens)
        ]
        return Prefill(torch.stack(rows, 1), [])
    starts = range(0, tokens, program.block)  # type: ignore[arg-type]
    carried = list(carries) if carries is not None else [Carry() for _ in starts]
    output = q.new_empty(q.shape[0], tokens, v.shape[2])
    blocks, layer = [], LayerMemory()
    for start, carry in zip(starts, carried, strict=True):
        stop = min(start + program.block, tokens)  # type: ignore[operator]
        # Steps have not begun: what they remember reads as initial, and reuse is always due.
        memory = LayerMemory(pages=layer.pages)
        stores, span = (memory, carry), slice(start, stop)
        selection, output[:, span], alone = _block(
            program, static, q[:, span], k[:, :stop], v[:, :stop], start, stores, cache_dtype, keep_values
        )
        blocks.append(Block(start, stop, selection, alone))
    return Prefill(output, blocks, prefill_density(program.page_size, blocks), carried)


def prefill_layers(
    program: Program,
    static: Static,
    q: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    **options: object,
) -> list[Prefill]:
    """The prompt of one request in all layers, of which each hands up what it writes; by layer as in `prefill`."""
    found: list[Prefill] = []
    for layer, (q_, k, v) in enumerate(zip(q, keys, values, strict=True)):
        below = found[-1].carries if found and found[-1].carries else None
        found.append(prefill(program, replace(static, layer=layer), q_, k, v, carries=below, **options))  # type: ignore[arg-type]
    return found


def prefill_density(page: int, blocks: Sequence[Block]) -> float:
    """Rule 11 for prefill: (query, token) pairs read / causal pairs, the mean over KV heads."""
    shares = []
    for kv in range(len(blocks[0].lists)):
        read = whole = 0
        for block in blocks:
            pages = {p for of_list in block.lists[kv] for p in of_list}
            for t in range(block.start, block.stop):
                read += sum(max(0, min(page, t + 1 - p * page)) for p in pages)
                whole += t + 1
        shares.append(read / whole)
    return sum(shares) / len(shares)


def per_query(program: Program) -> list[int]:
    """The nodes that each query of a block evaluates by itself: numbers that the attention output is made of and that
    depend on the query. Sets are those of the block."""
    nodes = program.nodes
    needed: set[int] = set()
    stack = [] if program.result is None else [program.result]
    while stack:
        index = stack.pop()
        if index not in needed and nodes[index].type.kind != SET and nodes[index].stage == QUERY_STAGE:
            needed.add(index)
            stack.extend(nodes[index].inputs)
    found: set[int] = set()
    for index in sorted(needed):
        if nodes[index].op in ("q", "attention") or any(i in found for i in nodes[index].inputs):
            found.add(index)
    return sorted(found)


def _block(
    program: Program,
    static: Static,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int,
    stores: tuple[LayerMemory, Carry],
    cache_dtype: torch.dtype,
    keep_values: bool,
) -> tuple[Selection, Tensor, list[list[dict[int, Found]]]]:
    """Rule 3 in prefill: candidates are the pages complete before the block; the pages that it touches are always read.

    `q` [query_heads, queries, channel] are the block's queries, `k` and `v` end with the block. The block selects, and
    remembers, as a step at its first token would with the pooled query; then every query attends by itself, with its
    own numbers and the block's sets.
    """
    page, result = program.page_size, Selection(lists=[])
    env: list[dict[int, Found]] = [{} for _ in range(static.kv_heads)]
    step = Step(program, static, k, v, start + 1, cache_dtype, *stores, result, env)
    touched = range(start // page, (k.shape[1] - 1) // page + 1)
    step.run(query_nodes(program), step.pool(q), start + 1, touched)
    result.lists = step.lists(touched)
    remember(program, step.written(), stores, start)
    if keep_values:
        step.keep_summaries()
        result.values = step.env
    rows, kept = [], []
    for number in range(q.shape[1]):
        seen = start + number + 1
        if program.result is None:
            lists = [result.lists]
            rows.append(attend(page, static, q[None, :, number], [k[:, :seen]], [v[:, :seen]], lists)[0])
        else:
            alone = replace(step, env=[dict(found) for found in env])
            alone.run(per_query(program), q[:, number], seen, touched)
            rows.append(alone.output())  # type: ignore[arg-type]
            kept += [alone.env] if keep_values else []
    return result, torch.stack(rows, 1), kept
