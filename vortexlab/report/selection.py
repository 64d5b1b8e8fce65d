"""What of a campaign the page shows in full: ten thousand programs are points, a few dozen are worth reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from vortexlab.dsl import parse, structure_hash
from vortexlab.report.summary import recommended
from vortexlab.search_spaces.library import source

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry, Leaderboard
    from vortexlab.agent.run import Run
    from vortexlab.agent.trials import Trial

#: Rows of the table of programs, rejected programs, and trials of the family tree, at most.
ROWS, REJECTED, TREE = 120, 60, 200


@dataclass(frozen=True)
class Family:
    """Trials that lead to the frontier. `children`: by id, those whose first parent it is, in order of evaluation;
    `roots` have no parent here. `left`: ancestors that had no room."""

    roots: tuple[Trial, ...]
    children: Mapping[str, tuple[Trial, ...]]
    left: int

    @property
    def ids(self) -> set[str]:
        return {trial.id for trial in self.roots} | {t.id for found in self.children.values() for t in found}


class Selection:
    """The parts of a run's record that the page is made of, each found once."""

    def __init__(self, run: Run):
        self.run = run
        self.by_id: dict[str, Trial] = {trial.id: trial for trial in run.trials}

    @cached_property
    def board(self) -> Leaderboard:
        return self.run.leaderboard()

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return {entry.id: entry for entry in self.board.entries}

    @cached_property
    def by_hash(self) -> dict[str, Entry]:
        return {self.by_id[entry.id].hash: entry for entry in self.board.entries}

    @cached_property
    def dense(self) -> Entry | None:
        """The published program `dense`, as the campaign measured it."""
        structure = structure_hash(parse(source("dense")))
        return next((entry for entry in self.board.entries if entry.structure == structure), None)

    @cached_property
    def rows(self) -> list[Entry]:
        """The entries of the table: all, or of many the frontier, dense and the best by rank, then accuracy."""
        entries = self.board.entries
        if len(entries) <= ROWS:
            return list(entries)
        dense = self.dense.id if self.dense else ""
        order = sorted(entries, key=lambda e: (not e.on_frontier, e.id != dense, e.rank, -e.shrunk.value, e.id))
        chosen = {entry.id for entry in order[:ROWS]}
        return [entry for entry in entries if entry.id in chosen]

    @cached_property
    def leading(self) -> list[Entry]:
        """The frontier: the recommended member first, then the surest."""
        best = recommended(self.board)
        return sorted(self.board.frontier, key=lambda e: (e is not best, -e.frontier_probability, e.id))

    @cached_property
    def rejected(self) -> list[Trial]:
        """The latest programs that a gate stopped."""
        return [t for t in self.run.trials if t.head is not None and t.head.gate is not None][-REJECTED:]

    @cached_property
    def family(self) -> Family:
        """The frontier and its ancestors; where these are too many, those of the surest members first."""
        front = self.leading
        kept: dict[str, Trial] = {entry.id: self.by_id[entry.id] for entry in front[:TREE]}
        left: set[str] = set()
        for entry in front:
            queue = [entry.id]
            seen: set[str] = set()
            while queue:
                name = queue.pop(0)
                if name in seen or name not in self.by_id:
                    continue
                seen.add(name)
                if name in kept or len(kept) < TREE:
                    kept[name] = self.by_id[name]
                else:
                    left.add(name)
                queue += self.by_id[name].proposal.parents
        roots: list[Trial] = []
        children: dict[str, list[Trial]] = {}
        for trial in sorted(kept.values(), key=lambda trial: trial.slot):
            parent = next((name for name in trial.proposal.parents if name in kept), None)
            if parent is None:
                roots.append(trial)
            else:
                children.setdefault(parent, []).append(trial)
        return Family(tuple(roots), {name: tuple(found) for name, found in children.items()}, len(left - kept.keys()))

    @cached_property
    def texts(self) -> list[Trial]:
        """The trials whose text the page holds: those of the table in its order, then the rest of the family."""
        names = [entry.id for entry in self.rows]
        rest = sorted(self.family.ids - set(names))
        return [self.by_id[name] for name in (*names, *rest)]

    @cached_property
    def shown(self) -> frozenset[str]:
        """Ids that can be linked to."""
        return frozenset(trial.id for trial in self.texts)
