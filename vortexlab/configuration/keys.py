"""The keys of a configuration file: the fields of the records that a campaign is made of, by section.

Names, types, defaults and choices are those of the records; what is added here is what each key means, in words.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, create_model

from vortexlab.agent.config import PROPOSERS, CampaignConfig
from vortexlab.agent.proposers.models import APIS, LLMConfig, ModelConfig
from vortexlab.evaluator.config import CHOICES, EvaluationConfig
from vortexlab.kernels.devices import DEVICES as PREDICTED
from vortexlab.search_spaces.library import NAMES
from vortexlab.settings import BUDGET, DEVICES

#: Spells "no limit" and "no value of its own", for which TOML has no word.
NONE = "none"
#: What stands in [llm] for all models; each may have its own.
COMMON = ("table", "base_url", "api", "label")
_CHOICES: dict[str, tuple[str, ...]] = {
    **{f"evaluation.{name}": allowed for name, allowed in CHOICES.items()},
    "evaluation.device": DEVICES,
    "evaluation.predicted_device": tuple(PREDICTED),
    "campaign.proposers": PROPOSERS,
    "campaign.seeds": NAMES,
    "llm.api": APIS,
    "llm.models.api": APIS,
}
MEANINGS = {
    "campaign.name": "Name of the run, a folder in `runs`; by default the time it starts.",
    "campaign.runs": "Folder of the runs; by default `runs` where the command is given.",
    "campaign.seed": "Seed of every random choice of the campaign.",
    "campaign.proposers": "Who proposes programs. `llm` needs [[llm.models]]; `handoff` waits for `vortex tell`.",
    "campaign.replay": "A run, or its folder, whose recorded replies stand in for the language models.",
    "campaign.seeds": "Published programs that are evaluated first (docs/library.md).",
    "campaign.memory": "Runs to learn from: their frontiers are evaluated after the seeds.",
    "campaign.budget_points": "Seeds with a page budget run once more for each of these shares of the longest context.",
    "campaign.structure_share": "Least share of new structures among what is measured after the seeds, 0 to 1.",
    "campaign.knob_share": "Least share, of what that leaves, of new knobs for known structures, 0 to 1.",
    "campaign.oracles": "Of so many leading programs it is measured at the end what the best choice of as many pages "
    "would keep; counts against no budget.",
    "campaign.mirror": "Keep a copy of the study for optuna-dashboard.",
    "campaign.parallel": "Slots open at a time, running or queued; 0 for one, on a cluster for twice what it can run.",
    "campaign.cluster": 'Where they run: "" here, "local" Ray on this machine, "auto" the Ray cluster that is running, '
    "or the address of one, HOST:PORT or ray://HOST:PORT.",
    "budget.evaluations": 'Programs that are evaluated in full; "none" for no limit. With `hours` alone, time is the '
    "only limit.",
    "budget.hours": "Hours of work; no limit by default.",
    "budget.attempts": "Rejected and evaluated programs together never pass this many times `evaluations`.",
    "evaluation.model": "The model that is evaluated: a folder, or a downloaded name; the shipped one by default.",
    "evaluation.tasks": "Tasks to ask (docs/tasks.md); all built-in ones where none is named, with `data` its own.",
    "evaluation.data": "Files of JSON lines with your own questions (docs/data.md).",
    "evaluation.sources": "Documents and data sets that tasks in words take, NAME=WHERE (docs/tasks.md).",
    "evaluation.template": "The model's chat template around tasks in words: where it has one, always, never.",
    "evaluation.dense_floor": "A task on which dense attention scores less is not judged, 0 to 1.",
    "evaluation.score": "Answers are held against the expected ones, or against those of dense attention.",
    "evaluation.lengths": "Context lengths in tokens, for accuracy and speed alike; with `data` by default its own.",
    "evaluation.contexts": "Contexts per task and length.",
    "evaluation.turns": "Questions asked of each context, at most.",
    "evaluation.seed": "Seed of the samples.",
    "evaluation.split": "Which samples are drawn.",
    "evaluation.device": "Device to evaluate on; `auto` takes the GPU where torch finds one.",
    "evaluation.dtype": "Precision of the model; `auto` is bfloat16 on a GPU and float32 on the CPU.",
    "evaluation.protocol": "What is read densely: the context alone, or the question too.",
    "evaluation.phase": "What runs sparsely and is timed: decode steps, or reading contexts (with measured speed).",
    "evaluation.speed": "Where speed comes from: `device`, or the cost model for `predicted_device`.",
    "evaluation.predicted_device": "Device of predicted speed.",
    "evaluation.geometry": "Attention geometry of the speed gate: a published model's, or a config.json.",
    "evaluation.batch_tokens": "Batch times context of the speed gate in tokens; 0 for 65,536 on the CPU and 1,048,576 "
    "on a GPU.",
    "evaluation.max_state": "Most bytes of state per token of context, over all layers; 0 for any number.",
    "evaluation.compile_for": "GPU targets of the compile gate; an empty list leaves the gate out.",
    "evaluation.margin": "How much less of the score than dense attention still counts as no worse, above 0, below 1.",
    "evaluation.stop_below": "No more is asked of programs that certainly keep less than this share; 0: never.",
    "evaluation.screen_contexts": "Contexts per task of the screen.",
    "evaluation.promoted": "Share of the programs at the screen that goes on, above 0, at most 1.",
    "evaluation.audit_share": "Share of those rejected at the screen that runs on in full, to learn what it loses.",
    "evaluation.context_cache": "GB on disk for contexts that were read, over all runs; 0 keeps none.",
    "evaluation.threads": "CPU threads of the worker; 0 for all.",
    "evaluation.seconds": "Seconds of wall clock for one gate.",
    "evaluation.memory_mb": "MB of host memory that the worker may take.",
    "llm.table": "A TOML or JSON file with settings and prices of models (docs/llm.md).",
    "llm.base_url": "Endpoint of all models that name none, in the OpenAI protocol; OpenAI's own by default.",
    "llm.api": "Its API: Chat Completions or responses.",
    "llm.label": "A word shown beside the programs of all models, e.g. `authored`.",
    "llm.calls": "Most requests to all models, retries included.",
    "llm.tokens": "Most tokens for all models, prompts included.",
    "llm.money": "Most money for all models, in the currency of their prices; no limit by default.",
    "llm.seconds": "Most seconds of waiting for models; no limit by default.",
    "llm.deadline": "Seconds for everything that one slot asks.",
    "llm.repairs": "Rounds in which the errors of a reply go back.",
    "llm.models.model": "Its name, as the endpoint knows it.",
    "llm.models.base_url": "Its endpoint; that of [llm] by default.",
    "llm.models.key_variable": "The environment variable that holds its key.",
    "llm.models.api": "Its API: Chat Completions or responses.",
    "llm.models.temperature": 'Its temperature; "none" leaves it to the endpoint.',
    "llm.models.max_tokens": "Most tokens of a reply.",
    "llm.models.input_price": "Price of a million tokens read.",
    "llm.models.output_price": "Price of a million tokens written.",
    "llm.models.trust_usage": "Whether the endpoint's own token counts are those of the bill.",
    "llm.models.label": "A word shown beside its programs.",
}
#: What is shown commented out where the default is no value.
EXAMPLES: dict[str, Any] = {
    "campaign.name": "first",
    "campaign.memory": ["first"],
    "campaign.replay": "first",
    "budget.hours": 8.0,
    "evaluation.model": "path/to/model",
    "evaluation.tasks": ["needles", "keys"],
    "evaluation.data": ["questions.jsonl"],
    "evaluation.sources": ["squad=dev-v2.0.json"],
    "llm.table": "models.toml",
    "llm.base_url": "http://localhost:8000/v1",
    "llm.label": "authored",
    "llm.money": 5.0,
    "llm.seconds": 3600.0,
    "llm.models.model": "NAME",
    "llm.models.base_url": "http://localhost:8000/v1",
    "llm.models.input_price": 0.5,
    "llm.models.output_price": 1.5,
    "llm.models.label": "authored",
}


@dataclass(frozen=True)
class Key:
    """`path` is section and name; `type` what pydantic checks; `example` stands where there is no default."""

    path: str
    type: Any
    default: Any
    choices: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def meaning(self) -> str:
        return MEANINGS[self.path]

    @property
    def shown(self) -> Any:
        """A value of the right type: the default, or an example where that is none."""
        return EXAMPLES.get(self.path, self.default)


@functools.cache
def keys() -> dict[str, Key]:
    """Every key by its path, in the order in which a file has them."""
    campaign = _of(CampaignConfig, {"LLMConfig": Any})
    language = _of(LLMConfig, {})
    common = {"table": (str, None), "base_url": (str, None), "api": (str, "chat"), "label": (str, "")}
    sections = {
        "campaign": {n: v for n, v in campaign.items() if n not in (*BUDGET, "llm", "evaluation")}
        | {"memory": (list[str], ())},
        "budget": {name: campaign[name] for name in BUDGET},
        "evaluation": _of(EvaluationConfig, {}) | {"device": (str, "auto"), "model": (str, None)},
        "llm": {**common, **{name: value for name, value in language.items() if name != "models"}},
        "llm.models": _of(ModelConfig, {}),
    }
    found = {}
    for section, values in sections.items():
        for name, (kind, default) in values.items():
            path = f"{section}.{name}"
            choices = _CHOICES.get(path, ())
            found[path] = Key(path, _checked(kind, choices), default, choices)
    return found


def of_section(section: str) -> dict[str, Key]:
    return {key.name: key for key in keys().values() if key.section == section}


@functools.cache
def form() -> type[BaseModel]:
    """What a whole file must be."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    optional = {name: (key.type, None) for name, key in of_section("llm.models").items() if name != "model"}
    model: Any = create_model("Model", __config__=config, model=(str, ...), **optional)  # type: ignore[call-overload]
    made: dict[str, Any] = {}
    for section in ("campaign", "budget", "evaluation", "llm"):
        inner: dict[str, Any] = {name: (key.type, None) for name, key in of_section(section).items()}
        if section == "llm":
            inner["models"] = (list.__class_getitem__(model), None)
        made[section] = (create_model(section, __config__=config, **inner), None)
    return create_model("File", __config__=config, **made)


def _of(record: type, names: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> type and default."""
    hints = get_type_hints(record, localns=dict(names))
    return {item.name: (hints[item.name], _default(item)) for item in fields(record)}


def _default(item: Field[Any]) -> Any:
    return None if item.default is MISSING else item.default


def _checked(kind: Any, choices: tuple[str, ...]) -> Any:
    """The type of a field as TOML has it: lists for tuples, "none" for None."""
    if get_origin(kind) in (tuple, list):
        (item, *_) = get_args(kind)
        return list[_checked(item, choices)]  # type: ignore[misc]
    if NoneType in get_args(kind):
        (plain,) = (part for part in get_args(kind) if part is not NoneType)
        if plain is str:
            return Literal[choices] if choices else str
        return Annotated[plain | None, BeforeValidator(lambda value: None if value == NONE else value)]
    return Literal[choices] if choices else kind
