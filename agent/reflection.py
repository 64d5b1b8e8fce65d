"""What limited a program: where its time and bytes go, which layers, heads and tasks it loses, all as measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from vortexlab.evaluator.verdict import Verdict

_SMALL = 0.01  # shares of time and bytes below this are left out
_LOST = 0.02  # a task whose score falls by less is not told
_TASKS = 4


def limits(verdict: Verdict) -> dict[str, Any]:
    """Plain JSON, short enough for a prompt; what was not measured is left out.

    `time`, `bytes`: share of each stage of a step at the longest context, by the cost model. `density_by_layer`: tokens
    read / context tokens. `worst_heads`: [layer, query head, relative error of its attention output]. `mass_of_best`:
    attention mass on the chosen pages over the most that as many pages could hold. `needle_hits`: how often the page
    that holds the answer was read. `lost`: how far the score of a task fell below dense attention's.
    """
    found: dict[str, Any] = {}
    stages = _stages(verdict)
    for name, key in (("time", "seconds"), ("bytes", "bytes")):
        total = sum(stage[key] for stage in stages)
        if total > 0:
            shares = {stage["name"]: stage[key] / total for stage in stages}
            found[name] = {stage: round(share, 2) for stage, share in shares.items() if share >= _SMALL}
    fidelity = verdict.gate_result("fidelity")
    details: Mapping[str, Any] = fidelity.details if fidelity else {}
    if "layer_density" in details:
        found["density_by_layer"] = [round(share, 3) for share in details["layer_density"]]
        found["worst_heads"] = [
            [item["layer"], item["head"], round(item["error"], 2)] for item in details["worst_heads"]
        ]
    for name in ("mass_of_best", "needle_hits"):
        if details.get(name) is not None:
            found[name] = round(details[name], 3)
    lost = {task: row["sparse"] - row["dense"] for task, row in verdict.per_task.items()}
    worst = sorted((change, task) for task, change in lost.items() if change <= -_LOST)[:_TASKS]
    if worst:
        found["lost"] = {task: round(change, 2) for change, task in worst}
    return found


class Judged(Protocol):
    """A trial."""

    @property
    def verdict(self) -> Verdict | None: ...


class Limits(Mapping[str, Any]):
    """`limits` of a trial's verdict, which is not read before somebody looks: a prompt tells of a few of thousands."""

    __slots__ = ("_known", "_trial")

    def __init__(self, trial: Judged):
        self._trial = trial
        self._known: dict[str, Any] | None = None

    @property
    def _found(self) -> dict[str, Any]:
        if self._known is None:
            verdict = self._trial.verdict
            self._known = limits(verdict) if verdict else {}
        return self._known

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _stages(verdict: Verdict) -> list[Mapping[str, Any]]:
    """Of the longest context, on the device that the verdict's speed is about."""
    by_device = verdict.stages.get("predicted") or {}
    device = str(verdict.conditions.get("device", "")).removesuffix(" (predicted)")
    by_length: Mapping[str, Any] = by_device.get(device) or by_device.get("cpu") or next(iter(by_device.values()), {})
    return by_length[max(by_length, key=int)]["stages"] if by_length else []


def in_words(found: Mapping[str, Any]) -> str:
    """`limits` as one line for people; ``-`` where nothing is known."""
    parts = [f"{share:.0%} of the time in {stage}" for stage, share in found.get("time", {}).items()]
    densities = found.get("density_by_layer", [])
    if densities and max(densities) > min(densities):
        most = max(range(len(densities)), key=densities.__getitem__)
        parts.append(f"densest in layer {most} ({densities[most]:.3f})")
    if worst := found.get("worst_heads"):
        layer, head, error = worst[0]
        parts.append(f"off most in layer {layer}, query head {head} (by {error:.2f})")
    if "mass_of_best" in found:
        parts.append(f"{found['mass_of_best']:.0%} of the mass that as many pages could hold")
    parts += [f"{task} {change:+.2f}" for task, change in found.get("lost", {}).items()]
    return ", ".join(parts) or "-"
