"""A user's own questions as samples: which of them a split has, and at which length they are timed.

Runs in the controller. The worker is told tokens of contexts and questions and how long an answer is, as of any sample.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.config import EvaluationConfig, data_digests
from vortexlab.evaluator.tasks import TASKS, Sample
from vortexlab.evaluator.tasks.splits import deal
from vortexlab.evaluator.tasks.tokenizer import load_tokenizer

#: A shorter context holds too few pages to choose from.
SHORTEST = 64
#: Tokens of an answer that the worker may send back.
LONGEST_ANSWER = 4096


def load_data(paths: Sequence[str], model: str) -> tuple[Sample, ...]:
    """All samples of `paths`, encoded with the tokenizer of the folder `model`; their length is that of their context.

    A sample's index is the place of its context among those of its task, from 0. Raises `VortexError` for a file or
    row that cannot be used, a task name that is taken, and a model without a tokenizer.
    """
    found: list[Sample] = []
    for path, content in zip(paths, data_digests(paths), strict=True):
        samples = _load(path, content["sha256"], str(Path(model).absolute()))
        taken = {sample.task for sample in samples} & {*TASKS, *(sample.task for sample in found)}
        if taken:
            raise VortexError(f"{path}: there is a task {min(taken)!r} already; rename the file, or the rows' 'task'")
        found += samples
    return tuple(found)


def own_lengths(samples: Iterable[Sample]) -> tuple[int, ...]:
    """The lengths that the contexts of `samples` are timed at unless others are asked for: powers of two."""
    return tuple(sorted({_power(sample) for sample in samples}))


def choose(samples: Sequence[Sample], config: EvaluationConfig) -> list[Sample]:
    """The samples of the split of `config`, at most `contexts` for each task and length, by length and task.

    A sample is timed at the largest of `lengths` that is not above the tokens of its context. Raises `VortexError`
    where there is none, or only one of half its tokens or less.
    """
    chosen: list[Sample] = []
    placed = _dealt([replace(sample, length=_timed(sample, config.lengths)) for sample in samples], config.split)
    placed.sort(key=lambda sample: digest(["choose", config.seed, _hash(sample)]))
    for length in config.lengths:
        for task in dict.fromkeys(sample.task for sample in samples):
            chosen += [sample for sample in placed if (sample.length, sample.task) == (length, task)][: config.contexts]
    return chosen


def _dealt(samples: Sequence[Sample], split: str) -> list[Sample]:
    """The samples of a split. It depends on the data alone, whatever lengths are asked for."""
    hands: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        hands.setdefault((sample.task, _power(sample)), []).append(sample)
    return [sample for hand in hands.values() for sample in deal(hand, _hash, split)]


def _power(sample: Sample) -> int:
    return 1 << len(sample.context).bit_length() - 1


def _hash(sample: Sample) -> str:
    return hashlib.sha256(repr(sample.context).encode()).hexdigest()


def _timed(sample: Sample, lengths: Sequence[int]) -> int:
    tokens = len(sample.context)
    best = max((length for length in lengths if length <= tokens), default=0)
    if tokens >= 2 * best:
        given = ", ".join(map(str, lengths))
        raise VortexError(
            f"a context of task {sample.task!r} has {tokens} tokens, and none of the lengths {given} is at most that "
            f"and more than half of it; add --lengths {_power(sample)}, or leave --lengths out"
        )
    return best


@functools.lru_cache(maxsize=8)
def _load(path: str, content: str, model: str) -> tuple[Sample, ...]:
    """`content` and the model's folder tell what was read before from what is new."""
    from vortexlab.evaluator.tasks.dataset import load_jsonl

    tokenizer, longest = load_tokenizer(model)

    def check(where: str, context: list[int], question: list[int], answer: int) -> None:
        total = len(context) + len(question) + answer - 1
        if total > longest:
            raise VortexError(f"{where}: {total} tokens are more than the model's {longest}; shorten or drop the row")
        if len(context) < SHORTEST:
            raise VortexError(
                f"{where}: a context of {len(context)} tokens is too short to select from, {SHORTEST} are needed; "
                "drop the row"
            )
        if answer > LONGEST_ANSWER:
            raise VortexError(f"{where}: the answer has {answer} tokens, {LONGEST_ANSWER} at most; drop the row")

    counts: dict[str, int] = {}
    samples = []
    for sample in load_jsonl(path, tokenizer, check):
        if "," in sample.task or sample.task != sample.task.strip() or not sample.task.isprintable():
            raise VortexError(f"{path}: {sample.task!r} names no task: no commas, no blanks at its ends; rename it")
        number = counts.get(sample.task, 0)
        counts[sample.task] = number + 1
        samples.append(replace(sample, index=number))
    return tuple(samples)
