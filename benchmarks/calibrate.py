"""Fits the rates of the cost model's H200 to kept measurements, and reports how far predictions are from each of them.

    PYTHONPATH=build/linked python benchmarks/calibrate.py [FILE ...] --json benchmarks/results/h200-calibration.json

FILEs are what decode_grid.py wrote; by default the kept ones. A dense row is the fastest dense attention of its cell,
ours or a peer's; every other row is a whole step of a program, with the pages that it read. The rates are those with
the least squares of log(predicted / measured). Errors are |predicted / measured - 1|; `held out` is the error on
cells that a fit had not seen, each half of the cells predicted from the other. Runs on any machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import records
from records import RESULTS, Row

from vortexlab import search_spaces
from vortexlab.dsl.ir import Static
from vortexlab.kernels.cost import Model, model
from vortexlab.kernels.devices import Device, get_device

#: Kept measurements, by name in benchmarks/results.
SOURCES = ("h200-decode-grid.json", "h200-sparse-steps.json")
#: What is fitted: the least value, where the search starts, the most.
FITTED: dict[str, tuple[float, float, float]] = {
    "dense": (1e12, 4e12, 4.8e12), "read": (1e12, 4e12, 4.8e12), "gather": (1e12, 4e12, 4.8e12),
    "ramp": (1e-8, 3e-6, 5e-5), "ramp_bytes": (1e6, 1e7, 1e9), "launch": (2e-7, 2e-6, 1e-5),
    "attend_latency": (1e-8, 2e-6, 2e-5), "choose_latency": (1e-8, 4e-6, 3e-5), "choose": (1e9, 1e11, 1e13),
}  # fmt: skip
_ROUNDS, _TRIES, _NUDGE = 40, 8, 1e-3


@dataclass
class Measured:
    """One measured time and the model that predicts it."""

    what: str
    row: Row
    model: Model
    us: float
    pages: float

    @property
    def cell(self) -> tuple[Any, ...]:
        return tuple(self.row[key] for key in ("heads", "kv_heads", "context", "batch"))

    def predicted(self, device: Device) -> float:
        """Microseconds."""
        self.model.device = device
        found = self.model.predict(self.pages)
        return 1e6 * (found.dense.seconds if self.what == "dense" else found.seconds)


def measurements(rows: Iterable[Row]) -> list[Measured]:
    """What can be predicted of the rows of one file: the best dense time of every cell, and programs' steps. Rows of
    kernels that have changed since are `superseded` and left out."""
    dense: dict[tuple[Any, ...], Measured] = {}
    steps = []
    for row in rows:
        if "superseded" in row:
            continue
        static = Static(row["kv_heads"], row["heads"] // row["kv_heads"], row["head_dim"], row["head_dim"] ** -0.5)
        if row["what"].startswith("dense"):
            program = search_spaces.load("dense").bind({})
            found = Measured("dense", row, _model(program, static, row), row["us"], row["context"])
            if found.cell not in dense or found.us < dense[found.cell].us:
                dense[found.cell] = found
        else:
            program = search_spaces.load(row["what"]).bind(row["knobs"])
            pages = row.get("pages", row["density"] * row["context"] / program.page_size)
            what = f"{row['what']} P{program.page_size}"
            steps.append(Measured(what, row, _model(program, static, row), row["us"], pages))
    return [*dense.values(), *steps]


def _model(program: Any, static: Static, row: Row) -> Model:
    return model(program, static, row["context"], row["batch"], "h200", row["dtype"])


def residuals(rows: Sequence[Measured], device: Device) -> np.ndarray:
    """log(predicted / measured) of every row."""
    return np.array([math.log(row.predicted(device) / row.us) for row in rows])


def fit(rows: Sequence[Measured]) -> Device:
    """The H200 with fitted constants: Levenberg and Marquardt's method on their logarithms; three digits are kept."""
    device = replace(get_device("h200"), **{name: start for name, (_, start, _) in FITTED.items()})  # type: ignore[arg-type]
    damping = 1e-2
    left = residuals(rows, device)
    for _ in range(_ROUNDS):
        nudged = [residuals(rows, moved(device, {name: _NUDGE})) for name in FITTED]
        slopes = np.stack([(item - left) / _NUDGE for item in nudged], axis=1)
        square = slopes.T @ slopes
        for _ in range(_TRIES):
            step = -np.linalg.solve(square + damping * np.eye(len(FITTED)), slopes.T @ left)
            tried = moved(device, dict(zip(FITTED, step.clip(-1, 1).tolist(), strict=True)))
            found = residuals(rows, tried)
            if found @ found < left @ left:
                break
            damping *= 4
        else:
            break
        gained = (left @ left) / (found @ found) - 1
        device, left, damping = tried, found, damping / 4
        if gained < 1e-5:
            break
    return replace(device, **{name: float(f"{getattr(device, name):.3g}") for name in FITTED})  # type: ignore[arg-type]


def moved(device: Device, steps: dict[str, float]) -> Device:
    """The device with constants multiplied by exp(step), within their bounds."""
    found = {}
    for name, step in steps.items():
        low, _, high = FITTED[name]
        found[name] = min(high, max(low, getattr(device, name) * math.exp(step)))
    return replace(device, **found)


def errors(rows: Sequence[Measured], device: Device) -> dict[str, dict[str, float]]:
    """By what was measured and over all: rows, median, ninth decile and worst of |predicted / measured - 1|."""
    found: dict[str, list[float]] = {}
    for row in rows:
        error = abs(row.predicted(device) / row.us - 1)
        for what in (row.what, "all"):
            found.setdefault(what, []).append(error)
    return {what: _spread(values) for what, values in sorted(found.items(), key=lambda item: item[0] == "all")}


def _spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    tenth = values[min(len(values) - 1, math.ceil(0.9 * len(values)) - 1)]
    return {"rows": len(values), "median": statistics.median(values), "p90": tenth, "worst": values[-1]}


def held_out(rows: Sequence[Measured]) -> dict[str, float]:
    """Errors of each half of the cells under the rates fitted to the other."""
    cells = sorted({row.cell for row in rows})
    halves = [[row for row in rows if cells.index(row.cell) % 2 == half] for half in (0, 1)]
    if not all(halves):
        return {}
    devices = [fit(half) for half in halves]
    pairs = zip(halves, reversed(devices), strict=True)
    return _spread([abs(row.predicted(device) / row.us - 1) for half, device in pairs for row in half])


def calibration(paths: Sequence[Path]) -> dict[str, Any]:
    """Everything that the calibration yields, as JSON."""
    found = [records.read_rows(path) for path in paths]
    rows = [item for part in found for item in measurements(part)]
    device = fit(rows)
    return {
        "kind": "predicted", "device": device.name, "sources": [path.name for path in paths],
        "conditions": [part[0]["conditions"] for part in found],
        "rates": {name: getattr(device, name) for name in FITTED},
        "errors": errors(rows, device), "held_out": held_out(rows),
        "rows": [
            {
                "what": row.what, "us": row.us, "predicted_us": row.predicted(device),
                "error": row.predicted(device) / row.us - 1,
                **{key: row.row[key] for key in ("heads", "kv_heads", "head_dim", "context", "batch", "page", "dtype")},
                "kernel": row.row["what"],
            } for row in rows
        ],
    }  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """The errors as they stand in docs/evaluator.md."""
    lines = ["| what | rows | median error | ninth decile | worst |", "|---|---|---|---|---|"]
    entries = [*found["errors"].items(), ("all, held out", found["held_out"])]
    for what, of in entries:
        lines.append(f"| {what} | {of['rows']} | {of['median']:.1%} | {of['p90']:.1%} | {of['worst']:.1%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=[RESULTS / name for name in SOURCES])
    parser.add_argument("--json", type=Path, default=RESULTS / "h200-calibration.json", metavar="FILE")
    options = parser.parse_args()
    found = calibration(options.files)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    for row in found["rows"]:
        name, cell = f"{row['what']} {row['heads']}/{row['kv_heads']}", f"{row['context']} x {row['batch']}"
        times = f"measured {row['us']:8.1f} us  predicted {row['predicted_us']:8.1f} us  {row['error']:+7.1%}"
        print(f"{name:22} {cell:>12}  {times}")
    print(*table(found), "", "for kernels/devices.py:", sep="\n")
    for name, value in found["rates"].items():
        print(f"    {name}={value:.3g},")


if __name__ == "__main__":
    main()
