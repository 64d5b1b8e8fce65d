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

from vortexlab.evaluator.verdict import Estimate, Outcome, Verdict

DRAWS = 2000
LEVEL = 0.95


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
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


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
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    mean: np.ndarray = below + (equal - 1) / 2
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


def non_dominated(speed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """bool [..., n]: which points no other point beats in one objective without losing in the other; larger is better.

    Both arrays [..., n]. Of equal points all are kept.
    """
    faster, better = speed[..., :, None], kept[..., :, None]
    dominated = (
        (faster >= speed[..., None, :])
        & (better >= kept[..., None, :])
        & ((faster > speed[..., None, :]) | (better > kept[..., None, :]))
    )
    return np.logical_not(dominated.any(-2))


def joint_draws(
    verdicts: Sequence[Verdict], *, seed: int = 0, draws: int = 1000
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Bootstrap draws of both objectives of several programs: (which verdicts, speed [draws, n], kept [draws, n]).

    Contexts are resampled jointly: in one draw all programs answer the same contexts. Speed ratios are resampled for
    each program by itself; a predicted speed does not vary. Verdicts without both objectives are left out.
    """
    usable = [i for i, v in enumerate(verdicts) if v.speedup is not None and v.accuracy is not None and v.outcomes]
    speed, kept = np.empty((draws, len(usable))), np.empty((draws, len(usable)))
    keys = sorted({(o.task, o.length, o.context) for i in usable for o in verdicts[i].outcomes})
    place = {key: n for n, key in enumerate(keys)}
    strata = _Strata([(task, length) for task, length, _ in keys], seed, draws)
    tasks = np.array([task for task, _, _ in keys])
    rng = np.random.default_rng(seed + 1)
    for column, i in enumerate(usable):
        verdict = verdicts[i]
        assert verdict.speedup is not None
        answers, dense, sparse = np.zeros(len(keys)), np.zeros(len(keys)), np.zeros(len(keys))
        for item in verdict.outcomes:
            at = place[(item.task, item.length, item.context)]
            answers[at], dense[at], sparse[at] = item.answers, item.dense, item.sparse
        seen = answers > 0
        part = (answers[seen], tasks[seen], strata.weights[:, seen])
        with np.errstate(invalid="ignore", divide="ignore"):
            share = _task_means(sparse[seen], *part) / _task_means(dense[seen], *part)
        kept[:, column] = np.nan_to_num(share, nan=0.0, posinf=0.0)
        logs = np.zeros(draws)
        for name in sorted(verdict.speed_samples):
            values = np.log(np.asarray(verdict.speed_samples[name], float))
            logs += np.median(rng.choice(values, (draws, len(values))), axis=1)
        if verdict.speed_samples:
            speed[:, column] = np.exp(logs / len(verdict.speed_samples))
        else:
            speed[:, column] = verdict.speedup.value
    return usable, speed, kept


def paired_differences(
    base: Verdict, other: Verdict, *, seed: int = 0
) -> tuple[Estimate, Estimate] | None:
    """(speed-up, accuracy kept) of `other` less those of `base`, both on the same resampled contexts.

    None where one of the two was not measured in full.
    """
    usable, speed, kept = joint_draws([base, other], seed=seed)
    if usable != [0, 1] or not (base.speedup and base.accuracy and other.speedup and other.accuracy):
        return None
    faster, better = speed[:, 1] - speed[:, 0], kept[:, 1] - kept[:, 0]
    return (
        interval(faster, other.speedup.value - base.speedup.value),
        interval(better, other.accuracy.value - base.accuracy.value),
    )


def frontier_probability(verdicts: Sequence[Verdict], *, seed: int = 0, draws: int = 1000) -> list[float]:
    """For each verdict, the share of `joint_draws` in which it lies on the Pareto frontier of all of them.

    A verdict without both objectives gets 0.
    """
    usable, speed, kept = joint_draws(verdicts, seed=seed, draws=draws)
    result = [0.0] * len(verdicts)
    if not usable:
        return result
    step = max(1, 20_000_000 // len(usable) ** 2)  # draws compared at once, so that memory stays bounded
    counts = sum(non_dominated(speed[at : at + step], kept[at : at + step]).sum(0) for at in range(0, draws, step))
    for column, count in zip(usable, np.asarray(counts), strict=True):
        result[column] = float(count) / draws
    return result
