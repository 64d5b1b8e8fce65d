"""The benchmarks of the statistics, on planted records: what is resampled is null, what is planted is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import fidelity_ranks
import null_campaigns

from vortexlab.dsl import parse


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> null_campaigns.Recorded:
    """Forty programs, of which the first really is better on these very contexts."""
    rng = np.random.default_rng(0)
    right = rng.binomial(4, 0.9, (40, 48))
    right[0] = 4
    contexts = [["a" if n < 24 else "b", f"c{n}", 4, 4] for n in range(48)]
    path = tmp_path_factory.mktemp("null") / "null.json"
    rows: list[dict[str, Any]] = [{"program": n, "right": row.tolist()} for n, row in enumerate(right)]
    path.write_text(
        json.dumps({"conditions": {}, "contexts": contexts, "rows": [*rows, {"program": 40, "error": "x"}]})
    )
    return null_campaigns.Recorded.read(path)


def test_records_are_read_and_errors_left_out(recorded: null_campaigns.Recorded) -> None:
    assert recorded.right.shape == (48, 40) and recorded.score == pytest.approx(0.9, abs=0.02)


def test_in_a_resampled_campaign_nobody_is_better(recorded: null_campaigns.Recorded) -> None:
    rng = np.random.default_rng(1)
    draws = np.mean([null_campaigns.means(null_campaigns.campaign(recorded, 40, 24, rng)) for _ in range(300)], axis=0)
    assert draws.std() < 0.005 and draws.mean() == pytest.approx(recorded.score, abs=0.005)
    found = null_campaigns.campaign(recorded, 7, 10, rng)
    assert found.right.shape == (20, 7) and (found.tasks == np.repeat(["a", "b"], 10)).all()


def test_false_winners_are_as_seldom_as_promised_where_the_plain_rule_has_many(
    recorded: null_campaigns.Recorded,
) -> None:
    pair = null_campaigns.false_winners(recorded, 2, 24, 300, 0)
    assert pair["winners"]["share"] <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    many = null_campaigns.false_winners(recorded, 40, 24, 60, 0)
    assert many["winners"]["share"] <= 0.05 < 0.2 < many["plain_winners"]["share"]
    assert many["best_above_mean_shrunk"] < 0.5 * many["best_above_mean"]


@pytest.mark.parametrize("whole", [False, True])
def test_the_planted_gap_is_the_one_asked_for(recorded: null_campaigns.Recorded, whole: bool) -> None:
    rng = np.random.default_rng(2)
    gaps = []
    for _ in range(200):
        scores = null_campaigns.planted(null_campaigns.campaign(recorded, 5, 24, rng), 0.05, recorded.score, rng, whole)
        found = null_campaigns.means(scores)
        gaps.append(found[0] - found[1:].mean())
    assert np.mean(gaps) == pytest.approx(0.05, abs=0.005)


def test_power_grows_with_the_gap_and_the_answers(recorded: null_campaigns.Recorded) -> None:
    def found(gap: float, contexts: int) -> float:
        return float(null_campaigns.power(recorded, gap, contexts, 40, 0, whole=False)["found"])

    assert found(0.0001, 24) <= 0.1
    assert found(0.2, 48) == 1.0 >= found(0.08, 48) > found(0.08, 12)


def test_the_tables_have_every_row(recorded: null_campaigns.Recorded) -> None:
    null = [null_campaigns.false_winners(recorded, 5, 6, 5, 0)]
    power = [
        null_campaigns.power(recorded, 0.05, size, 4, 0, whole=whole) for size in (6, 12) for whole in (False, True)
    ]
    text = null_campaigns.table({"null": null, "power": power})
    assert "| 5 | 6 a task | 5 |" in text and "| 5 points, contexts |" in text and "| 48 answers | 96 answers |" in text


def row(name: str, kept: float, read: float, **measures: float) -> dict[str, Any]:
    plain = dict.fromkeys(fidelity_ranks.MEASURES, 0.5)
    return {"program": name, "accuracy": {"value": kept}, "read": read, **plain, **measures}


def test_a_measure_that_knows_accuracy_ranks_first_and_loses_nothing() -> None:
    rows = [row(str(n), n / 20, 0.1, error_mean=1 - n / 20, mass=(n * 7 % 20) / 20) for n in range(20)]
    found = {item["measure"]: item for item in fidelity_ranks.correlations(rows, draws=200)}
    assert found["error_mean"]["spearman"] == pytest.approx(1.0) and found["error_mean"]["frontier_lost"] == 0
    assert found["error_mean"]["low"] > 0.9 > abs(found["mass"]["spearman"])
    assert found["divergence"]["spearman"] == 0.0
    assert found["error_mean"]["killed"] == 5 and found["error_mean"]["best_killed"] == pytest.approx(0.2)
    assert fidelity_ranks.correlations(rows, draws=200)[0]["measure"] == "error_mean"
    assert "output error, mean over heads | 1.00" in fidelity_ranks.table(fidelity_ranks.correlations(rows, draws=200))


def test_budgets_are_the_share_asked_for_within_the_range_of_the_knob() -> None:
    assert fidelity_ranks.knobs("quest", 0.1, 2048) == {"budget": 13}
    assert fidelity_ranks.knobs("gqa_quest", 0.1, 2048) == {"fraction": 0.1}
    assert fidelity_ranks.knobs("sink_window", 0.1, 2048) == {}


def test_the_recorded_programs_differ_in_their_seed_alone() -> None:
    pytest.importorskip("triton")
    import null_record

    first, second = (parse(null_record.SOURCE.format(seed=seed)).bind() for seed in (0, 1))
    assert first.seed == 0 and second.seed == 1 and first.nodes == second.nodes
