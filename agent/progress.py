"""How a campaign stands, as plain numbers: for the terminal, for `vortex status`, for anything that watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.trials import History, Trial, known_structures, trial_id

_NAMED = 8  # programs under way that are named
_BEST = 3  # members of the frontier that are shown


@dataclass(frozen=True)
class Standing:
    """A member of the frontier: its trial, speed-up over dense attention and the share of accuracy that it keeps."""

    id: str
    name: str
    speedup: float
    accuracy: float


@dataclass(frozen=True)
class ProgressState:
    """One moment of a campaign.

    * `phase`: ``starting``, ``proposing``, ``evaluating``, ``recorded`` (a verdict came in), ``paused``, ``bounding``
      (measuring what the best choice of as many pages would keep, `agent.oracles`), ``finished``; `current`
      is the program at hand. `stopping`: it ends as soon as what is under way is recorded.
    * `evaluations` counts programs measured in full, of `budget` (None: limited by time alone), in at most `hours` of
      work (None: without limit); `recorded` counts all, rejected ones included, of which `new_structures` are no seed's
      and were accepted. `running` are under way, the oldest of them `under_way` by name.
    * `per_hour`: programs measured in full per hour of work; `seconds` of work so far, all sessions, pauses aside;
      `seconds_left` an estimate from that rate, or what the time limit leaves.
    * `funnel`: gate -> programs that passed it. `frontier` members, `hypervolume` above (0, 0),
      `growth` what that was over the programs recorded, in at most 64 samples at equal distances, the last one now;
      `best` those of the members that dominate the largest areas, fastest first.
    * `calls`, `tokens`, `money`, `model_seconds`: spent on language models, of `limits` by these names (a limit of
      None is none; empty without language models).
    * `latest`: the last note or failure.
    """

    run: str
    phase: str
    current: str = ""
    evaluations: int = 0
    budget: int | None = None
    hours: float | None = None
    recorded: int = 0
    running: int = 0
    under_way: list[str] = field(default_factory=list)
    stopping: bool = False
    accepted: int = 0
    rejected: int = 0
    errors: int = 0
    structures: int = 0
    new_structures: int = 0
    per_hour: float = 0.0
    seconds: float = 0.0
    seconds_left: float | None = None
    funnel: Mapping[str, int] = field(default_factory=dict)
    frontier: int = 0
    hypervolume: float = 0.0
    growth: list[float] = field(default_factory=list)
    best: list[Standing] = field(default_factory=list)
    calls: int = 0
    tokens: int = 0
    money: float = 0.0
    model_seconds: float = 0.0
    limits: Mapping[str, float | None] = field(default_factory=dict)
    latest: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


#: Told of every change while a campaign runs, in the campaign's own thread; must not raise.
OnProgress = Callable[[ProgressState], None]


def progress(
    history: History,
    config: CampaignConfig,
    phase: str,
    *,
    current: str = "",
    seconds: float | None = None,
    seed_structures: frozenset[str] = frozenset(),
    stopping: bool = False,
) -> ProgressState:
    """`seconds` of work so far, by default up to the last event; `seed_structures` are those that are not new."""
    worked = history.seconds if seconds is None else seconds
    totals = history.totals
    rate = history.evaluated / worked if worked > 0 else 0.0
    left: list[float] = []
    if config.evaluations is not None and rate > 0:
        left.append(max(0, config.evaluations - history.evaluated) / rate)
    if config.hours is not None:
        left.append(max(0.0, config.hours * 3600 - worked))
    spent, llm = history.spent(), config.llm
    under_way = history.running
    return ProgressState(
        run=config.name,
        phase=phase,
        current=current,
        evaluations=history.evaluated,
        budget=config.evaluations,
        hours=config.hours,
        recorded=len(history.trials),
        running=len(under_way),
        under_way=[trial.proposal.name for trial in under_way[:_NAMED]],
        stopping=stopping,
        accepted=totals.statuses["accepted"],
        rejected=totals.statuses["rejected"],
        errors=totals.statuses["error"],
        structures=len(totals.structures),
        new_structures=len(totals.structures - seed_structures),
        per_hour=rate * 3600,
        seconds=worked,
        seconds_left=min(left) if left else None,
        funnel=totals.funnel(),
        frontier=len(totals.front),
        hypervolume=totals.area,
        growth=[round(value, 4) for value in totals.growth.drawn()],
        best=best(totals.front),
        calls=spent.calls,
        tokens=spent.tokens,
        money=spent.money,
        model_seconds=spent.seconds,
        limits={} if llm is None else {
            "calls": llm.calls, "tokens": llm.tokens, "money": llm.money, "model_seconds": llm.seconds,
        },
        latest=history.latest,
    )  # fmt: skip


def best(front: Sequence[Trial], most: int = _BEST) -> list[Standing]:
    """Of a frontier, fastest first, the members that dominate the largest areas by themselves, in its order."""
    found = [Standing(trial.id, trial.proposal.name, *trial.point) for trial in front if trial.point]
    largest = sorted(found, key=lambda item: -item.speedup * item.accuracy)[:most]
    return [item for item in found if item in largest]


def recorded(history: History, config: CampaignConfig) -> dict[str, Any]:
    """What follows from the record alone; `asked` and `requests` are for what does not."""
    return {
        **progress(history, config, "", seed_structures=known_structures(history)).to_json(),
        "paused": history.paused,
        "reason": history.finished,
        "pending": [f"{trial.id} {trial.proposal.name}" for trial in history.running],
        "sessions": len(history.sessions),
        "arms": [
            {"proposer": r.arm.proposer, "operator": r.arm.operator, "slots": r.slots, "accepted": r.accepted,
             "gain": r.gain, "cost": r.cost}
            for r in history.totals.arms.values()
        ],
        "pinned": [trial_id(slot) for slot in history.pinned],
        "asked": [item["proposal"]["name"] for item in history.asked],
        "requests": sorted(history.requests),
        "failures": [f"slot {f['slot']}: {f['proposer']}: {f['reason']}" for f in history.failures],
        "stopped": history.stopped(),
        "notes": [*history.notes, *history.remarks()],
    }  # fmt: skip
