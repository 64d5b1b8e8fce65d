"""The published programs, one file each in `programs/`. They are read as text and never imported."""

from __future__ import annotations

import difflib
from pathlib import Path

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program

_FOLDER = Path(__file__).parent / "programs"

#: Names of the seeds in the order in which a campaign tries them: the baseline, static patterns, scored ones.
SEEDS = (
    "dense", "sink_window", "bigbird", "strided", "centroid", "quest", "gqa_quest", "top_p", "subpage_quest",
    "value_energy",
)  # fmt: skip


def seeds() -> dict[str, str]:
    """The source text of every seed by name."""
    return {name: source(name) for name in SEEDS}


def source(name: str) -> str:
    """The source text of one seed. Raises `VortexError` for an unknown name."""
    if name not in SEEDS:
        close = difflib.get_close_matches(name, SEEDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"the seeds are {', '.join(SEEDS)}"
        raise VortexError(f"there is no seed program {name!r}; {hint}")
    return (_FOLDER / f"{name}.py").read_text(encoding="utf-8")


def load(name: str) -> Program:
    """One seed as a program, its knobs unbound. Raises `VortexError` for an unknown name."""
    return parse(source(name))
