"""One layer of a transformers cache: keys and values in pages, and the sparse steps over them.

transformers pads the rows of a batch on the left to one length, and counts *columns*. Here every row begins with its
first token: padding is never stored, a row's pages are those that it has alone, and lengths differ from row to row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from vortexlab.deploy.executors import executor_for
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.dense import sdpa_folded
from vortexlab.kernels.executor import Executor
from vortexlab.kernels.gate import Gate
from vortexlab.kernels.memory import Carry, Memory

#: Where new keys name the layer that they belong to, on their way to the attention function.
LAYER = "_vortex_layer"


@dataclass
class Chunk:
    """What the layers hand upwards at each token of the chunk under way; all layers of a cache share it."""

    carries: dict[int, Carry] = field(default_factory=dict)

    def begin(self, layer: int) -> None:
        if layer == 0:
            self.carries.clear()

    def carry(self, column: int) -> Carry:
        return self.carries.setdefault(column, Carry())


@dataclass
class Reading:
    """The shares of the context that steps read, each a mean over rows and KV heads: their sum and number."""

    share: Tensor | None = None  # stays on the device
    steps: int = 0

    def add(self, share: Tensor) -> None:
        self.share = share if self.share is None else self.share + share.to(self.share.device)
        self.steps += 1

    def mean(self) -> float | None:
        return None if self.share is None else float(self.share) / self.steps


class PagedLayer(CacheLayerMixin):
    """One layer's keys and values in pages, with the summaries of the complete ones and what the program carries.

    The pool keeps each KV head's tokens next to each other; `keys` and `values` are [batch, kv_heads, tokens, channel]
    views of it. `length` counts columns and `padding` those before each row's first token. `total`, where given, is
    added to beside the layer's own `reading`.
    """

    is_sliding = False
    is_compileable = False

    def __init__(
        self,
        program: Program,
        layer: int,
        layers: int,
        chunk: Chunk,
        gate: Gate | None = None,
        total: Reading | None = None,
    ):
        super().__init__()
        self.program, self.layer, self.layers, self.chunk, self.gate = program, layer, layers, chunk, gate
        self.carries = program.has_memory
        self.is_croppable = not self.carries
        self.executor: Executor | None = None
        self.total = total
        self.reset()

    def reset(self) -> None:
        self.keys = self.values = self.state = None
        self.memory: Memory | None = None
        self.began = 0  # columns at the first step of the memory
        self.is_initialized = False
        self.length = self.capacity = 0
        self.padding: list[int] = []
        self.reading = Reading()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hands the new keys and values on with this layer's name on them.

        They are stored by `begin` and `step`, which know the mask and say what it means.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.length and key_states.shape[0] != len(self.padding):
            raise VortexError(
                f"the cache holds {len(self.padding)} rows and was given {key_states.shape[0]}; use a new cache"
            )
        setattr(key_states, LAYER, self)
        return key_states, value_states

    # writing

    def begin(self, key_states: Tensor, value_states: Tensor, padding: Sequence[int]) -> None:
        """Takes on a prompt; `padding`: columns before each row's first token."""
        self.state = self.memory = None  # what was remembered of earlier tokens is void
        if self.keys is not None and self.keys.shape[0] != key_states.shape[0]:
            self.keys = self.values = None
            self.capacity = 0
        self.padding = list(padding)
        self._skipped = torch.tensor(self.padding, dtype=torch.int32, device=key_states.device)
        self._write(key_states, value_states)

    def runs(self) -> list[tuple[slice, int]]:
        """Rows next to each other with the same padding, and that padding: one run where nothing is padded."""
        found, start = [], 0
        for padding, rows in groupby(self.padding):
            end = start + len(list(rows))
            found.append((slice(start, end), padding))
            start = end
        return found

    def _write(self, key_states: Tensor, value_states: Tensor) -> None:
        end = self.length + key_states.shape[2]
        longest = end - min(self.padding)
        if longest > self.capacity:
            self._grow(key_states, value_states, longest)
        for rows, padding in self.runs():
            at = self.length - padding
            for pool, new in ((self.keys, key_states), (self.values, value_states)):
                assert pool is not None
                pool[rows, :, max(at, 0) : end - padding] = new.detach()[rows, :, max(-at, 0) :]
        self.length = end

    @torch.inference_mode(False)  # so that the pool may be written in either mode
    @torch.no_grad()
    def _grow(self, key_states: Tensor, value_states: Tensor, tokens: int) -> None:
        """Makes room for `tokens` tokens a row, at least doubling, in whole pages."""
        batch, heads = key_states.shape[:2]
        page = self.program.page_size
        old = max(0, self.length - min(self.padding))
        capacity = -(-max(tokens, 2 * old, 256) // page) * page
        pools, views = [], []
        for states, held in ((key_states, self.keys), (value_states, self.values)):
            pool = states.new_zeros(heads, batch * capacity, states.shape[3])
            view = pool.view(heads, batch, capacity, states.shape[3]).transpose(0, 1)
            if held is not None and old:
                view[:, :, :old] = held[:, :, :old]
            pools.append(pool)
            views.append(view)
        self.capacity = capacity
        self.keys, self.values = views
        starts = [row * capacity for row in range(batch)]
        self.paged = PagedKV.from_contiguous(pools[0], pools[1], starts, [0] * batch, page)
        self.state = None

    # steps

    @torch.no_grad()
    def step(self, q: Tensor, key_states: Tensor, value_states: Tensor, scale: float) -> Tensor:
        """Attention of new tokens, one by one, sparse but where the gate says otherwise.

        `q`: [batch, heads, tokens, channel]; returns as many channels as values have.
        """
        batch, heads, tokens, channel = q.shape
        start = self.length
        self._write(key_states, value_states)
        cache, lengths = self.paged, self.paged.lengths
        if self.executor is None:
            static = Static(cache.kv_heads, heads // cache.kv_heads, channel, scale, self.layer, self.layers)
            self.executor = executor_for(q.device, self.program, static)(self.program, static)
        if self.state is None:
            self.state = self.executor.new_state(cache)
            lengths.copy_(start - self._skipped)
            self.executor.summarize(self.state, cache)
        if self.carries:
            self.chunk.begin(self.layer)
        out = q.new_empty(batch, heads, tokens, value_states.shape[3])
        for i in range(tokens):
            columns = start + i + 1
            lengths.copy_(columns - self._skipped)
            if any((columns - skipped) % self.program.page_size == 0 for skipped in set(self.padding)):
                self.executor.update(self.state, cache)  # some row completes a page
            query = q[:, :, i].contiguous()
            if self.gate is not None and not self.gate.is_sparse(batch, columns - min(self.padding)):
                out[:, :, i] = self._dense(query, columns, scale)
                share = torch.ones((), dtype=torch.float64, device=q.device)
            else:
                out[:, :, i], share = self._sparse(query, columns)
            self.reading.add(share)
            if self.total is not None:
                self.total.add(share)
        return out

    def _dense(self, query: Tensor, columns: int, scale: float) -> Tensor:
        assert self.keys is not None and self.values is not None
        found = []
        for rows, padding in self.runs():
            held = slice(columns - padding)
            found.append(sdpa_folded(query[rows], self.keys[rows, :, held], self.values[rows, :, held], scale))
        return torch.cat(found)

    def _sparse(self, query: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """The program's step: its output, and the share of the context that it read."""
        assert self.executor is not None
        if not self.carries:
            out, lists = self.executor.decode(query, self.state, self.paged)
        else:
            if self.memory is None:
                self.memory, self.began = self.executor.new_memory(self.paged), columns - 1
            self.memory.carry = self.chunk.carry(columns)
            out, lists = self.executor.decode(query, self.state, self.paged, self.memory)
        lengths = self.paged.lengths
        return out, (lists.tokens(lengths, self.program.page_size).double() / lengths[:, None]).mean()

    # what transformers asks of a layer

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens. Summaries of pages cut open are written anew when they fill.

        What the program carries begins anew when all steps that wrote it are removed. Raises `VortexError` when only
        some of them are, since what it was then is not kept, and when some rows but not all would lose every token.
        """
        if tokens_to_remove > 0:
            raise VortexError("crop takes a negative number, the tokens to remove from the end")
        left = max(0, self.length + int(tokens_to_remove))  # some releases give a tensor
        if 0 < left <= max(self.padding, default=0):
            raise VortexError(
                f"cropping the cache to {left} columns would leave nothing of its row with {max(self.padding)} columns "
                "of padding; crop it to more, or reset it"
            )
        if self.memory is not None and left < self.length:
            if left > self.began:
                raise VortexError(
                    f"program {self.program.name} carries something from step to step: crop its cache back to the "
                    f"{self.began} tokens that it began after, or not at all"
                )
            self.memory = None
        self.length = left

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise VortexError("beam search is not supported with a sparse pattern; use greedy search or sampling")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise VortexError("a sparse pattern's cache cannot be repeated; prefill the rows that are needed")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise VortexError("rows of a sparse pattern's cache cannot be picked; prefill the rows that are needed")
