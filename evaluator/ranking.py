"""What may be said of many programs at once: values shrunk before they are ranked, and which program is separated.

The best of many noisy values is too good on the average (the winner's curse). Shrinkage takes that back for the
values, the separation test for the claim "better than all others". numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vortexlab.evaluator.statistics import joint_draws
from vortexlab.evaluator.verdict import Estimate, Verdict

#: Error of one one-sided comparison of two programs.
LEVEL = 0.025
FLIPS = 4000
_Z = 1.959963984540054
_LINE = 8  # programs that a line over speed is fitted to at least
_SPREADS = 40


def shrunk(values: np.ndarray, errors: np.ndarray, speed: np.ndarray | None = None) -> list[Estimate]:
    """Empirical-Bayes estimates of noisy `values` [n] whose errors have the covariance `errors` [n, n].

    True values are taken for draws around a common mean, from eight programs on around a straight line over the
    logarithm of `speed`, since faster programs keep less (Fay and Herriot, JASA 74 (1979), with correlated errors).
    The line comes from the values themselves; the spread around it is averaged over, by its restricted likelihood and
    a uniform prior (Gelman, Bayesian Analysis 1 (2006)), so that a spread that looks like none makes no interval too
    narrow. Where values differ by no more than their noise all of them move to the mean; programs that stand far apart
    stay where they are. Of `errors` the variances count, and one correlation for all pairs, the mean: more cannot be
    learned from a few dozen contexts about dozens of programs. Intervals are 95 % of the posterior. Fewer than three
    values stay as they are.
    """
    count = len(values)
    if count < 3:
        spread = _Z * np.sqrt(np.diag(errors))
        return [Estimate(float(v), float(v - s), float(v + s)) for v, s in zip(values, spread, strict=True)]
    design = np.ones((count, 1))
    if speed is not None and count >= _LINE and np.ptp(np.log(speed)) > 1e-9:
        design = np.column_stack([design, np.log(speed) - np.log(speed).mean()])
    noise, basis = np.linalg.eigh(_evened(errors))
    noise = np.clip(noise, 1e-9, None)
    seen, shape = basis.T @ values, basis.T @ design

    widest = 2 * float(np.std(values)) + 1e-6
    logs, means, squares = [], [], []
    for between in np.linspace(0, widest, _SPREADS) ** 2:
        weight = 1 / (between + noise)
        gram = np.linalg.inv(shape.T @ (weight[:, None] * shape))
        off = seen - shape @ (gram @ shape.T @ (weight * seen))
        logs.append(0.5 * (np.log(weight).sum() - (weight * off**2).sum() + np.linalg.slogdet(gram)[1]))
        pull = noise * weight  # how far each direction moves to the mean
        mean = basis @ (seen - pull * off)
        moved = basis @ (pull[:, None] * shape)
        variance = basis**2 @ (between * pull) + ((moved @ gram) * moved).sum(1)
        means.append(mean)
        squares.append(variance + mean**2)
    chance = np.exp(np.array(logs) - max(logs))
    chance /= chance.sum()
    centre = chance @ np.array(means)
    spread = _Z * np.sqrt(np.clip(chance @ np.array(squares) - centre**2, 0, None))
    return [Estimate(float(v), float(v - s), float(v + s)) for v, s in zip(centre, spread, strict=True)]


def _evened(errors: np.ndarray) -> np.ndarray:
    """The covariance made of a part that all values share and a part of each value's own, with the mean correlation.

    An estimated covariance of many programs from few contexts has directions that seem to be without noise, in which
    nothing would be shrunk. The shared part moves no value against another, and no weight is below 0.
    """
    variance = np.clip(np.diag(errors), 1e-12, None)
    count, spread = len(variance), np.sqrt(variance)
    mean = float(((errors / np.outer(spread, spread)).sum() - count) / (count * (count - 1)))
    mean = min(max(mean, 0.0), 0.99)
    even: np.ndarray = mean * variance.mean() + np.diag((1 - mean) * variance)
    return even


def shrunk_accuracy(verdicts: Sequence[Verdict], *, seed: int = 0) -> list[Estimate | None]:
    """Accuracy kept of each verdict, shrunk over all of them; None where there is none."""
    usable, _, kept = joint_draws(verdicts, seed=seed)
    found: list[Estimate | None] = [None] * len(verdicts)
    if not usable:
        return found
    chosen = [verdicts[i] for i in usable]
    values = np.array([item.accuracy.value for item in chosen if item.accuracy])
    speed = np.array([item.speedup.value for item in chosen if item.speedup])
    for i, estimate in zip(usable, shrunk(values, np.atleast_2d(np.cov(kept.T)), speed), strict=True):
        low, value = max(0.0, estimate.low), max(0.0, estimate.value)
        found[i] = Estimate(value, low, max(estimate.high, value))
    return found


class Scores:
    """Right answers of programs by context, for comparisons on the same contexts.

    `answers` and `right`: [contexts, programs], no answers where a program was not asked; `tasks`: [contexts].
    """

    def __init__(self, tasks: np.ndarray, answers: np.ndarray, right: np.ndarray):
        self.tasks, self.answers, self.right = tasks, answers.astype(float), right.astype(float)

    @staticmethod
    def of(verdicts: Sequence[Verdict]) -> Scores:
        keys = sorted({(o.task, o.length, o.context) for v in verdicts for o in v.outcomes})
        place = {key: n for n, key in enumerate(keys)}
        answers, right = np.zeros((2, len(keys), len(verdicts)))
        for column, verdict in enumerate(verdicts):
            for item in verdict.outcomes:
                row = place[item.task, item.length, item.context]
                answers[row, column], right[row, column] = item.answers, item.sparse
        return Scores(np.array([key[0] for key in keys]), answers, right)

    def leads(self, first: int, others: Sequence[int]) -> np.ndarray:
        """[contexts, others]: what each context adds to the lead of `first`, the mean over tasks of its score less
        that of the other, on the contexts that both answered."""
        mine, theirs = self.answers[:, [first]], self.answers[:, others]
        both = (mine > 0) & (theirs > 0) & (mine == theirs)
        asked = np.where(both, mine, 0.0)
        lead = np.where(both, self.right[:, [first]] - self.right[:, others], 0.0)
        share, count = np.zeros_like(asked), np.zeros(asked.shape[1])
        for task in np.unique(self.tasks):
            rows = self.tasks == task
            total = asked[rows].sum(0)
            share[rows] = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
            count += total > 0
        return lead * share / np.maximum(count, 1)


def above(leads: np.ndarray, *, seed: int = 0, flips: int = FLIPS) -> np.ndarray:
    """[others]: the one-sided mid-p of each mean lead by flipping the signs of whole contexts.

    Fisher's randomisation test: it holds, whatever the answers of a context have to do with each other, where under the
    hypothesis the two programs could be exchanged context by context. Of the flips that give the very lead half count
    (Lancaster 1961), as does the observation: few contexts differ, so ties are many, and counting all of them would
    make the test half as strict again as it says. Its level is then the nominal one on the average, not at most.
    """
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (flips, len(leads))).astype(np.float32) * 2 - 1
    found, flipped = leads.sum(0), signs @ leads.astype(np.float32)
    more, reached = (flipped > (found + 1e-6)).sum(0), (flipped >= (found - 1e-6)).sum(0)
    p: np.ndarray = (1 + more + reached) / 2 / (flips + 1)
    return p


def is_best(scores: Scores, first: int, others: Sequence[int], *, seed: int = 0, flips: int = FLIPS) -> bool:
    """Whether `first` scores above each of the others, every single one at `LEVEL`.

    All comparisons must succeed, so none needs a correction (intersection-union test, Berger 1982): a program that is
    not the best is called so with probability `LEVEL` at most, some program of several equal ones with twice that.
    True without others.
    """
    others = list(others)
    if not others:
        return True
    leads = scores.leads(first, others)
    least = [int(leads.sum(0).argmin())]  # fails first, mostly
    if leads[:, least].sum() <= 0 or above(leads[:, least], seed=seed, flips=flips)[0] > LEVEL:
        return False
    return bool((above(leads, seed=seed, flips=flips) <= LEVEL).all())


def separated(verdicts: Sequence[Verdict], *, seed: int = 0) -> list[bool]:
    """Which programs score above every other one that may be as fast: whose interval of speed reaches into theirs or
    lies above. A verdict without both objectives is not, and counts for no other."""
    usable = [i for i, v in enumerate(verdicts) if v.speedup is not None and v.accuracy is not None and v.outcomes]
    scores = Scores.of([verdicts[i] for i in usable])
    fast = [(v.speedup.low, v.speedup.high) for v in (verdicts[i] for i in usable) if v.speedup is not None]
    found = [False] * len(verdicts)
    for column, i in enumerate(usable):
        rivals = [n for n in range(len(usable)) if n != column and fast[n][1] >= fast[column][0]]
        found[i] = is_best(scores, column, rivals, seed=seed)
    return found
