"""Who a slot is given to, what it cost, and what an arm earned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vortexlab.evaluator.verdict import GATES

if TYPE_CHECKING:
    from vortexlab.agent.trials import Trial


@dataclass(frozen=True, slots=True)
class Arm:
    """Who was given a slot: a proposer (or `SEED`, `KNOBS`, `HANDOFF`) and the move that was asked of it."""

    proposer: str
    operator: str


@dataclass(frozen=True)
class ArmRecord:
    """What an arm was given and what came of it. `cost` is in seconds, or in evaluations; see `cost`."""

    arm: Arm
    slots: int = 0
    accepted: int = 0
    gain: float = 0.0
    cost: float = 0.0

    def credited(self, trial: Trial, gain: float) -> ArmRecord:
        """With one trial more, which added `gain` to the hypervolume."""
        accepted = self.accepted + (trial.point is not None)
        return ArmRecord(self.arm, self.slots + 1, accepted, self.gain + gain, self.cost + cost(trial))


def cost(trial: Trial) -> float:
    """What a trial cost.

    Seconds where speed was measured. Where it was predicted, so that a campaign repeats exactly, the share of the
    gates that it went through: 1 for a whole evaluation.
    """
    verdict = trial.head
    assert verdict is not None
    if verdict.speed == "measured":
        return max(verdict.seconds, 0.1)
    return max(len(verdict.reached), 1) / len(GATES)
