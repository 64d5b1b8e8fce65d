"""The leaderboard: frontier by point estimate, how certain that is, and which new program beats the published ones."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vortexlab.agent.arms import Arm
from vortexlab.agent.leaderboard import Leaderboard
from vortexlab.agent.pareto import frontier, hypervolume
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.standings import leaderboard
from vortexlab.agent.trials import History, Trial
from vortexlab.evaluator.fronts import non_dominated
from vortexlab.evaluator.verdict import Estimate, Outcome, Verdict

PUBLISHED = "published"


def trial(
    slot: int,
    name: str,
    speed: float,
    right: Sequence[int],
    *,
    new: bool,
    spread: float = 0.0,
    status: str = "accepted",
) -> Trial:
    """A program that answers `right[c]` of 4 questions of context c, at a speed measured with a relative spread."""
    rng = random.Random(slot)
    samples = {"4096": [speed * math.exp(rng.gauss(0, spread)) for _ in range(30)]} if spread else {}
    outcomes = tuple(Outcome("needle", f"c{n}", 4096, 4, 4, hits) for n, hits in enumerate(right))
    kept = sum(right) / (4 * len(right))
    verdict = Verdict(
        name, f"h{slot}", "s", {}, status,
        speedup=Estimate(speed, speed, speed), accuracy=Estimate(kept, kept, kept), density=1 / speed,
        outcomes=outcomes, speed_samples=samples, answers=4 * len(right), contexts=len(right),
        conditions={"device": "cpu", "predicted_device": "gpu", "speed": "measured" if spread else "predicted"},
    )  # fmt: skip
    arm = Arm("grammar" if new else "seed", "x")
    return Trial(slot, arm, Proposal("", name, arm.proposer, "x"), f"h{slot}", name if new else PUBLISHED, verdict)


def board(trials: list[Trial]) -> Leaderboard:
    history = History(started={"seed_structures": [PUBLISHED]}, trials=trials)
    return leaderboard("run", history)


def hits(kept: float, contexts: int = 40, seed: int = 0) -> list[int]:
    """About `kept` of the answers right, spread over the contexts."""
    rng = random.Random(seed)
    total = round(kept * 4 * contexts)
    marks = [1] * total + [0] * (4 * contexts - total)
    rng.shuffle(marks)
    return [sum(marks[4 * c : 4 * c + 4]) for c in range(contexts)]


def test_frontier_and_hypervolume_by_hand() -> None:
    points = [(1.0, 1.0), (3.0, 0.5), (2.0, 0.8), (2.0, 0.8), (1.5, 0.7), (4.0, 0.0)]
    assert frontier(points) == [5, 1, 2, 0]
    assert hypervolume(points) == pytest.approx(3 * 0.5 + 2 * 0.3 + 1 * 0.2)
    assert hypervolume([]) == 0.0 and frontier([]) == []


def test_of_equal_points_the_first_is_on_the_frontier_and_all_are_not_dominated() -> None:
    assert frontier([(1.0, 1.0)] * 3) == [0]
    assert non_dominated(np.ones(3), np.ones(3)).tolist() == [True] * 3
    assert frontier([(1.0, 1.0), (2.0, 0.5), (2.0, 0.5), (1.0, 0.9), (1.0, 1.0)]) == [1, 0]
    rng = random.Random(1)
    for size in range(1, 40):
        points = [(rng.randrange(5) / 4, rng.randrange(5) / 4) for _ in range(size)]
        whole = [p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)]
        on = non_dominated(*np.array(points).T)
        assert [p for p, kept in zip(points, on, strict=True) if kept] == whole
        assert frontier(points) == [points.index(p) for p in sorted(set(whole), reverse=True)]


def test_totals_kept_trial_by_trial_are_those_of_all_at_once() -> None:
    rng = random.Random(2)
    trials = [
        trial(slot, f"p{rng.randrange(9)}", rng.randrange(1, 9) / 2, [rng.randrange(5)] * 4, new=True,
              status=rng.choice(("accepted", "accepted", "rejected")))
        for slot in range(120)
    ]  # fmt: skip
    history, area = History(), 0.0
    for number, item in enumerate(trials, 1):
        history.totals.add(item)
        measured = [one for one in trials[:number] if one.point]
        points = [one.point for one in measured if one.point]
        front = [measured[i].id for i in frontier(points)]
        assert [one.id for one in history.frontier()] == front
        assert {one.id for one in history.members() if one.on_frontier} == set(front)
        assert history.gains()[-1] == pytest.approx(hypervolume(points) - area)
        area = hypervolume(points)
    assert history.totals.structures == {one.structure for one in trials if one.point}
    assert history.totals.statuses.total() == history.totals.tried.total() == len(history.hashes()) == 120


def test_hypervolume_against_counting_on_a_grid() -> None:
    rng = random.Random(0)
    for _ in range(20):
        points = [(rng.randrange(1, 20) / 10, rng.randrange(1, 20) / 10) for _ in range(rng.randrange(1, 8))]
        cells = sum(
            any(x <= s and y <= a for s, a in ((round(s * 10), round(a * 10)) for s, a in points))
            for x in range(1, 20) for y in range(1, 20)
        )  # fmt: skip
        assert hypervolume(points) == pytest.approx(cells / 100)


def test_order_is_frontier_first_then_speed_and_rejected_programs_have_no_row() -> None:
    made = board([
        trial(0, "Dense", 1.0, hits(1.0), new=False),
        trial(1, "Slow", 1.5, hits(0.4), new=True),
        trial(2, "Quest", 2.0, hits(0.9), new=False),
        trial(3, "Fast", 4.0, hits(0.5), new=True),
        trial(4, "Gone", 9.0, hits(0.5), new=True, status="rejected"),
    ])  # fmt: skip
    assert [(e.name, e.on_frontier) for e in made.entries] == [
        ("Fast", True), ("Quest", True), ("Dense", True), ("Slow", False),
    ]  # fmt: skip
    assert [e.new for e in made.entries] == [True, False, False, True]


def test_frontier_probability_follows_the_noise() -> None:
    clear = board([trial(0, "A", 1.0, hits(1.0), new=False), trial(1, "B", 3.0, hits(0.8), new=True)])
    assert [e.frontier_probability for e in clear.entries] == [1.0, 1.0]
    # Equal accuracy, on different contexts: which of the two survives is a matter of luck, unless one is faster too.
    close = board([trial(0, "A", 2.0, hits(0.8, seed=1), new=False), trial(1, "B", 2.001, hits(0.8, seed=2), new=True)])
    by_name = {e.name: e for e in close.entries}
    assert by_name["B"].on_frontier and not by_name["A"].on_frontier
    assert by_name["B"].frontier_probability == 1.0
    assert 0.2 < by_name["A"].frontier_probability < 0.8
    noisy = board([
        trial(0, "A", 2.0, hits(0.8), new=False, spread=0.3), trial(1, "B", 2.02, hits(0.8), new=True, spread=0.3)
    ])  # fmt: skip
    assert all(0.05 < e.frontier_probability < 0.95 for e in noisy.entries)


def published() -> list[Trial]:
    return [
        trial(0, "Dense", 1.0, hits(1.0), new=False),
        trial(1, "Quest", 2.0, hits(0.9), new=False),
        trial(2, "Window", 4.0, hits(0.4), new=False),
    ]


def compared(*new: Trial) -> dict[str, Any]:
    return {entry.name: entry.beats_seed for entry in board([*published(), *new]).entries}


def test_a_program_that_is_faster_and_as_accurate_beats_its_best_seed() -> None:
    found = compared(trial(3, "Better", 3.0, hits(0.9), new=True))
    assert found["Quest"] is None and found["Dense"] is None
    better = found["Better"]
    assert (better.seed, better.name, better.beaten) == ("t0001", "Quest", True)
    assert better.difference.value == pytest.approx(1.0)
    assert 0 < better.difference.low <= 1.0 <= better.difference.high


def test_sliding_along_the_published_frontier_is_no_win() -> None:
    """Halfway between two seeds in both objectives: other knobs of theirs would do as well."""
    found = compared(trial(3, "Between", 3.0, hits(0.65), new=True))["Between"]
    assert found.difference.value == pytest.approx(0.0, abs=1e-9) and not found.beaten
    below = compared(trial(3, "Cheap", 9.0, hits(0.1), new=True))["Cheap"]
    assert below.difference.value == 0.0 and not below.beaten
    slower = compared(trial(3, "Slower", 1.2, hits(0.9), new=True))["Slower"]
    assert slower.difference.high < 0


def test_a_lead_within_the_noise_is_no_win() -> None:
    near = compared(trial(3, "Near", 2.1, hits(0.9, seed=5), new=True, spread=0.4))["Near"]
    assert near.difference.value > 0 > near.difference.low and not near.beaten


def test_closing_lines_say_what_is_new_and_what_wins() -> None:
    nothing = board([*published(), trial(3, "Between", 3.0, hits(0.65), new=True)]).closing_lines()
    assert nothing[0] == "Frontier: 4 programs, 1 of them new (of no published structure)."
    assert nothing[2] == "  t0003 Between: 3.00x at 0.650 kept, density 0.333  [new]"
    assert nothing[-1] == "No new frontier member beats its best seed with a lower bound above zero."
    won = board([*published(), trial(3, "Better", 3.0, hits(0.9), new=True)]).closing_lines()
    assert won[-1].startswith(
        "t0003 Better beats its best seed t0001 Quest at matched accuracy by 1.00x, 95 % interval ["
    )
    old = board([trial(0, "Dense", 1.0, hits(1.0), new=False)]).closing_lines()
    assert old[0] == "Frontier: 1 program, 0 of them new (of no published structure)."


def test_json_and_csv_carry_the_promised_columns() -> None:
    made = board([*published(), trial(3, "Better", 3.0, hits(0.9), new=True)])
    data = made.to_json()
    assert set(data) == {"run", "entries"} and data["run"] == "run"
    row = next(row for row in data["entries"] if row["name"] == "Better")
    assert {"id", "name", "on_frontier", "frontier_probability", "speedup", "accuracy", "density", "device"} <= set(row)
    assert set(row["speedup"]) == set(row["accuracy"]) == {"value", "low", "high"}
    assert row["device"] == "gpu" and row["speed"] == "predicted" and row["beats_seed"]["id"] == "t0001"
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert {"id", "frontier_probability", "accuracy", "accuracy_low", "accuracy_high", "density", "device", "speed",
            "new", "answers", "contexts", "knobs", "structure"} <= set(rows[0])  # fmt: skip
    assert [line["name"] for line in rows] == [entry.name for entry in made.entries]
    assert rows[1]["beats_seed"] == "t0001" and float(rows[1]["speedup_low"]) == 3.0
