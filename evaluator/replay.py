"""Asks every question of recorded contexts again, with a program choosing what attention reads.

Rule of the protocol: question and answer tokens are fed one at a time and each selects for itself; answers are
generated greedily from the model's own tokens, never teacher-forced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.contexts import ContextStore, Fork
from vortexlab.evaluator.executors import decode, new_memories
from vortexlab.evaluator.models import LoadedModel
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import Executor, PageLists
from vortexlab.kernels.precision import cache_dtype


@dataclass
class Tally:
    """What a replay read, summed over layers, KV heads, rows and steps."""

    density: float = 0.0
    reads: int = 0
    #: Context length -> pages that each (layer, KV head) of a row read at its last step.
    counts: dict[int, list[int]] = field(default_factory=dict)

    def add(self, lists: PageLists, lengths: Tensor, page: int) -> None:
        share = lists.tokens(lengths, page).double() / lengths[:, None]
        self.density += float(share.sum())
        self.reads += share.numel()

    @property
    def mean_density(self) -> float:
        return self.density / max(1, self.reads)


class Session:
    """One bound program on one model: an executor and the summaries of the recorded contexts for every layer.

    Its caches are in the precision that the program wants, else in the model's.
    """

    def __init__(
        self,
        program: Program,
        model: LoadedModel,
        store: ContextStore,
        executor: Callable[[Program, Static], Any],
    ):
        self.program, self.model, self.store = program, model, store
        self.executors: list[Executor] = [executor(program, model.static(layer)) for layer in range(model.layers)]
        self.states: list[Any] = []

    @property
    def page(self) -> int:
        return self.program.page_size

    @property
    def cache_dtype(self) -> torch.dtype:
        return cache_dtype(self.program, self.model.dtype)

    def fork(self, forks: Sequence[Fork]) -> list[PagedKV]:
        """The caches of some questions, for every layer."""
        return self.store.fork(self.page, forks, self.cache_dtype)

    def prepare(self) -> None:
        """Summarises every complete page of every context; done once."""
        if self.states:
            return
        caches = self.store.caches(self.page, self.cache_dtype)
        for executor, cache in zip(self.executors, caches, strict=True):
            state = executor.new_state(cache)
            executor.summarize(state, cache)
            self.states.append(state)

    def memories(self, caches: Sequence[PagedKV]) -> list[Any]:
        """For every layer what the requests of `caches` will carry on; None where the program remembers nothing."""
        return new_memories(self.program, self.executors, caches)

    def decode(self, layer: int, q: Tensor, cache: PagedKV, memory: Any) -> tuple[Tensor, PageLists]:
        """One decode step of one layer."""
        return decode(self.executors[layer], q, self.states[layer], cache, memory)


class Step:
    """One token of every row: append to each layer's cache, update its summaries, select, attend."""

    def __init__(
        self,
        session: Session,
        reader: Session,
        caches: list[PagedKV],
        memories: Sequence[Any],
        tally: Tally | None,
        watch: Watcher | None = None,
    ):
        """Summaries are kept up to date for `session`; `reader` (the same, or dense) decides what is read.

        `memories` are those of the reader.
        """
        self.session, self.reader, self.caches, self.tally, self.watch = session, reader, caches, tally, watch
        self.memories = memories
        self.last: list[PageLists] = []

    def attend(self, module: torch.nn.Module, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        cache, query = self.caches[layer], q[:, :, 0]
        cache.append(k[:, :, 0], v[:, :, 0])
        self.session.executors[layer].update(self.session.states[layer], cache)
        out, lists = self.reader.decode(layer, query, cache, self.memories[layer])
        if self.tally is not None:
            self.tally.add(lists, cache.lengths, self.session.page)
            self.last.append(lists)
        if self.watch is not None:
            self.watch.see(layer, query, cache, out)
        return out[:, None]


class Watcher:
    """Keeps queries, new keys and values and outputs of some forks at the step that reads their last question token."""

    def __init__(self, steps: dict[int, int], layers: int):
        """`steps`: fork (its place among those replayed) -> the step to keep."""
        self.steps = steps
        self.step = 0
        self._place: dict[int, int] = {}
        self.q: list[dict[int, Tensor]] = [{} for _ in range(layers)]
        self.tail: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(layers)]
        self.out: list[dict[int, Tensor]] = [{} for _ in range(layers)]

    def ordered(self, order: Sequence[int]) -> None:
        """Row i of the batch is fork `order[i]`."""
        self._place = {fork: row for row, fork in enumerate(order)}

    def see(self, layer: int, q: Tensor, cache: PagedKV, out: Tensor) -> None:
        for fork, step in self.steps.items():
            if step == self.step:
                row = self._place[fork]
                start = int(cache.lengths[row]) - step - 1
                k, v = cache.dense(row)
                self.q[layer][fork] = q[row].clone()
                self.tail[layer][fork] = (k[:, start:].clone(), v[:, start:].clone())
                self.out[layer][fork] = out[row].clone()


def replay(
    session: Session, forks: Sequence[Fork], tally: Tally, *, dense: Session | None = None, watch: Watcher | None = None
) -> list[list[int]]:
    """The answer of every fork, as token ids.

    With `dense` given, question tokens are read through it (the prompt-dense protocol), out of the program's cache:
    the program takes over at the first generated token. Rows are fed together, longest first; the order of the answers
    is that of `forks`.
    """
    session.prepare()
    turns = [session.store.contexts[fork.context].turns[fork.turn] for fork in forks]
    if dense is not None:
        dense.prepare()
        answers: dict[int, list[int]] = {}
        for size in sorted({len(turn.question) for turn in turns}):
            rows = [i for i, turn in enumerate(turns) if len(turn.question) == size]
            answers.update(zip(rows, _feed(session, [forks[i] for i in rows], tally, dense, None), strict=True))
        return [answers[i] for i in range(len(forks))]
    return _feed(session, forks, tally, None, watch)


def _feed(
    session: Session, forks: Sequence[Fork], tally: Tally, dense: Session | None, watch: Watcher | None
) -> list[list[int]]:
    contexts, model = session.store.contexts, session.model
    turns = [contexts[fork.context].turns[fork.turn] for fork in forks]
    order = sorted(range(len(forks)), key=lambda i: -turns[i].steps)
    ordered = [turns[i] for i in order]
    caches = session.fork([forks[i] for i in order])
    if watch is not None:
        watch.ordered(order)
    device = model.device
    width = max(turn.steps for turn in turns)
    feed = torch.zeros(len(order), width, dtype=torch.int64)
    for row, turn in enumerate(ordered):
        feed[row, : len(turn.question)] = torch.tensor(turn.question)
    feed = feed.to(device)
    asked = torch.tensor([len(turn.question) for turn in ordered], device=device)
    starts = torch.tensor([len(contexts[forks[i].context].tokens) for i in order], device=device)
    written = torch.full((len(order), width), -1, dtype=torch.int64, device=device)
    memories = session.memories(caches)
    for step in range(width):
        live = sum(turn.steps > step for turn in ordered)
        current = [PagedKV(c.k, c.v, c.table[:live], c.lengths[:live], c.block) for c in caches]
        reader = dense if dense is not None and step < int(asked[0]) else session
        counted = tally if reader is session else None
        # Dense attention remembers nothing: what a program carries on begins with its own first step.
        carried = memories if reader is session else [None] * len(current)
        handler = Step(session, reader, current, carried, counted, watch)
        if watch is not None:
            watch.step = step
        tokens = model.step(feed[:live, step], starts[:live] + step, handler).argmax(-1)
        written[:live, step] = tokens
        if step + 1 < width:
            answering = asked[:live] <= step + 1
            feed[:live, step + 1] = torch.where(answering, tokens, feed[:live, step + 1])
        if counted is not None:
            _count_ended(counted, handler.last, ordered, starts, step, live)
    answers: list[list[int]] = [[] for _ in forks]
    for row, (i, turn) in enumerate(zip(order, ordered, strict=True)):
        answers[i] = written[row, len(turn.question) - 1 : turn.steps].tolist()
    return answers


def _count_ended(
    tally: Tally, lists: list[PageLists], turns: Sequence[Any], starts: Tensor, step: int, live: int
) -> None:
    """Notes how many pages the KV heads of the rows that end at this step read."""
    ended = [row for row in range(live) if turns[row].steps == step + 1]
    counts = [layer.union().counts[:, :, 0].tolist() for layer in lists] if ended else []
    for row in ended:
        tally.counts.setdefault(int(starts[row]), []).extend(n for layer in counts for n in layer[row])
