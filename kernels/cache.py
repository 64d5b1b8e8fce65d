"""The page-centric KV cache that every executor reads.

A cache is one layer's pools of blocks plus, for every request of the batch, a table of blocks in token order. A
program has its own page size, which divides the block or is a multiple of it; *physical pages* number the pages of
the pool, so that what is remembered of a page is found again by every request that shares it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.precision import cast


@dataclass
class PagedKV:
    """Keys and values of one attention layer, in blocks.

    `k`, `v`: [blocks, kv_heads, block, channel], views with any strides whose channel stride is 1. They may be in any
    floating-point precision, fp8 included. In MLA `v` has fewer channels and may be a view of k's first ones.
    `table`: int32 [batch, max_blocks], the physical block of each logical block; entries that name no block are -1.
    `lengths`: int32 [batch], tokens in the cache, the query's own included; a row of length 0 is idle: it holds no
    request, reads nothing and gets an output of 0.
    `block`: tokens of one block. Rows share a prefix by naming the same blocks.
    """

    k: Tensor
    v: Tensor
    table: Tensor
    lengths: Tensor
    block: int

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.k.shape[:3] != self.v.shape[:3] or self.k.shape[2] != self.block:
            raise VortexError(
                f"a KV cache needs k and v of shape [blocks, kv_heads, {self.block}, channel]; found "
                f"{list(self.k.shape)} and {list(self.v.shape)}"
            )
        if self.v.shape[3] > self.k.shape[3] or self.k.dtype != self.v.dtype:
            raise VortexError(
                f"a KV cache needs values of at most the keys' width and in their precision; found {self.k.shape[3]} "
                f"channels of {self.k.dtype} and {self.v.shape[3]} of {self.v.dtype}"
            )
        if self.k.stride(3) != 1 or self.v.stride(3) != 1:
            raise VortexError("a KV cache needs keys and values whose channels lie next to each other (stride 1)")
        if self.table.dim() != 2 or self.lengths.shape != self.table.shape[:1]:
            raise VortexError(
                f"a KV cache needs a table [batch, max_blocks] and lengths [batch]; found {list(self.table.shape)} "
                f"and {list(self.lengths.shape)}"
            )

    @property
    def batch(self) -> int:
        return self.table.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[1]

    @property
    def head_dim(self) -> int:
        return self.k.shape[3]

    @property
    def value_dim(self) -> int:
        """Channels of a value: fewer than a key's in MLA."""
        return self.v.shape[3]

    @property
    def is_shared(self) -> bool:
        """Whether the values are the keys' first channels in the same memory."""
        return self.v.data_ptr() == self.k.data_ptr() and self.v.stride() == self.k.stride()

    @property
    def capacity(self) -> int:
        """Tokens that a row's table has room for."""
        return self.table.shape[1] * self.block

    def blocks_per_page(self, page: int) -> int:
        """Blocks that one page of `page` tokens spans: 1 when the page divides the block.

        Raises `VortexError` when neither divides the other.
        """
        if page < 1 or (page % self.block and self.block % page):
            raise VortexError(
                f"a page of {page} tokens does not fit a cache with blocks of {self.block}; choose a page that "
                "divides the block or is a multiple of it"
            )
        return max(1, page // self.block)

    def physical_pages(self, page: int) -> int:
        """How many physical page numbers the pool has: the size of anything indexed by physical page."""
        self.blocks_per_page(page)
        return self.k.shape[0] * max(1, self.block // page)

    def page_table(self, page: int) -> Tensor:
        """int64 [batch, pages]: the physical page of each logical page that the table has room for.

        A page inside a block is ``block_id * (block / page) + position``. A page of several blocks is known by its
        *last* block, which under prefix sharing fixes the ones before it.
        """
        span = self.blocks_per_page(page)
        table = self.table.long()
        if span > 1:
            return table[:, span - 1 :: span]
        inside = self.block // page
        if inside == 1:
            return table
        return (table[:, :, None] * inside + torch.arange(inside, device=table.device)).flatten(1)

    def busy(self) -> list[int] | None:
        """The rows that hold a request, or None when all do."""
        rows = (self.lengths > 0).nonzero()[:, 0].tolist()
        return None if len(rows) == self.batch else rows

    def part(self, rows: list[int]) -> PagedKV:
        """Some rows of the batch, over the same pool."""
        return PagedKV(self.k, self.v, self.table[rows], self.lengths[rows], self.block)

    def append(self, k_new: Tensor, v_new: Tensor) -> None:
        """Writes one token per request ([batch, kv_heads, channel]) and lengthens every row by one.

        Where values are a part of the keys, `v_new` must be that part of `k_new`. Raises `VortexError` when a row's
        table is full.
        """
        position = self.lengths.long()
        if int(position.max()) >= self.capacity:
            raise VortexError(f"the KV cache is full: {self.capacity} tokens a row; allocate more blocks")
        blocks = self.table.long().gather(1, (position // self.block)[:, None])[:, 0]
        if int(blocks.min()) < 0:
            raise VortexError("a row of the KV cache has no block left for its next token; allocate more blocks")
        self.k[blocks, :, position % self.block] = cast(k_new, self.k.dtype)
        if not self.is_shared:
            self.v[blocks, :, position % self.block] = cast(v_new, self.v.dtype)
        self.lengths += 1

    def stored_in(self, dtype: torch.dtype) -> PagedKV:
        """The same tokens in another precision, in pools of their own; the cache itself where it has that precision."""
        if dtype == self.k.dtype:
            return self
        k = cast(self.k, dtype)
        v = k[..., : self.value_dim] if self.is_shared else cast(self.v, dtype)
        return PagedKV(k, v, self.table, self.lengths, self.block)

    def dense(self, row: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one request, copied out in token order: two of [kv_heads, length, channel]."""
        length = int(self.lengths[row])
        blocks = self.table[row, : -(-length // self.block)].long()

        def flat(pool: Tensor) -> Tensor:
            return pool[blocks].transpose(0, 1).flatten(1, 2)[:, :length]

        return flat(self.k), flat(self.v)

    def fork(self, rows: Sequence[int], spare: int = 0) -> PagedKV:
        """A cache over the same pool whose row i continues request `rows[i]` with `spare` more tokens.

        Full blocks are shared; a last block that is not full is copied, so rows never write into each other. New
        blocks are those that no row of this cache names. Raises `VortexError` when there are too few of them.
        """
        lengths = [int(self.lengths[row]) for row in rows]
        full = [length // self.block for length in lengths]
        width = [-(-(length + spare) // self.block) for length in lengths]
        used = set(self.table.flatten().tolist())
        free = [number for number in range(self.k.shape[0]) if number not in used]
        need = sum(w - f for w, f in zip(width, full, strict=True))
        if need > len(free):
            raise VortexError(f"forking the KV cache needs {need} free blocks and it has {len(free)}")
        table = torch.full((len(rows), max(width, default=0)), -1, dtype=torch.int32)
        for i, row in enumerate(rows):
            table[i, : full[i]] = self.table[row, : full[i]].cpu()
            own, free = free[: width[i] - full[i]], free[width[i] - full[i] :]
            table[i, full[i] : width[i]] = torch.tensor(own, dtype=torch.int32)
            if lengths[i] % self.block:
                source = int(self.table[row, full[i]])
                self.k[own[0]].copy_(self.k[source])
                self.v[own[0]].copy_(self.v[source])
        device = self.table.device
        return PagedKV(
            self.k, self.v, table.to(device), torch.tensor(lengths, dtype=torch.int32).to(device), self.block
        )

    @staticmethod
    def from_dense(
        k: Tensor | Sequence[Tensor],
        v: Tensor | Sequence[Tensor],
        block: int,
        *,
        shuffle_seed: int | None = None,
        spare: int = 0,
        free_blocks: int = 0,
    ) -> PagedKV:
        """A cache holding `k[i]`, `v[i]` ([kv_heads, tokens, channel]) for each request i, ragged lengths allowed.

        A `v[i]` of fewer channels that is a view of k's first ones (MLA) becomes such a view of the pool. The pool
        keeps each KV head's tokens next to each other. Blocks are numbered in order, or permuted by
        `shuffle_seed`. Every row has room for `spare` further tokens; `free_blocks` more belong to no row.
        """
        if len(k) != len(v) or not len(k):
            raise VortexError(
                "a KV cache needs keys and values of at least one request, as many of one as of the other"
            )
        lengths = [item.shape[1] for item in k]
        counts = [max(1, -(-(length + spare) // block)) for length in lengths]
        total = sum(counts) + free_blocks
        heads = k[0].shape[0]
        part = all(a.data_ptr() == b.data_ptr() and a.shape[2] > b.shape[2] for a, b in zip(k, v, strict=True))
        order = torch.arange(total)
        if shuffle_seed is not None:
            order = torch.randperm(total, generator=torch.Generator().manual_seed(shuffle_seed))
        table = torch.full((len(k), max(counts)), -1, dtype=torch.int32)
        sources = (k,) if part else (k, v)
        pools = [
            torch.zeros(heads, total * block, x[0].shape[2], dtype=x[0].dtype, device=x[0].device) for x in sources
        ]
        views = [pool.view(heads, total, block, -1).transpose(0, 1) for pool in pools]
        start = 0
        for i, count in enumerate(counts):
            ids = order[start : start + count]
            start += count
            table[i, :count] = ids
            for view, source in zip(views, sources, strict=True):
                item = source[i]
                padded = item.new_zeros(heads, count * block, item.shape[2])
                padded[:, : lengths[i]] = item
                view[ids] = padded.view(heads, count, block, -1).transpose(0, 1)
        device = pools[0].device
        pool_v = views[0][..., : v[0].shape[2]] if part else views[1]
        lengths_ = torch.tensor(lengths, dtype=torch.int32, device=device)
        return PagedKV(views[0], pool_v, table.to(device), lengths_, block)

    @staticmethod
    def from_contiguous(k: Tensor, v: Tensor, starts: Sequence[int], lengths: Sequence[int], block: int) -> PagedKV:
        """Recorded contexts as a cache, without copying.

        `k`, `v`: [kv_heads, tokens, channel] holding many contexts one after the other, token-contiguous per KV
        head; context i occupies tokens ``starts[i] .. starts[i] + lengths[i]``. Starts must be multiples of
        `block`; a table reaches to the next start (or the end), so the gap there is room to grow.
        """
        tokens = k.shape[1]
        if tokens % block or any(start % block for start in starts):
            raise VortexError(f"contexts must start at, and the pool must end at, a multiple of the block ({block})")
        ends = [min([s for s in starts if s > start], default=tokens) for start in starts]
        counts = [(end - start) // block for start, end in zip(starts, ends, strict=True)]
        table = torch.full((len(starts), max(counts)), -1, dtype=torch.int32)
        for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
            if lengths[i] > count * block:
                raise VortexError(f"context {i} of {lengths[i]} tokens runs into the next one")
            table[i, :count] = torch.arange(start // block, start // block + count, dtype=torch.int32)

        def view(x: Tensor) -> Tensor:
            return x.unflatten(1, (tokens // block, block)).transpose(0, 1)

        return PagedKV(
            view(k), view(v), table.to(k.device), torch.tensor(lengths, dtype=torch.int32, device=k.device), block
        )


class Rows:
    """Reads runs of tokens out of a pool: [blocks, kv_heads, block, channel] seen as a list of equal memory rows.

    A row is the longest run of tokens of one KV head that lies contiguously in every block and divides both block
    and page: `atom` tokens. Reading whole rows makes a gather a sequence of plain memory copies whatever the layout.
    """

    def __init__(self, pool: Tensor, page: int):
        blocks, heads, block, channel = pool.shape
        self.channel, self.block = channel, block
        self.atom = min(page, block) if pool.stride(2) == channel or block == 1 else 1
        steps = [
            stride
            for size, stride in (
                (blocks, pool.stride(0)),
                (heads, pool.stride(1)),
                (block // self.atom, pool.stride(2)),
            )
            if size > 1
        ]
        if self.atom > 1 and block > self.atom:
            steps[-1] *= self.atom
        grain = math.gcd(*steps) if steps else 1
        grain = grain or 1
        last = sum((size - 1) * stride for size, stride in zip(pool.shape[:3], pool.stride()[:3], strict=True))
        count = (last + channel - self.atom * channel) // grain + 1
        self.memory = pool.as_strided((count, self.atom * channel), (grain, 1))
        self._strides = (pool.stride(0) // grain, pool.stride(1) // grain, pool.stride(2) * self.atom // grain)

    def index(self, blocks: Tensor, heads: Tensor, atoms: Tensor) -> Tensor:
        """The memory row of atom `atoms` (counted inside the block) of KV head `heads` in block `blocks`; int64."""
        return blocks * self._strides[0] + heads * self._strides[1] + atoms * self._strides[2]

    def runs(self, index: Tensor, tokens: Tensor) -> list[int]:
        """For each list of memory rows ([n, rows], of `tokens` [n] tokens) the first row, if they lie in one run.

        -1 where they do not.
        """
        unit, left = divmod(self.atom * self.channel, self.memory.stride(0))
        if left:
            return [-1] * index.shape[0]
        past = torch.arange(1, index.shape[1], device=index.device) >= -(-tokens // self.atom)[:, None]
        together = ((index[:, 1:] - index[:, :-1] == unit) | past).all(1)
        return torch.where(together, index[:, 0], -1).tolist()

    def view(self, firsts: list[int], tokens: int) -> Tensor | None:
        """[n, tokens, channel] in place, for runs that begin at the memory rows `firsts` at equal distances."""
        steps = {b - a for a, b in itertools.pairwise(firsts)}
        if min(firsts) < 0 or len(steps) > 1 or min(steps, default=0) < 0:
            return None
        grain = self.memory.stride(0)
        strides = (max(steps, default=0) * grain, self.channel, 1)
        return self.memory.as_strided(
            (len(firsts), tokens, self.channel), strides, self.memory.storage_offset() + firsts[0] * grain
        )
