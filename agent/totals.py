"""What the trials of a campaign add up to: counts, the frontier and its growth, the trials as proposers see them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vortexlab.agent.arms import Arm, ArmRecord
from vortexlab.agent.pareto import Curve, frontier, hypervolume
from vortexlab.agent.proposers.base import Member
from vortexlab.agent.reflection import Limits
from vortexlab.evaluator.verdict import GATES

if TYPE_CHECKING:
    from vortexlab.agent.trials import Trial


@dataclass
class Totals:
    """What trials add up to, kept one by one: the thousandth costs no more than the first.

    `in_full` counts trials that went through the whole evaluation, by proposer; `statuses` counts verdicts by status,
    `passed` those that passed a gate, `tried` trials by structure; `structures` are those of accepted trials. `alone`
    holds accepted trials whose structure was tried once, by that. `front` is the Pareto frontier by point estimate,
    fastest first, of equal points the earliest; `gains` holds what each trial added to the hypervolume `area` when it
    came, `growth` how that grew. `arms` holds what each proposer and operator was given and what came of it.
    `members` are the trials as proposers see them, `pinned` the slots of those that people pinned.
    """

    in_full: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    hashes: set[str] = field(default_factory=set)
    structures: set[str] = field(default_factory=set)
    tried: Counter[str] = field(default_factory=Counter)
    alone: dict[str, Trial] = field(default_factory=dict)
    front: list[Trial] = field(default_factory=list)
    area: float = 0.0
    gains: list[float] = field(default_factory=list)
    growth: Curve = field(default_factory=Curve)
    arms: dict[Arm, ArmRecord] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    _speeds: list[float] = field(default_factory=list)  # of `front`, negated: ascending

    def add(self, trial: Trial) -> None:
        """The next trial, with its verdict; slots count from 0."""
        verdict = trial.head
        assert verdict is not None and trial.slot == len(self.members)
        self.in_full[trial.arm.proposer] += trial.in_full
        self.statuses[verdict.status] += 1
        self.passed.update(verdict.passed)
        self.hashes.add(trial.hash)
        self.tried[trial.structure] += 1
        self.alone.pop(trial.structure, None)
        self.members.append(_member(trial))
        grown = self.area
        if trial.point is not None:
            self.structures.add(trial.structure)
            if self.tried[trial.structure] == 1:
                self.alone[trial.structure] = trial
            grown = self._join(trial)
        gain = max(0.0, grown - self.area)
        self.gains.append(gain)
        arm = Arm(trial.arm.proposer, trial.proposal.operator)
        self.arms[arm] = self.arms.get(arm, ArmRecord(arm)).credited(trial, gain)
        self.area = grown
        self.growth.add(grown)

    def pin(self, slot: int, on: bool) -> None:
        (self.pinned.add if on else self.pinned.discard)(slot)
        self.members[slot] = replace(self.members[slot], pinned=on)

    def funnel(self) -> dict[str, int]:
        """How many evaluated programs passed each gate that any of them reached, in order."""
        return {"proposed": len(self.members), **{name: self.passed[name] for name in GATES if self.passed[name]}}

    def _join(self, trial: Trial) -> float:
        """Takes a trial into the frontier, where it belongs there, and returns the hypervolume."""
        speed, accuracy = trial.point or (0.0, 0.0)
        faster = bisect_right(self._speeds, -speed)  # of those that are as fast, the slowest keeps most
        if faster and (self.front[faster - 1].point or (0.0, 0.0))[1] >= accuracy:
            return self.area
        joined = [*self.front, trial]
        points = [item.point or (0.0, 0.0) for item in joined]
        kept = frontier(points)
        on, before = {joined[i].slot for i in kept}, {item.slot for item in self.front}
        for slot in on ^ before:
            self.members[slot] = replace(self.members[slot], on_frontier=slot in on)
        self.front = [joined[i] for i in kept]
        self._speeds = [-points[i][0] for i in kept]
        return hypervolume([points[i] for i in kept])


def _member(trial: Trial) -> Member:
    """A trial as proposers see it, not on the frontier so far."""
    verdict, proposal = trial.head, trial.proposal
    assert verdict is not None
    return Member(
        id=trial.id,
        name=proposal.name,
        source=proposal.source,
        knobs=trial.knobs,
        structure=trial.structure,
        status=verdict.status,
        gate=verdict.gate,
        reason=verdict.reason,
        speedup=verdict.speedup.value if verdict.speedup else None,
        accuracy=verdict.accuracy.value if verdict.accuracy else None,
        density=verdict.density,
        on_frontier=False,
        parents=proposal.parents,
        operator=proposal.operator,
        proposer=proposal.proposer,
        hypothesis=proposal.hypothesis,
        predicted_effect=proposal.predicted_effect,
        limits=Limits(trial),
    )
