"""A serving engine's KV pool as pages, and what a program keeps beside it. Knows shapes, and nothing of vLLM.

The pool of one layer is read where it lies. Summaries are indexed by physical page and depend on nothing but the tokens
in it. Whoever finds a block, by prefix caching, after a preemption or in another place of the batch, finds its
summaries with it; they are renewed whenever a step writes a page's last token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vortexlab.deploy.executors import executor_for
from vortexlab.dsl.ir import SET, Node, Program, Static, Type
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor, PageLists
from vortexlab.kernels.memory import Carry, Memory


def everything(page: int) -> Program:
    """Dense attention as a program: what the gate makes of a decode step."""
    return Program(name="everything", page=page, nodes=(Node("everything", Type(SET)),), fields={}, output=0)


@dataclass(frozen=True)
class Rows:
    """Some requests of a step; what all layers share.

    `table`: int32 [rows, blocks], -1 past each length; `lengths`: int32 [rows], this step's tokens included; `fresh`:
    int64 [rows], how many those are; `tokens`: int64, the places of their queries in the step's list of tokens, row by
    row.
    """

    table: Tensor
    lengths: Tensor
    fresh: Tensor
    tokens: Tensor

    @staticmethod
    def of(rows: Tensor, starts: Tensor, lengths: Tensor, table: Tensor, block: int) -> Rows:
        """The requests numbered `rows` of a step; `starts`: [requests + 1], `lengths`, `table`: [requests, any]."""
        first, counts = starts[rows].long(), (starts[rows + 1] - starts[rows]).long()
        behind = counts.cumsum(0) - counts
        tokens = torch.arange(int(counts.sum()), device=rows.device)
        tokens = tokens + (first - behind).repeat_interleave(counts)
        chosen = lengths[rows].int()
        held = (chosen.long() + block - 1) // block
        width = int(held.max()) if held.numel() else 0
        number = torch.arange(width, device=rows.device)
        own = torch.where(number < held[:, None], table[rows, :width], -1).int()
        return Rows(own, chosen, counts, tokens)

    def cache(self, k: Tensor, v: Tensor) -> PagedKV:
        """These rows of a layer's pool; `k`, `v`: views of it, [blocks, kv_heads, block, channel]."""
        return PagedKV(k, v, self.table, self.lengths, k.shape[2])


def completed(cache: PagedKV, fresh: Tensor, page: int) -> Tensor:
    """The physical pages whose last token is among each row's `fresh` newest ones; int64, sorted, each once."""
    lengths = cache.lengths.long()
    table = cache.page_table(page)
    number = torch.arange(table.shape[1], device=table.device)
    new = (number >= ((lengths - fresh) // page)[:, None]) & (number < (lengths // page)[:, None])
    return table[new].unique()


class LayerPages:
    """One attention layer: the executor of a program, and the summaries of the pages of the engine's pool."""

    def __init__(self, program: Program, static: Static, device: torch.device):
        self.executor: Executor = executor_for(device, program, static)(program, static)
        self.static = static
        self.state: Any = None
        self.read = 0.0  # share of its context that each sparse row read, summed over rows and steps
        self.lists: PageLists | None = None  # of the newest sparse step
        self.memory: Memory | None = None
        self._dense: Executor | None = None
        self._pool: tuple[int, torch.Size] | None = None

    def refresh(self, cache: PagedKV, fresh: Tensor, one_each: bool) -> None:
        """After a step has written the `fresh` (int64 [rows]) newest tokens of each row: summarises what they filled.

        `one_each`: whether every row has one. A pool that was put elsewhere begins with no summaries, as an engine's
        does with no blocks.
        """
        pool = (cache.k.data_ptr(), cache.k.shape)
        if pool != self._pool:
            self.state, self._pool = self.executor.new_state(cache), pool
        if one_each:
            self.executor.update(self.state, cache)
            return
        pages = completed(cache, fresh, self.executor.program.page_size)
        if pages.numel():
            self.executor.summarize(self.state, cache, pages)

    def remember(self, cache: PagedKV, rows: int, slots: list[int], begun: list[int], carry: Carry) -> None:
        """For a program that carries something: the slots (of `rows`) of the requests that decode next, those that
        begin with it, and what the layers of the step hand upwards."""
        if self.memory is None:
            self.memory = self.executor.new_memory(cache, rows)
        self.memory.reset(begun)
        self.memory.slots, self.memory.carry = slots, carry

    def decode(self, q: Tensor, cache: PagedKV, *, count: bool = False) -> Tensor:
        """q: [rows, query_heads, channel], one query a row; the same shape is returned. `count` adds to `read`."""
        carried = () if self.memory is None else (self.memory,)
        out, self.lists = self.executor.decode(q, self.state, cache, *carried)
        if count:
            tokens = self.lists.tokens(cache.lengths, self.executor.program.page_size).double()
            self.read += float((tokens.flatten(1).mean(1) / cache.lengths).sum())
        return out

    def decode_densely(self, q: Tensor, cache: PagedKV) -> Tensor:
        """The same over all pages, where the gate says that this is faster."""
        if self._dense is None:
            program = everything(cache.block)
            self._dense = executor_for(q.device, program, self.static)(program, self.static)
        return self._dense.decode(q, self._dense.new_state(cache), cache)[0]
