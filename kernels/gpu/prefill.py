"""Paged causal attention of whole prompts, dense or over a list of pages for each block of queries.

A tile of the matrix products holds successive queries of all heads that share a list. Pages that are complete before
the first query of a tile are attended without any mask; only those around the queries themselves are masked. Dense
attention is this same kernel over the identity list. The online softmax is that of FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu import launch, tuning
from vortexlab.kernels.gpu.attention import LOG2E
from vortexlab.kernels.gpu.prefill_kernels import attend_prompt

#: Queries that dense attention takes at a time at most; as many as rows of the largest tile.
DENSE_BLOCK = 128


@dataclass(frozen=True)
class PrefillShape:
    """Tile sizes of the kernel: `rows` of queries and heads, `width` of channels, `tile` tokens at a time.

    `precise` keeps the softmax weights at fp32 precision in products with bf16 or fp16 values, for half as many
    products again. Without it they are rounded to the cache's precision, as FlashAttention does: an output is off by
    at most 2**-9 (fp16: 2**-12) of the attended mean of its values' magnitudes. `registers`: the most that a thread may
    use, where that lets more programs run at once; 0 leaves it to the compiler.
    """

    rows: int
    width: int
    tile: int
    warps: int
    stages: int
    precise: bool = False
    registers: int = 0

    @staticmethod
    def of(queries: int, heads: int, head_dim: int, itemsize: int, shared: int) -> PrefillShape:
        """For blocks of `queries` queries, `heads` query heads of one list, and elements of `itemsize` bytes.

        `shared`: bytes of shared memory. Other tiles for Hopper were measured and are slower (benchmarks/prefill.py).
        """
        width = max(16, triton.next_power_of_2(head_dim))
        least, wanted = max(16, triton.next_power_of_2(heads)), triton.next_power_of_2(queries * heads)
        is_wide = width > 128

        def rows(most: int) -> int:
            return max(least, min(wanted, most))

        if itemsize > 2:  # products without tensor cores, from registers
            return PrefillShape(rows(16 if is_wide else 32), width, 16, 4, 2)
        if shared < 160 << 10:
            return PrefillShape(rows(32 if is_wide else 64), width, 16 if is_wide else 32, 4, 2)
        if is_wide:
            return PrefillShape(rows(64), width, 32, 4, 2)
        if rows(128) < 128:
            return PrefillShape(rows(64), width, 64, 4, 3)
        return PrefillShape(rows(128), width, 64, 8, 3)

    def options(self) -> dict[str, int]:
        """Triton's launch options."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


@dataclass(frozen=True)
class Blocks:
    """Blocks of queries, in order of their beginning: block i is `starts[i]` to `stops[i]` - 1 of request `rows[i]`.

    int64 tensors on the CPU. `size`: queries of a whole block; the last one of a request may be shorter.
    """

    rows: Tensor
    starts: Tensor
    stops: Tensor
    size: int
    batch: int

    @staticmethod
    def of(lengths: Sequence[int], size: int) -> Blocks:
        """All blocks of requests of these lengths."""
        counts = torch.tensor([-(-length // size) for length in lengths])
        rows = torch.arange(len(lengths)).repeat_interleave(counts)
        starts = (torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]) * size
        order = torch.argsort(starts * len(lengths) + rows)
        rows, starts = rows[order], starts[order]
        return Blocks(rows, starts, torch.minimum(starts + size, torch.tensor(lengths)[rows]), size, len(lengths))

    def by_request(self) -> Tensor:
        """The place of each block where those of a request follow each other."""
        return torch.argsort(torch.argsort(self.rows, stable=True))

    def touched(self, page: int) -> tuple[Tensor, Tensor]:
        """The first page that each block touches, and how many it touches."""
        first = self.starts // page
        return first, (self.stops - 1) // page + 1 - first

    def tiles(self, queries: int, page: int) -> Tensor:
        """int32 [tiles, 6]: what `attend_prompt` calls `work`, for tiles of so many queries."""
        each = -(-self.size // queries)
        starts = (self.starts[:, None] + torch.arange(each) * queries).flatten()
        block = torch.arange(len(self.starts)).repeat_interleave(each)
        stops = torch.minimum(starts + queries, self.stops[block])
        first, touched = self.touched(page)
        work = torch.stack([self.rows[block], starts, stops, block, first[block], touched[block]], 1)
        return work[starts < stops].int()

    def with_touched(self, lists: PageLists, page: int) -> PageLists:
        """Lists that end with the first page that a block touches, with the others behind it."""
        first, touched = (x.to(lists.pages.device) for x in self.touched(page))
        more = max(0, -(-self.size // page) - 1)
        if not more:
            return lists
        step = torch.arange(more, device=first.device)
        next_pages = torch.where(step < touched[:, None] - 1, first[:, None] + 1 + step, -1).int()[:, None, None]
        shape = (*lists.pages.shape[:3], more)
        place = lists.counts[..., None].long() + step
        pages = pad(lists.pages, (0, more), value=-1).scatter_(3, place, next_pages.expand(shape))
        return PageLists(pages, lists.counts + (touched - 1).int()[:, None, None])

    def by_number(self, lists: PageLists) -> Sequence[PageLists]:
        """The lists of each block number for all requests; those that have no such block read nothing in it."""
        count = int(self.starts[-1]) // self.size + 1
        pages, counts = lists.pages, lists.counts
        if len(self.starts) < count * self.batch:
            place = (self.starts // self.size * self.batch + self.rows).to(pages.device)
            pages = pages.new_full((count * self.batch, *pages.shape[1:]), -1).index_copy_(0, place, pages)
            counts = counts.new_zeros((count * self.batch, *counts.shape[1:])).index_copy_(0, place, counts)
        return _Numbered(*(x.unflatten(0, (count, self.batch)) for x in (pages, counts)))


class _Numbered(Sequence[PageLists]):
    """The lists of every block number, cut out when asked for: a long prompt has a thousand, and seldom a reader."""

    def __init__(self, pages: Tensor, counts: Tensor) -> None:
        self._pages, self._counts = pages, counts

    def __len__(self) -> int:
        return len(self._pages)

    @overload
    def __getitem__(self, at: int) -> PageLists: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[PageLists]: ...
    def __getitem__(self, at: int | slice) -> PageLists | Sequence[PageLists]:
        of = PageLists if isinstance(at, int) else _Numbered
        return of(self._pages[at], self._counts[at])


def tile_queries(size: int, heads: int, shape: PrefillShape) -> int:
    """Queries of one tile: as many as its rows hold, or fewer where that cuts a block of `size` into equal tiles."""
    tiles = -(-size // (shape.rows // heads))
    return -(-size // tiles)


def attend_prefill(
    q: Tensor,
    cache: PagedKV,
    blocks: Blocks | None,
    lists: PageLists | None,
    page: int,
    scale: float,
    *,
    lengths: Sequence[int],
    shape: PrefillShape | None = None,
) -> Tensor:
    """Causal attention of `q` [batch, query_heads, tokens, channel], a query for every token of the cache.

    `lists`: pages of `page` tokens for each of `blocks`, ascending and ending with all that the block touches; with
    None queries attend to all tokens up to their own. `lengths`: those of the cache, on the host. Returns the shape of
    `q`, with 0 behind each row's length. `shape`: tile sizes; when None those of a tuned table, or chosen from the head
    width.
    """
    batch, query_heads, tokens, channels = q.shape
    if batch != cache.batch or channels != cache.head_dim or query_heads % cache.kv_heads:
        raise VortexError(
            f"the query [batch, query_heads, token, channel] = {list(q.shape)} does not fit a cache of {cache.batch} "
            f"requests and {cache.kv_heads} KV heads of {cache.head_dim} channels"
        )
    if q.dtype != cache.k.dtype:
        raise VortexError(f"queries and cache must have one precision; found {q.dtype} and {cache.k.dtype}")
    if not scale > 0:
        raise VortexError(f"prefill needs a softmax scale above 0; found {scale}")
    if q.stride(3) != 1:
        q = q.contiguous()
    count = 1 if lists is None else lists.pages.shape[2]
    heads = query_heads // cache.kv_heads // count
    size = DENSE_BLOCK if lists is None or blocks is None else blocks.size
    if shape is None:
        usual = PrefillShape.of(size, heads, channels, q.element_size(), launch.shared_bytes(q.device))
        case = {"lists": 0, "atom": cache.block} if lists is None else {"lists": count, "atom": page, "block": size}
        usual, _ = tuning.choose("attend_prefill", usual, q, cache, heads=heads, length=max(lengths), **case)
        shape = usual
    queries = tile_queries(size, heads, shape)
    if lists is None or blocks is None:
        blocks, page = Blocks.of(lengths, queries), cache.block
    work = blocks.tiles(queries, page).to(q.device)
    out = (torch.empty if min(lengths) == tokens else torch.zeros)(q.shape, dtype=q.dtype, device=q.device)
    pages, counts, most = (work, work, 0) if lists is None else (lists.pages, lists.counts, lists.pages.shape[3])
    attend_prompt[(len(work), cache.kv_heads * count)](
        q, *q.stride()[:3],
        cache.k, *cache.k.stride()[:3], cache.v, *cache.v.stride()[:3],
        cache.table, cache.table.stride(0), work, pages, counts, most,
        out, *out.stride()[:3], scale * LOG2E,
        KV_HEADS=cache.kv_heads, LISTS=count, HEADS=heads, CHANNELS=channels, PAGE=page, BLOCK=cache.block,
        IDENTITY=lists is None, QUERIES=queries, ROWS=shape.rows, WIDTH=shape.width, TILE=shape.tile,
        PRECISE=shape.precise, **shape.options(),
    )  # fmt: skip
    return out
