"""What a campaign need not measure or be asked again: a replay takes it from the recorded run, and a run that was
rescued has verdicts left over from the damaged one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.events import Event
from vortexlab.agent.folders import resolve
from vortexlab.agent.recorded import Recorded
from vortexlab.agent.store import Store
from vortexlab.agent.trials import PAUSE, RESUME
from vortexlab.evaluator.verdict import ERROR


@dataclass(frozen=True)
class Replay:
    """`verdicts` by key, those of oracles too, each with the run that it is from: under the same conditions nothing is
    measured a second time. `requests` in order, each with the slot before which it came; pauses are left out."""

    verdicts: Mapping[str, tuple[Recorded, str]] = field(default_factory=dict)
    requests: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(config: CampaignConfig, measured: Iterable[Event]) -> Replay:
        """`measured` are such events of the campaign itself. Raises `VortexError` for an unknown run."""
        verdicts = {event.data["key"]: (Recorded(event), event.data["from_run"]) for event in measured}
        if not config.replay:
            return Replay(verdicts)
        keys: dict[int, str] = {}
        requests = []
        with Store.read(resolve(config.replay, config.runs)) as store:
            for event in store.events():
                if event.kind == "trial_started":
                    keys[event.data["slot"]] = event.data["key"]
                elif event.kind == "verdict":
                    verdicts[keys[event.data["slot"]]] = Recorded(event), config.replay
                elif event.kind == "oracle" and event.data["verdict"]["status"] != ERROR:
                    verdicts[event.data["key"]] = Recorded(event), config.replay
                elif event.kind == "request" and event.data["kind"] not in (PAUSE, RESUME):
                    requests.append(event.data)
        return Replay(verdicts, tuple(item for item in requests if "refused" not in item))
