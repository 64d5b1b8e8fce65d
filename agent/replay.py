"""What a replay takes from the recorded run: its measurements, and what people asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.recorded import Recorded
from vortexlab.agent.run import resolve
from vortexlab.agent.store import Store
from vortexlab.agent.trials import PAUSE, RESUME


@dataclass(frozen=True)
class Replay:
    """`verdicts` by key: under the same conditions nothing is measured a second time. `requests` in order, each with
    the slot before which it came; pauses are left out."""

    verdicts: Mapping[str, Recorded] = field(default_factory=dict)
    requests: tuple[Mapping[str, Any], ...] = ()

    @staticmethod
    def of(config: CampaignConfig) -> Replay:
        """Empty where nothing is replayed. Raises `VortexError` for an unknown run."""
        if not config.replay:
            return Replay()
        keys: dict[int, str] = {}
        verdicts, requests = {}, []
        with Store.read(resolve(config.replay, config.runs)) as store:
            for event in store.events():
                if event.kind == "trial_started":
                    keys[event.data["slot"]] = event.data["key"]
                elif event.kind == "verdict":
                    verdicts[keys[event.data["slot"]]] = Recorded(event)
                elif event.kind == "request" and event.data["kind"] not in (PAUSE, RESUME):
                    requests.append(event.data)
        return Replay(verdicts, tuple(item for item in requests if "refused" not in item))
