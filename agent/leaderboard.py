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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vortexlab.agent.pareto import frontier, layers
from vortexlab.agent.trials import History, Trial, known_structures
from vortexlab.dsl.ir import Attr
from vortexlab.evaluator.ranking import separated, shrunk_accuracy
from vortexlab.evaluator.statistics import frontier_probability, interval, joint_draws
from vortexlab.evaluator.verdict import Estimate, Verdict

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
    verdicts = [_verdict(trial) for trial in trials]
    front = {trial.slot for trial in history.frontier()}
    known = known_structures(history)
    probability = frontier_probability(verdicts, seed=seed)
    compared = _comparisons(trials, verdicts, known, seed)
    moved = [found or v.accuracy for found, v in zip(shrunk_accuracy(verdicts, seed=seed), verdicts, strict=True)]
    ranks = layers([(v.speedup.value, m.value) for v, m in zip(verdicts, moved, strict=True) if v.speedup and m])
    apart = separated(verdicts, seed=seed)
    entries = []
    for n, (trial, verdict, share) in enumerate(zip(trials, verdicts, probability, strict=True)):
        better = moved[n]
        assert verdict.speedup is not None and verdict.accuracy is not None and better is not None
        speed = str(verdict.conditions.get("speed", ""))
        entries.append(
            Entry(
                id=trial.id,
                name=trial.proposal.name,
                pinned=trial.slot in history.totals.pinned,
                on_frontier=trial.slot in front,
                frontier_probability=share,
                speedup=verdict.speedup,
                accuracy=verdict.accuracy,
                shrunk=better,
                rank=ranks[n],
                separated=apart[n],
                non_inferior=str(verdict.non_inferiority.get("decision", "")),
                density=verdict.density,
                state_bytes=verdict.state.get("state"),
                batch_fits=verdict.state.get("batch", {}),
                kv_dtype=str(verdict.conditions.get("kv_dtype", "")),
                device=str(verdict.conditions.get("predicted_device") or verdict.conditions.get("device", "")),
                speed=speed,
                new=trial.structure not in known,
                beats_seed=compared.get(trial.slot),
                answers=verdict.answers,
                contexts=verdict.contexts,
                proposer=trial.arm.proposer,
                operator=trial.proposal.operator,
                label=trial.proposal.label,
                knobs=trial.knobs,
                structure=trial.structure,
                conditions=verdict.conditions,
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
    trials: list[Trial], verdicts: list[Verdict], known: frozenset[str], seed: int
) -> dict[int, Comparison]:
    """By slot, how each new structure compares with the published ones."""
    usable, speed, kept = joint_draws(verdicts, seed=seed)
    published = [n for n, i in enumerate(usable) if trials[i].structure in known]
    fresh = [n for n, i in enumerate(usable) if trials[i].structure not in known]
    if not published or not fresh:
        return {}
    points = np.array([trials[i].point for i in usable], float)
    values = _lead(points[None, :, 0], points[None, :, 1], fresh, published)[0]
    samples = _lead(speed, kept, fresh, published)
    found: dict[int, Comparison] = {}
    for column, n in enumerate(fresh):
        matched = [p for p in published if points[p, 1] >= points[n, 1]]
        rival = max(matched, key=lambda p: points[p, 0]) if matched else max(published, key=lambda p: points[p, 1])
        trial, gap = trials[usable[rival]], interval(samples[:, column], values[column])
        found[trials[usable[n]].slot] = Comparison(trial.id, trial.proposal.name, gap)
    return found


def _lead(speed: np.ndarray, kept: np.ndarray, fresh: list[int], published: list[int]) -> np.ndarray:
    """[draws, fresh]: speed-up above the published frontier at the same accuracy; inputs [draws, programs]."""
    lead = np.empty((len(speed), len(fresh)))
    for draw in range(len(speed)):
        pairs = list(zip(speed[draw, published].tolist(), kept[draw, published].tolist(), strict=True))
        front = [pairs[i] for i in frontier(pairs)]  # fastest first, so accuracy ascends
        accuracies, speeds = [pair[1] for pair in front], [pair[0] for pair in front]
        gap = speed[draw, fresh] - np.interp(kept[draw, fresh], accuracies, speeds)
        lead[draw] = np.where(kept[draw, fresh] < accuracies[0], np.minimum(gap, 0.0), gap)
    return lead


def _verdict(trial: Trial) -> Verdict:
    assert trial.verdict is not None
    return trial.verdict


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
