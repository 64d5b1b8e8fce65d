"""Paged decode attention over page lists: split over the listed tokens, on tensor cores, then combined.

All query heads that share a list are packed into the rows of one tile, so keys and values are read once for the
group. Dense attention is this same kernel over the identity list. The online softmax is that of FlashAttention
(arXiv 2205.14135), the split over tokens that of Flash-Decoding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention_kernels import attend_combine, attend_split
from vortexlab.kernels.gpu.fp8 import handed

_LOG2E = math.log2(math.e)


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
        warps = 8 if rows * width > 4096 else 2 if precise and rows * tile * width <= 16 * 64 * 128 else 4
        return AttentionShape(rows, width, tile, warps, 3 if precise else 2, precise)


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

    `page`: tokens of a page; `splits`: runs that each list is cut into; `shape`: tile sizes (both are chosen from the
    device and the head width when None).
    """
    batch, query_heads, channels = q.shape
    if batch != cache.batch or channels != cache.head_dim or query_heads % cache.kv_heads:
        raise VortexError(
            f"the query [batch, query_heads, channel] = {list(q.shape)} does not fit a cache of {cache.batch} requests "
            f"and {cache.kv_heads} KV heads of {cache.head_dim} channels"
        )
    if q.dtype != cache.k.dtype and cache.k.element_size() > 1:
        raise VortexError(f"query and cache must have one precision; found {q.dtype} and {cache.k.dtype}")
    if q.stride(2) != 1:
        q = q.contiguous()
    group = query_heads // cache.kv_heads
    count = 1 if lists is None else lists.pages.shape[2]
    heads, rows = group // count, batch * cache.kv_heads * count
    shape = shape or AttentionShape.of(heads, channels, q.element_size())
    most = -(-cache.capacity // page) if lists is None else lists.pages.shape[3]
    if splits is None:
        splits = split_count(rows, -(-min(cache.capacity, most * page) // shape.tile), launch.processors(q.device))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    direct = splits == 1
    partial = out if direct else q.new_empty(rows, splits, heads, channels, dtype=torch.float32)
    edges = out if direct else q.new_empty(2, rows, splits, heads, dtype=torch.float32)
    pages, counts = (cache.table, cache.lengths) if lists is None else (lists.pages, lists.counts)
    attend_split[(splits, rows)](
        q, q.stride(0), q.stride(1),
        handed(cache.k), *cache.k.stride()[:3], handed(cache.v), *cache.v.stride()[:3],
        cache.table, cache.table.stride(0), cache.lengths, pages, counts, most,
        out, out.stride(0), out.stride(1), partial, edges if direct else edges[0], edges if direct else edges[1],
        splits, scale * _LOG2E,
        KV_HEADS=cache.kv_heads, LISTS=count, HEADS=heads, CHANNELS=channels, PAGE=page, BLOCK=cache.block,
        IDENTITY=lists is None, DIRECT=direct, ROWS=shape.rows, WIDTH=shape.width, TILE=shape.tile,
        PRECISE=shape.precise,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    if not direct:
        attend_combine[(rows, heads)](
            partial, edges[0], edges[1], out, out.stride(0), out.stride(1), splits,
            KV_HEADS=cache.kv_heads, LISTS=count, HEADS=heads, CHANNELS=channels, WIDTH=shape.width,
            SPLITS=triton.next_power_of_2(splits), num_warps=4,
        )  # fmt: skip
    return out


def split_count(rows: int, tiles: int, processors: int) -> int:
    """Runs per list that take the fewest tile times, when four programs are resident on each processor at once."""
    start = 4  # tile times that a program takes to get going

    def cost(runs: int) -> int:
        rounds = -(-rows * runs // (4 * processors))
        return rounds * (-(-tiles // runs) + start)

    return min(range(1, max(1, min(tiles, 128)) + 1), key=cost)
