"""What is said of thousands of programs at once is what the short formulas say of them one by one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from vortexlab.agent.arms import Arm
from vortexlab.agent.pareto import frontier, hypervolume, layers
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.standings import _lead, _staircases
from vortexlab.agent.totals import Totals
from vortexlab.agent.trials import Trial
from vortexlab.evaluator import statistics
from vortexlab.evaluator.fronts import frontier_probability, frontiers, non_dominated
from vortexlab.evaluator.measured import Measured
from vortexlab.evaluator.ranking import LEVEL, Scores, above, separated, shrunk
from vortexlab.evaluator.verdict import Estimate, Outcome, Verdict

TASKS = ("a", "b", "c")
CAMPAIGNS = ("plain", "ragged", "timed", "ties", "equal", "perfect", "pair", "one", "none")


def campaign(kind: str, seed: int = 0) -> list[Verdict]:
    """Random programs; ragged ones were asked fewer contexts, each its own."""
    rng = np.random.default_rng(seed)
    count = {"none": 0, "one": 1, "pair": 2}.get(kind, 40)
    hard = rng.random((36, 1))
    verdicts = []
    for number in range(count):
        skill = {"equal": 0.5, "perfect": 2.0}.get(kind, rng.random() if number else 1.5)
        right = (rng.random((36, 4)) < skill * (0.5 + hard)).sum(1)
        if kind == "ties":
            right = np.full(36, 1 + number % 3)
        if kind == "equal":
            right = np.full(36, 2)
        asked = range(36)
        if kind == "ragged" and rng.random() < 0.5:
            asked = sorted(rng.choice(36, rng.integers(*((24, 36) if seed % 2 else (1, 30))), replace=False).tolist())
        outcomes = tuple(
            Outcome(TASKS[n % 3], f"c{n}", 1024 * (1 + n % 2), 4, int(3 + n % 2), int(right[n])) for n in asked
        )
        speed = 2.0 if kind == "equal" else float(rng.integers(2, 12) / 2 if kind == "ties" else 1 + 4 * rng.random())
        value = sum(o.sparse for o in outcomes) / (4 * len(outcomes))
        samples = {"1024": rng.normal(speed, 0.2, 9).tolist(), "2048": rng.normal(speed, 0.2, 6).tolist()}
        verdicts.append(Verdict(
            str(number), "h", "s", {}, "accepted", speedup=Estimate(speed, 0.95 * speed, 1.05 * speed),
            accuracy=Estimate(value, value, value), outcomes=outcomes,
            speed_samples=samples if kind == "timed" else {},
        ))  # fmt: skip
    return verdicts


@pytest.mark.parametrize("kind", CAMPAIGNS)
def test_accuracy_is_drawn_as_it_was_one_by_one(kind: str) -> None:
    verdicts = campaign(kind)
    kept = statistics.joint_draws(Measured.of(verdicts), draws=200)[1]
    keys = sorted({(o.task, o.length, o.context) for v in verdicts for o in v.outcomes})
    weights = statistics._Strata([key[:2] for key in keys], 0, 200).weights
    assert kept.shape == (len(verdicts), 200)
    for row, verdict in zip(kept, verdicts, strict=True):
        at = [keys.index((o.task, o.length, o.context)) for o in verdict.outcomes]
        part = np.array([o.answers for o in verdict.outcomes]), np.array([o.task for o in verdict.outcomes])
        with np.errstate(invalid="ignore"):
            sparse, dense = (
                statistics._task_means(np.array(right, float), *part, weights[:, at])
                for right in ([o.sparse for o in verdict.outcomes], [o.dense for o in verdict.outcomes])
            )
        assert np.allclose(row, np.nan_to_num(sparse / dense), atol=1e-11)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9, 27])
def test_a_median_of_a_resample_is_drawn_at_once(count: int) -> None:
    """All places that the middles of a resample can have, as often as in 200,000 resamples."""
    rng = np.random.default_rng(count)
    dealt = np.sort(rng.integers(0, count, (200_000, count)), axis=1)
    wanted = Counter(zip(dealt[:, (count - 1) // 2].tolist(), dealt[:, count // 2].tolist(), strict=True))
    low, high = statistics._middles(count)
    found = Counter(zip(low.tolist(), high.tolist(), strict=True))
    for pair in wanted | found:
        share = found[pair] / len(low)
        assert abs(share - wanted[pair] / 200_000) < 5 * math.sqrt((share + 1e-5) / 200_000) + 2 / len(low)


def test_speed_is_drawn_as_from_resamples_one_by_one() -> None:
    verdicts = campaign("timed")
    speed = statistics.joint_draws(Measured.of(verdicts), draws=4000)[0]
    rng = np.random.default_rng(7)
    for row, verdict in zip(speed, verdicts, strict=True):
        logs = np.zeros(4000)
        for values in verdict.speed_samples.values():
            logs += np.median(rng.choice(np.log(values), (4000, len(values))), axis=1) / 2
        assert np.log(row).mean() == pytest.approx(logs.mean(), abs=6 * logs.std() / math.sqrt(4000))
        assert np.log(row).std() == pytest.approx(logs.std(), rel=0.15)


def _dominated(speed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """bool [n], each against each."""
    faster, better = speed[:, None], kept[:, None]
    beats = (faster >= speed) & (better >= kept) & ((faster > speed) | (better > kept))
    found: np.ndarray = beats.any(0)
    return found


@pytest.mark.parametrize("kind", CAMPAIGNS)
def test_frontiers_are_those_of_each_against_each(kind: str) -> None:
    speed, kept = statistics.joint_draws(Measured.of(campaign(kind)), draws=100)
    shares = np.zeros(len(speed))
    fronts = list(frontiers(speed, kept))
    assert len(fronts) == 100
    for draw, front in enumerate(fronts):
        wanted = ~_dominated(speed[:, draw], kept[:, draw])
        assert np.flatnonzero(wanted).tolist() == front.tolist()
        assert np.array_equal(non_dominated(speed[:, draw], kept[:, draw]), wanted)
        shares += wanted
    assert np.array_equal(frontier_probability(speed, kept), shares / 100)


def test_frontiers_of_noise_with_ties() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        speed, kept = rng.integers(0, 2 + seed, (2, 50, 20)).astype(float)
        for draw, front in enumerate(frontiers(speed, kept)):
            assert front.tolist() == np.flatnonzero(~_dominated(speed[:, draw], kept[:, draw])).tolist()


def test_layers_are_frontiers_of_what_is_left() -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 5, 60):
        points = [(float(x), float(y)) for x, y in rng.integers(0, 9, (size, 2))]
        ranks, rest, number = layers(points), sorted(set(points)), 0
        while rest:
            number += 1
            front = {rest[i] for i in frontier(rest)}
            assert {p for p, rank in zip(points, ranks, strict=True) if rank == number} == front
            rest = [p for p in rest if p not in front]
        assert max(ranks, default=0) == number


def test_ranks_are_counted_one_by_one() -> None:
    for seed in range(20):
        values = np.random.default_rng(seed).integers(0, 3 + 4 * seed, 50).astype(float)
        wanted = [sum(v < w for v in values) + (sum(v == w for v in values) - 1) / 2 for w in values]
        assert statistics._ranks(values).tolist() == wanted


def test_the_frontier_of_totals_is_that_of_all_points() -> None:
    """Points come one at a time, with ties in either objective and equal ones, of which the earliest stands."""
    for seed in range(10):
        points = [(float(x), float(y)) for x, y in np.random.default_rng(seed).integers(0, 3 + 5 * seed, (80, 2))]
        totals, before = Totals(), 0.0
        for slot, point in enumerate(points):
            totals.add(judged(slot, *point))
            assert [trial.slot for trial in totals.front] == frontier(points[: slot + 1])
            assert totals.area == pytest.approx(hypervolume(points[: slot + 1]))
            assert totals.gains[-1] == pytest.approx(totals.area - before)
            before = totals.area
        assert {m.id for m in totals.members if m.on_frontier} == {trial.id for trial in totals.front}


def judged(slot: int, speed: float, kept: float) -> Trial:
    verdict = Verdict(
        str(slot), "h", "s", {}, "accepted", speedup=Estimate(speed, speed, speed), accuracy=Estimate(kept, kept, kept)
    )
    return Trial(slot, Arm("grammar", "cross"), Proposal("", "P", "grammar", "cross"), str(slot), "s", verdict)


@pytest.mark.parametrize("kind", ["plain", "ragged", "timed", "ties", "equal", "pair"])
def test_leads_over_published_programs_are_those_of_every_draw(kind: str) -> None:
    speed, kept = statistics.joint_draws(Measured.of(campaign(kind)), draws=60)
    half = len(speed) // 2
    found = _lead(speed[half:], kept[half:], _staircases(speed[:half], kept[:half]))
    for draw in range(60):
        pairs = list(zip(speed[:half, draw].tolist(), kept[:half, draw].tolist(), strict=True))
        front = [pairs[i] for i in frontier(pairs)]
        good = kept[half:, draw]
        gap = speed[half:, draw] - np.interp(good, [pair[1] for pair in front], [pair[0] for pair in front])
        assert np.array_equal(found[:, draw], np.where(good < front[0][1], np.minimum(gap, 0.0), gap))


def _shrunk(values: np.ndarray, errors: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """[n, 3]: the posterior from the whole covariance, by its eigenvectors."""
    design = np.ones((len(values), 1))
    if len(values) >= 8 and np.ptp(np.log(speed)) > 1e-9:
        design = np.column_stack([design, np.log(speed) - np.log(speed).mean()])
    spread = np.sqrt(np.clip(np.diag(errors), 1e-12, None))
    pairs = len(values) * (len(values) - 1)
    mean = min(max(((errors / np.outer(spread, spread)).sum() - len(values)) / pairs, 0.0), 0.99)
    own = np.clip((1 - mean) * spread**2, 1e-9, None)
    noise, basis = np.linalg.eigh(mean * (spread**2).mean() + np.diag(own))
    seen, shape = basis.T @ values, basis.T @ design
    logs, means, squares = [], [], []
    for between in np.linspace(0, 2 * float(np.std(values)) + 1e-6, 40) ** 2:
        weight = 1 / (between + noise)
        gram = np.linalg.inv(shape.T @ (weight[:, None] * shape))
        off = seen - shape @ (gram @ shape.T @ (weight * seen))
        logs.append(0.5 * (np.log(weight).sum() - (weight * off**2).sum() + np.linalg.slogdet(gram)[1]))
        pull = noise * weight
        means.append(basis @ (seen - pull * off))
        moved = basis @ (pull[:, None] * shape)
        squares.append(basis**2 @ (between * pull) + ((moved @ gram) * moved).sum(1) + means[-1] ** 2)
    chance = np.exp(np.array(logs) - max(logs))
    centre = chance @ np.array(means) / chance.sum()
    width = 1.959963984540054 * np.sqrt(np.clip(chance @ np.array(squares) / chance.sum() - centre**2, 0, None))
    return np.column_stack([centre, centre - width, centre + width])


@pytest.mark.parametrize("kind", ["plain", "ragged", "timed", "ties", "equal", "perfect"])
def test_shrinkage_without_the_matrix_is_that_with_it(kind: str) -> None:
    measured = Measured.of(campaign(kind))
    kept = statistics.joint_draws(measured)[1]
    factor = (kept - kept.mean(1, keepdims=True)) / np.sqrt(kept.shape[1] - 1)
    values, speed = measured.accuracy[:, 0], measured.speed[:, 0]
    found = [(item.value, item.low, item.high) for item in shrunk(values, factor, speed)]
    assert np.allclose(found, _shrunk(values, np.cov(kept), speed), atol=1e-6)


def _separated(scores: Scores, speed: Sequence[Estimate]) -> list[bool]:
    """Every program against every other one that may be as fast, each comparison flipped."""
    found = []
    for program, own in enumerate(speed):
        rivals = [n for n, other in enumerate(speed) if n != program and other.high >= own.low]
        leads = scores.leads(program, rivals)
        found.append(not rivals or bool((leads.sum(0) > 0).all() and (above(leads) <= LEVEL).all()))
    return found


@pytest.mark.parametrize("kind", CAMPAIGNS)
def test_separated_programs_are_those_above_each_rival(kind: str) -> None:
    some = 0
    for seed in range(8):
        verdicts = campaign(kind, seed)
        measured = Measured.of(verdicts)
        wanted = _separated(Scores.of(measured), [v.speedup for v in verdicts if v.speedup])
        assert separated(measured) == wanted
        some += sum(wanted)
    assert some or kind in ("none", "equal", "perfect", "ties")
