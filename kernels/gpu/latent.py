"""Paged decode attention over latent keys (MLA): a key is [latent | rotary], its value the latent part.

The latent part is loaded once, multiplied with the queries, and multiplied again, transposed, with the softmax
weights. Dense attention is this same kernel over the identity list. Multi-head latent attention, with absorbed queries,
is that of DeepSeek-V2 (arXiv 2405.04434); the online softmax and the split over tokens are those of
`vortexlab.kernels.gpu.attention`.
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
from vortexlab.kernels.gpu.attention_kernels import attend_combine
from vortexlab.kernels.gpu.fp8 import handed
from vortexlab.kernels.gpu.latent_kernels import latent_split

_LOG2E = math.log2(math.e)
#: Most query heads of one program: their sums over 512 channels fill half of the registers.
_MOST_COLUMNS = 32
#: Channels that one program of the joining kernel handles.
PART = 64


@dataclass(frozen=True)
class LatentShape:
    """Tile sizes: `columns` of query heads, `quarter` of the latent channels, `turned` rotary ones, `tile` tokens.

    `precise` keeps the softmax weights at fp32 precision in products with 16-bit values.
    """

    columns: int
    quarter: int
    turned: int
    tile: int
    warps: int
    stages: int
    precise: bool

    @staticmethod
    def of(heads: int, latent: int, rotary: int, itemsize: int, stored: int, amd: bool = False) -> LatentShape:
        """For `heads` query heads of one list, in elements of `itemsize` bytes, over keys stored in `stored` bytes."""
        columns = min(_MOST_COLUMNS, max(16, triton.next_power_of_2(heads)))
        quarter = max(16, triton.next_power_of_2(latent) // 4)
        turned = max(16, triton.next_power_of_2(rotary))
        # Half the tokens where keys pass through registers: those in fp8, and all of them on AMD's GPUs.
        tile = 16 if stored == 4 else 32 if stored == 1 or amd else 64
        return LatentShape(columns, quarter, turned, tile, 4 if amd else 8, 1 if amd else 2, itemsize == 2)


def attend_latent(
    q: Tensor,
    cache: PagedKV,
    lists: PageLists | None,
    page: int,
    scale: float,
    *,
    splits: int | None = None,
    shape: LatentShape | None = None,
) -> Tensor:
    """Attention of absorbed queries `q` [batch, query_heads, channel] over the listed pages, all when `lists` is None.

    Values are the first channels of the keys, as many as the cache says that a value has: `cache.v` is not read.
    Returns [batch, query_heads, value channel]. `page`: tokens of a page; `splits`: runs that each list is cut into;
    `shape`: tile sizes (both are chosen when None). Raises `VortexError` when query and cache do not fit.
    """
    batch, query_heads, channels = q.shape
    latent, rotary = cache.value_dim, cache.head_dim - cache.value_dim
    if batch != cache.batch or channels != cache.head_dim or query_heads % cache.kv_heads or rotary < 1:
        raise VortexError(
            f"the query [batch, query_heads, channel] = {list(q.shape)} does not fit a latent cache of {cache.batch} "
            f"requests and {cache.kv_heads} KV heads, with keys of {cache.head_dim} and values of {latent} channels"
        )
    if q.dtype != cache.k.dtype and cache.k.element_size() > 1:
        raise VortexError(f"query and cache must have one precision; found {q.dtype} and {cache.k.dtype}")
    if q.stride(2) != 1:
        q = q.contiguous()
    count = 1 if lists is None else lists.pages.shape[2]
    heads, rows = query_heads // cache.kv_heads // count, batch * cache.kv_heads * count
    amd = torch.version.hip is not None
    shape = shape or LatentShape.of(heads, latent, rotary, q.element_size(), cache.k.element_size(), amd)
    blocks = -(-heads // shape.columns)
    most = -(-cache.capacity // page) if lists is None else lists.pages.shape[3]
    if splits is None:
        tiles = -(-min(cache.capacity, most * page) // shape.tile)
        splits = latent_splits(rows * blocks, tiles, launch.processors(q.device))
    out = torch.empty(batch, query_heads, latent, dtype=q.dtype, device=q.device)
    direct = splits == 1
    partial = out if direct else q.new_empty(rows, splits, heads, latent, dtype=torch.float32)
    edges = out if direct else q.new_empty(2, rows, splits, heads, dtype=torch.float32)
    pages, counts = (cache.table, cache.lengths) if lists is None else (lists.pages, lists.counts)
    latent_split[(splits, rows, blocks)](
        q, q.stride(0), q.stride(1),
        handed(cache.k), *cache.k.stride()[:2],
        cache.table, cache.table.stride(0), cache.lengths, pages, counts, most,
        out, out.stride(0), out.stride(1), partial, edges if direct else edges[0], edges if direct else edges[1],
        splits, scale * _LOG2E,
        KV_HEADS=cache.kv_heads, LISTS=count, HEADS=heads, LATENT=latent, ROTARY=rotary, K_TOKEN=cache.k.stride(2),
        PAGE=page, BLOCK=cache.block, IDENTITY=lists is None, DIRECT=direct, COLUMNS=shape.columns,
        QUARTER=shape.quarter, TURNED=shape.turned, TILE=shape.tile, PRECISE=shape.precise,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    if not direct:
        attend_combine[(rows, heads, -(-latent // PART))](
            partial, edges[0], edges[1], out, out.stride(0), out.stride(1), splits,
            KV_HEADS=cache.kv_heads, LISTS=count, HEADS=heads, CHANNELS=latent, WIDTH=PART,
            SPLITS=triton.next_power_of_2(splits), CHAINED=False, num_warps=4,
        )  # fmt: skip
    return out


def latent_splits(programs: int, tiles: int, processors: int) -> int:
    """Runs per list that take the fewest tile times; a processor holds one program, whose keys fill its memory."""
    start = 2  # tile times that a program takes to get going and to be joined

    def cost(runs: int) -> int:
        return -(-programs * runs // processors) * (-(-tiles // runs) + start)

    return min(range(1, max(1, min(tiles, 256)) + 1), key=cost)
