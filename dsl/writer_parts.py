"""The parts that random programs are written with: values in scope, and sets of pages."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vortexlab.dsl.ir import ordered

_SCORED = ("topk", "topk", "topk", "topp", "above", "above")
_SELECTORS = (*_SCORED, "first", "last", "stride", "random", "everything")


@dataclass(frozen=True)
class Made:
    """A value in scope: how it is written, its axes, and what must match where two values meet.

    `sizes` tells apart axes of one name and different size ("channel" after a split is shorter).
    """

    text: str
    axes: tuple[str, ...]
    sizes: Mapping[str, str] = field(default_factory=dict)
    degree: float = 1.0

    def size_of(self, axis: str) -> str:
        return self.sizes.get(axis, axis)

    def fits(self, other: Made) -> bool:
        return all(self.size_of(axis) == other.size_of(axis) for axis in self.axes if axis in other.axes)


class Numbers(Protocol):
    """What a writer of sets needs of the writer of the program."""

    rng: random.Random
    smooth: bool
    whole: bool
    kept: bool
    knobs: list[str]

    def number(self) -> str: ...


class SetWriter:
    """Writes the body of `select`."""

    def __init__(self, writer: Numbers, scores: dict[str, Made]):
        self.writer, self.rng = writer, writer.rng
        self.scores = [Made(text, made.axes) for text, made in scores.items() if "page" in made.axes]
        self.scalars = [text for text, made in scores.items() if not made.axes]
        self.axes: tuple[str, ...] = ()

    def output(self, depth: int) -> Made:
        """The selected set; nine in ten programs look at a score, so that few are patterns alone."""
        made = self.make(depth)
        if not any(name in made.text for name in _SCORED) and self.rng.random() < 0.9:
            scored = self._selector(1, _SCORED)
            sign = self.rng.choice(("|", "&", "-"))
            made = Made(f"({scored.text} {sign} {made.text})", ordered({*scored.axes, *made.axes}))
        if self.writer.kept:
            made = Made(f"({made.text} {self.rng.choice(('|', '-'))} m.kept)", made.axes)
        self.axes = made.axes
        return made

    def pattern(self) -> str:
        """A set that looks at no score."""
        n = self.rng.randint(1, 4)
        return self.rng.choice((f"first({n})", f"last({n})", f"stride({n + 1})", f"~first({n})", "everything()"))

    def make(self, depth: int) -> Made:
        rng = self.rng
        if depth <= 0:
            return self._selector(depth)
        draw = rng.random()
        if draw < 0.25:
            return self._selector(depth)
        if draw < 0.75:
            a, b = self.make(depth - 1), self.make(depth - 1)
            sign = rng.choice(("|", "|", "|", "&", "-"))
            return Made(f"({a.text} {sign} {b.text})", ordered({*a.axes, *b.axes}))
        if draw < 0.84 and self.writer.whole:
            a = self.make(depth - 1)
            kind = rng.choice((f"every={rng.randint(2, 5)}", f"every={rng.randint(2, 5)}", "layers=ctx.layer % 2 == 0",
                               "layers=ctx.layer < 1"))  # fmt: skip
            return Made(f"reuse({a.text}, {kind})", a.axes)
        if draw < 0.92:
            a = self.make(depth - 1)
            return Made(f"~{a.text}" if a.text.startswith("(") else f"~({a.text})", a.axes)
        a, b = self.make(depth - 1), self.make(depth - 1)
        return Made(f"where({self._condition()}, {a.text}, {b.text})", ordered({*a.axes, *b.axes}))

    def _condition(self) -> str:
        forms = ["ctx.layer < 2", "ctx.length > 100", f"ctx.pages % {self.rng.randint(2, 4)} == 0", "True",
                 "(ctx.layer == 0) or (ctx.pages > 8)"]  # fmt: skip
        return self.rng.choice([*forms, *(f"{scalar} > {self.writer.number()}" for scalar in self.scalars)])

    def count(self) -> str:
        """An int scalar: a constant, a knob, an expression of length and layer, or one that scores decide."""
        rng = self.rng
        n, spot = rng.randint(0, 6), "ctx.position" if self.writer.whole else "ctx.length"
        forms = [
            str(n), str(n), str(n), f"ctx.pages // {rng.randint(2, 6)}", "floor(sqrt(ctx.length))",
            f"ceil(0.{rng.randint(1, 6)} * ctx.pages)", f"where(ctx.layer < 2, {n}, {rng.randint(1, 9)})",
            f"max(2, ctx.pages // {rng.randint(3, 8)})", f"min({n + 1}, ctx.pages - 1)", f"{spot} % {n + 3} - 1",
            f"floor(log(float(ctx.length)) * {rng.choice(('1.5', '0.7'))})", f"ctx.kv_heads + ctx.group % {n + 1}",
            f"floor({self._scalar_of_scores()})", f"ceil({self._scalar_of_scores()}) + 1",
        ]  # fmt: skip
        if rng.random() < 0.15:
            name = f"budget{len(self.writer.knobs)}"
            self.writer.knobs.append(f"{name} = knob.int(1, 16, default={rng.randint(1, 16)})")
            return name
        return rng.choice(forms)

    def _scalar_of_scores(self) -> str:
        """A float scalar that depends on the scores and stays small."""
        rng = self.rng
        score = rng.choice(self.scores)
        axes = "" if score.axes == ("page",) else ".max(head)"
        over = f"where({score.text} > {self.writer.number()}, 1.0, 0.0){axes}"
        forms = [f"{over}.sum(page)", f"{over}.sum(page) / 2", f"clamp({score.text}{axes}.mean(page), 0.0, 5.0)"]
        if self.writer.smooth:
            forms.append(f"6.0 * sigmoid({score.text}{axes}.max(page))")
        return rng.choice([*forms, *(f"clamp({scalar}, 0.0, 4.0)" for scalar in self.scalars)])

    def _selector(self, depth: int, kinds: tuple[str, ...] = _SELECTORS) -> Made:
        rng, score = self.rng, self.rng.choice(self.scores)
        kind = rng.choice(kinds)
        if kind == "everything":
            return Made("everything()", ())
        if kind in ("first", "last"):
            return Made(f"{kind}({self.count()})", ())
        if kind == "stride":
            offset = f", offset={self.count()}" if rng.random() < 0.5 else ""
            return Made(f"stride({self.count()}{offset})", ())
        axes = tuple(axis for axis in score.axes if axis == "head") if kind != "random" else ()
        among = ""
        if depth > 0 and rng.random() < 0.4:
            inner = self.make(depth - 1)
            among, axes = f", among={inner.text}", ordered({*axes, *inner.axes})
        most = f", max={self.count()}" if rng.random() < 0.6 else ""
        if kind == "random":
            salt = f", salt={rng.randrange(100)}" if rng.random() < 0.5 else ""
            return Made(f"random({self.count()}{among}{salt})", axes)
        if kind == "topk":
            return Made(f"topk({score.text}, {self.count()}{among})", axes)
        if kind == "topp":
            scale = f", scale={rng.choice(('ctx.scale', '0.5', '2.0', '0.125'))}" if rng.random() < 0.7 else ""
            mass = rng.choice(("0.5", "0.9", "0.25", "0.99", "0.7"))
            return Made(f"topp({score.text}, {mass}{scale}{most}{among})", axes)
        threshold = rng.choice((self.writer.number(), f"{score.text}.mean(page)", f"{score.text}.max(page) - 1"))
        return Made(f"above({score.text}, {threshold}{most}{among})", axes)
