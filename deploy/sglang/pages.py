"""SGLang's pool of token slots as pages, and what a program keeps beside it. Knows shapes, and nothing of SGLang.

A layer's keys and its values are [slots, kv_heads, channel] each. A request's row of `req_to_token` names the slot of
each of its tokens, and where the engine's page is a multiple of the program's, the slots of a page lie one after the
other: physical page n is the slots from ``n * page`` on, and the pool is read where it lies. Summaries are indexed by
physical page and depend on nothing but the tokens in it, so whoever finds a page in the radix cache finds its summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor


def pages_of(slots: Tensor, page: int) -> Tensor:
    """[slots, kv_heads, channel] -> [pages, kv_heads, page, channel], a view; slots past the last whole page are none
    of a request's."""
    whole = slots.shape[0] // page
    return slots[: whole * page].unflatten(0, (whole, page)).transpose(1, 2)


def page_table(req_to_token: Tensor, requests: Tensor, lengths: Tensor, page: int, width: int) -> Tensor:
    """int32 [rows, width]: the physical pages of some requests in token order, -1 past each length.

    `req_to_token`: int32 [requests, tokens]; `requests`: int [rows], its rows; `lengths`: int [rows]. Shapes follow
    from arguments on the host alone.
    """
    firsts = req_to_token[:, : width * page : page].index_select(0, requests.long())
    starts = torch.arange(0, width * page, page, device=lengths.device)
    return torch.where(starts < lengths[:, None], firsts // page, -1).int()


def filled(req_to_token: Tensor, requests: Tensor, prefixes: Sequence[int], fresh: Sequence[int], page: int) -> Tensor:
    """The physical pages whose last token is among the `fresh` ones that follow each request's prefix; int32, once
    per request that fills it."""
    rows, places = [], []
    for row, (before, count) in enumerate(zip(prefixes, fresh, strict=True)):
        new = range(before // page, (before + count) // page)
        rows += [row] * len(new)
        places += [number * page for number in new]
    where = torch.tensor([rows, places], dtype=torch.int64).to(req_to_token.device)
    return (req_to_token[requests.long()[where[0]], where[1]] // page).int()


@dataclass(frozen=True)
class Step:
    """The rows of a decode step, which all layers share. `table`: int32 [rows, pages], -1 past each length;
    `lengths`: int32 [rows], this step's token included. `sparse`: False where the dense gate is shut."""

    table: Tensor
    lengths: Tensor
    sparse: bool = True

    def of(self, keys: Tensor, values: Tensor, page: int) -> PagedKV:
        """These rows over a layer's slots, as a view."""
        return PagedKV(pages_of(keys, page), pages_of(values, page), self.table, self.lengths, page)


class GraphSteps:
    """Where the steps of captured CUDA graphs lie: graphs keep addresses, so each batch has the same ones for ever."""

    def __init__(self, batch: int, width: int, device: torch.device | str):
        self.table = torch.full((batch, width), -1, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        #: Page lists by what they hold: layers of a step run one after the other and lend them to each other.
        self.lists: dict[tuple[Any, ...], Any] = {}

    def fill(self, req_to_token: Tensor, requests: Tensor, lengths: Tensor, page: int) -> Step:
        """Before a capture or a replay: this step's rows, in place."""
        rows, width = requests.shape[0], self.table.shape[1]
        self.table[:rows].copy_(page_table(req_to_token, requests, lengths, page, width))
        self.lengths[:rows].copy_(lengths)
        return Step(self.table[:rows], self.lengths[:rows])

    def holds(self, step: Step) -> bool:
        """Whether a step is one of these."""
        return step.table.data_ptr() == self.table.data_ptr()


def executor_on(device: torch.device) -> type[Executor]:
    """On a GPU the Triton executor, whatever the program: the torch one reads back to the host, which no CUDA graph
    captures. What Triton does not cover is refused by it (`VortexError`)."""
    if device.type == "cuda":
        from vortexlab.kernels.gpu.executor import TritonExecutor

        return TritonExecutor
    from vortexlab.kernels.torch_executor import TorchExecutor

    return TorchExecutor


class LayerPages:
    """One attention layer: the executor of a program, and the summaries of every page of the engine's pool."""

    def __init__(self, program: Program, static: Static, keys: Tensor, values: Tensor):
        self.executor: Executor = executor_on(keys.device)(program, static)
        self.page = program.page_size
        nobody = torch.zeros(0, dtype=torch.int32, device=keys.device)
        self.state: Any = self.executor.new_state(Step(nobody[:, None], nobody).of(keys, values, self.page))

    @property
    def bytes(self) -> int:
        """What the summaries of this layer occupy."""
        held = [*self.state.fields.values(), *self.state.scales.values()]
        return sum(item.numel() * item.element_size() for item in held)

    def summarize(self, keys: Tensor, values: Tensor, pages: Tensor) -> None:
        """Writes the summaries of the given physical pages (int32), which are complete: each is read as a request of
        one page. A page given twice gets the same numbers twice."""
        if pages.numel():
            lengths = torch.full_like(pages, self.page)
            self.executor.update(self.state, Step(pages[:, None], lengths).of(keys, values, self.page))

    def renew(self, keys: Tensor, values: Tensor, step: Step) -> PagedKV:
        """After a decode step has written its tokens: summarises the pages that they complete; returns the cache."""
        cache = step.of(keys, values, self.page)
        self.executor.update(self.state, cache)
        return cache

    def decode(self, q: Tensor, cache: PagedKV, graphs: GraphSteps | None = None) -> Tensor:
        """q: [rows, query_heads, channel], one query a row; the same shape is returned.

        `graphs` is given where the step is, or will be, captured: what the executor keeps from call to call must then
        outlive the next batch.
        """
        if graphs is None or not hasattr(self.state, "lists"):
            return self.executor.decode(q, self.state, cache)[0]
        key = self._lists_key(q, cache)
        state = replace(self.state, lists=graphs.lists.get(key))
        out = self.executor.decode(q, state, cache)[0]
        graphs.lists[key] = state.lists
        return out

    def _lists_key(self, q: Tensor, cache: PagedKV) -> tuple[Any, ...]:
        """Steps with the same key can use the same page lists. An attention output of the program's own keeps more in
        them, of its layer."""
        graph = self.executor.kernels(cache.k.dtype, q.dtype)[0].graph  # type: ignore[attr-defined]
        own = self.executor.static.layer if graph.result is not None else None
        return cache.batch, graph.lists, self.executor.most(cache), own  # type: ignore[attr-defined]
