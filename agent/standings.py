"""A run's leaderboard, kept beside the record, so that thousands are compared once (`agent.derived`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vortexlab.agent.derived import Derived
from vortexlab.agent.leaderboard import Comparison, Entry, Leaderboard
from vortexlab.evaluator.verdict import Estimate

FORM = 1  # to be raised when other numbers are computed from the same record
SEED = 0
_FIELDS = tuple(Entry.__dataclass_fields__)
_ESTIMATES = tuple(_FIELDS.index(name) for name in ("speedup", "accuracy", "shrunk"))
_RIVAL, _CONDITIONS = _FIELDS.index("beats_seed"), _FIELDS.index("conditions")


def _packed(board: Leaderboard) -> dict[str, Any]:
    conditions: dict[str, tuple[int, Any]] = {}  # mostly the same for all
    places: dict[int, int] = {}  # by the object, since equal ones mostly are one
    rows = []
    for entry in board.entries:
        row = [getattr(entry, name) for name in _FIELDS]
        for at in _ESTIMATES:
            row[at] = _ends(row[at])
        if entry.beats_seed is not None:
            rival = entry.beats_seed
            row[_RIVAL] = [rival.seed, rival.name, _ends(rival.difference)]
        if id(entry.conditions) not in places:
            text = json.dumps(entry.conditions)
            places[id(entry.conditions)] = conditions.setdefault(text, (len(conditions), entry.conditions))[0]
        row[_CONDITIONS] = places[id(entry.conditions)]
        rows.append(row)
    return {"conditions": [found for _, found in conditions.values()], "entries": rows}


def _unpacked(folder: Path, found: Any) -> Leaderboard:
    return Leaderboard(folder.name, tuple(_entry(row, found["conditions"]) for row in found["entries"]))


def _entry(row: list[Any], conditions: list[Any]) -> Entry:
    for at in _ESTIMATES:
        row[at] = Estimate(*row[at])
    if row[_RIVAL] is not None:
        seed, name, difference = row[_RIVAL]
        row[_RIVAL] = Comparison(seed, name, Estimate(*difference))
    row[_CONDITIONS] = conditions[row[_CONDITIONS]]
    return Entry(*row)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


BOARD = Derived("leaderboard.cache", {"form": FORM, "seed": SEED, "fields": list(_FIELDS)}, _packed, _unpacked)
