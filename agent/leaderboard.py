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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vortexlab.agent.pareto import layers
from vortexlab.agent.recorded import parts_of
from vortexlab.agent.trials import History, Trial, known_structures
from vortexlab.dsl.ir import Attr
from vortexlab.evaluator.fronts import frontier_probability, frontiers, non_dominated
from vortexlab.evaluator.measured import Measured, Row
from vortexlab.evaluator.ranking import separated, shrunk_accuracy
from vortexlab.evaluator.statistics import intervals, joint_draws
from vortexlab.evaluator.verdict import Estimate, Head

_SAID = ("non_inferiority", "state", "conditions")  # of a verdict, in a row
_PARTS = (*_SAID, "outcomes", "speed_samples")
_BLOCK = 1024  # programs compared at once

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


def leaderboard(run: str, history: History, *, seed: int = 0) -> Leaderboard:
    """Only accepted trials have a row; the rejected ones are in the run's list of members."""
    trials = [trial for trial in history.trials if trial.point is not None]
    heads = [_head(trial) for trial in trials]
    parts: list[Mapping[str, Any]] = []

    def rows() -> Iterator[Row]:
        """One at a time: what is made of outcomes is small, they themselves are not."""
        for head, part in zip(heads, parts_of(trials, _PARTS), strict=True):
            parts.append({name: part.get(name, {}) for name in _SAID})
            yield head.speedup, head.accuracy, part.get("outcomes", ()), part.get("speed_samples", {})

    measured = Measured.from_rows(rows())
    front = {trial.slot for trial in history.frontier()}
    known = known_structures(history)
    speed, kept = joint_draws(measured, seed=seed)
    place = {program: n for n, program in enumerate(measured.index.tolist())}
    probability = frontier_probability(speed, kept).tolist()
    shrunk = shrunk_accuracy(measured, kept)
    apart = separated(measured, seed=seed)
    compared = _comparisons([trials[i] for i in place], measured, speed, kept, known)
    moved = [shrunk[place[n]] if n in place else head.accuracy for n, head in enumerate(heads)]
    ranks = layers([(head.speedup.value, m.value) for head, m in zip(heads, moved, strict=True) if head.speedup and m])
    entries = []
    for n, (trial, verdict, part) in enumerate(zip(trials, heads, parts, strict=True)):
        better, found, conditions = moved[n], place.get(n), part["conditions"]
        assert verdict.speedup is not None and verdict.accuracy is not None and better is not None
        state = part["state"]
        entries.append(
            Entry(
                id=trial.id,
                name=trial.proposal.name,
                pinned=trial.slot in history.totals.pinned,
                on_frontier=trial.slot in front,
                frontier_probability=0.0 if found is None else probability[found],
                speedup=verdict.speedup,
                accuracy=verdict.accuracy,
                shrunk=better,
                rank=ranks[n],
                separated=found is not None and apart[found],
                non_inferior=str(part["non_inferiority"].get("decision", "")),
                density=verdict.density,
                state_bytes=state.get("state"),
                batch_fits=state.get("batch", {}),
                kv_dtype=str(conditions.get("kv_dtype", "")),
                device=str(conditions.get("predicted_device") or conditions.get("device", "")),
                speed=str(conditions.get("speed", "")),
                new=trial.structure not in known,
                beats_seed=compared.get(trial.slot),
                answers=verdict.answers,
                contexts=verdict.contexts,
                proposer=trial.arm.proposer,
                operator=trial.proposal.operator,
                label=trial.proposal.label,
                knobs=trial.knobs,
                structure=trial.structure,
                conditions=conditions,
            )
        )
    entries.sort(key=lambda entry: (not entry.on_frontier, -entry.speedup.value, -entry.accuracy.value, entry.id))
    return Leaderboard(run, tuple(entries))


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


def _comparisons(
    trials: list[Trial], measured: Measured, speed: np.ndarray, kept: np.ndarray, known: frozenset[str]
) -> dict[int, Comparison]:
    """By slot, how each new structure compares with the published ones; draws [programs, draws]."""
    is_known = np.array([trial.structure in known for trial in trials], bool)
    published, fresh = np.flatnonzero(is_known), np.flatnonzero(~is_known)
    if not len(published) or not len(fresh):
        return {}
    fast, good = measured.speed[:, 0], measured.accuracy[:, 0]
    by_point = _staircases(fast[published, None], good[published, None])
    values = _lead(fast[fresh, None], good[fresh, None], by_point)[:, 0]
    stairs = _staircases(speed[published], kept[published])
    ahead = published[non_dominated(fast[published], good[published])]
    ahead = ahead[np.argsort(good[ahead], kind="stable")]  # so the slowest last
    found: dict[int, Comparison] = {}
    for at in range(0, len(fresh), _BLOCK):
        block = fresh[at : at + _BLOCK]
        samples = _lead(speed[block], kept[block], stairs)
        for n, gap in zip(block.tolist(), intervals(samples, values[at : at + _BLOCK]), strict=True):
            matched = min(int(np.searchsorted(good[ahead], good[n])), len(ahead) - 1)
            rival = trials[ahead[matched]]
            found[trials[n].slot] = Comparison(rival.id, rival.proposal.name, gap)
    return found


def _staircases(speed: np.ndarray, kept: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The frontier of each draw: accuracies, ascending, and speed-ups; inputs [programs, draws]."""
    found = []
    for draw, front in enumerate(frontiers(speed, kept)):
        accuracies, first = np.unique(kept[front, draw], return_index=True)  # of equal points one
        found.append((accuracies, speed[front[first], draw]))
    return found


def _lead(speed: np.ndarray, kept: np.ndarray, stairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """[programs, draws]: speed-up above the frontier of others at the same accuracy; inputs [programs, draws]."""
    lead = np.empty(speed.T.shape)
    for row, fast, good, (accuracies, speeds) in zip(lead, speed.T.copy(), kept.T.copy(), stairs, strict=True):
        np.subtract(fast, np.interp(good, accuracies, speeds), out=row)
        row[good < accuracies[0]] = np.minimum(row[good < accuracies[0]], 0.0)
    return lead.T.copy()


def _head(trial: Trial) -> Head:
    assert trial.head is not None
    return trial.head


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
