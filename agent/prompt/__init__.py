"""The prompt: text files with holes, filled with measured facts.

Whatever comes from programs, replies or logs goes in as JSON on one line each between DATA marks, so that it cannot
close its own quotation.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

from vortexlab.agent.proposers.base import Member
from vortexlab.dsl.manual import manual

#: Characters that each kind of material may take.
LIMITS = {"frontier": 9000, "parents": 7000, "failures": 4000, "memory": 4000}
_PARTS = ("system", "task", "reply", "repair")


def part(name: str) -> str:
    return resources.files("vortexlab.agent.prompt").joinpath(f"{name}.txt").read_text()


def version() -> str:
    """Changes when a text or the language reference does; stored with every exchange."""
    text = "\n".join(part(name) for name in _PARTS) + manual(compact=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _short(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def describe(member: Member, source: bool) -> dict[str, Any]:
    """What a proposer is told of one evaluated program: plain JSON, no objects of ours."""
    facts: dict[str, Any] = {
        "id": member.id,
        "name": member.name,
        "operator": member.operator,
        "knobs": dict(member.knobs),
    }
    for key in ("speedup", "accuracy"):
        value = getattr(member, key)
        if value is not None:
            facts[key] = round(value, 3)
    if member.density is not None:
        facts["density"] = round(member.density, 4)
    if member.status != "accepted":
        facts["stopped_at"], facts["reason"] = member.gate, _short(member.reason)
    if source:
        facts["program"] = member.source
    return facts


def _lines(items: Sequence[dict[str, Any]], limit: int) -> list[str]:
    kept: list[str] = []
    for item in items:
        line = json.dumps(item, ensure_ascii=True, sort_keys=True)
        if sum(map(len, kept)) + len(line) > limit:
            break
        kept.append(line)
    return kept


def messages(history: Sequence[Member], rng: random.Random, task: str) -> list[dict[str, str]]:
    """The chat that asks for one program. Which parents are shown is drawn with `rng`."""
    accepted = [m for m in history if m.status == "accepted"]
    frontier = [m for m in accepted if m.on_frontier]
    others = [m for m in accepted if not m.on_frontier]
    parents = rng.sample(others, min(3, len(others)))
    failures = [m for m in history if m.status != "accepted"][-6:]
    memory = [
        {
            "hypothesis": _short(m.hypothesis),
            "predicted": dict(m.predicted_effect),
            "measured": describe(m, source=False),
        }
        for m in history
        if m.hypothesis
    ][-10:]
    material = [
        "frontier:", *_lines([describe(m, source=True) for m in frontier], LIMITS["frontier"]),
        "parents:", *_lines([describe(m, source=True) for m in parents], LIMITS["parents"]),
        "failures:", *_lines([describe(m, source=True) for m in failures], LIMITS["failures"]),
        "memory:", *_lines(memory, LIMITS["memory"]),
    ]  # fmt: skip
    return [
        {"role": "system", "content": Template(part("system")).substitute(language=manual(compact=True))},
        {
            "role": "user",
            "content": Template(part("task")).substitute(task=task, material="\n".join(material))
            + "\n"
            + part("reply"),
        },
    ]


def repair(problem: str) -> dict[str, str]:
    return {"role": "user", "content": Template(part("repair")).substitute(problem=json.dumps(_short(problem, 2000)))}
