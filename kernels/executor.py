"""What an executor is: the interface between programs and whoever runs them (evaluator, serving engines)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cache import PagedKV

if TYPE_CHECKING:
    from vortexlab.kernels.memory import Carry, Memory


@dataclass
class PageLists:
    """The pages that a step reads.

    `pages`: int32 [batch, kv_heads, lists, most], logical pages, ascending, padded with -1. `lists` is 1, or the
    group size when every query head has a list of its own. `counts`: int32 [batch, kv_heads, lists].
    """

    pages: Tensor
    counts: Tensor

    @staticmethod
    def from_mask(mask: Tensor) -> PageLists:
        """`mask`: bool [batch, kv_heads, lists, pages]."""
        rows = mask.flatten(0, 2)
        counts = rows.sum(-1)
        most = int(counts.max()) if counts.numel() else 0
        pages = torch.full((rows.shape[0], most), -1, dtype=torch.int32, device=mask.device)
        row, page = rows.nonzero(as_tuple=True)
        first = counts.cumsum(0) - counts
        pages[row, torch.arange(row.numel(), device=mask.device) - first[row]] = page.int()
        return PageLists(pages.view(*mask.shape[:3], most), counts.int().view(mask.shape[:3]))

    def spread(self, rows: list[int], batch: int) -> PageLists:
        """These lists as those of `rows` in a larger batch, whose other rows read nothing."""
        pages = self.pages.new_full((batch, *self.pages.shape[1:]), -1)
        counts = self.counts.new_zeros(batch, *self.counts.shape[1:])
        pages[rows], counts[rows] = self.pages, self.counts
        return PageLists(pages, counts)

    def to_mask(self, pages: int) -> Tensor:
        """bool [batch, kv_heads, lists, `pages`]; pages at or past `pages` must not occur."""
        mask = torch.zeros(*self.pages.shape[:3], pages + 1, dtype=torch.bool, device=self.pages.device)
        listed = self.pages.long()
        mask.scatter_(3, torch.where(listed < 0, pages, listed), True)
        return mask[..., :pages]

    def union(self) -> PageLists:
        """The pages that each KV head reads: the union over the lists of its query heads."""
        if self.pages.shape[2] == 1:
            return self
        last = int(self.pages.max()) + 1 if self.pages.numel() else 0
        return PageLists.from_mask(self.to_mask(last).any(2, keepdim=True))

    def tokens(self, lengths: Tensor, page: int) -> Tensor:
        """Tokens read, int64 [batch, kv_heads]: the last page with its live tokens, the others whole.

        Divided by the lengths this is the effective density of each KV head.
        """
        own = (lengths.long() - 1) // page
        union = self.union().counts[:, :, 0].long()
        return ((union - 1) * page + (lengths.long() - own * page)[:, None]).where(union > 0, 0)

    def to_list(self) -> list[list[list[list[int]]]]:
        """Plain lists without padding: [batch][kv head][list] -> pages."""
        return [
            [[row[:n] for row, n in zip(head, counts, strict=True)] for head, counts in zip(item, count, strict=True)]
            for item, count in zip(self.pages.tolist(), self.counts.tolist(), strict=True)
        ]


def prompt_lengths(q: Tensor, cache: PagedKV) -> list[int]:
    """The lengths of the prompts that a cache holds. `q`: [batch, query_heads, tokens, channel].

    Raises `VortexError` when there is not a query for every token.
    """
    lengths: list[int] = cache.lengths.tolist()
    if q.shape[0] != cache.batch or q.shape[2] < max(lengths):
        raise VortexError(
            f"prefill needs a query for each of {max(lengths)} tokens of {cache.batch} requests; found q "
            f"{list(q.shape)}"
        )
    return lengths


class Executor(Protocol):
    """Runs one bound program on one layer, one decode step at a time.

    A step is `append` to the cache, `update`, `decode` (or, without memory, `select` and `attend`). The state holds
    the summaries of complete pages by physical page: a pure function of the pages' tokens, so prefixes may be shared.
    """

    program: Program
    static: Static

    def __init__(self, program: Program, static: Static) -> None: ...

    def new_state(self, cache: PagedKV) -> Any:
        """Storage for the summaries of every physical page of the cache's pool."""
        ...

    def summarize(self, state: Any, cache: PagedKV, pages: Tensor | None = None) -> None:
        """Writes the summaries of the given physical pages, or of all complete pages of the table."""
        ...

    def update(self, state: Any, cache: PagedKV) -> None:
        """After an append: writes the summaries of the pages that the newest token completed."""
        ...

    def new_memory(self, cache: PagedKV, rows: int | None = None, carry: Carry | None = None) -> Memory:
        """What `rows` requests (the cache's by default) carry on in this layer; the layers of a step share a `carry`.

        A program that remembers and reuses nothing (`Program.has_memory`) needs none.
        """
        ...

    def select(self, q: Tensor, state: Any, cache: PagedKV, memory: Memory | None = None) -> PageLists:
        """The pages that each row's query reads; the memory stays as it is.

        `q`: [batch, query_heads, channel], after norm and RoPE.
        """
        ...

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        """Attention over the listed pages, for programs without an output of their own.

        Returns [batch, query_heads, value channel] in q's dtype.
        """
        ...

    def decode(
        self, q: Tensor, state: Any, cache: PagedKV, memory: Memory | None = None
    ) -> tuple[Tensor, PageLists]:
        """A whole step: the output and the pages that were read; moves the memory on."""
        ...


class PrefillExecutor(Executor, Protocol):
    """An executor that also reads prompts by blocks of queries."""

    def prefill(
        self, q: Tensor, cache: PagedKV, state: Any = None, memory: Memory | None = None
    ) -> tuple[Tensor, Sequence[PageLists]]:
        """The prompts that the cache holds: q [batch, query_heads, tokens, channel] -> output of the same shape (value
        channels), and the lists of every block of queries, none where prefill is dense."""
        ...
