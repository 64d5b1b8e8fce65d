"""From what a user says to what a campaign or an evaluation is configured with.

The command line and the Python interface share these functions, so a setting has one name and one default.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.config import CampaignConfig
    from vortexlab.evaluator.config import EvaluationConfig

DEVICES = ("auto", "cpu", "cuda")


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


def evaluation_config(
    *,
    model_dir: str | Path | None = None,
    tasks: Iterable[str] = (),
    data: Iterable[str | Path] = (),
    sources: Iterable[str] = (),
    template: str | None = None,
    dense_floor: float | None = None,
    score: str | None = None,
    lengths: Iterable[int] = (),
    contexts: int | None = None,
    turns: int | None = None,
    phase: str | None = None,
    speed: str | None = None,
    predict_for: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    geometry: str | None = None,
    batch_tokens: int | None = None,
    threads: int | None = None,
    context_cache: float | None = None,
    memory_mb: int | None = None,
) -> EvaluationConfig:
    """The conditions of an evaluation; what is not given keeps `EvaluationConfig`'s default.

    A task that ends in ``.jsonl`` is a file of `data`. With `data` (files of JSON lines) and without `lengths`, those
    of the data's contexts are taken, rounded down to powers of two. Raises `VortexError` for values that are not
    allowed, for a model that cannot be evaluated, and for tasks and data that cannot be used.
    """
    from vortexlab.evaluator.architectures import check_config, model_folder
    from vortexlab.evaluator.config import EvaluationConfig, is_worded
    from vortexlab.evaluator.sources import absolute

    tasks = tuple(tasks)
    named = [name for name in tasks if name.endswith(".jsonl")]
    asked = [Path(name).stem if name in named else name for name in tasks]
    files = [*data, *named]
    given: dict[str, Any] = {
        "model": None if model_dir is None else model_folder(model_dir),
        "tasks": tuple(asked) or None,
        "data": tuple(str(Path(path).absolute()) for path in files) or None,
        "sources": tuple(map(absolute, sources)) or None,
        "template": template,
        "dense_floor": dense_floor,
        "score": score,
        "lengths": tuple(lengths) or None,
        "contexts": contexts,
        "turns": turns,
        "phase": phase,
        "speed": speed,
        "predicted_device": predict_for,
        "dtype": dtype,
        "geometry": geometry,
        "batch_tokens": batch_tokens,
        "threads": threads,
        "context_cache": context_cache,
        "memory_mb": memory_mb,
    }
    if model_dir is not None:
        check_config(given["model"])
    chosen = {name: value for name, value in given.items() if value is not None}
    config = EvaluationConfig(device=pick_device(device), **chosen)
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


def campaign_config(
    *,
    name: str = "",
    runs: str | Path = "runs",
    seed: int = 0,
    evaluations: int | None = None,
    hours: float | None = None,
    proposers: Iterable[str] = (),
    models: Iterable[str] = (),
    base_url: str | None = None,
    llm_api: str | None = None,
    llm_table: str | Path | None = None,
    llm_prices: Iterable[str] = (),
    llm_calls: int | None = None,
    llm_tokens: int | None = None,
    llm_money: float | None = None,
    llm_minutes: float | None = None,
    llm_label: str | None = None,
    memory: Iterable[str] = (),
    evaluation: EvaluationConfig | None = None,
) -> CampaignConfig:
    """A new campaign. Without a budget it has that of `CampaignConfig`; with `hours` alone time is the only limit.

    `models` to `llm_label` are about language models: `llm_table` is a file with settings of each, `llm_prices` are
    ``MODEL=IN,OUT``. `memory` names runs to learn from. Raises `VortexError` for settings that contradict.
    """
    from vortexlab.agent.config import CampaignConfig

    chosen: dict[str, Any] = {"name": name, "runs": str(runs), "seed": seed, "hours": hours}
    if evaluations is not None or hours is not None:
        chosen["evaluations"] = evaluations
    names, taught = tuple(proposers), tuple(memory)
    if names:
        chosen["proposers"] = names
    if taught:
        from vortexlab.agent.lessons import lessons
        from vortexlab.agent.run import Run

        chosen["memory"] = [lessons(Run.open(earlier, runs)) for earlier in dict.fromkeys(taught)]
    asked, prices = tuple(models), tuple(llm_prices)
    limits = llm_limits(calls=llm_calls, tokens=llm_tokens, money=llm_money, minutes=llm_minutes)
    common = {"base_url": base_url, "api": llm_api, "label": llm_label}
    if asked or llm_table is not None:
        from vortexlab.agent.proposers.models import LLMConfig, make_models, read_table

        if "llm" not in names:
            raise VortexError("a language model was named and no proposer uses it: add --proposer llm")
        table = {} if llm_table is None else read_table(llm_table)
        chosen["llm"] = LLMConfig(make_models(asked, table, prices, **common), **limits)
    elif limits or prices or any(value is not None for value in common.values()):
        raise VortexError("settings of a language model were given without one: add --proposer llm --model NAME")
    if evaluation is None:
        evaluation = evaluation_config()
    if evaluation.phase == "prefill":
        from vortexlab.search_spaces.library import LIBRARY

        chosen["seeds"] = ("dense", *LIBRARY["prefill"])
    return CampaignConfig(evaluation=evaluation, **chosen)


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
