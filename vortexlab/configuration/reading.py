"""A configuration file as checked sections; what is wrong with it is told in one line that names the key."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.configuration.keys import COMMON, form, keys
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.geometries import GEOMETRIES

#: Section -> key -> value, of the keys that are given.
Sections = dict[str, dict[str, Any]]
_LIMIT = 1 << 20  # bytes of a file
#: Keys that mean nothing without others, or that are no field before they are resolved.
_TOGETHER = {"campaign.proposers", "campaign.memory", "evaluation.device", "evaluation.model",
             *(f"llm.{name}" for name in COMMON)}  # fmt: skip
_WORDS = {
    "int_type": "a whole number", "int_from_float": "a whole number", "int_parsing_size": "a smaller number",
    "float_type": "a number", "finite_number": "a finite number", "string_type": "a text",
    "bool_type": "true or false", "list_type": "a list in [ ]", "model_type": "a section", "dict_type": "a section",
    "model_attributes_type": "a section",
}  # fmt: skip


def read_file(path: str | Path) -> Sections:
    """The keys that a TOML file gives, paths in it taken from its folder.

    Raises `VortexError` for a file that cannot be read or is no TOML, for unknown keys, and for values of the wrong
    type or out of range.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            content = opened.read(_LIMIT + 1)
        if len(content) > _LIMIT:
            raise VortexError(f"{file} is larger than {_LIMIT} bytes, so it is no configuration")
        data = tomllib.loads(content.decode("utf-8-sig"))  # editors on Windows begin a file with a mark
    except OSError as error:
        raise VortexError(
            f"cannot read the configuration {file} ({error.strerror}); `vortex init FILE` writes one"
        ) from None
    except UnicodeDecodeError as error:
        raise VortexError(f"{file}: byte {error.start} is no UTF-8, which TOML is written in") from None
    except tomllib.TOMLDecodeError as error:
        raise VortexError(f"{file}: {_placed(str(error))}") from None
    except ValueError:  # Python's own limit, of 4300 digits
        raise VortexError(f"{file}: a number in it has thousands of digits; give a smaller one") from None
    except RecursionError:
        raise VortexError(f"{file}: is nested too deeply") from None
    return _anchored(check(data, str(file)), file.parent)


def check(data: Mapping[str, Any], where: str) -> Sections:
    """The same for sections as they are; `where` begins every complaint."""
    try:
        found: Sections = form().model_validate(dict(data)).model_dump(exclude_unset=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [item for item in problems if item["type"] == "extra_forbidden"]
        raise VortexError(f"{where}: {_line((unknown or problems)[0])}") from None
    for section, values in found.items():
        for name, value in values.items():
            _alone(section, name, value, where)
    return found


def _placed(text: str) -> str:
    """`Invalid value (at line 3, column 5)` with the place in front."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", text, re.DOTALL)
    if match is None:
        return f"no TOML: {' '.join(text.split())}"
    place = f"line {match[2]}, column {match[3]}" if match[2] else "at its end"
    what = " ".join(match[1].split())
    return f"{place}: no TOML: {what[0].lower()}{what[1:]}"


def _line(problem: Any) -> str:
    path = ".".join(part if _is_plain(part) else json.dumps(part) for part in problem["loc"] if isinstance(part, str))
    place = "".join(f" ({part + 1}. entry)" for part in problem["loc"] if isinstance(part, int))
    found = _short(problem["input"])
    if problem["type"] == "extra_forbidden":
        return f"{path} is unknown{place}; {_nearest(path)}"
    if problem["type"] == "missing":
        return f"{path} is missing{place}"
    if problem["type"] == "literal_error":
        allowed = keys()[path].choices
        close = difflib.get_close_matches(str(problem["input"]), allowed, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path}{place}: {found} is not one of {', '.join(allowed)}{hint}"
    return f"{path}{place}: expected {_WORDS.get(problem['type'], problem['msg'])}, found {found}"


def _is_plain(key: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) is not None


def _short(value: Any) -> str:
    text = f"{value!r}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(path: str) -> str:
    """The known key that an unknown one is closest to: in its section, by its last name anywhere, or none."""
    section, _, name = path.rpartition(".")
    known = [*keys(), "llm.models"]
    sections = sorted({key.rpartition(".")[0] for key in known})
    inside = [key for key in known if key.rpartition(".")[0] == section]
    for candidates in (inside, [] if section else sections, known):
        names: dict[str, str] = {}
        for key in candidates:
            names.setdefault(key.rpartition(".")[2], key)
        if close := difflib.get_close_matches(name, names, 1, cutoff=0.7):
            found = names[close[0]]
            return f"did you mean {f'[{found}]' if found in sections else found}?"
    if inside:
        return f"known there: {', '.join(key.rpartition('.')[2] for key in inside)}"
    return f"sections are {', '.join(sections)}"


def _alone(section: str, name: str, value: Any, where: str) -> None:
    """Complains of a value that is out of range whatever the others are. Combinations are for `settings`."""
    if value is None or f"{section}.{name}" in _TOGETHER:
        return
    try:
        _record(section, name, value)
    except VortexError as error:
        text = str(error)
        said = text if text.startswith(f"{name} ") else f"{name}: {text}"
        raise VortexError(f"{where}: {section}.{said}") from None


def _record(section: str, name: str, value: Any) -> None:
    if section == "evaluation":
        EvaluationConfig(**{name: value})
    elif section != "llm":
        CampaignConfig(**{name: value})
    elif name == "models":
        for item in value:
            ModelConfig(**item)
    else:
        LLMConfig((ModelConfig("any", input_price=0.0, output_price=0.0),), **{name: value})


def _anchored(sections: Sections, base: Path) -> Sections:
    """Paths that are relative taken from `base`. Names of models, runs and geometries stay names."""

    def path(text: str) -> str:
        return str(base / text)

    def if_there(text: str) -> str:
        return path(text) if (base / text).exists() else text

    def run(text: str) -> str:
        return path(text) if "/" in text else text

    def source(text: str) -> str:
        name, equals, rest = text.partition("=")
        return f"{name}{equals}{if_there(rest)}" if rest else text

    rules: dict[str, Callable[[str], str]] = {
        "campaign.runs": path, "campaign.memory": run, "campaign.replay": run, "llm.table": path,
        "evaluation.model": if_there, "evaluation.data": path, "evaluation.sources": source,
        "evaluation.geometry": lambda text: text if text in GEOMETRIES else if_there(text),
        "evaluation.tasks": lambda text: path(text) if text.endswith(".jsonl") else text,
    }  # fmt: skip
    for place, rule in rules.items():
        section, _, name = place.partition(".")
        if name in sections.get(section, {}):
            value = sections[section][name]
            sections[section][name] = [rule(item) for item in value] if isinstance(value, list) else rule(value)
    return sections
