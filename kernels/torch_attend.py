"""Attention over listed pages: gathers the pages of a few KV heads at a time and multiplies them while in cache.

Pages that lie one after the other in memory, as those of a window or of a dense layer do, are read where they are.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from vortexlab.kernels.cache import PagedKV, Rows
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.lanes import Lanes, lanes

#: Bytes of keys, as fp32, that a lane gathers at a time: with the values, about what one core's share of cache holds.
TILE_BYTES = 2 << 20


class Workspace(threading.local):
    """Buffers that live from call to call, a set for each thread: a step allocates (and page-faults) nothing large."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype, device))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # so that it may be written in either mode
                buffer = self._buffers[name, dtype, device] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(shape)


def attend(
    q: Tensor, cache: PagedKV, lists: PageLists, page: int, scale: float, workspace: Workspace | None = None
) -> Tensor:
    """softmax(scale * q.k) v over the tokens before each length on the listed pages, accumulated in fp32.

    `q`: [batch, query_heads, channel]; returns [batch, query_heads, value channel] in q's dtype. Where query heads have
    lists of their own, the union is read once and each head sees only its pages.
    """
    hidden = None
    if lists.pages.shape[2] > 1:
        hidden = ~lists.to_mask(int(lists.pages.max()) + 1)
    query = q.reshape(cache.batch, cache.kv_heads, -1, q.shape[-1]).float()
    out, _ = attend_rows(query, cache, lists.union(), page, scale, hidden=hidden, workspace=workspace)
    return out.reshape(cache.batch, q.shape[1], -1).to(q.dtype)


def attend_rows(
    query: Tensor,
    cache: PagedKV,
    union: PageLists,
    page: int,
    scale: float,
    *,
    hidden: Tensor | None = None,
    log_weight: Tensor | None = None,
    last: Tensor | None = None,
    mass: bool = False,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of several queries of every row and KV head over the pages that these list together.

    `query`: fp32 [rows, kv_heads, queries, channel]; `union`: one list per row and KV head. `hidden`: bool [rows,
    kv_heads, queries, pages], logical pages that a query does not see. `log_weight`: fp32 [rows, kv_heads, queries or
    1, pages], added to the logits of a page's tokens; -inf hides it. `last`: int64 [rows, queries], the position of the
    last token that a query sees; by default all before the row's length. Returns [rows, kv_heads, queries, value
    channel] and, if `mass` is asked for, the logarithms of the sums of exponentials. A query that sees nothing gets 0.
    """
    workspace = workspace or Workspace()
    batch, heads, queries = query.shape[:3]
    rows_k, rows_v = Rows(cache.k, page), Rows(cache.k if cache.is_shared else cache.v, page)
    atom = min(rows_k.atom, rows_v.atom)
    if rows_k.atom != rows_v.atom:
        rows_k, rows_v = Rows(cache.k, atom), Rows(cache.v, atom)
    lengths = cache.lengths.long()
    tokens = union.tokens(cache.lengths, page).flatten()
    device = query.device

    # Memory rows of every listed page, in token order: [batch * kv_heads, rows].
    per_page, per_block = page // atom, cache.block // atom
    pages = union.pages[:, :, 0].long().clamp(min=0)
    atoms = (pages[..., None] * per_page + torch.arange(per_page, device=device)).flatten(2)
    atoms = torch.minimum(atoms, ((lengths - 1) // atom)[:, None, None])
    blocks = cache.table.long().gather(1, (atoms // per_block).flatten(1)).view(atoms.shape)
    head = torch.arange(heads, device=device)[None, :, None]
    index_k = rows_k.index(blocks, head, atoms % per_block).flatten(0, 1)
    index_v = index_k if cache.is_shared else rows_v.index(blocks, head, atoms % per_block).flatten(0, 1)

    def listed(of_pages: Tensor) -> Tensor:
        """[rows, kv_heads or 1, queries or 1, pages] at the listed pages: [rows * kv_heads, queries or 1, listed]."""
        of_pages = of_pages.expand(batch, heads, *of_pages.shape[2:])
        return of_pages.gather(3, pages[:, :, None].expand(-1, -1, of_pages.shape[2], -1)).flatten(0, 1)

    unseen = None if hidden is None else listed(hidden.expand(-1, -1, queries, -1))
    bias = None if log_weight is None else listed(log_weight)
    seen = None if last is None else last[:, None].expand(-1, heads, -1).flatten(0, 1)
    flat = query.flatten(0, 1)
    out = flat.new_empty(batch * heads, queries, cache.value_dim)
    log_mass = flat.new_empty(batch * heads, queries) if mass else None
    sizes = tokens.tolist()
    runs_k = rows_k.runs(index_k, tokens)
    runs_v = runs_k if cache.is_shared else rows_v.runs(index_v, tokens)
    in_place = [min(runs_k[at : at + heads] + runs_v[at : at + heads]) >= 0 for at in range(0, batch * heads, heads)]

    def attend_tile(part: slice) -> None:
        most, least = max(sizes[part]), min(sizes[part])
        late = torch.arange(least, most, device=device) >= tokens[part, None] if least < most else None
        span = -(-most // atom)
        keys = rows_k.view(runs_k[part], most) if late is None else None
        if keys is None:
            keys = _gather(rows_k, index_k[part, :span], "k", workspace)[:, :most]
            weight = torch.bmm(flat[part], keys.transpose(1, 2))
        else:
            # Keys first: the order in which CPU libraries stream a long operand from memory fastest.
            weight = torch.bmm(keys.float(), flat[part].transpose(1, 2)).transpose(1, 2).contiguous()
        weight.mul_(scale)
        if bias is not None:
            weight.add_(bias[part].repeat_interleave(page, 2)[..., :most])
        if late is not None:
            weight[:, :, least:].masked_fill_(late[:, None], float("-inf"))
        if unseen is not None:
            weight.masked_fill_(unseen[part].repeat_interleave(page, 2)[..., :most], float("-inf"))
        if seen is not None:
            # Only the newest tokens, at the end of the list, may lie after a query.
            start = max(0, least - page - int((seen[part].amax(1) - seen[part].amin(1)).max()))
            place = pages.flatten(0, 1)[part, :, None] * page + torch.arange(page, device=device)
            place = place.flatten(1)[:, start:most]
            weight[:, :, start:].masked_fill_(place[:, None] > seen[part, :, None], float("-inf"))
        if bias is not None or log_mass is not None:
            total = weight.logsumexp(-1)
            if log_mass is not None:
                log_mass[part] = total
            weight = torch.softmax(weight, -1).masked_fill_((total == float("-inf"))[..., None], 0.0)
        else:
            weight = torch.softmax(weight, -1)
        if cache.is_shared:
            values: Tensor | None = keys[..., : cache.value_dim]
        else:
            values = rows_v.view(runs_v[part], most) if late is None else None
            if values is None:
                values = _gather(rows_v, index_v[part, :span], "v", workspace)[:, :most]
        assert values is not None
        if late is not None:
            # Memory past the length may hold anything, NaN too, which a weight of 0 does not undo.
            values[:, least:].masked_fill_(late[:, :, None], 0.0)
        torch.bmm(weight, values.float(), out=out[part])

    each = 4 * max(cache.head_dim, queries)
    with lanes(device) as open_lanes:
        open_lanes.run(attend_tile, _tiles([size * each for size in sizes], in_place, heads, open_lanes))
    shape = (batch, heads, queries)
    return out.view(*shape, -1), None if log_mass is None else log_mass.view(shape)


def _tiles(sizes: list[int], in_place: list[bool], heads: int, open_lanes: Lanes) -> list[slice]:
    """KV heads attended together, of all requests in order: as many as fit the cache, and a few tiles for every lane.

    A tile ends with its request where that is long and read in place, since equal distances end there too.
    """
    limit = min(TILE_BYTES, max(TILE_BYTES // 4, sum(sizes) // (4 * open_lanes.count)))
    tiles: list[slice] = []
    start, largest = 0, 0
    for at, size in enumerate(sizes):
        count = at - start
        ends = at % heads == 0 and in_place[at // heads - 1] and count * largest > limit // 4
        if count and ((count + 1) * max(largest, size) > limit or ends):
            tiles.append(slice(start, at))
            start, largest = at, 0
        largest = max(largest, size)
    return [*tiles, slice(start, len(sizes))]


def _gather(rows: Rows, index: Tensor, name: str, workspace: Workspace) -> Tensor:
    """fp32 [n, tokens, channel]: a copy of the memory rows `index` ([n, rows])."""
    memory = rows.memory
    found = workspace.take(name, (index.numel(), memory.shape[1]), memory.dtype, memory.device)
    torch.index_select(memory, 0, index.flatten(), out=found)
    if found.dtype != torch.float32:
        wide = workspace.take(name, tuple(found.shape), torch.float32, found.device)
        found = wide.copy_(found)
    return found.view(index.shape[0], -1, rows.channel)
