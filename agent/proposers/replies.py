"""Reading what a language model wrote: JSON where it kept to the form, and what can be made out where it did not.

What is clear is taken: JSON in prose, in fences, in other quotes, inside a string or a tool call, under other keys; a
program in a fence, in YAML, or bare. What is not becomes a `ReplyError` whose message goes back to the model.
"""

from __future__ import annotations

import html
import json
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vortexlab.agent.proposers.lenient import LenientError, Partial, read_object
from vortexlab.dsl.errors import VortexError

#: Longer replies are cut before anything looks at them.
REPLY_LIMIT = 64_000
_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_THOUGHTS = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_YAML = re.compile(r"^([ \t]*)program:[ \t]*[|>][-+]?[ \t]*\n((?:(?:\1[ \t]+\S.*|[ \t]*)(?:\n|\Z))+)", re.MULTILINE)
_YAML_HYPOTHESIS = re.compile(r"^[ \t]*hypothesis:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
_DIFF = re.compile(r"^(?:@@ .*@@|--- \S.*\n\+\+\+ |<<<<<<< SEARCH)", re.MULTILINE)
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|apos|#39|#x27|#34);")
#: Marks that word processors make of a program's own.
_TYPOGRAPHY = str.maketrans({
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "\ufeff": "",
    "\u200b": "",
})  # fmt: skip
_OBJECTS = 40  # braces at which an object is looked for


class ReplyError(VortexError):
    """The reply holds no program; the message says what was missing, for the repair."""


@dataclass(frozen=True)
class Reply:
    program: str
    hypothesis: str = ""
    predicted_effect: dict[str, float] = field(default_factory=dict)


def parse_reply(text: str, cut_off: bool = False) -> Reply:
    """Raises `ReplyError` when no whole program can be found. `cut_off`: the endpoint says that the reply was."""
    text = _THOUGHTS.sub("", text[:REPLY_LIMIT])
    if _ENTITY.search(text) and "&quot;" in text:
        text = html.unescape(text)
    partial = False
    for data in _objects(text):
        found, broken = _from_object(data, 0)
        partial |= broken
        if found is not None:
            return found
    for fence in (match.group(1) for match in _FENCE.finditer(text)):
        if "@program" in fence and not _YAML.search(fence):
            return Reply(_program(fence), text[: text.find("```")].strip()[:2000])
    if yaml := _YAML.search(text):
        hypothesis = _YAML_HYPOTHESIS.search(text)
        return Reply(_program(textwrap.dedent(yaml.group(2))), hypothesis.group(1)[:2000] if hypothesis else "")
    bare = text.lstrip()
    if bare.startswith(("@program", "from vortexlab", "class ")):
        return Reply(_program(bare))
    raise ReplyError(_missing(text, partial or cut_off))


def _missing(text: str, cut_off: bool) -> str:
    form = 'reply with one JSON object with the keys "hypothesis", "predicted_effect" and "program"'
    if not text.strip():
        return f"no program was found: the reply was empty; {form}"
    if cut_off:
        return f"no program was found whole: the reply ended in the middle of it; write a shorter one, and {form}"
    if _DIFF.search(text):
        return f"no program was found, only a difference to one; write the whole program, and {form}"
    return f"no program was found in the reply; {form}"


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost object in a text, in order; the whole text first, as JSON proper (or a string of JSON)."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, str):
        yield {"": data}
    elif isinstance(data, list):
        yield {str(number): item for number, item in enumerate(data[:_OBJECTS])}
    elif isinstance(data, dict):
        yield data
    at = -1
    for _ in range(_OBJECTS):
        at = text.find("{", at + 1)
        if at < 0:
            return
        try:
            data, end = read_object(text, at)
        except LenientError:
            continue
        yield data
        at = end - 1


def _from_object(data: dict[str, Any], depth: int) -> tuple[Reply | None, bool]:
    """(the reply in an object, or None; whether its program was cut off)."""
    partial = False
    named = [data[key] for key in data if str(key).lower() == "program"]
    for value in (*named, *data.values()):
        if isinstance(value, Partial):
            partial |= "@program" in value.text or value in named
        elif isinstance(value, str):
            inner = None
            if "{" in value and '"' in value and "program" in value and depth < 3:
                inner, broken = _nested(value, depth)
                partial |= broken
            if inner is not None:
                return inner, False
            if value in named or "@program" in value:
                return Reply(_program(value), str(data.get("hypothesis", ""))[:2000], _effect(data)), False
        elif isinstance(value, (dict, list)) and depth < 3:
            members = value if isinstance(value, dict) else {str(i): item for i, item in enumerate(value[:_OBJECTS])}
            inner, broken = _from_object(members, depth + 1)
            partial |= broken
            if inner is not None:
                return inner, False
    return None, partial


def _nested(text: str, depth: int) -> tuple[Reply | None, bool]:
    """The reply in a string that holds JSON itself."""
    if not text.lstrip().startswith(("{", "[", "```")):
        return None, False
    partial = False
    for data in _objects(text):
        found, broken = _from_object(data, depth + 1)
        partial |= broken
        if found is not None:
            return found, False
    return None, partial


def _program(text: str) -> str:
    """The program without fences, entities of HTML and typography."""
    match = _FENCE.search(text)
    text = match.group(1) if match else text
    return (html.unescape(text) if _ENTITY.search(text) else text).translate(_TYPOGRAPHY)


def _effect(data: dict[str, Any]) -> dict[str, float]:
    effect = data.get("predicted_effect")
    if not isinstance(effect, dict):
        return {}
    named = {key: effect.get(key) for key in ("speedup", "accuracy")}
    return {
        key: float(value)
        for key, value in named.items()
        if isinstance(value, (int, float)) and abs(value) < 1e9 and math.isfinite(value)
    }
