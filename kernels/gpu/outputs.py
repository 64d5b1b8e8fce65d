"""A program's own attention output: one softmax over the tokens of listed pages and over entries made of summaries.

Summaries are a second, small KV cache whose blocks are pages, so entries are attended to by the kernel that attends to
tokens. Both leave runs behind, and joining all of them is the one softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention import AttentionShape, Listed, LocatedLists, Runs, split, split_count
from vortexlab.kernels.gpu.graph import Attention, Graph
from vortexlab.kernels.precision import is_fp8


def new_listings(graph: Graph, lists: LocatedLists, cache: PagedKV) -> tuple[Listed, ...]:
    """Storage for all that the selection kernel lists, of which the selected pages are `lists`."""
    page, device, rows = graph.program.page_size, cache.k.device, lists.live.numel()
    most, capacity = lists.pages.shape[3], -(-cache.capacity // page)
    found: list[Listed] = []
    for listing in graph.listings:
        each, length = listing.entries or page, capacity if listing.entries else most
        entries, tokens = lists.entries.flatten(0, 2), lists.live
        if listing.entries:
            entries = torch.empty(rows, capacity, dtype=torch.int32, device=device)
        elif found:
            entries = torch.empty_like(entries)
        if found:
            tokens = torch.empty_like(tokens)
        weights = None
        if listing.weight is not None:
            weights = torch.empty(rows, graph.weights(listing), length, device=device)
        atom = listing.entries or min(page, cache.block)
        longest = capacity * each if listing.entries else min(cache.capacity, most * page)
        found.append(Listed(entries, tokens, atom, longest, graph.lists, True, weights, each))
    return tuple(found)


def listing_arguments(listings: tuple[Listed, ...]) -> dict[str, Tensor]:
    """The selection kernel's parameters for the listings."""
    found: dict[str, Tensor] = {}
    for number, listed in enumerate(listings):
        found |= {f"entries{number}": listed.entries, f"tokens{number}": listed.tokens}
        if listed.weights is not None:
            found[f"weights{number}"] = listed.weights
    return found


def attend_own(
    q: Tensor,
    cache: PagedKV,
    attention: Attention,
    lists: LocatedLists,
    fields: dict[str, Tensor],
    scales: dict[str, Tensor],
    scale: float,
    out: Tensor,
) -> Tensor:
    """One attention operation of a step, as the selection kernel listed it: writes `out` [batch, query_heads, channel].

    `fields`, `scales`: the summaries by name, [physical page, KV head, ...].
    """
    parts: list[tuple[Tensor, Tensor, Listed, tuple[Tensor, Tensor] | None]] = []
    if attention.tokens is not None:
        parts.append((cache.k, cache.v, lists.listings[attention.tokens], None))
    if attention.entries is not None:
        listed = lists.listings[attention.entries]
        keys, values = (_entries(fields[name], listed.page) for name in (attention.keys, attention.values))
        own = (scales[attention.keys], scales[attention.values]) if attention.keys in scales else None
        parts.append((keys, values, listed, own))
    lists_of_head = parts[0][2].count
    rows, heads = cache.batch * cache.kv_heads * lists_of_head, q.shape[1] // cache.kv_heads // lists_of_head
    work = []
    for k, v, listed, own in parts:
        # Query and keys meet in a precision that holds both; scaled numbers are multiplied in fp32.
        exact = q.dtype in (k.dtype, torch.float32) or (is_fp8(k.dtype) and own is None)
        asked = q if exact else q.float()
        shape = AttentionShape.of(heads, q.shape[2], asked.element_size())
        splits = split_count(rows, -(-listed.longest // shape.tile), launch.processors(q.device))
        work.append((asked, k, v, listed, own, shape, splits))
    runs, first = Runs.empty(out, rows, sum(item[-1] for item in work), heads), 0
    for asked, k, v, listed, own, shape, splits in work:
        split(asked, k, v, listed, runs, out, scale, shape, splits, first=first, scales=own)
        first += splits
    return runs.join(out, cache.kv_heads, lists_of_head, work[0][5].width)


def _entries(field: Tensor, each: int) -> Tensor:
    """Summaries as a pool of blocks of `each` entries."""
    return field.view(field.shape[0], field.shape[1], each, field.shape[-1])
