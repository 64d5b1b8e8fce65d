"""Promotion after the screen by non-dominated rank, and the estimate of what that lost."""

from __future__ import annotations

import random

import pytest

from vortexlab.agent.arms import Arm
from vortexlab.agent.audit import audits
from vortexlab.agent.pareto import layers
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.trials import Trial
from vortexlab.evaluator.ladder import ALL_FIRST, Ladder
from vortexlab.evaluator.statistics import rank_correlation, wilson_upper
from vortexlab.evaluator.verdict import Estimate, GateResult, Head, Verdict


def test_layers_by_hand() -> None:
    points = [(1.0, 1.0), (3.0, 0.5), (2.0, 0.8), (2.0, 0.8), (1.5, 0.7), (1.0, 0.7), (0.5, 0.1)]
    assert layers(points) == [1, 1, 1, 1, 2, 3, 4]
    assert layers([]) == []


def test_everybody_goes_on_until_there_is_something_to_compare_with() -> None:
    ladder = Ladder(0.5)
    assert not any(ladder.judge(1.0 + n, 1.0) for n in range(ALL_FIRST))
    assert "behind 20 of 21 programs" in ladder.judge(0.5, 0.5)
    assert ladder.judge(99.0, 0.1) == ladder.judge(0.1, 1.5) == ""  # first in one of the two objectives


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_about_the_share_goes_on_and_never_a_member_of_the_frontier(share: float) -> None:
    rng, ladder, passed = random.Random(0), Ladder(share), 0
    for n in range(400):
        speed = rng.uniform(1, 5)
        point = (speed, 1.2 - 0.2 * speed + rng.gauss(0, 0.1))
        best = not any(a >= point[0] and b >= point[1] for a, b in ladder.points)
        reason = ladder.judge(*point)
        assert not (best and reason)
        passed += n >= ALL_FIRST and not reason
    # Those who came early were compared with few, so more than the share went on.
    assert share - 0.02 < passed / (400 - ALL_FIRST) < share + 0.15


def test_a_share_of_one_promotes_all_and_a_recalled_ladder_goes_on_where_it_stood() -> None:
    points = [(1 + n % 7, 0.1 * (n % 10)) for n in range(60)]
    assert not any(Ladder(1.0).judge(*point) for point in points)
    whole, verdicts = Ladder(0.5), []
    answers = []
    for n, point in enumerate(points):
        answers.append(whole.judge(*point))
        gate = GateResult("screen", not answers[-1], 0.0, answers[-1], {"point": list(point)})
        verdicts.append(Verdict(str(n), str(n), "s", {}, "accepted", gates=(gate,)))
    resumed = Ladder(0.5)
    before = [Head.of(verdict).screened for verdict in (*verdicts[:40], Verdict("lost", "l", "l", {}, "error"))]
    resumed.stand(point for point in before if point)
    assert [resumed.judge(*point) for point in points[40:]] == answers[40:]
    assert any(answers)


def trial(slot: int, speed: float, kept: float, *, gate: str | None = None, full: bool = True) -> Trial:
    reached = ["parse", "numerics", "fidelity", "screen"]
    reached = reached[: reached.index(gate) + 1] if gate and gate != "screen" else reached
    names = [*reached, *(["speed", "accuracy"] if full else [])]
    gates = tuple(GateResult(name, name != gate, 0.1, details={"point": [speed, kept]} if name == "screen" else {})
                  for name in names)  # fmt: skip
    both = {"speedup": Estimate(speed, speed, speed), "accuracy": Estimate(kept, kept, kept)} if full else {}
    verdict = Verdict(str(slot), str(slot), "s", {}, "rejected" if gate else "accepted", gate=gate, gates=gates, **both)  # type: ignore[arg-type]
    return Trial(slot, Arm("grammar", "x"), Proposal("", str(slot), "grammar", "x"), str(slot), "s", verdict)


def test_what_the_screen_lost_is_estimated_from_what_was_audited() -> None:
    accepted = [trial(n, 1.0 + n, 1.0 - 0.1 * n) for n in range(5)]
    # Forty were rejected, four of them audited, and one of these would lead: ten of the forty, by estimate.
    audited = [trial(10, 9.0, 0.3, gate="screen"), *(trial(n, 1.0, 0.5, gate="screen") for n in (11, 12, 13))]
    unseen = [trial(n, 0, 0, gate="screen", full=False) for n in range(20, 56)]
    wrong = [trial(n, 0, 0, gate="fidelity", full=False) for n in range(60, 63)]
    rows = {row.gate: row for row in audits([*accepted, *audited, *unseen, *wrong])}
    screen = rows["screen"]
    assert (screen.reached, screen.rejected, screen.audited, screen.found) == (45, 40, 4, 1)
    assert screen.lost == pytest.approx(10.0)
    assert screen.lost_high == pytest.approx(1 + 36 * wilson_upper(1, 4))
    assert screen.agreement == pytest.approx(1.0)
    assert (rows["fidelity"].rejected, rows["fidelity"].lost) == (3, 0.0)
    assert rows["parse"].reached == 48


def test_without_an_audit_nothing_is_known() -> None:
    rows = {row.gate: row for row in audits([trial(0, 2.0, 0.9), trial(1, 0, 0, gate="screen", full=False)])}
    assert rows["screen"].lost is None and rows["screen"].lost_high is None and rows["screen"].agreement is None
    assert audits([]) == []


def test_the_estimate_is_right_on_the_average() -> None:
    """A planted screen that rejects at random: audits of one in five tell how many leaders it threw away."""
    rng, estimates, truth = random.Random(1), [], []
    for _ in range(60):
        rows, lost = [], 0
        rows.append(trial(0, 1.0, 1.0))
        for slot in range(1, 60):
            leads = rng.random() < 0.3
            speed, kept = (1.0, 1.5) if leads else (0.5, 0.5)
            rows.append(trial(slot, speed, kept, gate="screen", full=rng.random() < 0.2))
            lost += leads
        (screen,) = (row for row in audits(rows) if row.gate == "screen")
        if screen.lost is not None:
            estimates.append(screen.lost)
            truth.append(lost)
    assert sum(estimates) / len(estimates) == pytest.approx(sum(truth) / len(truth), rel=0.1)


def test_rank_correlation_by_hand() -> None:
    import numpy as np

    up = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(up, up**3) == pytest.approx(1.0)
    assert rank_correlation(up, -up) == pytest.approx(-1.0)
    assert rank_correlation(up, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert rank_correlation(up, np.ones(4)) == 0.0
    # Ties share the mean rank: 0.5, 0.5, 2, 3 against 0..3.
    assert rank_correlation(up, np.array([1.0, 1.0, 2.0, 3.0])) == pytest.approx(0.948683, abs=1e-6)
