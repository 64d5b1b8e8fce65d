"""How a campaign stands, as plain numbers: for the terminal, for `vortex status`, for anything that watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.trials import History


@dataclass(frozen=True)
class ProgressState:
    """One moment of a campaign.

    * `phase`: ``starting``, ``proposing``, ``evaluating``, ``recorded`` (a verdict came in), ``paused``, ``finished``;
      `current` is the program at hand.
    * `evaluations` counts programs measured in full, of `budget` (None: limited by time alone); `recorded` counts
      all, rejected ones included (`running` are under way), of which `new_structures` are no seed's and were accepted.
    * `per_hour`: programs measured in full per hour of work; `seconds` of work so far, all sessions, pauses aside;
      `seconds_left` an estimate from that rate, or what the time limit leaves.
    * `funnel`: gate -> programs that passed it. `frontier` members, `hypervolume` above (0, 0).
    * `calls`, `tokens`, `money`, `model_seconds`: spent on language models.
    """

    run: str
    phase: str
    current: str = ""
    evaluations: int = 0
    budget: int | None = None
    recorded: int = 0
    running: int = 0
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
    calls: int = 0
    tokens: int = 0
    money: float = 0.0
    model_seconds: float = 0.0

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
    spent = history.spent()
    return ProgressState(
        run=config.name,
        phase=phase,
        current=current,
        evaluations=history.evaluated,
        budget=config.evaluations,
        recorded=len(history.trials),
        running=len(history.running),
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
        calls=spent.calls,
        tokens=spent.tokens,
        money=spent.money,
        model_seconds=spent.seconds,
    )
