"""Intervals and tests: paired, clustered by context, seeded.

Answers to one context are not independent, so contexts are what is resampled, within each task and length, and dense
and sparse always on the same contexts. numpy only; all intervals are 95 % percentile bootstraps unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vortexlab.evaluator.measured import Measured
from vortexlab.evaluator.verdict import Estimate, Outcome, Verdict

DRAWS = 2000
LEVEL = 0.95
_BLOCK = 1024  # programs drawn at once
_DIGITS = 12  # of accuracies, so that equal ones are equal in whatever order they were summed


@dataclass(frozen=True)
class Accuracy:
    """`kept`: mean over tasks of the sparse score over that of the dense score; `difference`: sparse - dense."""

    kept: Estimate | None
    difference: Estimate
    per_task: dict[str, dict[str, Any]]
    answers: int
    contexts: int
    alarms: tuple[str, ...]


def interval(samples: np.ndarray, value: float) -> Estimate:
    """The percentile interval of bootstrap `samples`, widened to hold the point estimate."""
    return intervals(samples[None], np.array([value]))[0]


def intervals(samples: np.ndarray, values: np.ndarray) -> list[Estimate]:
    """`interval` of every row of `samples` [n, draws] with its value."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    low, high = np.minimum(low, values), np.maximum(high, values)
    return [Estimate(*row) for row in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)]


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided probability of a split at least as uneven as `wins`:`losses` among fair flips (McNemar)."""
    flips = wins + losses
    if flips == 0:
        return 1.0
    tail = sum(math.comb(flips, k) for k in range(min(wins, losses) + 1)) / 2**flips
    return min(1.0, 2 * tail)


def wilson_upper(right: float, total: int) -> float:
    """Upper end of the 95 % Wilson interval of a share."""
    z = 1.959963984540054
    share = right / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return float((centre + spread) / (1 + z * z / total))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation, equal values sharing the mean of their ranks; 0 where one of the two is constant."""
    a, b = _ranks(first), _ranks(second)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, equal = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(equal) - equal
    mean: np.ndarray = (below + (equal - 1) / 2)[place]
    return mean


class _Strata:
    """Bootstrap weights over contexts, resampled within each (task, length)."""

    def __init__(self, keys: Sequence[tuple[str, int]], seed: int, draws: int):
        rng = np.random.default_rng(seed)
        self.weights = np.zeros((draws, len(keys)))
        for stratum in sorted(set(keys)):
            members = np.array([i for i, key in enumerate(keys) if key == stratum])
            counts = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
            self.weights[:, members] = counts


def _task_means(right: np.ndarray, answers: np.ndarray, tasks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draws]: mean over tasks of the share of right answers, with each context weighted."""
    names = np.unique(tasks)
    scores = [
        (weights[:, tasks == name] @ right[tasks == name]) / (weights[:, tasks == name] @ answers[tasks == name])
        for name in names
    ]
    return np.mean(scores, axis=0)


def accuracy(outcomes: Sequence[Outcome], *, seed: int = 0, draws: int = DRAWS) -> Accuracy:
    """Paired accuracy of one program. Raises `ValueError` without outcomes.

    Where not a single context differs a bootstrap would claim certainty; the lower ends then are those of the rule of
    three, 3 / contexts. `kept` is None when dense attention answers nothing. A task (or the whole) on which sparse is
    above dense beyond the interval raises an alarm, since reading less can hardly help: look for a leak first.
    """
    if not outcomes:
        raise ValueError("accuracy needs outcomes")
    tasks = np.array([item.task for item in outcomes])
    answers = np.array([item.answers for item in outcomes], float)
    dense = np.array([item.dense for item in outcomes], float)
    sparse = np.array([item.sparse for item in outcomes], float)
    strata = _Strata([(item.task, item.length) for item in outcomes], seed, draws)
    one = np.ones((1, len(outcomes)))

    def both(weights: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = (answers[chosen], tasks[chosen], weights[:, chosen])
        return _task_means(dense[chosen], *part), _task_means(sparse[chosen], *part)

    everything = np.ones(len(outcomes), bool)
    (base,), (found,) = both(one, everything)
    bases, founds = both(strata.weights, everything)
    difference = interval(founds - bases, found - base)
    kept = None
    if base > 0:
        kept = interval(founds / np.where(bases > 0, bases, base), found / base)
        if np.array_equal(dense, sparse):
            kept = Estimate(kept.value, min(kept.low, max(0.0, 1 - 3 / len(outcomes))), kept.high)
    alarms = []
    per_task: dict[str, dict[str, Any]] = {}
    names = sorted(set(tasks))
    for name in names:
        chosen = tasks == name
        (task_base,), (task_found,) = both(one, chosen)
        task_bases, task_founds = both(strata.weights, chosen)
        gap = interval(task_founds - task_bases, task_found - task_base)
        wins = int(np.sum(sparse[chosen] > dense[chosen]))
        losses = int(np.sum(sparse[chosen] < dense[chosen]))
        sign_p = sign_test(wins, losses)
        per_task[str(name)] = {
            "dense": float(task_base),
            "sparse": float(task_found),
            "difference": gap.to_json(),
            "n": int(answers[chosen].sum()),
            "contexts": int(chosen.sum()),
            "wins": wins,
            "losses": losses,
            "sign_p": sign_p,
        }
        # Many tasks are looked at, so the sign test answers for the alarm, at 5 % over all of them.
        if wins > losses and gap.low > 0 and sign_p < 0.05 / len(names):
            alarms.append(f"{name}: sparse is above dense by {gap}, sign test p = {sign_p:.2g}")
    if difference.low > 0:
        alarms.append(f"all tasks: sparse is above dense by {difference}")
    return Accuracy(kept, difference, per_task, int(answers.sum()), len(outcomes), tuple(alarms))


def kept_upper(outcomes: Sequence[Outcome], *, seed: int = 0) -> float:
    """Upper bound of accuracy kept from a few samples: the larger of bootstrap and Wilson, so never certain of 0."""
    found = accuracy(outcomes, seed=seed)
    right, total = sum(item.sparse for item in outcomes), found.answers
    dense = sum(item.dense for item in outcomes)
    if found.kept is None:  # dense attention answers nothing
        return math.inf
    return max(found.kept.high, wilson_upper(right, total) / (dense / total))


def ratio(samples: Mapping[str, Sequence[float]], *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Speed-up from paired ratios, one list per context length: the geometric mean of the medians."""
    rng = np.random.default_rng(seed)
    value, total = 0.0, np.zeros(draws)
    for name in sorted(samples):
        logs = np.log(np.asarray(samples[name], float))
        value += float(np.median(logs))
        total += np.median(rng.choice(logs, (draws, len(logs))), axis=1)
    return interval(np.exp(total / len(samples)), math.exp(value / len(samples)))


def _middles(count: int) -> tuple[np.ndarray, np.ndarray]:
    """[2 ** 16] each: which two places of `count` sorted values the median of a resample lies between (twice the same
    one for an odd count), at equally spaced chances. Choosing one of these is resampling and taking the median."""
    half, edge = (count + 1) // 2, np.arange(count + 1) / count
    tail = [math.comb(count, k) * edge**k * (1 - edge) ** (count - k) for k in range(half, count + 1)]
    single = np.diff(np.sum(tail, axis=0))  # the chance of each place for the `half`-th smallest value
    chance = np.diag(single)
    if count % 2 == 0:  # the next value has another place: `half` draws up to the first, the others from the second on
        apart = math.comb(count, half) * np.outer(np.diff(edge**half), -np.diff((1 - edge) ** half))
        apart = np.triu(apart, 1)
        chance = apart + np.diag(single - apart.sum(1))
    steps = np.cumsum(np.clip(chance.ravel(), 0, None))
    spaced = (np.arange(1 << 16) + 0.5) / (1 << 16)
    pick = np.minimum(np.searchsorted(steps, spaced * steps[-1]), count * count - 1)
    return pick // count, pick % count


def _speed_draws(measured: Measured, seed: int, draws: int) -> np.ndarray:
    """[programs, draws]: speed-ups from resampled ratios, each program by itself; a predicted speed does not vary."""
    predicted = np.broadcast_to(measured.speed[:, :1], (len(measured.index), draws))
    if not any(measured.samples):
        return predicted
    rng, found = np.random.default_rng(seed + 1), predicted.copy()
    lists: dict[int, list[tuple[int, Sequence[float]]]] = {}  # by how many ratios there are
    for program, samples in enumerate(measured.samples):
        for name in sorted(samples):
            lists.setdefault(len(samples[name]), []).append((program, samples[name]))
    measured_ones = [program for program, samples in enumerate(measured.samples) if samples]
    found[measured_ones] = 0.0
    for count, entries in sorted(lists.items()):
        low, high = _middles(count)
        pairs, pick = np.unique(low * count + high, return_inverse=True)
        values = np.sort(np.log(np.array([ratios for _, ratios in entries], float)), axis=1)
        medians = (values[:, pairs // count] + values[:, pairs % count]) / 2
        for (program, _), row in zip(entries, medians, strict=True):
            found[program] += row[pick[rng.integers(0, 1 << 16, draws, dtype=np.uint16)]]
    lengths = np.array([len(measured.samples[program]) for program in measured_ones], float)
    found[measured_ones] = np.exp(found[measured_ones] / lengths[:, None])
    return found


def joint_draws(measured: Measured, *, seed: int = 0, draws: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap draws of both objectives of several programs: speed and accuracy kept, both [programs, draws].

    Contexts are resampled jointly: in one draw all programs answer the same contexts. Speed ratios are resampled for
    each program by itself.
    """
    strata = _Strata(list(zip(measured.tasks.tolist(), measured.lengths.tolist(), strict=True)), seed, draws)
    kept = np.empty((len(measured.index), draws))
    for members in measured.alike:
        answers, dense = measured.answers[members[0]], measured.dense[members[0]]
        seen, share = answers > 0, _shares(answers, measured.tasks, strata.weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            share /= dense[seen] @ share
        share[:, ~np.isfinite(share).all(0)] = 0.0  # draws in which dense attention answers nothing say 0
        for at in range(0, len(members), _BLOCK):
            block = members[at : at + _BLOCK]
            part = measured.sparse[np.ix_(block, seen)] @ share
            kept[block] = np.round(part, _DIGITS, out=part)
    return _speed_draws(measured, seed, draws), kept


def _shares(answers: np.ndarray, tasks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[contexts with answers, draws]: by what a right answer on each context counts in the mean over tasks; not a
    number where a draw holds no context of a task."""
    seen = answers > 0
    tasks, answers, found = tasks[seen], answers[seen], weights[:, seen].T.copy()
    names = np.unique(tasks)
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in names:
            rows = tasks == name
            found[rows] /= (answers[rows] @ found[rows]) * len(names)
    return found


def paired_differences(
    base: Verdict, other: Verdict, *, seed: int = 0
) -> tuple[Estimate, Estimate] | None:
    """(speed-up, accuracy kept) of `other` less those of `base`, both on the same resampled contexts.

    None where one of the two was not measured in full.
    """
    measured = Measured.of([base, other])
    if len(measured.index) < 2 or not (base.speedup and base.accuracy and other.speedup and other.accuracy):
        return None
    speed, kept = joint_draws(measured, seed=seed)
    return (
        interval(speed[1] - speed[0], other.speedup.value - base.speedup.value),
        interval(kept[1] - kept[0], other.accuracy.value - base.accuracy.value),
    )
