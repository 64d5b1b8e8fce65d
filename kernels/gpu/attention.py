"""Paged decode attention over page lists: split over the listed tokens, on tensor cores, then combined.

All query heads that share a list are packed into the rows of one tile, so keys and values are read once for the
group. A list names the places of its tokens in the pool, so that a token's address takes one read, which the compiler
overlaps with the tiles before. Dense attention is this same kernel over the rows of the block table. The online softmax
is that of FlashAttention (arXiv 2205.14135), the split over tokens that of Flash-Decoding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu import launch, tuning
from vortexlab.kernels.gpu.attention_kernels import attend_combine, attend_split
from vortexlab.kernels.gpu.fp8 import handed
from vortexlab.kernels.precision import is_fp8

#: Softmax in powers of two: exp(x) = exp2(x * LOG2E).
LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class AttentionShape:
    """Tile sizes of the attention kernel: `rows` of query heads, `width` of channels, `tile` tokens at a time.

    `precise` keeps the softmax weights at fp32 precision in products with bf16 or fp16 values.
    """

    rows: int
    width: int
    tile: int
    warps: int
    stages: int
    precise: bool

    @staticmethod
    def of(heads: int, head_dim: int, itemsize: int) -> AttentionShape:
        """For `heads` query heads of one list and elements of `itemsize` bytes."""
        width = max(16, triton.next_power_of_2(head_dim))
        precise = itemsize == 2
        rows = max(16, triton.next_power_of_2(heads) * (2 if precise else 1))
        # Keys and values of one stage take 2 * tile * width * itemsize bytes of shared memory.
        tile = max(16, min(64, 16384 // (width * itemsize) if itemsize > 2 else 16384 // width))
        warps = 8 if rows * width > 4096 or not precise else 4
        # An address takes a load of its own: three stages are one tile under way, in so little memory that four
        # programs share a processor, as `split_count` supposes.
        return AttentionShape(rows, width, tile, warps, 3 if precise else 2, precise)


@dataclass
class LocatedLists(PageLists):
    """Page lists together with where their tokens lie.

    `entries`: int32 [batch, kv_heads, lists, atoms], for every listed page in order its physical page, or the blocks
    that it spans; what stands behind the last one is not read. `live`: int32 [batch, kv_heads, lists], how many
    of the listed tokens are before the row's length. `listings`: all that the selection kernel of a program with an
    attention output of its own lists.
    """

    entries: Tensor
    live: Tensor
    listings: tuple[Listed, ...] = ()

    def reported(self, lists: int) -> LocatedLists:
        """The first `lists` lists of each KV head."""
        if lists == self.pages.shape[2]:
            return self
        some = slice(lists)
        return LocatedLists(
            self.pages[:, :, some], self.counts[:, :, some], self.entries[:, :, some], self.live[:, :, some]
        )

    @staticmethod
    def empty(cache: PagedKV, lists: int, most: int, page: int) -> LocatedLists:
        """Storage for `lists` lists of each KV head, of at most `most` pages each."""
        shape, device = (cache.batch, cache.kv_heads, lists), cache.k.device
        none = torch.zeros(*shape, dtype=torch.int32, device=device)
        pages = torch.full((*shape, most), -1, dtype=torch.int32, device=device)
        entries = torch.zeros(*shape, most * cache.blocks_per_page(page), dtype=torch.int32, device=device)
        return LocatedLists(pages, none, entries, none.clone())

    @staticmethod
    def of(lists: PageLists, cache: PagedKV, page: int) -> LocatedLists:
        """Any page lists (ascending) over the cache; no host synchronisation."""
        span = cache.blocks_per_page(page)
        listed = lists.pages.long().clamp(min=0)
        if span == 1:
            place = listed
            table = cache.page_table(page)
        else:
            place = (listed[..., None] * span + torch.arange(span, device=listed.device)).flatten(3)
            table = cache.table.long()
        place = place.clamp(max=table.shape[1] - 1)  # the last page may not be full
        entries = table.gather(1, place.flatten(1)).view(place.shape).int()
        last = listed.gather(3, (lists.counts.long() - 1).clamp(min=0)[..., None])[..., 0]
        missing = ((last + 1) * page - cache.lengths.long()[:, None, None]).clamp(min=0)
        live = (lists.counts.long() * page - missing).clamp(min=0)
        return LocatedLists(lists.pages, lists.counts, entries, live.int())


@dataclass(frozen=True)
class Listed:
    """The lists of a step as the kernels read them: of `count` lists for each KV head a row of `entries`, of `atom`
    tokens each, with `tokens` live ones, `longest` at most. All lists of a request are its block table's row where
    nothing was `selected`. With `weights`, fp32 [lists, 1 or heads, pages], every `page` tokens have a log-weight,
    given times log2(e)."""

    entries: Tensor
    tokens: Tensor
    atom: int
    longest: int
    count: int
    selected: bool = False
    weights: Tensor | None = None
    page: int = 1

    def launch(self) -> dict[str, Any]:
        """What a kernel is told of the log-weights."""
        if self.weights is None:
            return {"weights": self.tokens, "weight_row": 0, "WEIGHTS": 0, "PAGE": 1}
        weights = self.weights
        return {"weights": weights, "weight_row": weights.stride(1), "WEIGHTS": weights.shape[1], "PAGE": self.page}

    @staticmethod
    def of(cache: PagedKV, lists: PageLists | None, page: int) -> Listed:
        if lists is None:
            return Listed(cache.table, cache.lengths, cache.block, cache.capacity, 1)
        located = lists if isinstance(lists, LocatedLists) else LocatedLists.of(lists, cache, page)
        longest = min(cache.capacity, lists.pages.shape[3] * page)
        return Listed(
            located.entries.flatten(0, 2), located.live, min(page, cache.block), longest, lists.pages.shape[2], True
        )

    @property
    def case(self) -> dict[str, int]:
        """What a tuned choice depends on of it."""
        return {"lists": self.count if self.selected else 0, "atom": self.atom, "length": self.longest}


@dataclass(frozen=True)
class Runs:
    """What the `count` runs of each of `rows` lists of `heads` query heads leave behind: unnormalised sums `partial`
    [rows, runs, heads, channel], and their `summit` and `mass` [rows, runs, heads]. A single run writes the output, and
    these are only stand-ins."""

    rows: int
    heads: int
    count: int
    partial: Tensor
    summit: Tensor
    mass: Tensor

    @staticmethod
    def empty(out: Tensor, rows: int, count: int, heads: int) -> Runs:
        """`out`: the output [batch, query_heads, channel]; `rows`: lists of all requests; `heads` of each list."""
        if count == 1:
            return Runs(rows, heads, 1, out, out, out)
        partial = out.new_empty(rows, count, heads, out.shape[2], dtype=torch.float32)
        edges = out.new_empty(2, rows, count, heads, dtype=torch.float32)
        return Runs(rows, heads, count, partial, edges[0], edges[1])

    def join(self, out: Tensor, kv_heads: int, lists: int, width: int) -> Tensor:
        """Writes the output from the runs, `width` channels a program; returns it."""
        if self.count > 1:
            channels = self.partial.shape[3]
            attend_combine[(self.rows, self.heads, -(-channels // width))](
                self.partial, self.summit, self.mass, out, out.stride(0), out.stride(1), self.count,
                KV_HEADS=kv_heads, LISTS=lists, HEADS=self.heads, CHANNELS=channels, WIDTH=width,
                SPLITS=triton.next_power_of_2(self.count), num_warps=4, **launch.chained(out.device),
            )  # fmt: skip
        return out


def attend(
    q: Tensor,
    cache: PagedKV,
    lists: PageLists | None,
    page: int,
    scale: float,
    *,
    splits: int | None = None,
    shape: AttentionShape | None = None,
) -> Tensor:
    """Attention of `q` [batch, query_heads, channel] over the listed pages, or over all pages when `lists` is None.

    `page`: tokens of a page; `splits`: runs that each list is cut into; `shape`: tile sizes. With neither, a tuned
    table is asked; what is still None is chosen from the device and the head width. Products are in q's precision over
    an fp8 cache, in fp32 where query and another cache differ. Raises `VortexError` when query and cache do not fit.
    """
    check_query(q, cache)
    if q.dtype not in (cache.k.dtype, torch.float32) and not is_fp8(cache.k.dtype):
        # They meet in fp32, which holds both.
        return attend(q.float(), cache, lists, page, scale, splits=splits, shape=shape).to(q.dtype)
    if q.stride(2) != 1:
        q = q.contiguous()
    batch, query_heads, channels = q.shape
    listed = Listed.of(cache, lists, page)
    heads, rows = query_heads // cache.kv_heads // listed.count, batch * cache.kv_heads * listed.count
    if shape is None:
        usual = AttentionShape.of(heads, channels, q.element_size())
        if splits is None:
            usual, splits = tuning.choose("attend", usual, q, cache, heads=heads, **listed.case)
        shape = usual
    if splits is None:
        splits = split_count(rows, -(-listed.longest // shape.tile), launch.processors(q.device))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    runs = Runs.empty(out, rows, splits, heads)
    split(q, cache.k, cache.v, listed, runs, out, scale, shape, splits, identity=lists is None)
    return runs.join(out, cache.kv_heads, listed.count, shape.width)


def split(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    listed: Listed,
    runs: Runs,
    out: Tensor,
    scale: float,
    shape: AttentionShape,
    splits: int,
    *,
    first: int = 0,
    identity: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Attends to the lists in `splits` runs each: those of `runs` from `first` on.

    `k`, `v`: [block, KV head, token, channel], with `scales` [block, KV head] of their own in fp8 of another scale.
    """
    attend_split[(splits, runs.rows)](
        q, q.stride(0), q.stride(1),
        handed(k), *k.stride()[:3], handed(v), *v.stride()[:3],
        listed.entries, listed.entries.stride(0), listed.tokens,
        out, out.stride(0), out.stride(1), runs.partial, runs.summit, runs.mass, splits, scale * LOG2E,
        k_scales=scales[0] if scales else q, v_scales=scales[1] if scales else q, first_run=first, runs=runs.count,
        KV_HEADS=k.shape[1], LISTS=listed.count, HEADS=runs.heads, CHANNELS=q.shape[2], ATOM=listed.atom,
        BLOCK=k.shape[2], IDENTITY=identity, DIRECT=runs.count == 1, ROWS=shape.rows, WIDTH=shape.width,
        TILE=shape.tile, PRECISE=shape.precise, SCALED=scales is not None, JOINED=splits < runs.count,
        **listed.launch(), num_warps=shape.warps, num_stages=shape.stages, **launch.chained(q.device),
    )  # fmt: skip


def check_query(q: Tensor, cache: PagedKV) -> None:
    """Raises `VortexError` when a query [batch, query_heads, channel] does not fit a cache."""
    batch, query_heads, channels = q.shape
    if batch != cache.batch or channels != cache.head_dim or query_heads % cache.kv_heads:
        raise VortexError(
            f"the query [batch, query_heads, channel] = {list(q.shape)} does not fit a cache of {cache.batch} requests "
            f"and {cache.kv_heads} KV heads of {cache.head_dim} channels"
        )


def split_count(rows: int, tiles: int, processors: int) -> int:
    """Runs per list that take the fewest tile times.

    Four programs are resident on each processor at once; three where one run writes the output itself, which takes
    registers.
    """
    start = 4  # tile times that a program takes to get going

    def cost(runs: int) -> int:
        rounds = -(-rows * runs // ((3 if runs == 1 else 4) * processors))
        return rounds * (-(-tiles // runs) + start)

    return min(range(1, max(1, min(tiles, 128)) + 1), key=cost)
