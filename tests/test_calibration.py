"""The cost model's H200 is what the kept measurements yield, and its errors are those that the documents state."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vortexlab.kernels.devices import get_device

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import calibrate  # noqa: E402
import records  # noqa: E402


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return dict(json.loads((records.RESULTS / "h200-calibration.json").read_text()))


@pytest.fixture(scope="module")
def rows() -> list[calibrate.Measured]:
    return [
        row for name in calibrate.SOURCES for row in calibrate.measurements(records.read_rows(records.RESULTS / name))
    ]


def test_the_shipped_rates_are_those_of_the_calibration(kept: dict[str, Any], rows: list[calibrate.Measured]) -> None:
    shipped = get_device("h200")
    assert kept["sources"] == list(calibrate.SOURCES) and set(kept["rates"]) == set(calibrate.FITTED)
    assert {name: getattr(shipped, name) for name in kept["rates"]} == kept["rates"]
    found = calibrate.fit(rows)
    best = float((calibrate.residuals(rows, found) ** 2).sum())
    assert float((calibrate.residuals(rows, shipped) ** 2).sum()) == pytest.approx(best, rel=0.01)


def test_the_kept_errors_are_those_of_the_shipped_model(kept: dict[str, Any], rows: list[calibrate.Measured]) -> None:
    shipped = get_device("h200")
    assert [row["predicted_us"] for row in kept["rows"]] == pytest.approx([row.predicted(shipped) for row in rows])
    assert [row["us"] for row in kept["rows"]] == [row.us for row in rows]
    found = calibrate.errors(rows, shipped)
    assert list(found) == list(kept["errors"]) and list(found)[-1] == "all"
    for what, error in found.items():
        assert error == pytest.approx(kept["errors"][what])
    assert kept["errors"]["all"]["rows"] == kept["held_out"]["rows"] == len(rows)


def test_the_documents_state_those_errors(kept: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "evaluator.md").read_text()
    assert "\n".join(calibrate.table(kept)) in text


def test_a_fit_finds_the_rates_that_made_the_times(rows: list[calibrate.Measured]) -> None:
    shipped = get_device("h200")
    true = replace(shipped, dense=2e12, read=1.7e12, gather=1.5e12, launch=1.5e-6, choose_latency=6e-6)
    made = [replace(row, us=row.predicted(true)) for row in rows]
    found = calibrate.fit(made)
    assert max(abs(calibrate.residuals(made, found))) < 0.01
    assert found.dense == pytest.approx(true.dense, rel=0.05) and found.launch == pytest.approx(true.launch, rel=0.05)


def test_a_dense_row_is_the_fastest_of_its_cell() -> None:
    place = {"heads": 16, "kv_heads": 8, "head_dim": 128, "context": 4096, "page": 16, "dtype": "bf16"}
    found = calibrate.measurements([
        {**place, "what": "dense (ours)", "batch": 1, "us": 12.0},
        {**place, "what": "dense (FlashInfer)", "batch": 1, "us": 10.0},
        {**place, "what": "dense (ours)", "batch": 8, "us": 40.0},
    ])  # fmt: skip
    assert [(row.row["batch"], row.us) for row in found] == [(1, 10.0), (8, 40.0)]
