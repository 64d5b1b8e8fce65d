"""Reading what a language model wrote: JSON where it kept to the form, a fenced program where it did not."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

from vortexlab.dsl.errors import VortexError

_FENCE = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
#: Longer replies are cut before anything looks at them.
REPLY_LIMIT = 64_000


class ReplyError(VortexError):
    """The reply holds no program; the message says what was missing, for the repair."""


@dataclass(frozen=True)
class Reply:
    program: str
    hypothesis: str = ""
    predicted_effect: dict[str, float] = field(default_factory=dict)


def parse_reply(text: str) -> Reply:
    """Raises `ReplyError` when no program can be found."""
    text = text[:REPLY_LIMIT]
    fences = [match.group(1) for match in _FENCE.finditer(text)]
    for candidate in (text, *fences, text[text.find("{") : text.rfind("}") + 1]):
        try:
            data = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict) and isinstance(data.get("program"), str):
            return Reply(_unfenced(data["program"]), str(data.get("hypothesis", ""))[:2000], _effect(data))
    for fence in fences:
        if "@program" in fence:
            return Reply(fence, text[: text.find("```")].strip()[:2000])
    if text.lstrip().startswith(("@program", "from vortexlab")):
        return Reply(text)
    raise ReplyError(
        'no program was found in the reply; expected one JSON object with the keys "hypothesis", "predicted_effect" '
        'and "program"'
    )


def _unfenced(program: str) -> str:
    match = _FENCE.search(program)
    return match.group(1) if match else program


def _effect(data: dict[str, object]) -> dict[str, float]:
    effect = data.get("predicted_effect")
    if not isinstance(effect, dict):
        return {}
    return {
        key: float(effect[key])
        for key in ("speedup", "accuracy")
        if isinstance(effect.get(key), (int, float)) and math.isfinite(effect[key])
    }
