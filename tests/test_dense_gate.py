"""The dense gate as a table: where it opens, what it refuses, what it keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.gate import Gate, Ratio

CONDITIONS = {"program_hash": "00", "device": "a CPU", "dtype": "float32", "geometry": {}, "versions": {}, "seed": 0}


def row(batch: int, context: int, low: float, value: float | None = None) -> dict[str, Any]:
    middle = low + 0.1 if value is None else value
    return {"batch": batch, "context": context, "failure": "",
            "speedup": {"value": middle, "low": low, "high": middle + 0.1}}  # fmt: skip


def gate(*rows: dict[str, Any]) -> Gate:
    return Gate.of(rows, CONDITIONS)


def test_it_opens_where_all_longer_contexts_are_open_too() -> None:
    found = gate(
        row(4, 4096, 1.0), row(4, 1024, 0.5), row(4, 16384, 2.0),  # opens in the middle; order is none
        row(1, 1024, 1.5), row(1, 4096, 0.99, 1.2), row(1, 16384, 1.1),  # a dip in between keeps it shut below
        row(2, 1024, 3.0), row(2, 16384, 0.999, 1.4),  # the longest is not shown to be faster: never
        row(8, 1024, 1.2),
    )  # fmt: skip
    assert found.opens == {1: 16384, 2: None, 4: 4096, 8: 1024}
    assert list(found.opens) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("batch", "context", "sparse"),
    [
        (1, 1 << 20, False), (2, 4095, False), (2, 4096, True), (2, 1 << 20, True), (3, 4096, True),
        (7, 5000, True), (8, 1 << 20, False), (1000, 1 << 20, False), (2, 1, False),
    ],
)  # fmt: skip
def test_the_largest_measured_batch_not_above_decides(batch: int, context: int, sparse: bool) -> None:
    found = gate(row(2, 1024, 0.5), row(2, 4096, 1.5), row(8, 1024, 2.0), row(8, 4096, 0.5))
    assert found.is_sparse(batch, context) is sparse


def test_shorter_than_all_measured_contexts_is_dense() -> None:
    found = gate(row(1, 1024, 2.0), row(1, 4096, 2.0))
    assert not found.is_sparse(1, 1023) and found.is_sparse(1, 1024)


def test_it_survives_json_and_holds_its_ratios() -> None:
    found = gate(row(1, 1024, 0.5), row(1, 4096, 1.5), row(4, 1024, 0.5))
    data = json.loads(json.dumps(found.to_json()))
    assert Gate.from_json(data) == found
    assert data["opens"] == [{"batch": 1, "context": 4096}, {"batch": 4, "context": None}]
    assert data["conditions"] == CONDITIONS and found.ratios[0] == Ratio(1, 1024, 0.6, 0.5, 0.7)


def test_a_row_that_was_wrong_makes_no_gate() -> None:
    wrong = {"batch": 1, "context": 64, "failure": "a timed output is off", "speedup": None}
    with pytest.raises(VortexError, match="batch 1, context 64: a timed output is off"):
        gate(row(1, 1024, 2.0), wrong)
    with pytest.raises(VortexError, match="at least one"):
        gate()
    with pytest.raises(VortexError, match="batch 1, context 1024 twice"):
        gate(row(1, 1024, 2.0), row(1, 1024, 1.0))
    with pytest.raises(VortexError, match="lacks device, seed"):
        Gate.of([row(1, 64, 1.0)], {k: v for k, v in CONDITIONS.items() if k not in ("device", "seed")})


GOOD = {
    "opens": [{"batch": 1, "context": 1024}],
    "ratios": [{"batch": 1, "context": 1024, "value": 1.5, "low": 1.2, "high": 2}],
    "conditions": CONDITIONS,
}


def with_ratio(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "ratios": [{**GOOD["ratios"][0], **changes}]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "no gate"), ([], "no gate"), ("gate", "no gate"), ({}, "no gate"),
        ({**GOOD, "ratios": 3}, "no gate"), ({**GOOD, "ratios": []}, "at least one"),
        ({**GOOD, "opens": [1]}, "no gate"),
        ({**GOOD, "conditions": 7}, "no gate"), ({**GOOD, "conditions": {}}, "lacks program_hash"),
        ({**GOOD, "opens": []}, "not those of its ratios"),
        ({**GOOD, "opens": [{"batch": 1, "context": 64}]}, "not those of its ratios"),
        (with_ratio(batch=0), "batch is a whole number"), (with_ratio(batch=True), "batch is a whole number"),
        (with_ratio(context="4k"), "context is a whole number"), (with_ratio(context=1.5), "context is a whole number"),
        (with_ratio(low=float("nan")), "0 < low"), (with_ratio(low=1.6), "0 < low"), (with_ratio(low=-1.0), "0 < low"),
        (with_ratio(high=float("inf")), "0 < low"), (with_ratio(value="1"), "0 < low"),
        (with_ratio(extra=1), "no gate"),
    ],
)  # fmt: skip
def test_bad_json_gets_one_line(data: Any, says: str) -> None:
    assert Gate.from_json(GOOD).is_sparse(1, 1024)
    with pytest.raises(VortexError, match=says) as caught:
        Gate.from_json(data)
    assert len(str(caught.value).splitlines()) == 1
