"""Configurations with a name: what they say beside the defaults."""

from __future__ import annotations

import copy
from typing import Any

from vortexlab.configuration.reading import Sections
from vortexlab.dsl.errors import VortexError

_GPU: dict[str, Any] = {
    "device": "cuda",
    "speed": "measured",
    # The shipped model reads up to 16,384 tokens (docs/reference-model.md); sparse attention pays off at the long end.
    "lengths": [4096, 16384],
    "contexts": 12,
}
PRESETS: dict[str, tuple[str, Sections]] = {
    "quick": (
        "minutes on a CPU",
        {"budget": {"evaluations": 40}, "evaluation": {"device": "cpu", "lengths": [4096], "contexts": 6}},
    ),
    "night": (
        "8 hours on one GPU",
        {"campaign": {"budget_points": [0.02, 0.05, 0.1]}, "budget": {"hours": 8.0}, "evaluation": _GPU},
    ),
    "cluster": (
        "8 hours on the GPUs of a Ray cluster",
        {
            "campaign": {"budget_points": [0.02, 0.05, 0.1], "parallel": 16, "cluster": "auto"},
            "budget": {"hours": 8.0},
            "evaluation": _GPU,
        },
    ),
}


def preset(name: str) -> Sections:
    """What a preset says. Raises `VortexError` for an unknown one."""
    if name not in PRESETS:
        raise VortexError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    return copy.deepcopy(PRESETS[name][1])
