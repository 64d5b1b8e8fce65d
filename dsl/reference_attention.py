"""The reference meaning of attention: one query at a time, over tokens of pages and over summary entries.

Plain softmax attention under given page lists is `attend`; `attention` is the operation of a program's `attend`
method, with log-weights and summary entries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.ir import Node, Static
from vortexlab.dsl.reference_ops import Value
from vortexlab.dsl.reference_sets import PageList, list_of_head

#: One list per KV head, or one per query head of that KV head.
Lists = list[PageList]


def attend(
    page: int, static: Static, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], lists: list[list[Lists]]
) -> Tensor:
    """Attention under a given selection: softmax(scale * q.k) over the tokens of the listed pages.

    `q` [batch, query heads, channel], `keys[b]` and `values[b]` [KV heads, tokens, channel] -> [batch, query heads,
    value channel].
    """
    output = q.new_empty(*q.shape[:2], values[0].shape[2])
    for b in range(len(keys)):
        length = keys[b].shape[1]
        for head in range(static.kv_heads * static.group):
            kv = head // static.group
            pages = lists[b][kv][list_of_head(head % static.group, lists[b][kv])]
            tokens = [t for p in pages for t in range(p * page, min((p + 1) * page, length))]
            logits = static.scale * (keys[b][kv, tokens] @ q[b, head])
            output[b, head] = torch.softmax(logits, 0) @ values[b][kv, tokens]
    return output


@dataclass(frozen=True)
class Operands:
    """What an attention operation is given for one KV head, by the names of its `parts`.

    Values over pages hold one `Value` per candidate page; sets hold one set, or one per query head.
    """

    pages: list[frozenset[int]] | None = None
    keys: list[Value] | None = None
    values: list[Value] | None = None
    among: list[frozenset[int]] | None = None
    log_weight: list[Value] | None = None
    entry_log_weight: list[Value] | None = None

    @staticmethod
    def of(node: Node, inputs: Sequence[object]) -> Operands:
        """A log-weight beside entries alone is that of the entries."""
        parts = str(node.attrs["parts"]).split()
        given = dict(zip(parts, inputs, strict=True))
        if "pages" not in parts and "log_weight" in given:
            given["entry_log_weight"] = given.pop("log_weight")
        return Operands(**given)  # type: ignore[arg-type]


def attention(
    page: int,
    static: Static,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    given: Operands,
    head: int,
    candidates: int,
    own: range,
) -> Tensor:
    """Attention of one query head: one softmax over the tokens of a set of pages and over summary entries.

    `q` [channel]; `k`, `v` [tokens, channel] up to and with the query's own token; `candidates` complete pages may be
    listed; the pages `own` are always read, with log-weight 0. A token or entry of logit -inf has no weight, and with
    none left the result is 0.
    """
    logits: list[Tensor] = []
    rows: list[Tensor] = []
    if given.pages is not None:
        chosen = given.pages[list_of_head(head, given.pages)] & frozenset(range(candidates)) | frozenset(own)
        for p in sorted(chosen):
            weight = _of_head(given.log_weight[p], head) if given.log_weight is not None and p < candidates else 0.0
            for t in range(p * page, min((p + 1) * page, k.shape[0])):
                logits.append(static.scale * (k[t] @ q) + weight)
                rows.append(v[t])
    if given.keys is not None and given.values is not None:
        pages = frozenset(range(candidates))
        if given.among is not None:
            pages &= given.among[list_of_head(head, given.among)]
        for p in sorted(pages):
            weights = given.entry_log_weight[p] if given.entry_log_weight is not None else Value(q.new_zeros(()))
            for key, value, weight in _entries(given.keys[p], given.values[p], weights, head):
                logits.append(static.scale * (key @ q) + weight)
                rows.append(value)
    if not logits or all(logit == -math.inf for logit in logits):
        return q.new_zeros(v.shape[1])
    return torch.softmax(torch.stack(logits), 0) @ torch.stack(rows)


def _of_head(value: Value, head: int) -> Tensor:
    """This query head's part of a value with the axis ``head``, or all of it."""
    return value.tensor.select(value.axes.index("head"), head) if "head" in value.axes else value.tensor


def _entries(keys: Value, values: Value, weights: Value, head: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The entries of one page: (key, value, log-weight) for every position of the axes that the program made."""
    named = [
        Value(_of_head(item, head), tuple(axis for axis in item.axes if axis != "head"))
        for item in (keys, values, weights)
    ]
    made = [axis for axis in named[0].axes if axis != "channel"]
    result = []
    for place in itertools.product(*(range(named[0].size(axis)) for axis in made)):
        at = dict(zip(made, place, strict=True))
        parts = [
            item.tensor[tuple(at[axis] if axis in at else slice(None) for axis in item.axes)] for item in named
        ]
        result.append((parts[0], parts[1], parts[2]))
    return result
