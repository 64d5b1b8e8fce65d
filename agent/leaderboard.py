"""The accepted programs of a campaign, best first, with intervals, and what of it is news.

`on_frontier` is by point estimate. `frontier_probability` says how much of that survives the noise: the share of
bootstrap draws, all programs on the same resampled contexts, in which the program lies on the frontier.

The best of many measurements is too good on the average. `shrunk` is the accuracy kept with that taken back, by all
programs of the campaign together, and `rank` is computed from it; `separated` programs are above every other one that
may be as fast (`evaluator.ranking` says how sure that is).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.agent.derived import Derived
from vortexlab.evaluator.verdict import Estimate

if TYPE_CHECKING:
    from vortexlab.dsl.ir import Attr

FORM = 1  # to be raised when other numbers are computed from the same record
SEED = 0
_COLUMNS = (
    "id", "name", "pinned", "on_frontier", "frontier_probability", "speedup", "speedup_low", "speedup_high", "accuracy",
    "accuracy_low", "accuracy_high", "shrunk", "shrunk_low", "shrunk_high", "rank", "separated", "non_inferior",
    "density", "state_bytes", "kv_dtype", "device", "speed", "new", "beats_seed", "answers",
    "contexts", "proposer", "operator", "label", "knobs", "structure",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A program against the published ones, with all the knobs that were tried, at matched accuracy.

    `difference` is its speed-up less that of the published programs' frontier at the accuracy that the program
    keeps, read off the straight lines between its members (other knobs would fill them in). Beyond the most accurate
    seed that seed's speed counts; a program that keeps less than every seed on the frontier can lose and not win.
    Both programs' speeds and accuracies are resampled. `seed` is the best seed by point estimate: the fastest of
    those that keep at least as much.
    """

    seed: str
    name: str
    difference: Estimate

    @property
    def beaten(self) -> bool:
        return self.difference.low > 0

    def to_json(self) -> dict[str, Any]:
        return {"id": self.seed, "name": self.name, "difference": self.difference.to_json(), "beaten": self.beaten}


@dataclass(frozen=True)
class Entry:
    """One row. `pinned`: people ask to build on it. `new`: its structure is no published program's. `beats_seed` is
    None for the seeds themselves.

    `device` is where speed was measured, or the device it is predicted for; `speed` says which of the two. `kv_dtype`
    is the precision of the program's KV cache; that of dense attention is in the conditions.

    `rank`: non-dominated rank by speed-up and `shrunk`, 1 the best. `non_inferior`: the decision on the margin that was
    declared before the campaign (empty: not made). `state_bytes`: summaries and what is carried on, in bytes per token
    of context over all layers of the geometry; `batch_fits`: by length, how many requests fit a memory that holds
    nothing else (None where the memory is not known).
    """

    id: str
    name: str
    pinned: bool
    on_frontier: bool
    frontier_probability: float
    speedup: Estimate
    accuracy: Estimate
    shrunk: Estimate
    rank: int
    separated: bool
    non_inferior: str
    density: float | None
    state_bytes: float | None
    batch_fits: Mapping[str, int | None]
    kv_dtype: str
    device: str
    speed: str
    new: bool
    beats_seed: Comparison | None
    answers: int
    contexts: int
    proposer: str
    operator: str
    label: str
    knobs: Mapping[str, Attr]
    structure: str
    conditions: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        plain = {**self.__dict__, "knobs": dict(self.knobs), "conditions": dict(self.conditions)}
        plain["speedup"], plain["accuracy"] = self.speedup.to_json(), self.accuracy.to_json()
        plain["shrunk"], plain["batch_fits"] = self.shrunk.to_json(), dict(self.batch_fits)
        plain["beats_seed"] = self.beats_seed.to_json() if self.beats_seed else None
        return plain

    def __str__(self) -> str:
        label = f" ({self.label})" if self.label else ""
        density = "" if self.density is None else f", density {self.density:.3f}"
        return f"{self.id} {self.name}{label}: {self.speedup.value:.2f}x at {self.accuracy.value:.3f} kept{density}"


@dataclass(frozen=True)
class Leaderboard:
    """Entries on the frontier first, then by speed-up."""

    run: str
    entries: tuple[Entry, ...]

    @property
    def frontier(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.on_frontier)

    def to_json(self) -> dict[str, Any]:
        return {"run": self.run, "entries": [entry.to_json() for entry in self.entries]}

    def to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: row[name] for name in _COLUMNS} for row in map(flat, self.entries))
        return text.getvalue()

    def closing_lines(self) -> list[str]:
        """What a campaign ends with: which frontier members are new and which beat their best seed for certain."""
        if not self.entries:
            return ["No program was accepted, so there is no frontier."]
        front = self.frontier
        new = [entry for entry in front if entry.new]
        lines = [f"Frontier: {_count(len(front), 'program')}, {len(new)} of them new (of no published structure)."]
        lines += [f"  {entry}" + ("  [new]" if entry.new else "") for entry in front]
        winners = [entry for entry in new if entry.beats_seed and entry.beats_seed.beaten]
        for entry in winners:
            assert entry.beats_seed is not None
            rival, gap = entry.beats_seed, entry.beats_seed.difference
            lines.append(
                f"{entry.id} {entry.name} beats its best seed {rival.seed} {rival.name} at matched accuracy by "
                f"{gap.value:.2f}x, 95 % interval [{gap.low:.2f}, {gap.high:.2f}]."
            )
        if not winners:
            lines.append("No new frontier member beats its best seed with a lower bound above zero.")
        return lines


def flat(entry: Entry) -> dict[str, Any]:
    """One row of a table: intervals in columns of their own."""
    row = {**entry.__dict__}
    for name in ("speedup", "accuracy", "shrunk"):
        estimate: Estimate = row[name]
        row[name], row[f"{name}_low"], row[f"{name}_high"] = estimate.value, estimate.low, estimate.high
    row["beats_seed"] = entry.beats_seed.seed if entry.beats_seed and entry.beats_seed.beaten else ""
    row["knobs"] = " ".join(f"{key}={value}" for key, value in sorted(entry.knobs.items()))
    del row["conditions"], row["batch_fits"]
    return row


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


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
