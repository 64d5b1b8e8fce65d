"""Configuration files as `vortex init` writes them: every key with its meaning, those that keep their default in
comments. A line that begins with ``#`` and no blank is a key to uncomment."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.configuration.keys import NONE, Key, of_section
from vortexlab.configuration.reading import Sections
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.phases import PREFILL
from vortexlab.kernels import disk

_HEADS = {
    "campaign": "What is searched, and how.",
    "budget": "When it ends. --evaluations or --hours on the command line take the place of both keys here.",
    "evaluation": "How programs are measured (docs/evaluator.md).",
    "llm": 'Language models that propose, with "llm" among the proposers above (docs/llm.md).',
    "llm.models": "One such table for each model; its head, in double brackets, goes with its keys.",
}


def text_of(sections: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """The file: keys of `sections` as they are, all others with their default or an example in comments."""
    lines = [
        *_prose(f"{title}. Run it with `vortex search --config FILE`; docs/configuration.md explains the form."),
        *_prose("Keys in comments show their default, or an example where they have none. Paths are relative to this "
                "file. Flags of `vortex search` override keys."),
    ]  # fmt: skip
    for section in ("campaign", "budget", "evaluation", "llm"):
        lines += ["", *_prose(_HEADS[section]), f"[{section}]"]
        for key in of_section(section).values():
            lines += _entry(key, sections.get(section, {}))
    models = sections.get("llm", {}).get("models", [])
    for number, model in enumerate(models or [None]):
        lines += ["", *(_prose(_HEADS["llm.models"]) if number == 0 else []), f"{'' if models else '#'}[[llm.models]]"]
        for key in of_section("llm.models").values():
            lines += _entry(key, model or {}, told=number == 0)
    return "\n".join(lines) + "\n"


def sections_of(config: CampaignConfig) -> Sections:
    """What a file must say for `config`, its name and folder aside: a run of that name exists already."""
    budget = {name: getattr(config, name) for name in ("evaluations", "hours", "attempts")}
    if budget["hours"] is None:
        del budget["hours"]
    campaign = _different("campaign", {name: getattr(config, name) for name in of_section("campaign")})
    for name in ("name", "runs"):
        campaign.pop(name, None)
    if config.memory:
        campaign["memory"] = [item["run"] for item in config.memory]
    evaluation = {
        **_different("evaluation", config.evaluation.to_json()),
        "device": config.evaluation.device,
        "lengths": list(config.evaluation.lengths),
    }
    if config.evaluation.model == EvaluationConfig.model:
        evaluation.pop("model", None)
    if config.evaluation.phase == PREFILL:
        campaign["seeds"] = list(config.seeds)
    found: Sections = {"campaign": campaign, "budget": budget, "evaluation": evaluation}
    if config.llm is not None:
        found["llm"] = _of_models(config.llm)
    return found


def write_file(path: Path, text: str, force: bool = False) -> None:
    """Writes the file whole or not at all. Raises `VortexError` where it exists and is not to be replaced."""
    if path.is_dir():
        raise VortexError(f"{path} is a folder; give the name of a file")
    if path.exists() and not path.is_file():
        raise VortexError(f"{path} is a device or a pipe; give the name of a file")
    if path.exists() and not force:
        raise VortexError(f"{path} exists; give another FILE, or --force to write it anew")
    try:
        disk.replace(path, text.encode())
    except OSError as error:
        raise VortexError(
            f"cannot write {path} ({error.strerror}); check the folder, its permissions and free space"
        ) from error


def _of_models(llm: LLMConfig) -> dict[str, Any]:
    limits = _different("llm", {name: value for name, value in asdict(llm).items() if name != "models"})
    defaults = asdict(ModelConfig("any"))
    models = [
        {name: value for name, value in asdict(model).items() if name == "model" or value != defaults[name]}
        for model in llm.models
    ]
    return {**limits, "models": models}


def _different(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are not the default, as TOML has them."""
    known = of_section(section)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: value for name, value in plain.items() if name in known and value != _plain(known[name].default)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _entry(key: Key, given: Mapping[str, Any], told: bool = True) -> Iterator[str]:
    active = key.name in given
    if told:
        default = f" Default: {spelled(_plain(key.default))}." if active and key.default not in (None, "", ()) else ""
        choices = f" One of {', '.join(key.choices)}." if key.choices and len(key.choices) <= 8 else ""
        yield ""
        yield from _prose(f"{key.meaning}{choices}{default}")
    elif not active:
        return
    value = given[key.name] if active else _plain(key.shown)
    yield f"{'' if active else '#'}{key.name} = {spelled(value)}"


def _prose(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 117, break_long_words=False, break_on_hyphens=False)]


def spelled(value: Any) -> str:
    """A value as TOML spells it."""
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(spelled, value))}]"
    return repr(value)

