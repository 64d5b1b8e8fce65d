"""The proposers that a campaign's configuration asks for, joined to its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.base import Proposer
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.store import Store
from vortexlab.agent.trials import History
from vortexlab.dsl.ir import digest

if TYPE_CHECKING:
    from vortexlab.agent.proposers.llm import Completion, Endpoint


def task_text(config: CampaignConfig) -> str:
    """What a language model is told of this campaign's aim and conditions."""
    evaluation = config.evaluation
    lengths = ", ".join(map(str, evaluation.lengths))
    where = (
        f"predicted for {evaluation.predicted_device}" if evaluation.speed == "predicted" else
        f"measured on {evaluation.device}"
    )  # fmt: skip
    more = " or up to twice as many (they are timed at these)" if evaluation.data else ""
    return (
        "find sparse-attention programs on the Pareto frontier of two objectives, both to be maximised: speed-up of "
        f"one decode step of attention over the fastest dense path ({where}, geometry {evaluation.geometry}), and "
        "accuracy kept relative to dense attention on the same long-context questions. "
        f"Contexts have {lengths} tokens{more}; the context is read densely, question and answer through the program."
    )


def build_proposers(config: CampaignConfig, store: Store, history: History) -> list[Proposer]:
    """Raises `VortexError` when the language model cannot be reached for want of a key."""
    made: list[Proposer] = []
    for name in config.proposers:
        if name == "grammar":
            made.append(GrammarProposer(config.library()))
        elif name == "llm":
            made.append(_language_model(config, store, history))
    return made


def recorded_exchanges(folder: Path) -> list[Mapping[str, Any]]:
    """Every exchange with a language model that a run recorded, in order."""
    with Store.read(folder) as store:
        return [event.data for event in store.events(kind="exchange")]


def _language_model(config: CampaignConfig, store: Store, history: History) -> Proposer:
    from vortexlab.agent.proposers.llm import LLMProposer, OpenAIEndpoint, ReplayEndpoint
    from vortexlab.agent.run import resolve

    assert config.llm is not None
    # A chat that a kill cut off is continued from its recorded exchanges, which were paid for already.
    slot = None if history.pending else history.next_slot
    cut_off = [item for item in history.exchanges if item["slot"] == slot]
    known = {(item["slot"], item["key"]) for item in cut_off}

    def record(exchange: dict[str, Any]) -> None:
        if (exchange["slot"], exchange["key"]) not in known:
            data = {key: value for key, value in exchange.items() if key != "slot"}
            store.append("exchange", data, slot=exchange["slot"])

    endpoint: Endpoint
    if config.replay:
        endpoint = ReplayEndpoint(recorded_exchanges(resolve(config.replay, config.runs)))
    else:
        endpoint = OpenAIEndpoint(config.llm)
    if cut_off:
        endpoint = _Resumed(cut_off, endpoint)
    return LLMProposer(config.llm, task_text(config), record, endpoint, history.spent(but_slot=slot))


class _Resumed:
    """Answers what was answered before the kill from the record, everything else from the endpoint."""

    def __init__(self, recorded: Sequence[Mapping[str, Any]], endpoint: Endpoint):
        from vortexlab.agent.proposers.llm import ReplayEndpoint

        self._keys = {item["key"] for item in recorded}
        self._recorded, self._endpoint = ReplayEndpoint(recorded), endpoint
        self.label = endpoint.label

    def complete(self, request: Mapping[str, Any]) -> Completion:
        known = digest(dict(request)) in self._keys
        return (self._recorded if known else self._endpoint).complete(request)
