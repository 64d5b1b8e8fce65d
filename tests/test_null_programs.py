"""Programs that ignore what is asked get the verdicts that were written down before any of them was run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.verdict import Verdict

WRITTEN = json.loads(Path(__file__).with_name("null_programs.json").read_text())
# What the screen rejects goes on in full, and nothing stops early, so that every task is judged by all of its answers.
FULL = EvaluationConfig(speed="predicted", audit_share=1.0, stop_below=0.0, promoted=1.0)
SHORT = replace(FULL, lengths=(1024,), tasks=("needles", "keys"), contexts=10, compile_for=(), threads=1)


def as_written(expected: str, found: dict[str, Any], density: float) -> bool:
    """Whether one task came out as expected; the words are explained in the file."""
    return {
        "same": found["wins"] == found["losses"] == 0,
        "near dense": found["sparse"] >= 0.9 * found["dense"],
        "fails": found["sparse"] <= density + WRITTEN["margin"],
        "reported": True,
    }[expected]


def deviations(expected: dict[str, Any], verdict: Verdict, dense: dict[str, float]) -> list[str]:
    """One line for everything in which a verdict is not as written."""
    assert verdict.accuracy is not None and verdict.density is not None, verdict.reason
    status = f"rejected at {verdict.gate}" if verdict.gate else verdict.status
    lines = []
    if status not in expected["status"].split(" or "):
        lines.append(f"status {status}: {verdict.reason}")
    if not verdict.accuracy.value <= expected["kept_below"]:
        lines.append(f"keeps {verdict.accuracy}")
    low, high = expected["density"]
    if not low <= verdict.density <= high + 1e-9:
        lines.append(f"density {verdict.density:.4f}")
    for task, found in verdict.per_task.items():
        if dense[task] < WRITTEN["dense_at_least"]:
            continue
        if not as_written(expected["tasks"][task], found, verdict.density):
            lines.append(f"{task} {expected['tasks'][task]!r}: {found['sparse']:.3f}, dense {found['dense']:.3f}")
    return lines


def judge(config: EvaluationConfig, least: int) -> None:
    """All programs under `config`, where dense attention must solve at least `least` tasks well enough."""
    found = {}
    with Evaluator(config) as evaluator:
        dense = evaluator.dense_scores()
        assert sum(score >= WRITTEN["dense_at_least"] for score in dense.values()) >= least, dense
        for name, expected in WRITTEN["programs"].items():
            verdict = evaluator.evaluate(expected["source"])
            scores = {task: round(row["sparse"], 3) for task, row in verdict.per_task.items()}
            print(f"{name}: {verdict.status}, kept {verdict.accuracy}, density {verdict.density:.4f}, {scores}")
            assert verdict.alarms == ()
            found[name] = deviations(expected, verdict, dense)
    assert not any(found.values()), found


def test_on_two_tasks_with_short_contexts() -> None:
    judge(SHORT, least=2)


@pytest.mark.slow
def test_on_every_task_that_dense_attention_solves() -> None:
    judge(FULL, least=6)


@pytest.mark.parametrize(
    ("expected", "found", "right"),
    [
        ("same", {"wins": 0, "losses": 0}, True),
        ("same", {"wins": 1, "losses": 1}, False),
        ("near dense", {"sparse": 0.91, "dense": 1.0}, True),
        ("near dense", {"sparse": 0.89, "dense": 1.0}, False),
        ("fails", {"sparse": 0.24}, True),
        ("fails", {"sparse": 0.26}, False),
        ("reported", {}, True),
    ],
)
def test_the_words_mean_what_the_file_says(expected: str, found: dict[str, Any], right: bool) -> None:
    row = {"wins": 0, "losses": 0, "sparse": 0.0, "dense": 1.0, **found}
    assert as_written(expected, row, density=0.1) is right
