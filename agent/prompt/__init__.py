"""The prompt: text files with holes, filled with measured facts, each part within a budget of bytes.

Whatever comes from programs, replies or logs goes in as JSON on one line each between DATA marks, so that it cannot
close its own quotation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from vortexlab.agent.proposers.base import Member
from vortexlab.dsl.manual import manual

#: Bytes that a whole chat may have, the rounds of a repair included.
LIMIT = 48_000
#: Bytes of each part, its own text and what fills it. Together they are below `LIMIT`: a test adds them up.
BUDGETS = {
    "system": 22_000, "task": 2_000, "frontier": 6_500, "parents": 4_500, "failures": 3_500, "memory": 3_000,
    "antipatterns": 1_200, "reply": 600, "repair": 4_500,
}  # fmt: skip
_REPLY_SHOWN, _PROBLEM_SHOWN = 2_400, 1_600  # bytes of a reply that is sent back, characters of what is wrong with it
_PARENTS, _FAILURES, _REASONS = 3, 40, 12
_LESSONS = 1_400  # bytes of what earlier runs taught, a part of the memory's
_COMPARED = 150  # failures that are compared word by word


@dataclass(frozen=True)
class Briefing:
    """What a campaign is after (`task`), the shapes and rates its programs are measured at (`hardware`), and what was
    learned in earlier runs (`lessons`, the most telling first)."""

    task: str
    hardware: str = ""
    lessons: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A chat that asks for one program, and the ids of the programs it shows as material to build on."""

    messages: list[dict[str, str]]
    parents: tuple[str, ...]


@functools.cache
def part(name: str) -> str:
    return resources.files("vortexlab.agent.prompt").joinpath(f"{name}.txt").read_text()


@functools.cache
def version() -> str:
    """Changes when a text or the language reference does; stored with every exchange."""
    text = "\n".join(part(name) for name in BUDGETS) + _language()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _language() -> str:
    return manual(compact=True)


def _short(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _cut(text: str, size: int) -> str:
    """The text within `size` bytes."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= size else data[: size - 3].decode(errors="ignore") + "..."


def describe(member: Member, source: bool) -> dict[str, Any]:
    """What a proposer is told of one evaluated program: plain JSON, no objects of ours."""
    facts: dict[str, Any] = {
        "id": member.id,
        "name": _short(member.name, 80),
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
    if member.limits:
        facts["limits"] = dict(member.limits)
    if member.pinned:
        facts["pinned"] = "people ask to build on this one"
    if source:
        facts["program"] = member.source
    return facts


def _filled(name: str, items: Iterable[Mapping[str, Any]]) -> str:
    """A part with one line for each item, as many as its budget holds; an item that is too large is left out."""
    left = BUDGETS[name] - len(part(name))
    kept: list[str] = []
    for item in items:
        line = json.dumps(item, ensure_ascii=True, sort_keys=True)
        if len(line) < left:
            kept.append(line)
            left -= len(line) + 1
        elif left < 200:
            break
    return Template(part(name)).substitute(lines="\n".join(kept) or "none yet")


def _within(items: Iterable[Mapping[str, Any]], size: int) -> list[Mapping[str, Any]]:
    """The first items whose lines have `size` bytes together."""
    kept = []
    for item in items:
        size -= len(json.dumps(item)) + 1
        if size < 0:
            break
        kept.append(item)
    return kept


def compose(history: Sequence[Member], rng: random.Random, briefing: Briefing) -> Prompt:
    """The chat that asks for one program. Which programs are shown is drawn with `rng`, more than fit among them.

    Pinned ones come first, those of a crowd in an order that is drawn too.
    """
    accepted = [member for member in history if member.status == "accepted"]
    frontier = [member for member in accepted if member.on_frontier]
    others = [member for member in accepted if not member.on_frontier and not member.pinned]
    parents = rng.sample(others, min(_PARENTS, len(others)))
    pinned = [member for member in accepted if member.pinned]
    pinned = rng.sample(pinned, len(pinned))
    # A frontier that is larger than its share of the prompt is shown in part, evenly from fast to accurate.
    order = sorted(frontier, key=lambda member: (-(member.speedup or 0.0), member.id))
    step = max(1, round(len(order) / 6))
    first = rng.randrange(step)
    shown = [*order[first::step], *(member for i, member in enumerate(order) if (i - first) % step)]
    near = [*pinned, *(member for member in [*order[first::step], *parents] if not member.pinned)]
    shown = [*(member for member in pinned if member.on_frontier), *(m for m in shown if not m.pinned)]
    parents = [*(member for member in pinned if not member.on_frontier), *parents]
    failed = [member for member in history if member.status != "accepted"]
    room = BUDGETS["task"] - len(part("task"))
    task = {"task": _cut(briefing.task, room * 2 // 3), "hardware": _cut(briefing.hardware, room // 3)}
    user = [
        Template(part("task")).substitute(task),
        _filled("frontier", (describe(member, source=True) for member in shown)),
        _filled("parents", (describe(member, source=True) for member in parents)),
        _filled("failures", (describe(member, source=True) for member in nearest(failed, near))),
        _filled("memory", [*_within(briefing.lessons, _LESSONS), *map(tried, _memorable(history))]),
        _filled("antipatterns", antipatterns(failed)),
        part("reply"),
    ]
    system = Template(part("system")).substitute(language=_language())
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "\n".join(user)}]
    return Prompt(messages, tuple(member.id for member in near[:_PARENTS]))


def repair(reply: str, problem: str) -> list[dict[str, str]]:
    """The round that sends a reply back with what is wrong with it; it replaces an earlier one."""
    shown, room = _PROBLEM_SHOWN, BUDGETS["repair"] - _REPLY_SHOWN - len(part("repair"))
    while len(quoted := json.dumps(_short(problem, shown))) > room:
        shown //= 2
    return [
        {"role": "assistant", "content": _cut(reply, _REPLY_SHOWN) or "(nothing)"},
        {"role": "user", "content": Template(part("repair")).substitute(problem=quoted)},
    ]


def nearest(failed: Sequence[Member], shown: Sequence[Member]) -> list[Member]:
    """Failures in order of likeness to the programs shown, of each structure and gate the latest one.

    Children of shown programs come before the others; then counts what share of their words two programs have in
    common. The latest `_COMPARED` are looked at.
    """
    latest = {(member.structure, member.gate): member for member in failed}
    ids = {member.id for member in shown}
    words = [_words(member.source) for member in shown]

    def likeness(member: Member) -> float:
        own = _words(member.source)
        common = [(len(own & other), len(own) + len(other)) for other in words]
        return max((both / ((total - both) or 1) for both, total in common), default=0.0)

    ranked = sorted(latest.values(), key=lambda member: member.id, reverse=True)
    children = [member for member in ranked if not ids.isdisjoint(member.parents)][:_COMPARED]
    others = [member for member in ranked if ids.isdisjoint(member.parents)][: _COMPARED - len(children)]
    order = [member for part in (children, others) for member in sorted(part, key=likeness, reverse=True)]
    return order[:_FAILURES]


@functools.lru_cache(maxsize=8192)
def _words(source: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", source))


def antipatterns(failed: Sequence[Member]) -> list[dict[str, Any]]:
    """How often programs were stopped for what, numbers aside, with the latest example."""
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    for member in failed:
        key = (member.gate or member.status, _pattern(member.reason))
        counts[key] += 1
        example[key] = member.id
    return [
        {"times": times, "stopped_at": key[0], "reason": key[1], "example": example[key]}
        for key, times in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_REASONS]
    ]


@functools.lru_cache(maxsize=8192)
def _pattern(reason: str) -> str:
    return _short(re.sub(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", "#", reason), 160)


def _memorable(history: Sequence[Member]) -> list[Member]:
    """Trials with a hypothesis: those on the frontier and the latest ones by turns, since the budget cuts the end."""
    told = [member for member in history if member.hypothesis]
    best = [member for member in reversed(told) if member.on_frontier]
    late = [member for member in reversed(told) if not member.on_frontier]
    mixed = [member for pair in zip(best, late, strict=False) for member in pair]
    return [*mixed, *(best[len(late) :] or late[len(best) :])][:_FAILURES]


def tried(member: Member) -> dict[str, Any]:
    """A hypothesis with the effect that was predicted and the one that was measured."""
    measured = describe(member, source=False)
    kept = {key: measured[key] for key in ("speedup", "accuracy", "density", "stopped_at", "reason") if key in measured}
    return {
        "id": member.id,
        "hypothesis": _short(member.hypothesis),
        "predicted": {str(key): value for key, value in list(member.predicted_effect.items())[:4]},
        "measured": kept,
    }
