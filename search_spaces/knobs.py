"""Knob names with one meaning in every program.

What a search learns of a knob in one program it uses in the next, so a shared name always has the kind, the scale
and, for a choice, the choices that stand here. A program may narrow the range of a number. Any other name belongs
to its program alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vortexlab.dsl.ir import Attr, Knob


@dataclass(frozen=True)
class SharedKnob:
    """`declaration` is how a program usually declares the knob; `meaning` includes the unit."""

    name: str
    kind: str
    log: bool
    choices: tuple[Attr, ...]
    declaration: str
    meaning: str


def _shared(name: str, kind: str, declaration: str, meaning: str, *choices: Attr) -> SharedKnob:
    return SharedKnob(name, kind, "log=True" in declaration, choices, declaration, meaning)


_TABLE = [
    _shared("page", "choice", "knob.choice(8, 16, 32, 64, default=16)", "tokens of a page", 8, 16, 32, 64),
    _shared("block", "choice", "knob.choice(16, 32, 64, 128, default=64)", "queries of one block of sparse prefill",
            16, 32, 64, 128),
    _shared("budget", "int", "knob.int(4, 512, log=True, default=64)", "pages chosen by score"),
    _shared("fraction", "float", "knob.float(0.005, 0.5, log=True, default=0.1)", "share of the context's pages"),
    _shared("mass", "float", "knob.float(0.3, 0.99, default=0.9)", "share of the attention mass to gather"),
    _shared("sink", "int", "knob.int(0, 8, default=1)", "pages at the start that are always read"),
    _shared("recent", "int", "knob.int(1, 512, log=True, default=2)", "pages at the end that are always read"),
    _shared("stride_pages", "int", "knob.int(2, 128, log=True, default=8)", "pages from one read page to the next"),
    _shared("random_pages", "int", "knob.int(1, 256, log=True, default=16)", "pages chosen at random"),
    _shared("reduce", "choice", 'knob.choice("max", "mean", "sum", default="max")', "how query heads are combined",
            "max", "mean", "sum"),
    _shared("sub", "choice", "knob.choice(2, 4, 8, default=4)", "parts that a page is cut into", 2, 4, 8),
    _shared("weight", "float", "knob.float(0.05, 4.0, log=True, default=0.5)", "weight of a second term of a score"),
    _shared("every", "int", "knob.int(1, 4096, log=True, default=4)", "steps from one renewal to the next"),
    _shared("decay", "float", "knob.float(0.0, 1.0, default=0.5)", "what a step keeps of the value before"),
    _shared("dense_layers", "int", "knob.int(0, 4, default=1)", "first layers that read every page"),
]  # fmt: skip

SHARED: Mapping[str, SharedKnob] = {knob.name: knob for knob in _TABLE}


def is_shared(knob: Knob) -> bool:
    """Whether a program's knob is the shared one of its name: same kind, same scale, same choices.

    A knob that bears a shared name and differs is private to its program.
    """
    shared = SHARED.get(knob.name)
    return shared is not None and (knob.kind, knob.log, knob.choices) == (shared.kind, shared.log, shared.choices)
