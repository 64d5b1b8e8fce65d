"""A proposal that was checked: its text is a program, every knob has a value, and its hashes are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vortexlab.agent.arms import Arm
from vortexlab.agent.proposers.base import Proposal
from vortexlab.dsl import canonical_hash, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces.parsed import parsed


@dataclass(frozen=True)
class Prepared:
    """Ready to be recorded and evaluated."""

    arm: Arm
    proposal: Proposal
    hash: str
    structure: str

    def to_json(self) -> dict[str, Any]:
        return {
            "arm": [self.arm.proposer, self.arm.operator],
            "proposal": self.proposal.to_json(),
            "hash": self.hash,
            "structure": self.structure,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Prepared:
        return Prepared(Arm(*data["arm"]), Proposal.from_json(data["proposal"]), data["hash"], data["structure"])


def prepare(proposal: Proposal, arm: Arm) -> Prepared:
    """Raises `VortexError` when the text is no program or a knob is out of range."""
    program = parsed(proposal.source)
    knobs = {**program.defaults, **{name: knob.check(proposal.knobs[name]) for name, knob in program.knobs.items()
                                    if name in proposal.knobs}}  # fmt: skip
    unknown = sorted(set(proposal.knobs) - set(program.knobs))
    if unknown:
        raise VortexError(f"program {program.name} has no knob {unknown[0]!r}")
    return Prepared(arm, replace(proposal, knobs=knobs), canonical_hash(program.bind(knobs)), structure_hash(program))
