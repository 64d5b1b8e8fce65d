"""Shrinkage takes the winner's curse back, and equal programs are seldom called better than each other."""

from __future__ import annotations

import numpy as np
import pytest

from vortexlab.evaluator.measured import Measured
from vortexlab.evaluator.ranking import LEVEL, Scores, above, is_best, separated, shrunk, shrunk_accuracy
from vortexlab.evaluator.statistics import joint_draws
from vortexlab.evaluator.verdict import Estimate, Outcome, Verdict

TASKS = np.repeat(["a", "b"], 30)


def scores(rng: np.random.Generator, skill: list[float], answers: int = 4) -> Scores:
    """Programs of some `skill` on 60 contexts that differ much in difficulty; answers of a context hang together."""
    hard = rng.normal(0, 1, (60, 1, 1))
    own = rng.normal(0, 0.7, (60, 1, len(skill)))
    chance = 1 / (1 + np.exp(-(np.array(skill) + hard + own)))
    right = (rng.random((60, answers, len(skill))) < chance).sum(1)
    return Scores(TASKS, np.full((60, len(skill)), answers), right)


def verdict(name: str, speed: float, right: np.ndarray, answers: int = 4) -> Verdict:
    outcomes = tuple(
        Outcome(str(task), f"{n}", 1024, answers, answers, int(value))
        for n, (task, value) in enumerate(zip(TASKS, right, strict=True))
    )
    value = float(right.sum() / (60 * answers))
    return Verdict(
        name, name, name, {}, "accepted", speedup=Estimate(speed, speed, speed), accuracy=Estimate(value, value, value),
        outcomes=outcomes,
    )  # fmt: skip


def test_values_that_differ_by_noise_alone_move_to_their_mean() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.03, 40)
    found = shrunk(values, np.eye(40) * 0.03)
    assert np.ptp([item.value for item in found]) < 0.25 * np.ptp(values)
    assert all(item.low < 0.7 < item.high for item in found)


def test_values_that_stand_far_apart_stay() -> None:
    values = np.linspace(0.1, 0.9, 20)
    assert np.allclose([item.value for item in shrunk(values, np.eye(20) * 0.01)], values, atol=0.01)


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_the_best_of_many_is_not_overrated_and_intervals_cover(shared: float) -> None:
    rng, raw, moved, covered = np.random.default_rng(1), [], [], []
    errors = 0.04**2 * (shared + (1 - shared) * np.eye(30))
    for _ in range(200):
        truth = rng.normal(0.6, 0.03, 30)
        values = rng.multivariate_normal(truth, errors)
        found = shrunk(values, np.linalg.cholesky(errors))
        best, centre = int(values.argmax()), np.mean(values - truth)
        raw.append(values[best] - truth[best] - centre)
        moved.append(found[int(np.argmax([f.value for f in found]))].value - truth[best] - centre)
        covered.append(np.mean([f.low <= t <= f.high for f, t in zip(found, truth, strict=True)]))
    assert np.mean(moved) < 0.35 * np.mean(raw)
    assert np.mean(covered) > 0.9


def test_the_mean_follows_speed() -> None:
    rng = np.random.default_rng(2)
    speed = np.geomspace(1, 8, 40)
    truth = 0.95 - 0.2 * np.log(speed)
    values = truth + rng.normal(0, 0.03, 40)
    found = np.array([item.value for item in shrunk(values, np.eye(40) * 0.03, speed)])
    assert np.abs(found - truth).mean() < 0.5 * np.abs(values - truth).mean()


def test_what_all_share_moves_nobody_beyond_the_others() -> None:
    """Better programs have smaller errors, and nearly all of the error is luck with the contexts."""
    rng = np.random.default_rng(8)
    for _ in range(20):
        values = np.sort(rng.normal(0.93, 0.005, 60))
        spread = 0.02 - 0.3 * (values - 0.93)
        errors = np.outer(spread, spread) * (0.9 + 0.1 * np.eye(60))
        found = np.array([item.value for item in shrunk(values, np.linalg.cholesky(errors))])
        assert values[0] <= found.min() and found.max() <= values[-1]
        assert abs(found.mean() - values.mean()) < 0.3 * values.std()


def test_few_values_stay_as_they_are() -> None:
    found = shrunk(np.array([0.5, 0.7]), np.eye(2) * 0.1)
    assert [item.value for item in found] == [0.5, 0.7] and found[0].low == pytest.approx(0.304, abs=1e-3)


def test_sign_flips_hold_their_level_for_answers_that_hang_together() -> None:
    rng = np.random.default_rng(3)
    p = [above(scores(rng, [0.0, 0.0], answers=8).leads(0, [1]), seed=n, flips=500)[0] for n in range(800)]
    assert np.mean(np.array(p) <= LEVEL) <= LEVEL + 3 * (LEVEL / 800) ** 0.5
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("equal", [2, 8])
def test_some_of_equal_programs_is_called_best_seldom(equal: int) -> None:
    rng, wrong = np.random.default_rng(4), 0
    for n in range(300):
        found = scores(rng, [1.0] * equal + [-1.0] * 4)
        wrong += any(
            is_best(found, i, [j for j in range(equal + 4) if j != i], seed=n, flips=500) for i in range(equal)
        )
    assert wrong / 300 <= 2 * LEVEL + 3 * (2 * LEVEL / 300) ** 0.5


def test_a_planted_best_is_found_and_only_at_its_speed() -> None:
    rng = np.random.default_rng(5)
    found = scores(rng, [3.0, 0.5, 0.5, 3.2])
    rows = [verdict(str(n), speed, found.right[:, n]) for n, speed in enumerate([2.0, 2.0, 3.0, 1.0])]
    # 3 is as good as 0 but slower; 2 is the fastest, so nobody contests it; 1 is worse than 0 at the same speed.
    assert separated(Measured.of(rows)) == [True, False, True, False]
    lost = Verdict("lost", "l", "l", {}, "error")
    assert separated(Measured.of([lost, *rows])) == [True, False, True, False]
    assert separated(Measured.of([lost])) == separated(Measured.of([])) == []


def test_contexts_that_one_was_not_asked_do_not_count() -> None:
    answers = np.full((60, 2), 4)
    right = np.full((60, 2), 4)
    answers[:10, 1] = right[:10, 1] = 0
    leads = Scores(TASKS, answers, right).leads(0, [1])
    assert not leads.any()
    right[10:20, 1] = 0
    assert Scores(TASKS, answers, right).leads(0, [1]).sum() == pytest.approx(0.5 * 10 / 20)


def test_accuracy_is_shrunk_where_there_is_one() -> None:
    rng = np.random.default_rng(6)
    found = scores(rng, [0.5] * 12)
    rows = [verdict(str(n), 2.0, found.right[:, n]) for n in range(12)]
    measured = Measured.of([*rows, Verdict("lost", "l", "l", {}, "error")])
    assert measured.index.tolist() == list(range(12))
    values = [item.value for item in shrunk_accuracy(measured, joint_draws(measured)[1])]
    assert np.ptp(values) < 0.7 * np.ptp([row.accuracy.value for row in rows if row.accuracy])
    nothing = Measured.of([])
    assert shrunk_accuracy(nothing, joint_draws(nothing)[1]) == []
