"""From what a user says to what a campaign or an evaluation is configured with.

The command line, configuration files, presets and the Python interface end here, so a setting has one name and one
default: what was said becomes keys of a configuration file (`vortexlab.configuration`), and these become the records.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.config import CampaignConfig
    from vortexlab.agent.proposers.models import LLMConfig
    from vortexlab.configuration.reading import Sections
    from vortexlab.evaluator.config import EvaluationConfig

DEVICES = ("auto", "cpu", "cuda")
#: Keys of a campaign's budget.
BUDGET = ("evaluations", "hours", "attempts")


class EvaluationSettings(TypedDict, total=False):
    """How programs are evaluated. A task that ends in ``.jsonl`` is a file of `data`."""

    model_dir: str | Path | None
    tasks: Iterable[str]
    data: Iterable[str | Path]
    sources: Iterable[str]
    template: str | None
    dense_floor: float | None
    score: str | None
    lengths: Iterable[int]
    contexts: int | None
    turns: int | None
    phase: str | None
    speed: str | None
    predict_for: str | None
    device: str | None
    dtype: str | None
    geometry: str | None
    batch_tokens: int | None
    threads: int | None
    context_cache: float | None
    memory_mb: int | None


class Settings(EvaluationSettings, total=False):
    """Everything that `vortex search` takes; None and empty lists are as good as left out.

    `model` to `llm_label` are about language models: `llm_table` is a file with settings of each, `llm_prices` are
    ``MODEL=IN,OUT``. `memory` names runs to learn from.
    """

    name: str | None
    runs: str | Path | None
    seed: int | None
    evaluations: int | None
    hours: float | None
    proposers: Iterable[str]
    model: str | Iterable[str]
    base_url: str | None
    llm_api: str | None
    llm_table: str | Path | None
    llm_prices: Iterable[str]
    llm_calls: int | None
    llm_tokens: int | None
    llm_money: float | None
    llm_minutes: float | None
    llm_label: str | None
    memory: Iterable[str]
    parallel: int | None
    cluster: str | None


#: Settings that a campaign may take when it is resumed.
RESUMED = {"runs", "evaluations", "hours", "cluster", "llm_calls", "llm_tokens", "llm_money", "llm_minutes"}
#: Where a setting's key has another name than it, or belongs to language models.
_KEYS = {
    "model_dir": "evaluation.model", "predict_for": "evaluation.predicted_device", "base_url": "llm.base_url",
    "llm_api": "llm.api", "llm_table": "llm.table", "llm_calls": "llm.calls", "llm_tokens": "llm.tokens",
    "llm_money": "llm.money", "llm_minutes": "llm.seconds", "llm_label": "llm.label", "model": "llm.named",
    "llm_prices": "llm.prices",
}  # fmt: skip


def key_of(setting: str) -> str:
    """The key of a configuration file that a setting overrides; `llm.named` and `llm.prices` are in no file.

    Raises `VortexError` for a setting that there is not."""
    known = [*EvaluationSettings.__annotations__, *Settings.__annotations__]
    if setting not in known:
        close = difflib.get_close_matches(setting, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(set(known)))}"
        raise VortexError(f"setting {setting!r} is unknown; {hint}")
    if setting in _KEYS:
        return _KEYS[setting]
    if setting in EvaluationSettings.__annotations__:
        return f"evaluation.{setting}"
    return f"budget.{setting}" if setting in BUDGET else f"campaign.{setting}"


def pick_device(device: str = "auto") -> str:
    """`cpu` or `cuda`; `auto` is the GPU where torch can use one. Raises `VortexError` for anything else."""
    if device not in DEVICES:
        raise VortexError(f"device {device!r} is not one of {', '.join(DEVICES)}")
    if device != "auto":
        return device
    if shutil.which("nvidia-smi") is None:
        return "cpu"  # without loading torch
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def evaluation_config(**settings: Unpack[EvaluationSettings]) -> EvaluationConfig:
    """The conditions of an evaluation; what is not given keeps `EvaluationConfig`'s default.

    With `data` (files of JSON lines) and without `lengths`, those of the data's contexts are taken, rounded down to
    powers of two. Raises `VortexError` for values that are not allowed, for a model that cannot be evaluated, and for
    tasks and data that cannot be used.
    """
    return _evaluation(_overlaid({}, settings).get("evaluation", {}))


def campaign_config(
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    **settings: Unpack[Settings],
) -> CampaignConfig:
    """A new campaign: `config` is a configuration file, or its sections; `preset` the name of one; `settings` override.

    Without a budget it has that of `CampaignConfig`; with `hours` alone time is the only limit. A budget among the
    settings takes the place of the file's. Raises `VortexError` for settings that are not allowed or contradict.
    """
    if config is not None and preset is not None:
        raise VortexError("a configuration and a preset were given; leave one out")
    base: Sections = {}
    if preset is not None:
        from vortexlab.configuration.presets import preset as named

        base = named(preset)
    elif config is not None:
        from vortexlab.configuration import reading

        base = reading.check(config, "config") if isinstance(config, Mapping) else reading.read_file(config)
    said = _overlaid(base, settings)
    try:
        return _campaign(said)
    except VortexError as error:
        if isinstance(config, (str, Path)) and _complaint(base) == str(error):
            raise VortexError(f"{config}: {error}") from error  # the file's fault, not that of what overrides it
        raise


def _overlaid(base: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> Sections:
    """The sections with settings in the place of keys; a budget among them replaces the whole one."""
    said = {section: dict(values) for section, values in base.items()}
    given: dict[str, Any] = {}
    for name, value in settings.items():
        key = key_of(name)
        if isinstance(value, Iterable) and not isinstance(value, str):
            value = [str(item) if isinstance(item, Path) else item for item in value] or None
        elif name == "model" and value is not None:
            value = [value]
        elif name == "llm_minutes" and value is not None:
            value = value * 60
        if value is not None:
            given[key] = str(value) if isinstance(value, Path) else value
    if given.keys() & {"budget.evaluations", "budget.hours"}:
        for limit in ("evaluations", "hours"):
            said.get("budget", {}).pop(limit, None)
    for key, value in given.items():
        section, _, name = key.partition(".")
        said.setdefault(section, {})[name] = value
    return said


def _campaign(said: Mapping[str, Mapping[str, Any]]) -> CampaignConfig:
    """The campaign that sections describe."""
    from vortexlab.agent.config import CampaignConfig

    chosen = {**said.get("campaign", {}), **said.get("budget", {})}
    if chosen.get("hours") is not None:
        chosen.setdefault("evaluations", None)
    if taught := chosen.pop("memory", ()):
        from vortexlab.agent.lessons import lessons
        from vortexlab.agent.run import Run

        runs = chosen.get("runs", CampaignConfig.runs)
        chosen["memory"] = [lessons(Run.open(earlier, runs)) for earlier in dict.fromkeys(taught)]
    evaluation = _evaluation(said.get("evaluation", {}))
    if evaluation.phase == "prefill" and "seeds" not in chosen:
        from vortexlab.search_spaces.library import LIBRARY

        chosen["seeds"] = ("dense", *LIBRARY["prefill"])
    llm = _language_models(dict(said.get("llm", {})), "llm" in chosen.get("proposers", ()))
    return CampaignConfig(evaluation=evaluation, llm=llm, **chosen)


def _complaint(said: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with sections, if anything."""
    try:
        _campaign(said)
    except VortexError as error:
        return str(error)
    return ""


def _language_models(said: dict[str, Any], asked: bool) -> LLMConfig | None:
    """The models of section [llm] and their limits; `asked`: there is a proposer that uses them."""
    named, prices = said.pop("named", ()), said.pop("prices", ())
    inline, file = said.pop("models", ()), said.pop("table", None)
    common = {name: said.pop(name, None) for name in ("base_url", "api", "label")}
    if not (named or inline or file):
        if said or prices or any(value is not None for value in common.values()):
            raise VortexError(
                "settings of a language model were given without one: add --proposer llm --model NAME "
                '(proposers = ["llm"] and [[llm.models]] in a file)'
            )
        return None
    if not asked:
        raise VortexError(
            "a language model was named and no proposer uses it: add --proposer llm (in a file: campaign.proposers)"
        )
    from vortexlab.agent.proposers.models import LLMConfig, make_models, read_table

    names = [item["model"] for item in inline]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise VortexError(f"model {twice[0]!r} is named twice; name each model once")
    own = {item["model"]: {name: value for name, value in item.items() if name != "model"} for item in inline}
    table = {**({} if file is None else read_table(file)), **own}
    return LLMConfig(make_models(named, table, prices, **common), **said)


def _evaluation(said: Mapping[str, Any]) -> EvaluationConfig:
    """The conditions that section [evaluation] describes."""
    from vortexlab.evaluator.architectures import check_config, model_folder
    from vortexlab.evaluator.config import EvaluationConfig, is_worded
    from vortexlab.evaluator.sources import absolute

    chosen = dict(said)
    tasks = tuple(chosen.pop("tasks", ()))
    named = [name for name in tasks if name.endswith(".jsonl")]
    chosen["tasks"] = tuple(Path(name).stem if name in named else name for name in tasks)
    chosen["data"] = tuple(str(Path(path).absolute()) for path in [*chosen.pop("data", ()), *named])
    chosen["sources"] = tuple(map(absolute, chosen.pop("sources", ())))
    if "model" in chosen:
        chosen["model"] = model_folder(chosen["model"])
        check_config(chosen["model"])
    chosen["device"] = pick_device(chosen.get("device", "auto"))
    config = EvaluationConfig(**chosen)
    if not config.data and not any(map(is_worded, config.tasks)):
        return config
    from vortexlab.evaluator.samples import make_suite
    from vortexlab.evaluator.user_data import load_data, own_lengths

    if config.data and "lengths" not in chosen:
        own = load_data(config.data, config.model)
        mine = [sample for sample in own if not config.tasks or sample.task in config.tasks]
        config = replace(config, lengths=own_lengths(mine) or config.lengths)
    make_suite(config)  # complains of what cannot be asked before anything is started
    return config


def llm_limits(
    *,
    calls: int | None = None,
    tokens: int | None = None,
    money: float | None = None,
    minutes: float | None = None,
) -> dict[str, Any]:
    """The limits that were given, as `LLMConfig` names them."""
    seconds = None if minutes is None else minutes * 60
    limits = {"calls": calls, "tokens": tokens, "money": money, "seconds": seconds}
    return {name: value for name, value in limits.items() if value is not None}


def replay_config(
    recorded: CampaignConfig, replay: str | Path, *, name: str = "", runs: str | Path = "runs"
) -> CampaignConfig:
    """The campaign of `recorded` once more under another name, its language model's replies taken from `replay`."""
    return replace(recorded, name=name, runs=str(runs), replay=str(Path(replay).absolute()))
