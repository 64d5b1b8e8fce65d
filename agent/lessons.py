"""What one run teaches the next: its frontier, what its moves brought, what its hypotheses came to, what failed.

Lessons are plain JSON and belong to the configuration of the campaign that takes them, so that it can be resumed and
replayed without the run that they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vortexlab.agent import prompt
from vortexlab.agent.proposers.base import Member
from vortexlab.agent.run import Run
from vortexlab.dsl.errors import VortexError

_PROGRAMS, _MOVES, _HYPOTHESES, _FAILURES = 12, 6, 6, 6


def lessons(run: Run) -> dict[str, Any]:
    """`run`: its name; `programs`: frontier members with text, knobs and measurements, evenly from fast to accurate;
    `lines`: what else is worth telling, the most telling first.

    Raises `VortexError` for a run without an accepted program.
    """
    members = run.members()
    front = sorted((member for member in members if member.on_frontier), key=lambda member: -(member.speedup or 0.0))
    if not front:
        raise VortexError(f"run {run.name!r} has no accepted program to learn from; give another one to --memory")
    step = max(1, -(-len(front) // _PROGRAMS))
    return {
        "run": run.name,
        "programs": [
            {"id": item.id, "name": item.name, "source": item.source, "knobs": dict(item.knobs),
             "speedup": item.speedup, "accuracy": item.accuracy}
            for item in front[::step]
        ],
        "lines": [*_hypotheses(members), *_moves(run), *_failures(members)],
    }  # fmt: skip


def _moves(run: Run) -> list[dict[str, Any]]:
    """The moves by the hypervolume that they gained for what they cost."""
    tried = [record for record in run.arms() if record.cost > 0]
    tried.sort(key=lambda record: (-record.gain / record.cost, str(record.arm)))
    return [
        {"move": f"{move.arm.proposer} {move.arm.operator}", "tried": move.slots, "accepted": move.accepted,
         "gained": round(move.gain, 3)}
        for move in tried[:_MOVES]
    ]  # fmt: skip


def _hypotheses(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Ideas with what came of them: those that reached the frontier first."""
    told = [member for member in members if member.hypothesis and member.proposer != "grammar"]
    told.sort(key=lambda member: (not member.on_frontier, member.id))
    return [prompt.tried(member) for member in told[:_HYPOTHESES]]


def _failures(members: Sequence[Member]) -> list[dict[str, Any]]:
    return prompt.antipatterns([member for member in members if member.status != "accepted"])[:_FAILURES]
