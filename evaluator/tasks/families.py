"""The task families: batched generators of contexts, questions and answers.

The families follow RULER (Hsieh et al., arXiv 2404.06654) in pseudo-words. A fact is a line of four tokens, a two-token
key and its two-token value, somewhere among noise words; a question names a key, the answer is the value. Unless every
line is a fact, the noise also holds near misses: keys that share one half with a true key and have no value.

Every function takes a source of random numbers, the length of the context in tokens and a :class:`Plan`, and returns
:class:`Episodes`. It has no other input, and works on whole batches, on the CPU for evaluation and on a GPU for
training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.evaluator.tasks.draws import Draws
from vortexlab.evaluator.tasks.keys import KeyRing
from vortexlab.evaluator.tasks.vocabulary import (
    ALL,
    ANSWER,
    ASK,
    EACH,
    FIRST,
    LIST,
    MOST,
    NOISE,
    NOISE_WORDS,
    START,
    TRACE,
    VALUE,
    VALUE_HALVES,
    VOCABULARY_SIZE,
)

LINE = 4  # key, key, value, value
SLOT = LINE + 2  # a line, up to one noise word before it and at least one after it
VALUES_PER_KEY = 3
KEYS_PER_QUESTION = 4
HOPS = 4  # look-ups per chain: three links and the value
LATE_QUESTION = 72  # tokens of a question that states its fact itself
LATE_DEPTH = 17  # the fact begins in its first 17 tokens, so at least 48 tokens lie between fact and question
ZIPF = 1.2
DECOY_SHARE = 8  # the last 1/8 of the context favours the runner-up


@dataclass(frozen=True)
class Plan:
    """How full a context is and how often it is asked: ``groups`` of lines (one key, chain or fact each),
    ``near_misses`` lines, ``turns`` questions."""

    groups: int
    near_misses: int
    turns: int


@dataclass(frozen=True)
class Episodes:
    """A batch of contexts int64 [rows, length] with questions [rows, turns, n] and answers [rows, turns, m]."""

    context: Tensor
    question: Tensor
    answer: Tensor


def _noise(draws: Draws, length: int) -> Tensor:
    context = NOISE + draws.integers(length, NOISE_WORDS)
    context[:, 0] = START
    return context


def _values(draws: Draws, count: int) -> Tensor:
    return VALUE + draws.integers(2 * count, VALUE_HALVES).view(draws.rows, count, 2)


def _starts(draws: Draws, length: int, count: int, slot: int = SLOT) -> Tensor:
    """Starts of ``count`` lines that neither overlap nor touch, in random order: int64 [rows, count]."""
    slots = (length - 1) // slot
    if count > slots:
        raise ValueError(f"{count} lines do not fit into a context of {length} tokens; at most {slots} do")
    chosen = draws.uniform(slots).argsort(dim=1, stable=True)[:, :count]
    return 1 + chosen * slot + draws.integers(count, SLOT - LINE)


def _write(context: Tensor, starts: Tensor, lines: Tensor) -> None:
    """Write ``lines`` [rows, n, width] into ``context`` [rows, length] at ``starts`` [rows, n]."""
    offsets = torch.arange(lines.shape[2], device=lines.device)
    context.scatter_(1, (starts[..., None] + offsets).flatten(1), lines.flatten(1))


def _mark(like: Tensor, mark: int) -> Tensor:
    """``mark`` as a column [rows, n, 1] beside ``like`` [rows, n, m]."""
    return torch.full_like(like[..., :1], mark)


def _write_near_misses(context: Tensor, starts: Tensor, ring: KeyRing, keys: Tensor, used: int) -> None:
    """Write keys that nearly match ``keys`` (cycled) at ``starts``; what follows them is left as it is: noise."""
    count = starts.shape[1]
    if not count:
        return
    near, found = ring.near_misses(keys[:, torch.arange(count, device=keys.device) % keys.shape[1]], used)
    noise = torch.stack([context.gather(1, starts), context.gather(1, starts + 1)], dim=-1)
    _write(context, starts, torch.where(found[..., None], near, noise))


def _facts(draws: Draws, length: int, plan: Plan) -> tuple[Tensor, KeyRing, Tensor, Tensor]:
    """Noise with ``plan.groups`` facts and near misses: context, key ring, keys and values [rows, groups, 2]."""
    context, ring = _noise(draws, length), KeyRing(draws)
    keys, values = ring.keys(plan.groups), _values(draws, plan.groups)
    starts = _starts(draws, length, plan.groups + plan.near_misses)
    _write(context, starts[:, : plan.groups], torch.cat([keys, values], dim=-1))
    # One key beyond the facts is reserved for a fact that the question states, see late().
    _write_near_misses(context, starts[:, plan.groups :], ring, keys, plan.groups + plan.turns)
    return context, ring, keys, values


def needles(draws: Draws, length: int, plan: Plan) -> Episodes:
    """Facts among noise and near misses; each turn asks another one."""
    context, _, keys, values = _facts(draws, length, plan)
    asked = keys[:, : plan.turns]
    return Episodes(context, torch.cat([_mark(asked, ASK), asked], dim=-1), values[:, : plan.turns])


def every_line(draws: Draws, length: int, plan: Plan) -> Episodes:
    """Every line is a fact; ``plan.groups`` is ignored, the context is full."""
    count = (length - 1) // LINE
    context, ring = _noise(draws, length), KeyRing(draws)
    keys, values = ring.keys(count), _values(draws, count)
    first = length - count * LINE  # the lines end where the context ends
    context[:, first:] = torch.cat([keys, values], dim=-1).flatten(1)
    chosen = draws.uniform(count).argsort(dim=1, stable=True)[:, : plan.turns, None].expand(-1, -1, 2)
    asked = keys.gather(1, chosen)
    return Episodes(context, torch.cat([_mark(asked, ASK), asked], dim=-1), values.gather(1, chosen))


def multivalue(draws: Draws, length: int, plan: Plan) -> Episodes:
    """Every key has three values, in three lines; the answer is all of them in order of appearance."""
    context, ring = _noise(draws, length), KeyRing(draws)
    groups, lines = plan.groups, plan.groups * VALUES_PER_KEY
    keys, values = ring.keys(groups), _values(draws, lines).view(draws.rows, groups, VALUES_PER_KEY, 2)
    starts = _starts(draws, length, lines + plan.near_misses)
    ordered = starts[:, :lines].view(draws.rows, groups, VALUES_PER_KEY).sort(dim=-1).values
    heads = keys[:, :, None].expand(-1, -1, VALUES_PER_KEY, -1)
    _write(context, ordered.flatten(1), torch.cat([heads, values], dim=-1).flatten(1, 2))
    _write_near_misses(context, starts[:, lines:], ring, keys, groups)
    asked = keys[:, : plan.turns]
    return Episodes(context, torch.cat([_mark(asked, ALL), asked], dim=-1), values[:, : plan.turns].flatten(2))


def numbered(draws: Draws, length: int, plan: Plan) -> Episodes:
    """As :func:`multivalue`, but every line numbers its value; the answer is all of them, each after its number.

    An easier form of that task: the order is written down. It is in the training mix alone.
    """
    context, ring = _noise(draws, length), KeyRing(draws)
    groups, lines = plan.groups, plan.groups * VALUES_PER_KEY
    keys, values = ring.keys(groups), _values(draws, lines).view(draws.rows, groups, VALUES_PER_KEY, 2)
    starts = _starts(draws, length, lines + plan.near_misses, SLOT + 1)
    ordered = starts[:, :lines].view(draws.rows, groups, VALUES_PER_KEY).sort(dim=-1).values
    heads = keys[:, :, None].expand(-1, -1, VALUES_PER_KEY, -1)
    number = torch.arange(FIRST, FIRST + VALUES_PER_KEY, device=draws.device)[:, None]
    answer = torch.cat([number.expand(draws.rows, groups, -1, -1), values], dim=-1)
    _write(context, ordered.flatten(1), torch.cat([heads, answer], dim=-1).flatten(1, 2))
    _write_near_misses(context, starts[:, lines:], ring, keys, groups)
    asked = keys[:, : plan.turns]
    return Episodes(context, torch.cat([_mark(asked, LIST), asked], dim=-1), answer[:, : plan.turns].flatten(2))


def multiquery(draws: Draws, length: int, plan: Plan) -> Episodes:
    """Facts among noise; one question names four keys, the answer is their values in the order of the question."""
    context, _, keys, values = _facts(draws, length, plan)
    count = plan.turns * KEYS_PER_QUESTION
    shape = (draws.rows, plan.turns, 2 * KEYS_PER_QUESTION)
    asked, answer = keys[:, :count].reshape(shape), values[:, :count].reshape(shape)
    return Episodes(context, torch.cat([_mark(asked, EACH), asked, _mark(asked, ANSWER)], dim=-1), answer)


def frequent(draws: Draws, length: int, plan: Plan) -> Episodes:
    """Words with Zipf frequencies; the answer is the most frequent one.

    In the last eighth of the context the two most frequent words change places, so the end alone suggests another.
    """
    weights = torch.arange(1, NOISE_WORDS + 1, device=draws.device, dtype=torch.float64) ** -ZIPF
    edges = (weights.cumsum(0) / weights.sum()).float()
    rank = torch.searchsorted(edges, draws.uniform(length)).clamp_(max=NOISE_WORDS - 1)
    tail = rank[:, length - length // DECOY_SHARE :]
    tail.copy_(torch.where(tail < 2, 1 - tail, tail))
    words = draws.uniform(NOISE_WORDS).argsort(dim=1, stable=True)
    context = NOISE + words.gather(1, rank)
    context[:, 0] = START
    counts = torch.zeros(draws.rows, VOCABULARY_SIZE, device=draws.device, dtype=torch.int64)
    counts.scatter_add_(1, context, torch.ones_like(context))
    answer = counts.argmax(dim=1)[:, None, None]
    return Episodes(context, torch.full_like(answer, MOST), answer)


def chain(draws: Draws, length: int, plan: Plan) -> Episodes:
    """Chains of links, key to key to key to key to value, their lines scattered; those not asked distract.

    The answer spells every link and the value.
    """
    context, ring = _noise(draws, length), KeyRing(draws)
    chains, lines = plan.groups, plan.groups * HOPS
    keys = ring.keys(lines).view(draws.rows, chains, HOPS, 2)
    answer = torch.cat([keys[:, :, 1:], _values(draws, chains)[:, :, None]], dim=2)  # what each key points to
    starts = _starts(draws, length, lines + plan.near_misses)
    _write(context, starts[:, :lines], torch.cat([keys, answer], dim=-1).flatten(1, 2))
    _write_near_misses(context, starts[:, lines:], ring, keys.flatten(1, 2), lines)
    asked = keys[:, : plan.turns, 0]
    return Episodes(context, torch.cat([_mark(asked, TRACE), asked], dim=-1), answer[:, : plan.turns].flatten(2))


def late(draws: Draws, length: int, plan: Plan) -> Episodes:
    """The question states its fact itself, three pages of 16 tokens or more before it asks; the context lacks it."""
    context, ring, _, _ = _facts(draws, length, plan)
    turns = plan.turns
    keys, values = ring.keys(turns, start=plan.groups), _values(draws, turns)
    body = NOISE + draws.integers(turns * LATE_QUESTION, NOISE_WORDS).view(draws.rows, turns, LATE_QUESTION)
    starts = draws.integers(turns, LATE_DEPTH)[..., None] + torch.arange(LINE, device=draws.device)
    body.scatter_(2, starts, torch.cat([keys, values], dim=-1))
    body[..., -3:] = torch.cat([_mark(keys, ASK), keys], dim=-1)
    return Episodes(context, body, values)


Build = Callable[[Draws, int, Plan], Episodes]


@dataclass(frozen=True)
class TaskFamily:
    """One family of tasks.

    ``density``: context tokens per group in evaluation; ``least``: smallest number of groups in evaluation;
    ``group_tokens``: context tokens that one group occupies at most; ``asked``: groups that one turn asks about;
    ``turn_tokens``: question and answer; ``turns``: questions per context in evaluation; ``noise``: fewest tokens
    besides those of the groups.
    """

    name: str
    summary: str
    build: Build
    turn_tokens: int
    turns: int
    density: int = 0
    least: int = 0
    group_tokens: int = SLOT
    asked: int = 1
    noise: int = 64

    def plan(self, length: int) -> Plan:
        """What an evaluation context of ``length`` tokens holds."""
        groups = max(self.least, length // self.density) if self.density else self.least
        return Plan(groups, max(groups, 4) if groups else 0, self.turns)

    @property
    def shortest(self) -> int:
        """The shortest evaluation context, in tokens, that surely holds the least number of groups and near misses."""
        least = self.plan(1)
        return self.noise + least.groups * self.group_tokens + least.near_misses * (SLOT + 1)


_FAMILIES = (
    TaskFamily("needle", "one fact in noise", needles, 5, turns=1, least=1),
    TaskFamily("needles", "a fact per 16 tokens", needles, 5, turns=4, density=16, least=8),
    TaskFamily("keys", "every line is a fact", every_line, 5, turns=4, group_tokens=LINE),
    TaskFamily("multivalue", "three values per key, all asked", multivalue, 9, 4, 256, 4, SLOT * VALUES_PER_KEY),
    TaskFamily("multiquery", "four keys in one question", multiquery, 18, 4, 64, 16, asked=KEYS_PER_QUESTION),
    TaskFamily("frequent", "the most frequent word", frequent, 2, turns=1, group_tokens=0, noise=512),  # no ties
    TaskFamily("chain", "four look-ups, spelled out", chain, 11, 4, 128, 4, SLOT * HOPS),
    TaskFamily("late", "the question states its own fact", late, LATE_QUESTION + 2, turns=4, density=64, least=8),
)
_NUMBERED = TaskFamily("numbered", "three numbered values per key", numbered, 12, 4, 256, 4, SLOT * VALUES_PER_KEY + 3)

TASKS: dict[str, TaskFamily] = {family.name: family for family in _FAMILIES}
"""The tasks that are evaluated."""
TRAINING_ONLY: dict[str, TaskFamily] = {_NUMBERED.name: _NUMBERED}
"""Families that the reference model is trained on and that are no task: easier forms of one."""
TRAINING_FAMILIES: dict[str, TaskFamily] = {**TASKS, **TRAINING_ONLY}
