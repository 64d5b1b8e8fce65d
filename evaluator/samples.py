"""The samples of an evaluation, on the controller's side: expected answers never leave this process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig, is_worded
from vortexlab.evaluator.contexts import SHORT_QUESTION
from vortexlab.evaluator.sequential import drawn_order
from vortexlab.evaluator.tasks import TASKS, Sample, Turn, make_samples
from vortexlab.evaluator.tasks.cache import samples_digest
from vortexlab.evaluator.tasks.prompts import Encoder
from vortexlab.evaluator.verdict import Outcome

#: Built-in tasks whose answer stands in the context, pair of tokens for pair of tokens.
_FOUND = ("needle", "needles", "keys", "multivalue", "multiquery", "chain")


@dataclass(frozen=True)
class Suite:
    """All samples in a fixed order. A *fork* is a pair (sample, turn): one question of one context."""

    samples: tuple[Sample, ...]
    #: Decodes and scores answers in words; None where every answer is exact tokens.
    encoder: Encoder | None = None
    #: The answers of dense attention, fork by fork, where these are what answers are held against.
    dense: tuple[tuple[int, ...], ...] | None = None

    @cached_property
    def forks(self) -> list[tuple[int, int]]:
        return [(i, turn) for i, sample in enumerate(self.samples) for turn in range(len(sample.turns))]

    def contexts(self) -> list[dict[str, Any]]:
        """What the worker is told: tokens, questions, and how many tokens each answer has."""
        return [
            {
                "tokens": sample.context,
                "turns": [{"question": turn.question, "answer": turn.generated} for turn in sample.turns],
            }
            for sample in self.samples
        ]

    def watched(self) -> list[int]:
        """Forks recorded for the fidelity gate: the first question of the first sample of every task and length."""
        seen: set[tuple[str, int]] = set()
        chosen = []
        for row, (i, turn) in enumerate(self.forks):
            key = (self.samples[i].task, self.samples[i].length)
            if turn == 0 and key not in seen:
                seen.add(key)
                chosen.append(row)
        return chosen

    def needle_pages(self, row: int, page: int) -> list[int]:
        """The pages of a fork's context that hold what is asked; empty where the task has no such place."""
        i, turn = self.forks[row]
        sample = self.samples[i]
        if sample.task not in _FOUND:
            return []
        answer, context = sample.turns[turn].answer, sample.context
        pairs = {tuple(answer[n : n + 2]) for n in range(0, len(answer), 2)}
        return sorted({
            place // page for n, pair in enumerate(itertools.pairwise(context)) if pair in pairs
            for place in (n, n + 1)
        })  # fmt: skip

    def needle_hits(self, picked: Sequence[Sequence[float]], page: int) -> float | None:
        """How often the pages with the needle were read: `picked` has, for every watched fork, the share of (layer, KV
        head) that read each page. None without a needle."""
        shares = [
            row[number]
            for fork, row in zip(self.watched(), picked, strict=True)
            for number in self.needle_pages(fork, page)
            if number < len(row)
        ]
        return sum(shares) / len(shares) if shares else None

    def split(self, first: int) -> tuple[list[int], list[int]]:
        """Rows of `forks`: a few for the screen, and the others.

        The few are those of the first `first` samples of every task and length, without long questions, which cost
        as many steps as they have tokens.
        """
        counts: dict[tuple[str, int], int] = {}
        few = set()
        for i, sample in enumerate(self.samples):
            key = (sample.task, sample.length)
            counts[key] = counts.get(key, 0) + 1
            if counts[key] <= first:
                few.add(i)
        chosen = [row for row, (i, turn) in enumerate(self.forks) if i in few and self._is_short(i, turn)]
        chosen = chosen or [row for row, (i, _) in enumerate(self.forks) if i in few]
        return chosen, sorted(set(range(len(self.forks))) - set(chosen))

    def drawn(self, tasks: Sequence[str], seed: int) -> list[int]:
        """Samples of `tasks` in the order in which their contexts count for sequential decisions (`drawn_order`)."""
        members = [i for i, sample in enumerate(self.samples) if sample.task in tasks]
        return [members[n] for n in drawn_order([self._cell(i) for i in members], seed)]

    def _cell(self, sample: int) -> tuple[str, int]:
        return self.samples[sample].task, self.samples[sample].length

    def in_order(self, outcomes: Sequence[Outcome], order: Sequence[int]) -> list[Outcome]:
        """Of the contexts in `order` those up to the first that was not asked all of its questions."""
        by_name = {item.context: item for item in outcomes}
        found = []
        for i in order:
            item = by_name.get(self._name(i))
            if item is None or item.answers < len(self.samples[i].turns):
                break
            found.append(item)
        return found

    def _name(self, sample: int) -> str:
        found = self.samples[sample]
        return f"{found.task}/{found.length}/{found.index}"

    def looks(self, rows: Sequence[int], order: Sequence[int], parts: int) -> list[list[int]]:
        """`rows` of `forks` in `parts`: those of the first contexts in `order`, of the next ones, and all others.

        Long questions cost as many steps as they have tokens, whatever their number, so all of them come first.
        """
        place = {sample: n * parts // len(order) for n, sample in enumerate(order)}
        place |= {i: 0 for i in range(len(self.samples)) if not self._is_short(i, 0)}
        found: list[list[int]] = [[] for _ in range(parts)]
        for row in rows:
            found[place.get(self.forks[row][0], parts - 1)].append(row)
        return [part for part in found if part]

    def _is_short(self, sample: int, turn: int) -> bool:
        return len(self.samples[sample].turns[turn].question) <= SHORT_QUESTION

    @cached_property
    def timed_at(self) -> dict[str, int]:
        """Tokens of a context, as the worker names its counts -> the length that the context is timed at."""
        return {str(len(sample.context)): sample.length for sample in self.samples}

    def turn(self, row: int) -> Turn:
        """The question of a row of `forks`."""
        i, number = self.forks[row]
        return self.samples[i].turns[number]

    def scores(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> dict[int, float]:
        """Row of `forks` -> the score of its answer: 1 or 0 for exact tokens, 0 to 1 for words and for agreement."""
        pairs = zip(rows, answers, strict=True)
        if self.dense is not None:
            return {row: _agreement(self.dense[row], answer) for row, answer in pairs}
        return {row: self._score(self.turn(row), answer) for row, answer in pairs}

    def _score(self, turn: Turn, answer: Sequence[int]) -> float:
        if turn.reference is None:
            return int(list(answer) == turn.answer)
        if self.encoder is None:
            raise ValueError("a suite with answers in words needs an encoder")
        return self.encoder.score(turn.reference, answer)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the samples of every task: the version of what was asked."""
        tasks = dict.fromkeys(sample.task for sample in self.samples)
        return {task: samples_digest([item for item in self.samples if item.task == task]) for task in tasks}

    def outcomes(self, dense: dict[int, float], sparse: dict[int, float], tasks: Sequence[str]) -> tuple[Outcome, ...]:
        """One outcome per context of `tasks` that `sparse` has answers for."""
        rows: dict[int, list[int]] = {}
        for row in sorted(sparse):
            rows.setdefault(self.forks[row][0], []).append(row)
        return tuple(
            Outcome(
                sample.task,
                self._name(i),
                sample.length,
                len(rows[i]),
                sum(dense[row] for row in rows[i]),
                sum(sparse[row] for row in rows[i]),
            )
            for i, sample in enumerate(self.samples)
            if i in rows and sample.task in tasks
        )


def _agreement(dense: Sequence[int], answer: Sequence[int]) -> float:
    """The share of an answer before its first token that dense attention did not generate."""
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(dense, answer, strict=True)))
    return same / len(dense)


def make_suite(config: EvaluationConfig) -> Suite:
    """The samples of a configuration: drawn from seeds, and chosen from the user's data and other data sets.

    Raises `VortexError` for unknown tasks, lengths that are too short or too long, and data that cannot be used.
    """
    own: tuple[Sample, ...] = ()
    if config.data:
        from vortexlab.evaluator.user_data import choose, load_data  # the libraries behind it take seconds to load

        own = load_data(config.data, config.model)
    known = (*TASKS, *dict.fromkeys(sample.task for sample in own))
    names = config.tasks or known[len(TASKS) if own else 0 :]
    worded = any(map(is_worded, names))
    if worded:
        from vortexlab.evaluator import catalogue

        names = catalogue.expand(names, config.sources)
    unknown = [name for name in names if name not in known and not is_worded(name)]
    if unknown:
        raise VortexError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(known)}, and see `vortex tasks`")
    if own and not set(names) & {sample.task for sample in own}:
        raise VortexError(f"no task of the data is asked; add {known[len(TASKS)]} to --tasks, or leave --data out")
    samples = []
    for length in config.lengths:
        for name in names:
            if name in TASKS:
                samples += make_samples(name, length, config.contexts, seed=config.seed, split=config.split)
    for name in names:
        if is_worded(name):
            samples += catalogue.load(name, config)
    if own:
        samples += choose([sample for sample in own if sample.task in names], config)
    bare = [length for length in config.lengths if all(sample.length != length for sample in samples)]
    if bare:
        raise VortexError(
            f"the data has no context to ask at length {bare[0]} in the {config.split} split; leave that length out, "
            "add rows, or add a built-in task with --tasks"
        )
    chosen = tuple(replace(sample, turns=sample.turns[: config.turns]) for sample in samples)
    return Suite(chosen, _encoder(chosen, config))


def _encoder(samples: Sequence[Sample], config: EvaluationConfig) -> Encoder | None:
    if all(turn.reference is None for sample in samples for turn in sample.turns):
        return None
    from vortexlab.evaluator.tasks.tokenizer import load_tokenizer

    return Encoder(load_tokenizer(config.model)[0], config.template)
