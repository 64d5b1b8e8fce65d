"""Who gets the next slot: a cost-aware bandit over proposers, and over the operators of each.

The reward of a slot is the hypervolume that its trial added, per unit of cost, and everything is computed from the
trials, so the choice is the same after a resume. UCB1 (Auer, Cesa-Bianchi and Fischer 2002) on rewards scaled to the
best seen; an arm that was never tried comes first.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vortexlab.agent.arms import Arm, cost
from vortexlab.agent.trials import GIVEN, KNOBS, History, Trial

_EXPLORATION = 0.5
_DECAY = 0.97  # per slot: what an arm brought long ago, on another frontier, counts for less
_FORGOTTEN = 1e-6  # a weight below which an arm counts as never tried


def credited(trial: Trial, arms: Mapping[str, Sequence[str]]) -> Arm:
    """The arm that a trial counts for: the operator that made it, where the proposer names one of its own."""
    operators = arms.get(trial.arm.proposer, ())
    operator = trial.proposal.operator if trial.proposal.operator in operators else trial.arm.operator
    return Arm(trial.arm.proposer, operator)


def choose(
    history: History,
    arms: Mapping[str, Sequence[str]],
    rng: random.Random,
    *,
    structure_share: float,
    knob_share: float,
) -> Arm:
    """The arm of the next slot. `arms` maps each proposer that may be asked to its operators, `KNOBS` included.

    Of the trials measured after the seeds at least `structure_share` are new structures and at least `knob_share`
    new knobs for a known one, as far as both fit. Slots that are open count as measured, with no gain so far.
    """
    in_full = history.totals.in_full + Counter(trial.arm.proposer for trial in history.open.values())
    tuned = in_full[KNOBS]
    measured = in_full.total() - sum(in_full[arm] for arm in GIVEN)
    candidates = list(arms)
    if len(candidates) > 1 and KNOBS in arms:
        if tuned + 1 <= min(knob_share, 1 - structure_share) * (measured + 1):
            candidates = [KNOBS]
        elif measured - tuned < structure_share * (measured + 1):
            candidates.remove(KNOBS)
    proposer = _ucb(candidates, ((trial.arm.proposer, gain, paid) for trial, gain, paid in _later(history)), rng)
    if len(arms[proposer]) == 1:
        return Arm(proposer, arms[proposer][0])
    own = (
        (credited(trial, arms).operator, gain, paid)
        for trial, gain, paid in _later(history) if trial.arm.proposer == proposer
    )  # fmt: skip
    return Arm(proposer, _ucb(list(arms[proposer]), own, rng))


def _later(history: History) -> Iterator[tuple[Trial, float, float]]:
    """Trials with their gains and costs, those of the search alone, the latest first."""
    last = cost(history.trials[-1]) if history.trials else 1.0
    for _, trial in sorted(history.open.items(), reverse=True):
        if trial.arm.proposer not in GIVEN:
            yield trial, 0.0, last
    for trial, gain in zip(reversed(history.trials), reversed(history.gains()), strict=True):
        if trial.arm.proposer not in GIVEN:
            yield trial, gain, cost(trial)


def _ucb(options: Sequence[str], pulls: Iterable[tuple[str, float, float]], rng: random.Random) -> str:
    """The option with the highest upper confidence bound of gain per cost; ties and newcomers in random order.

    `pulls`, the latest first, are (option, gain, cost).
    """
    order = sorted(options)
    rng.shuffle(order)
    weight = 1.0
    count = dict.fromkeys(order, 0.0)
    gain, price = dict(count), dict(count)
    for option, won, paid in pulls:
        if weight < _FORGOTTEN:
            break
        if option in count:
            count[option] += weight
            gain[option] += weight * won
            price[option] += weight * paid
        weight *= _DECAY
    for option in order:
        if count[option] == 0:
            return option
    rate = {option: gain[option] / price[option] for option in order}
    best = max(rate.values()) or 1.0
    total = sum(count.values())
    bound = {
        option: rate[option] / best + _EXPLORATION * math.sqrt(2 * math.log(max(total, 1.0)) / count[option])
        for option in order
    }
    return max(order, key=lambda option: bound[option])
