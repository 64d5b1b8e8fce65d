"""How the accepted programs of a campaign compare: its leaderboard, computed from the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vortexlab.agent.leaderboard import Comparison, Entry, Leaderboard
from vortexlab.agent.pareto import layers
from vortexlab.agent.recorded import parts_of
from vortexlab.agent.trials import History, Trial, known_structures
from vortexlab.evaluator.fronts import frontier_probability, frontiers, non_dominated
from vortexlab.evaluator.measured import Measured, Row
from vortexlab.evaluator.ranking import separated, shrunk_accuracy
from vortexlab.evaluator.statistics import intervals, joint_draws
from vortexlab.evaluator.verdict import Head

_SAID = ("non_inferiority", "state", "conditions")  # of a verdict, in a row
_PARTS = (*_SAID, "outcomes", "speed_samples")
_BLOCK = 1024  # programs compared at once


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
