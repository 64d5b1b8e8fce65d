"""What the README of a package says, as Markdown; words of programs stay words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vortexlab.kernels.gate import Gate


def plain(text: str) -> str:
    """A program's words as one line of Markdown text that is neither markup nor a link."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", " ".join(text.split()))


def fenced(source: str) -> str:
    """A code block whose fence is longer than any in the source."""
    longest = max((len(run) for run in re.findall(r"`+", source)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{source.strip()}\n{fence}"


def figures(measurements: Mapping[str, Any]) -> str:
    """The measured objectives as Markdown lines, each with its interval and conditions."""
    conditions = dict(measurements.get("conditions") or {})
    how = conditions.get("speed", "measured")
    lines = []
    units = {"speedup": f"x the fastest dense attention step ({how})", "accuracy": "of dense accuracy kept"}
    for key, unit in units.items():
        item = measurements.get(key)
        if item:
            lines.append(f"- {key}: {item['value']:.3f} {unit}, 95 % interval {item['low']:.3f} to {item['high']:.3f}")
    if other := measurements.get("other_protocol"):
        item = other["accuracy"]
        lines.append(
            f"- accuracy under the protocol {other['protocol']}: {item['value']:.3f} of dense accuracy kept, 95 % "
            f"interval {item['low']:.3f} to {item['high']:.3f}, {other['answers']} answers"
        )
    if measurements.get("density") is not None:
        lines.append(f"- effective density: {measurements['density']:.4f}")
    for key, value in sorted(conditions.items()):
        lines.append(f"- {key}: {value if isinstance(value, str) else json.dumps(value)}")
    return "\n".join(lines) or "- none"


def gated(gate: Gate | None) -> str:
    """What the gate does, in Markdown."""
    if gate is None:
        return "No dense gate was measured: every step after the prompt is sparse, even where dense is faster."
    rows = [
        f"- batch {batch} and more: {'never sparse' if least is None else f'sparse from {least} tokens on'}"
        for batch, least in gate.opens.items()
    ]
    conditions = [
        f"- {key}: {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in sorted(gate.conditions.items())
    ]
    return "\n".join([
        "A dense gate was measured, and is on: steps where the program was not shown to be at least as fast as dense",
        "attention are dense. The figures above and the self-test are without it. Where several lines fit a batch, the",
        "last one counts; batches below all of them are dense.", "", *rows, "", "Measured under:", "", *conditions,
    ])  # fmt: skip
