"""Paged decode attention over latent keys (MLA): a key is [latent | rotary], its value the latent part.

The latent part is read once and multiplied twice, with the queries and with the softmax weights. Dense attention is
this same kernel over the rows of the block table; Hopper has a kernel of its own. Multi-head latent attention, with
absorbed queries, is that of DeepSeek-V2 (arXiv 2405.04434); lists, the online softmax and the split over tokens are
those of `vortexlab.kernels.gpu.attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu import launch, tuning
from vortexlab.kernels.gpu.attention import LOG2E, Listed, Runs, check_query
from vortexlab.kernels.gpu.fp8 import handed
from vortexlab.kernels.gpu.latent_hopper import ROWS, TILE, TURNED, WARPS, latent_split_hopper
from vortexlab.kernels.gpu.latent_kernels import latent_split

#: Channels that one program of the joining kernel handles.
PART = 64


@dataclass(frozen=True)
class LatentShape:
    """Tile sizes: `rows` of query heads, `width` of latent and `turned` of rotary channels, `tile` tokens at a time.

    `precise` keeps the softmax weights at fp32 precision in products with 16-bit values: rows come twice. `hopper`:
    that these are the sizes of `latent_hopper`.
    """

    rows: int
    width: int
    turned: int
    tile: int
    warps: int
    stages: int
    precise: bool
    hopper: bool = False

    @property
    def heads(self) -> int:
        """Query heads of one program."""
        return self.rows // 2 if self.precise else self.rows

    def options(self) -> dict[str, Any]:
        """Constants and launch options that the kernel takes because of its shape."""
        if self.hopper:
            return {"num_warps": self.warps}
        return {
            "ROWS": self.rows, "WIDTH": self.width, "TURNED": self.turned, "TILE": self.tile, "PRECISE": self.precise,
            "num_warps": self.warps, "num_stages": self.stages,
        }  # fmt: skip

    @staticmethod
    def of(latent: int, rotary: int, itemsize: int, stored: int, shared: int, hopper: bool) -> LatentShape:
        """For queries of `itemsize` bytes an element over keys stored in `stored` bytes, on a device with `shared`
        bytes of shared memory. `hopper`: that it is one of compute capability 9.0."""
        width = max(16, triton.next_power_of_2(latent))
        turned = max(16, triton.next_power_of_2(rotary))
        if itemsize > 2:  # products without tensor cores, from registers
            return LatentShape(16, width, turned, 16, 8, 1, False)
        if hopper and stored == 2 and latent in (128, 256, 512) and rotary % 16 == 0 and rotary <= TURNED:
            return LatentShape(ROWS, latent, TURNED, TILE, WARPS, 2, True, True)
        if shared < 100 << 10:
            return LatentShape(32, width, turned, 16, 8, 1, True)
        if shared < 220 << 10:
            return LatentShape(32, width, turned, 32, 8, 2, True)
        # Tensor cores from Hopper on take 64 rows. Two tiles of keys are under way while one is multiplied; keys in fp8
        # pass through registers, which takes memory for one tile more, and so do products on Blackwell.
        return LatentShape(64, width, turned, 32, 8, 4 if hopper and stored == 2 else 3, True)


def aligned(q: Tensor, k: Tensor) -> bool:
    """Whether all channels of queries and keys can be copied asynchronously, 16 bytes at a time."""
    strides = (*q.stride()[:2], *k.stride()[:3])
    return all(stride % 16 == 0 for stride in strides) and all(x.data_ptr() % 16 == 0 for x in (q, k))


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
    `shape`: tile sizes. With neither, a tuned table is asked; what is still None is chosen. Raises `VortexError` when
    query and cache do not fit.
    """
    check_query(q, cache)
    latent, rotary = cache.value_dim, cache.head_dim - cache.value_dim
    if rotary < 1:
        raise VortexError(
            f"latent keys have rotary channels behind the {latent} of a value; found keys of {cache.head_dim}"
        )
    if q.dtype != cache.k.dtype and cache.k.element_size() > 1:
        raise VortexError(f"query and cache must have one precision; found {q.dtype} and {cache.k.dtype}")
    if q.stride(2) != 1:
        q = q.contiguous()
    batch, query_heads, _ = q.shape
    listed = Listed.of(cache, lists, page)
    heads, rows = query_heads // cache.kv_heads // listed.count, batch * cache.kv_heads * listed.count
    if shape is None:
        hopper = launch.is_hopper(q.device) and aligned(q, cache.k)
        sizes = (q.element_size(), cache.k.element_size(), launch.shared_bytes(q.device))
        usual = LatentShape.of(latent, rotary, *sizes, hopper)
        if splits is None:
            usual, splits = tuning.choose("attend_latent", usual, q, cache, heads=heads, **listed.case)
        shape = usual
    blocks = -(-heads // shape.heads)
    if splits is None:
        tiles = -(-listed.longest // shape.tile)
        splits = latent_splits(rows * blocks, tiles, launch.processors(q.device))
    out = q.new_empty(batch, query_heads, latent)
    runs = Runs.empty(out, rows, splits, heads)
    arguments = (
        q, q.stride(0), q.stride(1),
        handed(cache.k), *cache.k.stride()[:2],
        listed.entries, listed.entries.stride(0), listed.tokens,
        out, out.stride(0), out.stride(1), runs.partial, runs.summit, runs.mass, splits, scale * LOG2E,
    )  # fmt: skip
    constants = {
        "KV_HEADS": cache.kv_heads, "LISTS": listed.count, "HEADS": heads, "LATENT": latent, "ROTARY": rotary,
        "K_TOKEN": cache.k.stride(2), "ATOM": listed.atom, "BLOCK": cache.block, "IDENTITY": lists is None,
        "DIRECT": splits == 1,
    }  # fmt: skip
    kernel = latent_split_hopper if shape.hopper else latent_split
    kernel[(splits, rows, blocks)](*arguments, **constants, **shape.options(), **launch.chained(q.device))
    return runs.join(out, cache.kv_heads, listed.count, PART)


def latent_splits(programs: int, tiles: int, processors: int) -> int:
    """Runs per list that take the fewest tile times; a processor holds one program, whose keys fill its memory."""
    start = 2  # tile times that a program takes to get going and to be joined

    def cost(runs: int) -> int:
        return -(-programs * runs // processors) * (-(-tiles // runs) + start)

    return min(range(1, max(1, min(tiles, 256)) + 1), key=cost)
