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

    `q`: [batch, query_heads, channel]; returns the same shape and dtype. Where query heads have lists of their own,
    the union is read once and each head sees only its pages.
    """
    workspace = workspace or Workspace()
    batch, heads = cache.batch, cache.kv_heads
    group = q.shape[1] // heads
    rows_k, rows_v = Rows(cache.k, page), Rows(cache.v, page)
    atom = min(rows_k.atom, rows_v.atom)
    if rows_k.atom != rows_v.atom:
        rows_k, rows_v = Rows(cache.k, atom), Rows(cache.v, atom)
    union = lists.union()
    lengths = cache.lengths.long()
    tokens = union.tokens(cache.lengths, page).flatten()
    device = q.device

    # Memory rows of every listed page, in token order: [batch * kv_heads, rows].
    per_page, per_block = page // atom, cache.block // atom
    pages = union.pages[:, :, 0].long().clamp(min=0)
    atoms = (pages[..., None] * per_page + torch.arange(per_page, device=device)).flatten(2)
    atoms = torch.minimum(atoms, ((lengths - 1) // atom)[:, None, None])
    blocks = cache.table.long().gather(1, (atoms // per_block).flatten(1)).view(atoms.shape)
    head = torch.arange(heads, device=device)[None, :, None]
    index_k = rows_k.index(blocks, head, atoms % per_block).flatten(0, 1)
    index_v = rows_v.index(blocks, head, atoms % per_block).flatten(0, 1)

    hidden = None
    if lists.pages.shape[2] > 1:
        member = lists.to_mask(int(lists.pages.max()) + 1)
        listed = pages[:, :, None].expand(-1, -1, group, -1)
        hidden = ~member.expand(-1, -1, group, -1).gather(3, listed).flatten(0, 1)

    query = q.reshape(batch * heads, group, -1).float()
    out = torch.empty_like(query)
    sizes = tokens.tolist()
    runs_k, runs_v = rows_k.runs(index_k, tokens), rows_v.runs(index_v, tokens)
    in_place = [min(runs_k[at : at + heads] + runs_v[at : at + heads]) >= 0 for at in range(0, batch * heads, heads)]

    def attend_tile(part: slice) -> None:
        most, least = max(sizes[part]), min(sizes[part])
        late = torch.arange(least, most, device=device) >= tokens[part, None] if least < most else None
        span = -(-most // atom)
        keys = rows_k.view(runs_k[part], most) if late is None else None
        if keys is None:
            keys = _gather(rows_k, index_k[part, :span], "k", workspace)[:, :most]
            weight = torch.bmm(query[part], keys.transpose(1, 2))
        else:
            # Keys first: the order in which CPU libraries stream a long operand from memory fastest.
            weight = torch.bmm(keys.float(), query[part].transpose(1, 2)).transpose(1, 2).contiguous()
        weight.mul_(scale)
        if late is not None:
            weight[:, :, least:].masked_fill_(late[:, None], float("-inf"))
        if hidden is not None:
            weight.masked_fill_(hidden[part].repeat_interleave(page, 2)[..., :most], float("-inf"))
        weight = torch.softmax(weight, -1)
        values = rows_v.view(runs_v[part], most) if late is None else None
        if values is None:
            values = _gather(rows_v, index_v[part, :span], "v", workspace)[:, :most]
        if late is not None:
            # Memory past the length may hold anything, NaN too, which a weight of 0 does not undo.
            values[:, least:].masked_fill_(late[:, :, None], 0.0)
        torch.bmm(weight, values.float(), out=out[part])

    with lanes(device) as open_lanes:
        open_lanes.run(attend_tile, _tiles([size * cache.head_dim * 4 for size in sizes], in_place, heads, open_lanes))
    return out.view(batch, heads * group, -1).to(q.dtype)


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
