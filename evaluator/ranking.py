"""What may be said of many programs at once: values shrunk before they are ranked, and which program is separated.

The best of many noisy values is too good on the average (the winner's curse). Shrinkage takes that back for the
values, the separation test for the claim "better than all others". numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vortexlab.evaluator.measured import Measured
from vortexlab.evaluator.verdict import Estimate

#: Error of one one-sided comparison of two programs.
LEVEL = 0.025
FLIPS = 4000
_Z = 1.959963984540054
_LINE = 8  # programs that a line over speed is fitted to at least
_SPREADS = 40
_CLEAR = 200


def shrunk(values: np.ndarray, factor: np.ndarray, speed: np.ndarray | None = None) -> list[Estimate]:
    """Empirical-Bayes estimates of noisy `values` [n] whose errors have the covariance `factor @ factor.T`.

    `factor` [n, k]: of many programs from few contexts, or from k draws, the covariance itself would be large and of
    small rank. True values are taken for draws around a common mean, from eight programs on around a straight line over
    the logarithm of `speed`, since faster programs keep less (Fay and Herriot, JASA 74 (1979), with correlated errors).
    The line comes from the values themselves; the spread around it is averaged over, by its restricted likelihood and
    a uniform prior (Gelman, Bayesian Analysis 1 (2006)), so that a spread that looks like none makes no interval too
    narrow. Where values differ by no more than their noise all of them move to the mean; programs that stand far apart
    stay where they are. Of the errors the variances count, and one correlation for all pairs, the mean: more cannot be
    learned from a few dozen contexts about dozens of programs. Intervals are 95 % of the posterior. Fewer than three
    values stay as they are.
    """
    count = len(values)
    if count < 3:
        spread = _Z * np.sqrt(_variances(factor))
        return [Estimate(float(v), float(v - s), float(v + s)) for v, s in zip(values, spread, strict=True)]
    design = np.ones((count, 1))
    if speed is not None and count >= _LINE and np.ptp(np.log(speed)) > 1e-9:
        design = np.column_stack([design, np.log(speed) - np.log(speed).mean()])
    own, shared = _evened(factor)

    widest = 2 * float(np.std(values)) + 1e-6
    logs, means, squares = [], [], []
    for between in np.linspace(0, widest, _SPREADS) ** 2:
        # The values' covariance is diag(between + own) + shared, one and the same number everywhere: by Sherman and
        # Morrison its inverse is diag(weight) - drag weight weight'.
        weight = 1 / (between + own)
        drag = shared / (1 + shared * weight.sum())
        shape, seen = _solved(design, weight, drag), _solved(values, weight, drag)
        gram = np.linalg.inv(design.T @ shape)
        slope = gram @ (design.T @ seen)
        off = seen - shape @ slope
        determinant = np.log1p(shared * weight.sum()) - np.log(weight).sum()
        logs.append(0.5 * (np.linalg.slogdet(gram)[1] - determinant - (values - design @ slope) @ off))
        mean = design @ slope + between * off  # how far a value is moved depends on how noisy it is
        moved = design - between * shape
        variance = between * weight * (own + between * drag * weight) + ((moved @ gram) * moved).sum(1)
        means.append(mean)
        squares.append(variance + mean**2)
    chance = np.exp(np.array(logs) - max(logs))
    chance /= chance.sum()
    centre = chance @ np.array(means)
    spread = _Z * np.sqrt(np.clip(chance @ np.array(squares) - centre**2, 0, None))
    return [Estimate(*row) for row in np.column_stack([centre, centre - spread, centre + spread]).tolist()]


def _solved(right: np.ndarray, weight: np.ndarray, drag: float) -> np.ndarray:
    """The inverse of diag(1 / weight) + shared, times `right` [n] or [n, k]."""
    part = (weight * right.T).T
    found: np.ndarray = part - drag * np.multiply.outer(weight, weight @ right)
    return found


def _variances(factor: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.einsum("ij,ij->i", factor, factor)
    return found


def _evened(factor: np.ndarray) -> tuple[np.ndarray, float]:
    """The covariance made of a variance of each value's own [n] and a part that all values share, with the mean
    correlation.

    An estimated covariance of many programs from few contexts has directions that seem to be without noise, in which
    nothing would be shrunk. The shared part moves no value against another, and no weight is below 0.
    """
    variance = np.clip(_variances(factor), 1e-12, None)
    count = len(variance)
    total = float((((1 / np.sqrt(variance)) @ factor) ** 2).sum())  # of all correlations
    mean = min(max((total - count) / (count * (count - 1)), 0.0), 0.99)
    return np.clip((1 - mean) * variance, 1e-9, None), mean * float(variance.mean())


def shrunk_accuracy(measured: Measured, kept: np.ndarray) -> list[Estimate]:
    """Accuracy kept of each program, shrunk over all of them; `kept` [programs, draws] says how noisy they are."""
    if not len(kept):
        return []
    factor = kept - kept.mean(1, keepdims=True)
    factor /= np.sqrt(kept.shape[1] - 1)
    found = []
    for estimate in shrunk(measured.accuracy[:, 0], factor, measured.speed[:, 0]):
        value = max(0.0, estimate.value)
        found.append(Estimate(value, max(0.0, estimate.low), max(estimate.high, value)))
    return found


class Scores:
    """Right answers of programs by context, for comparisons on the same contexts.

    `answers` and `right`: [contexts, programs], no answers where a program was not asked; `tasks`: [contexts].
    """

    def __init__(self, tasks: np.ndarray, answers: np.ndarray, right: np.ndarray):
        self.tasks, self.answers, self.right = tasks, answers.astype(float), right.astype(float)

    @staticmethod
    def of(measured: Measured) -> Scores:
        return Scores(measured.tasks, measured.answers.T, measured.sparse.T)

    def leads(self, first: int | np.ndarray, others: Sequence[int] | np.ndarray) -> np.ndarray:
        """[contexts, others]: what each context adds to the lead of `first`, the mean over tasks of its score less
        that of the other, on the contexts that both answered. Of several `first` each leads its own other one."""
        firsts = np.atleast_1d(first)
        mine, theirs = self.answers[:, firsts], self.answers[:, others]
        both = (mine > 0) & (theirs > 0) & (mine == theirs)
        asked = np.where(both, mine, 0.0)
        lead = np.where(both, self.right[:, firsts] - self.right[:, others], 0.0)
        share, count = np.zeros_like(asked), np.zeros(asked.shape[1])
        for task in np.unique(self.tasks):
            rows = self.tasks == task
            total = asked[rows].sum(0)
            share[rows] = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
            count += total > 0
        return lead * share / np.maximum(count, 1)


@lru_cache(maxsize=4)
def _signs(contexts: int, flips: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    signs: np.ndarray = rng.integers(0, 2, (flips, contexts)).astype(np.float32) * 2 - 1
    return signs


def above(leads: np.ndarray, *, seed: int = 0, flips: int = FLIPS) -> np.ndarray:
    """[others]: the one-sided mid-p of each mean lead by flipping the signs of whole contexts.

    Fisher's randomisation test: it holds, whatever the answers of a context have to do with each other, where under the
    hypothesis the two programs could be exchanged context by context. Of the flips that give the very lead half count
    (Lancaster 1961), as does the observation: few contexts differ, so ties are many, and counting all of them would
    make the test half as strict again as it says. Its level is then the nominal one on the average, not at most.
    """
    found, flipped = leads.sum(0), _signs(len(leads), flips, seed) @ leads.astype(np.float32)
    more, reached = (flipped > (found + 1e-6)).sum(0), (flipped >= (found - 1e-6)).sum(0)
    p: np.ndarray = (1 + more + reached) / 2 / (flips + 1)
    return p


def is_best(
    scores: Scores, first: int, others: Sequence[int] | np.ndarray, *, seed: int = 0, flips: int = FLIPS
) -> bool:
    """Whether `first` scores above each of the others, every single one at `LEVEL`.

    All comparisons must succeed, so none needs a correction (intersection-union test, Berger 1982): a program that is
    not the best is called so with probability `LEVEL` at most, some program of several equal ones with twice that.
    True without others. Leads so clear that no more than one flip in 200 can reach them (Hoeffding 1963) are not
    flipped: that more than `LEVEL` of them would is beyond all chance.
    """
    if not len(others):
        return True
    leads = scores.leads(first, others)
    total = leads.sum(0)
    if total.min() <= 0:
        return False
    doubtful = np.flatnonzero(total**2 <= 2 * np.log(_CLEAR) * (leads**2).sum(0))
    hardest = doubtful[np.argsort(total[doubtful])]
    for part in (hardest[:1], hardest[1:]):  # the least lead fails first, mostly
        if part.size and (above(leads[:, part], seed=seed, flips=flips) > LEVEL).any():
            return False
    return True


def separated(measured: Measured, *, seed: int = 0) -> list[bool]:
    """Which programs score above every other one that may be as fast: whose interval of speed reaches into theirs or
    lies above."""
    scores, found = Scores.of(measured), [False] * len(measured.index)
    for program in _hopeful(measured, scores, seed):
        rivals = np.flatnonzero(measured.speed[:, 2] >= measured.speed[program, 1])
        found[program] = is_best(scores, program, rivals[rivals != program], seed=seed)
    return found


def _hopeful(measured: Measured, scores: Scores, seed: int) -> list[int]:
    """The programs that are separated at least from the one that keeps the most of all that may be as fast."""
    kept, rival = measured.accuracy[:, 0], np.full(len(measured.index), -1)
    fast, waiting = np.argsort(-measured.speed[:, 2], kind="stable").tolist(), 0
    best = second = -1
    for program in np.argsort(-measured.speed[:, 1], kind="stable").tolist():
        while waiting < len(fast) and measured.speed[fast[waiting], 2] >= measured.speed[program, 1]:
            new, waiting = fast[waiting], waiting + 1
            if best < 0 or kept[new] > kept[best]:
                best, second = new, best
            elif second < 0 or kept[new] > kept[second]:
                second = new
        rival[program] = second if best == program else best
    alone, others = np.flatnonzero(rival < 0), np.flatnonzero(rival >= 0)
    leads = scores.leads(others, rival[others])
    ahead = leads.sum(0) > 0
    others, leads = others[ahead], leads[:, ahead]
    return [*alone.tolist(), *others[above(leads, seed=seed) <= LEVEL].tolist()]
