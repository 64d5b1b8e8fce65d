"""The recorded contexts: keys and values of every context, computed once and read by every program.

All contexts lie one after the other in one pool per layer, token-contiguous per KV head, so that every page size is
a view. Behind them is room for the forks: each question asked of a context continues it in blocks of its own. The
pool is backed by a file that is never written after the prefill; what forks write stays private to the process, and a
restarted worker maps the file instead of computing it again (`evaluator.context_cache` keeps it for later runs). Where
the disk has no room for it the pool lies in memory. A program that wants its cache in another precision than
the model's reads a copy, rounded as it would have been written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.models import LoadedModel, Prefill
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.precision import cast

#: Contexts start at multiples of this, so pages that divide it are views of the pool as it lies.
ALIGNMENT = 128
#: Longest question, in tokens, that the screen and the fidelity gate ask.
SHORT_QUESTION = 32


@dataclass(frozen=True)
class Turn:
    """One question of one context, and how many tokens its answer has."""

    question: tuple[int, ...]
    answer_length: int

    @property
    def steps(self) -> int:
        """Tokens that are fed: the last answer token is only read off."""
        return len(self.question) + self.answer_length - 1


@dataclass(frozen=True)
class Context:
    tokens: tuple[int, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Fork:
    """Question `turn` of context `context`."""

    context: int
    turn: int


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class ContextStore:
    """Keys and values of `contexts` under `model`; `folder` receives the backing file.

    `read` reads one context, densely by default.
    """

    def __init__(
        self,
        model: LoadedModel,
        contexts: Sequence[Context],
        folder: Path,
        read: Callable[[Tensor], Prefill] | None = None,
    ):
        self.model, self.contexts = model, tuple(contexts)
        self._read = read or model.prefill
        self._check()
        self._room = max(max((turn.steps for turn in c.turns), default=0) for c in self.contexts)
        self._forks = sum(len(c.turns) for c in self.contexts)
        self._file = folder / "contexts.kv"
        #: How many contexts were read here, not found; and why they lie in memory, where they do.
        self.prefilled, self.note = 0, ""
        self._starts, end = self._layout(ALIGNMENT)
        self._tokens = end + self._forks * _round_up(self._room + ALIGNMENT - 1, ALIGNMENT)
        self._pool = self._map(end)
        self._copy: tuple[tuple[int, torch.dtype], Tensor, list[int]] | None = None

    def _check(self) -> None:
        if not self.contexts or not any(context.turns for context in self.contexts):
            raise VortexError("an evaluation needs at least one context with a question")
        for context in self.contexts:
            longest = len(context.tokens) + max((turn.steps for turn in context.turns), default=0)
            if longest > self.model.max_length:
                raise VortexError(
                    f"a sample of {longest} tokens exceeds the model's {self.model.max_length}; choose shorter lengths"
                )
            ids = [*context.tokens, *(token for turn in context.turns for token in turn.question)]
            if not context.tokens or min(ids) < 0 or max(ids) >= self.model.vocabulary:
                raise VortexError(f"a sample holds token ids outside the model's vocabulary of {self.model.vocabulary}")

    def _layout(self, alignment: int) -> tuple[list[int], int]:
        """The first token of every context, and the end of the last one, at the given alignment."""
        starts, end = [], 0
        for context in self.contexts:
            starts.append(end)
            end += _round_up(len(context.tokens), alignment)
        return starts, end

    def _shape(self, tokens: int) -> tuple[int, ...]:
        return (self.model.layers, 2, self.model.kv_heads, tokens, self.model.head_dim)

    def _map(self, end: int) -> Tensor:
        """The pool [layers, k/v, kv_heads, tokens, channel]; the prefill fills the file when it is not there yet."""
        shape = self._shape(self._tokens)
        count = torch.Size(shape).numel()
        bytes_needed = count * self.model.dtype.itemsize
        if self._file.exists() and self._file.stat().st_size != bytes_needed:
            self._file.unlink()
        if not self._file.exists():
            unfinished = self._file.with_suffix(".part")
            try:
                with open(unfinished, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, bytes_needed)
            except OSError as error:
                unfinished.unlink(missing_ok=True)
                size = bytes_needed >> 20
                if error.errno == errno.EFBIG:  # more than the worker may have on disk, and in memory
                    raise VortexError(
                        f"{size} MB of recorded contexts are more than the worker may hold; use fewer contexts, or "
                        "raise --memory-mb"
                    ) from error
                self.note = (
                    f"no room on disk for {size} MB of recorded contexts ({error.strerror}): they lie in memory, and a "
                    "worker that is lost reads them again; set TMPDIR to a folder with room"
                )
                pool = torch.empty(shape, dtype=self.model.dtype)
                self._fill(pool)
                return pool.to(self.model.device)
            pool = torch.from_file(str(unfinished), shared=True, size=count, dtype=self.model.dtype).view(shape)
            self._fill(pool)
            del pool
            unfinished.rename(self._file)
        pool = torch.from_file(str(self._file), shared=False, size=count, dtype=self.model.dtype).view(shape)
        return pool if self.model.device.type == "cpu" else pool.to(self.model.device)

    def recorded(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [kv_heads, `length`, channel] in the last layer of every context that is as long."""
        pool = self._pool[-1]
        return [
            (pool[0, :, start : start + length], pool[1, :, start : start + length])
            for start, context in zip(self._starts, self.contexts, strict=True)
            if len(context.tokens) >= length
        ]

    def _fill(self, pool: Tensor) -> None:
        """Reads every context into its place."""
        for start, context in zip(self._starts, self.contexts, strict=True):
            found = self._read(torch.tensor(context.tokens))
            self.prefilled += 1
            stop = start + len(context.tokens)
            for layer in range(self.model.layers):
                pool[layer, 0, :, start:stop] = found.k[layer][0].to("cpu")
                pool[layer, 1, :, start:stop] = found.v[layer][0].to("cpu")

    def block(self, page: int) -> int:
        """The block of the cache that a program of this page size reads: its page, or 128 for larger pages."""
        return ALIGNMENT if page % ALIGNMENT == 0 else page

    def _alignment(self, block: int) -> int:
        """Contexts start at multiples of this where they are read in such blocks."""
        return ALIGNMENT if ALIGNMENT % block == 0 else block

    def _pool_for(self, block: int, dtype: torch.dtype) -> tuple[Tensor, list[int]]:
        """The pool and the starts in it: the recorded one, or a copy when contexts must start at multiples that 128 is
        none of, or lie in another precision. One copy is kept, the newest."""
        alignment = self._alignment(block)
        if (alignment, dtype) == (ALIGNMENT, self.model.dtype):
            return self._pool, self._starts
        if self._copy is None or self._copy[0] != (alignment, dtype):
            self._copy = None
            starts, end = self._layout(alignment)
            tokens = end + self._forks * _round_up(self._room + alignment - 1, alignment)
            pool = torch.zeros(self._shape(tokens), dtype=dtype, device=self.model.device)
            for source, target, context in zip(self._starts, starts, self.contexts, strict=True):
                size = len(context.tokens)
                pool[:, :, :, target : target + size] = cast(self._pool[:, :, :, source : source + size], dtype)
            self._copy = ((alignment, dtype), pool, starts)
        return self._copy[1], self._copy[2]

    def caches(self, page: int, dtype: torch.dtype | None = None) -> list[PagedKV]:
        """One cache per layer whose rows are the contexts themselves, in the model's precision or in `dtype`."""
        block = self.block(page)
        pool, starts = self._pool_for(block, dtype or self.model.dtype)
        lengths = [len(context.tokens) for context in self.contexts]
        widths = [-(-length // block) for length in lengths]
        table = torch.zeros(len(starts), max(widths), dtype=torch.int32)
        for row, (start, width) in enumerate(zip(starts, widths, strict=True)):
            table[row, :width] = torch.arange(start // block, start // block + width)
        return self._caches(pool, block, table, torch.tensor(lengths, dtype=torch.int32))

    def fork(self, page: int, forks: Sequence[Fork], dtype: torch.dtype | None = None) -> list[PagedKV]:
        """One cache per layer whose row i continues the context of `forks[i]`, with room for its question and answer,
        in the model's precision or in `dtype`.

        Full blocks are shared with the context and with its other forks; the last one, if it is not full, is copied.
        """
        block = self.block(page)
        pool, starts = self._pool_for(block, dtype or self.model.dtype)
        _, end = self._layout(self._alignment(block))
        lengths = [len(self.contexts[fork.context].tokens) for fork in forks]
        full = [length // block for length in lengths]
        steps = [self.contexts[fork.context].turns[fork.turn].steps for fork in forks]
        widths = [-(-(length + extra) // block) for length, extra in zip(lengths, steps, strict=True)]
        table = torch.zeros(len(forks), max(widths), dtype=torch.int32)
        free = end // block
        for row, fork in enumerate(forks):
            first = starts[fork.context] // block
            table[row, : full[row]] = torch.arange(first, first + full[row])
            own = widths[row] - full[row]
            table[row, full[row] : widths[row]] = torch.arange(free, free + own)
            started = lengths[row] % block
            if started:
                source = starts[fork.context] + full[row] * block
                pool[:, :, :, free * block : free * block + started] = pool[:, :, :, source : source + started]
            free += own
        return self._caches(pool, block, table, torch.tensor(lengths, dtype=torch.int32))

    def _caches(self, pool: Tensor, block: int, table: Tensor, lengths: Tensor) -> list[PagedKV]:
        table, lengths = table.to(pool.device), lengths.to(pool.device)
        used = pool.shape[3] // block * block
        views = pool[:, :, :, :used].unflatten(3, (used // block, block)).transpose(2, 3)
        return [PagedKV(view[0], view[1], table, lengths.clone(), block) for view in views]
