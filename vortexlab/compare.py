"""Programs of one run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vortexlab.dsl import distance, parse
from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.run import Run


def compare_members(run: Run, identifiers: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """The named trials as JSON, each with its differences to the first.

    Differences of accuracy kept are paired: both programs' contexts are resampled together (95 %, bootstrap). Where
    one of the two was not measured in full they are None. `distance` is that between the program texts' normal forms,
    0 for the same program to 1 for nothing in common. Raises `VortexError` for unknown or repeated ids.
    """
    from vortexlab.evaluator.statistics import paired_differences

    trials = [run.history.find(identifier) for identifier in identifiers]
    if len({trial.slot for trial in trials}) < len(trials):
        raise VortexError(f"compare needs different trials, found {' '.join(identifiers)}")
    verdicts = [trial.verdict for trial in trials if trial.verdict is not None]
    base, base_program = verdicts[0], parse(trials[0].proposal.source)
    members = []
    for trial, verdict in zip(trials, verdicts, strict=True):
        differences: dict[str, Any] = {"speedup_difference": None, "accuracy_difference": None}
        shared = {item.context for item in verdict.outcomes} & {item.context for item in base.outcomes}
        if trial is not trials[0]:
            found = paired_differences(base, verdict, seed=seed)
            if found is not None:
                differences = {"speedup_difference": found[0].to_json(), "accuracy_difference": found[1].to_json()}
        members.append({
            "id": trial.id,
            "name": trial.proposal.name,
            "status": verdict.status,
            "gate": verdict.gate,
            "reason": verdict.reason,
            "speedup": verdict.speedup.to_json() if verdict.speedup else None,
            "accuracy": verdict.accuracy.to_json() if verdict.accuracy else None,
            "density": verdict.density,
            **differences,
            "shared_contexts": len(shared),
            "distance": distance(base_program, parse(trial.proposal.source)),
            "per_task": {task: dict(row) for task, row in verdict.per_task.items()},
            "device": str(verdict.conditions.get("device", "")),
            "speed": str(verdict.conditions.get("speed", "")),
            "knobs": dict(trial.knobs),
            "parents": list(trial.proposal.parents),
            "source": trial.proposal.source,
        })  # fmt: skip
    return {"run": run.name, "members": members}
