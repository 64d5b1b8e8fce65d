"""The proposers that a campaign's configuration asks for, joined to its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.agent import prompt
from vortexlab.agent.budget import Budget
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.base import Proposer
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.store import Store
from vortexlab.agent.trials import History
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.architectures import model_folder, read_config
from vortexlab.evaluator.geometries import find_geometry
from vortexlab.kernels.devices import get_device, nearest_device
from vortexlab.search_spaces.knobs import SHARED

if TYPE_CHECKING:
    from vortexlab.agent.proposers.endpoint import Endpoint

#: (kind of event, what happened and in which slot): records what passes between a proposer and a language model.
Recorder = Callable[[str, Mapping[str, Any]], None]


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


def hardware_text(config: CampaignConfig) -> str:
    """The shapes and rates that a program of this campaign is measured at, for a language model."""
    evaluation = config.evaluation
    shape = find_geometry(evaluation.geometry)
    predicted = evaluation.speed == "predicted"
    device = get_device(evaluation.predicted_device if predicted else nearest_device())
    tokens = evaluation.resolved_batch_tokens
    batches = ", ".join(f"{max(1, tokens // length)} requests of {length} tokens" for length in evaluation.lengths)
    return "\n".join((
        f"- device: {device.name} ({device.kind}); its rates in the cost model are {device.evidence}: "
        f"{device.read / 1e9:.0f} GB/s of streamed reads, {device.gather / 1e9:.0f} GB/s of K and V page by page, "
        f"{device.dense / 1e9:.0f} GB/s in dense attention, {device.choose / 1e9:.1f} G scores/s ordered by exact "
        f"selection, {device.choose_latency * 1e6:.1f} us more at least for it",
        f"- geometry {shape.name}: {shape.layers} layers, {shape.kv_heads} KV heads, {shape.group} query heads for "
        f"each, {shape.head_dim} channels" + (f", {shape.latent} of them latent" if shape.latent else ""),
        *_model_line(evaluation.model),
        f"- timed {evaluation.phase}: {batches}",
        f"- page sizes: {', '.join(map(str, SHARED['page'].choices))} tokens are tuned over where a program declares "
        "the shared knob `page`",
    ))  # fmt: skip


def _model_line(model: str) -> list[str]:
    """The shapes of the model that accuracy is measured on, which programs must fit too; none if they are unknown."""
    try:
        facts = read_config(model_folder(model))
        if facts.get("kv_lora_rank"):  # its heads are expanded from latents
            return []
        heads, layers = int(facts["num_attention_heads"]), int(facts["num_hidden_layers"])
        kv_heads = int(facts.get("num_key_value_heads") or heads)
        channels = int(facts.get("head_dim") or int(facts["hidden_size"]) // heads)
    except (VortexError, KeyError, TypeError, ValueError):
        return []
    return [
        f"- accuracy comes from a model of {layers} layers, {kv_heads} KV heads, {heads // kv_heads} query heads for "
        f"each, {channels} channels: a program must fit both, so no slice may go beyond the smaller number of channels"
    ]


def briefing(config: CampaignConfig) -> prompt.Briefing:
    lessons = [{"from_run": taught["run"], **line} for taught in config.memory for line in taught["lines"]]
    return prompt.Briefing(task_text(config), hardware_text(config), tuple(lessons))


def build_proposers(config: CampaignConfig, record: Recorder, history: History) -> list[Proposer]:
    """Raises `VortexError` when a language model cannot be reached for want of a key."""
    made: list[Proposer] = []
    for name in config.proposers:
        if name == "grammar":
            made.append(GrammarProposer(config.library()))
        elif name == "llm":
            made += _language_models(config, record, history)
    return made


def recorded_exchanges(folder: Path) -> list[Mapping[str, Any]]:
    """Every exchange with a language model that a run recorded, in order."""
    with Store.read(folder) as store:
        return [event.data for event in store.events(kind="exchange")]


def _language_models(config: CampaignConfig, record: Recorder, history: History) -> list[Proposer]:
    """One proposer for each model, all on one budget."""
    from vortexlab.agent.folders import resolve
    from vortexlab.agent.proposers import endpoint as endpoints
    from vortexlab.agent.proposers.llm import LLMProposer

    assert config.llm is not None
    limits = config.llm
    budget = Budget(limits.calls, limits.tokens, limits.money, limits.seconds, history.spent())
    # A chat that a kill cut off is continued from its recorded exchanges, which were paid for already.
    cut_off = history.exchanges
    recording = recorded_exchanges(resolve(config.replay, config.runs)) if config.replay else []

    made: list[Proposer] = []
    for model in limits.models:
        endpoint: Endpoint
        if config.replay:
            endpoint = endpoints.ReplayEndpoint(_of(recording, model.model))
        else:
            endpoint = endpoints.OpenAIEndpoint(model)
        if own := _of(cut_off, model.model):
            endpoint = endpoints.ResumedEndpoint(endpoints.ReplayEndpoint(own), endpoint)
        dropped = frozenset(history.dropped.get(model.model, ()))
        reserve = None if config.replay else partial(record, "reserved")
        exchange = partial(record, "exchange")
        made.append(LLMProposer(model, limits, briefing(config), exchange, budget, endpoint, dropped, reserve))
    return made


def _of(exchanges: Sequence[Mapping[str, Any]], model: str) -> list[Mapping[str, Any]]:
    return [item for item in exchanges if item["request"]["model"] == model]
