"""A recorded campaign, opened for reading: its members, its frontier, its events."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.agent import oracles, status
from vortexlab.agent.arms import ArmRecord
from vortexlab.agent.audit import Audit, audits
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.derived import uncollected
from vortexlab.agent.events import Event, Mark
from vortexlab.agent.folders import LATEST, resolve
from vortexlab.agent.leaderboard import BOARD, SEED, Leaderboard
from vortexlab.agent.progress import ProgressState, progress, recorded
from vortexlab.agent.proposers.base import Member
from vortexlab.agent.reflection import limits
from vortexlab.agent.standings import leaderboard
from vortexlab.agent.store import Store, is_written
from vortexlab.agent.trials import History, Trial, known_structures
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.nearest import nearest

if TYPE_CHECKING:
    import pandas

    from vortexlab.agent.study import Importance

class Run:
    """What was recorded when it was opened; open it again to see more. A `lean` one reads verdicts beyond their heads
    from the store, while that is open."""

    def __init__(self, store: Store, lean: bool = False):
        self.folder, self.name = store.folder, store.folder.name
        self._written = is_written(self.folder)  # before the record is read, which may end meanwhile
        self.history, self._mark = History(), Mark(0, 0.0)
        for event in store.events(lean=lean):
            self.history.add(event)
            self._mark = Mark(event.seq, event.time)
        self.config = CampaignConfig.recorded(self.history.resumed["config"], self.folder)

    @staticmethod
    def open(name: str | Path = LATEST, runs: str | Path = "runs") -> Run:
        """Raises `VortexError` for an unknown run or a damaged file."""
        with Store.read(resolve(name, runs)) as store, uncollected():
            return Run(store)

    def events(self, kind: str | None = None) -> Iterator[Event]:
        """Those that there were when it was opened, read again."""
        with Store.read(self.folder) as store:
            yield from takewhile(lambda event: event.seq <= self._mark.seq, store.events(kind=kind))

    @property
    def trials(self) -> list[Trial]:
        return self.history.trials

    def members(self) -> list[Member]:
        """Every evaluated program, rejected ones included, in the order in which they were evaluated."""
        return self.history.members()

    @cached_property
    def _leaderboard(self) -> Leaderboard:
        compute = partial(leaderboard, self.name, self.history, seed=SEED)
        return BOARD.kept(self.folder, self._mark, compute, still=self._is_last)

    def leaderboard(self) -> Leaderboard:
        return self._leaderboard

    def importances(self) -> list[Importance]:
        """Which shared knobs told the best programs from the others."""
        from vortexlab.agent.study import importances

        return importances(self.trials)

    def arms(self) -> list[ArmRecord]:
        """What every proposer and operator was given and what came of it, seeds included, in order of appearance."""
        return list(self.history.totals.arms.values())

    def audits(self) -> list[Audit]:
        """What every gate rejected, and an estimate of what it lost by that."""
        return audits(self.trials)

    @property
    def state(self) -> str:
        """``running``, ``paused`` (by `vortex pause`), ``finished``, or ``interrupted`` (killed: it can be resumed)."""
        return status.state_of(self._written, self.history.paused, self.history.finished is not None)

    def progress(self) -> ProgressState:
        return progress(self.history, self.config, self.state, seed_structures=known_structures(self.history))

    def status(self) -> dict[str, Any]:
        """`progress` as JSON, with the state, why it ended, who proposed what, what people asked, what went wrong."""
        return status.at_this_moment(self.folder, self.recorded_status(), self._written)

    def recorded_status(self) -> dict[str, Any]:
        """What of it follows from the record alone (`progress.recorded`)."""
        compute = partial(recorded, self.history, self.config)
        return status.KEPT.kept(self.folder, self._mark, compute, still=self._is_last)

    def _is_last(self) -> bool:
        """Whether nothing was recorded since."""
        try:
            with Store.read(self.folder) as store:
                return store.mark() == self._mark
        except VortexError:
            return False

    def member(self, identifier: str) -> dict[str, Any]:
        """Everything about one trial as JSON: program, knobs, lineage, every measurement.

        Raises `VortexError` for an unknown id.
        """
        trial = self.history.find(identifier)
        entry = next((entry for entry in self.leaderboard().entries if entry.id == trial.id), None)
        proposal, verdict = trial.proposal, trial.verdict
        assert verdict is not None
        return {
            "run": self.name,
            "id": trial.id,
            "name": proposal.name,
            "source": proposal.source,
            "knobs": dict(trial.knobs),
            "hash": trial.hash,
            "structure": trial.structure,
            "limits": limits(verdict),
            "new": trial.structure not in known_structures(self.history),
            "label": proposal.label,
            "arm": [trial.arm.proposer, trial.arm.operator],
            "proposer": proposal.proposer,
            "operator": proposal.operator,
            "parents": list(proposal.parents),
            "hypothesis": proposal.hypothesis,
            "predicted_effect": dict(proposal.predicted_effect),
            "lineage": self.lineage(trial.id),
            "children": [other.id for other in self.trials if trial.id in other.proposal.parents],
            "pinned": trial.slot in self.history.pinned,
            "on_frontier": bool(entry and entry.on_frontier),
            "frontier_probability": entry.frontier_probability if entry else 0.0,
            "beats_seed": entry.beats_seed.to_json() if entry and entry.beats_seed else None,
            "oracle": self._oracle(trial),
            "nearest": nearest(proposal.source, trial.knobs).to_json(),
            "started": trial.started,
            "finished": trial.finished,
            "verdict": verdict.to_json(),
        }

    def _oracle(self, trial: Trial) -> dict[str, Any] | None:
        """What is known of the best choice of as many pages; None where it was not measured and could be."""
        found = self.history.oracles.get(trial.hash)
        if found is not None:
            kept = found.head.accuracy.to_json() if found.head.accuracy else None
            return {"accuracy": kept, "density": found.head.density, "reason": found.head.reason}
        why = oracles.reason_against(trial) if trial.point else ""
        return {"accuracy": None, "density": None, "reason": f"there is none: {why}"} if why else None

    def lineage(self, identifier: str) -> list[dict[str, Any]]:
        """Ancestors, the nearest first, each once: id, name, operator that made it, its parents."""
        rows, seen = [], set()
        queue = list(self.history.find(identifier).proposal.parents)
        while queue:
            parent = queue.pop(0)
            if parent in seen:
                continue
            seen.add(parent)
            trial = self.history.find(parent)
            rows.append({
                "id": trial.id, "name": trial.proposal.name, "proposer": trial.proposal.proposer,
                "operator": trial.proposal.operator, "parents": list(trial.proposal.parents),
            })  # fmt: skip
            queue += trial.proposal.parents
        return rows

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each evaluated program, in order; estimates and their intervals in columns of their own."""
        import pandas

        chances = {entry.id: entry.frontier_probability for entry in self.leaderboard().entries}
        known = known_structures(self.history)
        rows = []
        for trial, member in zip(self.trials, self.members(), strict=True):
            verdict = trial.verdict
            assert verdict is not None
            row: dict[str, Any] = {
                "id": member.id, "name": member.name, "status": member.status, "gate": member.gate,
                "reason": member.reason, "on_frontier": member.on_frontier, "pinned": member.pinned,
                "frontier_probability": chances.get(member.id, 0.0), "density": member.density,
            }  # fmt: skip
            for name, estimate in (("speedup", verdict.speedup), ("accuracy", verdict.accuracy)):
                for part, column in (("value", name), ("low", f"{name}_low"), ("high", f"{name}_high")):
                    row[column] = getattr(estimate, part) if estimate else float("nan")
            row.update(
                predicted_speedup=verdict.predicted_speedup, answers=verdict.answers, contexts=verdict.contexts,
                seconds=verdict.seconds, device=verdict.conditions.get("device"), speed=verdict.conditions.get("speed"),
                kv_dtype=verdict.conditions.get("kv_dtype"), new=trial.structure not in known,
                proposer=member.proposer, operator=member.operator, parents=list(member.parents),
                hypothesis=member.hypothesis, structure=member.structure, hash=trial.hash,
                knobs=dict(member.knobs), source=member.source,
            )  # fmt: skip
            rows.append(row)
        return pandas.DataFrame(rows)
