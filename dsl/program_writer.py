"""Writes random programs, typed by construction.

Each method keeps a pool of values with their axes and grows it by random operations that the types allow; what the
method must return is then made from the pool. A value knows its degree in the inputs, so that products of inputs
stay far inside fp32's range even on inputs of size 1e4.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from vortexlab.dsl.ir import ordered

#: Sizes at most, for bounding the work per page.
_LARGEST = {"page": 1, "head": 16, "token": 64, "channel": 256}
_MOST_ELEMENTS = 1 << 16
_MOST_DEGREE = 4
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


class ProgramWriter:
    """Writes one program of page size `page`; with `smooth` also operations that fp32 rounds."""

    def __init__(self, rng: random.Random, page: int, smooth: bool, size: int):
        self.rng, self.page, self.smooth, self.size = rng, page, smooth, size
        self.lines: list[str] = []
        self.count = 0
        self.knobs: list[str] = []

    def text(self) -> str:
        rng = self.rng
        fields = self._summarize()
        summarize = self.lines
        scores = self._score(fields)
        score = self.lines
        self.lines = []
        chosen = _SetWriter(self, scores).output(rng.choice((1, 2, 2, 3)))
        select = [*self.lines, f"return {chosen.text}"]
        options = [f"page={self.page}"]
        if rng.random() < 0.5:
            precision = rng.choice(("kv", "fp32", "bf16", "fp16"))
            options.append(f'summaries="{precision}"')
        if rng.random() < 0.3:
            options.append(f"seed={rng.randrange(2**32)}")
        lines = ["from vortexlab.dsl import *", "", "", f"@program({', '.join(options)})", "class Random:"]
        lines += [f"    {knob}" for knob in self.knobs]
        for head, body in (
            ("summarize(k, v, ctx)", summarize), ("score(q, s, ctx)", score), ("select(score, ctx)", select),
        ):  # fmt: skip
            lines += ["", f"    def {head}:", *(f"        {line}" for line in body)]
        return "\n".join(lines) + "\n"

    # --- numbers

    def number(self) -> str:
        """A small constant; dyadic unless the program may round."""
        if self.smooth and self.rng.random() < 0.2:
            return self.rng.choice(("0.1", "0.3", "1.7", "-0.7"))
        return self.rng.choice(("1", "2", "3", "-1", "-2", "0.5", "0.25", "1.5", "-0.75", "4.0"))

    def positive(self) -> str:
        return self.rng.choice(("1", "2", "0.5", "1.5", "0.25"))

    # --- values

    def name(self, value: Made) -> Made:
        """Assigns the value to a name of its own."""
        self.count += 1
        name = f"x{self.count}"
        self.lines.append(f"{name} = {value.text}")
        return Made(name, value.axes, value.sizes, value.degree)

    def elements(self, value: Made) -> int:
        count = 1
        for axis in value.axes:
            whole, _, parts = value.size_of(axis).partition("/")
            count *= max(1, (int(whole) if whole.isdigit() else _LARGEST[whole]) // int(parts or 1))
        return count

    def late(self, pool: list[Made]) -> Made:
        """A value of the pool, rather one made late: that leaves less dead code."""
        return pool[max(self.rng.randrange(len(pool)) for _ in range(2))]

    def unary(self, x: Made) -> Made:
        rng, t = self.rng, x.text
        forms: list[tuple[str, float]] = [
            (f"-{t}", x.degree), (f"abs({t})", x.degree), (f"relu({t})", x.degree),
            (f"{t} * {self.number()}", x.degree), (f"{self.number()} - {t}", x.degree),
            (f"clamp({t}, -2.0, {self.positive()})", 0.0), (f"{t} / {rng.choice(('2', '4', '0.5'))}", x.degree),
            (f'{t}.to("{rng.choice(("fp32", "bf16", "bf16"))}")', x.degree),
        ]  # fmt: skip
        if self.smooth:
            forms += [
                (f"exp(minimum({t}, 3.0))", 0.0), (f"exp(-abs({t}))", 0.0), (f"log(abs({t}) + {self.positive()})", 0.0),
                (f"sqrt(abs({t}))", x.degree / 2), (f"sigmoid({t})", 0.0), (f"silu({t})", x.degree),
                (f"tanh({t})", 0.0),
            ]  # fmt: skip
        text, degree = rng.choice(forms)
        return Made(text, x.axes, x.sizes, degree)

    def binary(self, a: Made, b: Made) -> Made:
        """Needs `a.fits(b)`."""
        rng = self.rng
        forms = [
            (f"{a.text} + {b.text}", max(a.degree, b.degree)), (f"{a.text} - {b.text}", max(a.degree, b.degree)),
            (f"maximum({a.text}, {b.text})", max(a.degree, b.degree)),
            (f"minimum({a.text}, {b.text})", max(a.degree, b.degree)),
            (f"where({self.condition(a, b)}, {a.text}, {b.text})", max(a.degree, b.degree)),
            (f"where({self.condition(a, b)}, {a.text}, {self.number()})", a.degree),
        ]  # fmt: skip
        if a.degree + b.degree <= _MOST_DEGREE:
            forms += [(f"{a.text} * {b.text}", a.degree + b.degree)] * 3
        if self.smooth:
            forms.append((f"{a.text} / (abs({b.text}) + {self.positive()})", a.degree))
        text, degree = rng.choice(forms)
        return Made(text, ordered({*a.axes, *b.axes}), {**a.sizes, **b.sizes}, degree)

    def condition(self, a: Made, b: Made) -> str:
        rng = self.rng
        sign = rng.choice(("<", "<=", ">", ">=", "==", "!="))
        plain = f"{a.text} {sign} {b.text}"
        more = f"{b.text} > {self.number()}"
        return rng.choice((plain, plain, f"({plain}) and ({more})", f"({plain}) or ({more})", f"not ({plain})"))

    def reduce(self, x: Made, axis: str) -> Made:
        how = self.rng.choice(("sum", "mean", "max", "min", *(("norm",) if self.smooth else ())))
        text = f"{x.text}.{how}({axis})" if self.rng.random() < 0.8 else f'{x.text}.reduce("{how}", {axis})'
        left = tuple(name for name in x.axes if name != axis)
        return Made(text, left, {a: s for a, s in x.sizes.items() if a != axis}, x.degree)

    def split(self, x: Made) -> Made | None:
        axes = [a for a in ("token", "channel") if a in x.axes and x.size_of(a) == a]
        if not axes:
            return None
        axis, count = self.rng.choice(axes), self.rng.choice((2, 4, 8))
        name = f"{axis}_part{count}"
        if name in x.axes:
            return None
        sizes = {**x.sizes, axis: f"{axis}/{count}", name: str(count)}
        return Made(f"{x.text}.split({axis}, {name}={count})", ordered({*x.axes, name}), sizes, x.degree)

    def rename(self, x: Made) -> Made | None:
        axes = [a for a in ("token", "channel", "head") if a in x.axes and x.size_of(a) == a]
        if not axes:
            return None
        axis = self.rng.choice(axes)
        name = f"other_{axis}"
        if name in x.axes:
            return None
        sizes = {**x.sizes, name: axis}
        return Made(f"{x.text}.rename({axis}, {name})", ordered({*x.axes, name} - {axis}), sizes, x.degree)

    def contract(self, a: Made, b: Made) -> Made | None:
        shared = [axis for axis in a.axes if axis in b.axes and axis != "page"]
        if not shared or not a.fits(b) or a.degree + b.degree > _MOST_DEGREE:
            return None
        axis = self.rng.choice(shared)
        sizes = {name: size for name, size in {**a.sizes, **b.sizes}.items() if name != axis}
        left = ordered({*a.axes, *b.axes} - {axis})
        return Made(f"dot({a.text}, {b.text}, {axis})", left, sizes, a.degree + b.degree)

    def share(self, x: Made) -> Made:
        return Made(f'share({x.text}, "{self.rng.choice(("sum", "max", "mean"))}")', x.axes, x.sizes, x.degree)

    def grow(self, pool: list[Made]) -> None:
        """Adds one random value to the pool, made from values that are there."""
        rng = self.rng
        for _ in range(20):
            a, b = self.late(pool), rng.choice(pool)
            made: Made | None = None
            draw = rng.random()
            if draw < 0.25:
                made = self.unary(a)
            elif draw < 0.5:
                made = self.binary(a, b) if a.fits(b) else None
            elif draw < 0.68:
                axes = [axis for axis in a.axes if axis != "page" or rng.random() < 0.3]
                made = self.reduce(a, rng.choice(axes)) if axes else None
            elif draw < 0.8:
                made = self.contract(a, b)
            elif draw < 0.87:
                made = self.split(a)
            elif draw < 0.91:
                made = self.rename(a)
            elif draw < 0.96:
                if "page" in a.axes and self.smooth:
                    made = Made(f"softmax({a.text}, page)", a.axes, a.sizes, 0.0)
            elif a.axes == ("page",):
                made = self.share(a)
            if made is not None and self.elements(made) <= _MOST_ELEMENTS:
                pool.append(self.name(made))
                return

    def reduced_to(self, x: Made, keep: tuple[str, ...]) -> Made:
        """The value with every axis reduced that is not among `keep`."""
        while left := [axis for axis in x.axes if axis not in keep]:
            x = self.name(self.reduce(x, self.rng.choice(left)))
        return x

    # --- methods

    def _summarize(self) -> list[Made]:
        rng = self.rng
        self.lines = []
        pool = [Made("k", ("token", "channel")), Made("v", ("token", "channel"))]
        for _ in range(rng.randint(1, self.size)):
            self.grow(pool)
        fields: list[Made] = []
        returned = []
        for number in range(rng.randint(1, 3)):
            x = self.late(pool)
            draw = rng.random()
            if draw < 0.75 or self.elements(x) > 4096:
                x = self.reduced_to(x, tuple(a for a in x.axes if a not in ("token", "other_token")))
            elif draw < 0.9:
                x = self.reduced_to(x, tuple(a for a in x.axes if a not in ("channel", "other_channel")))
            returned.append(f"f{number}={x.text if rng.random() < 0.8 else f'{x.text} * {self.positive()}'}")
            sizes = {"page": "page", **x.sizes}
            fields.append(Made(f"s.f{number}", ("page", *x.axes), sizes, x.degree))
        self.lines.append(f"return dict({', '.join(returned)})")
        return fields

    def _score(self, fields: list[Made]) -> dict[str, Made]:
        """The members of `score` by the text that names them."""
        rng = self.rng
        self.lines = []
        pool = [Made("q", ("head", "channel")), *fields]
        if rng.random() < 0.2:
            pool.append(self.name(Made("ctx.scale * ctx.head_dim + ctx.layer", (), {}, 0.0)))
        for x in fields:
            # The common beginning: the query meets a summary that has channels.
            if x.size_of("channel") == "channel" and "channel" in x.axes and rng.random() < 0.8:
                met = self.contract(pool[0], x) if rng.random() < 0.5 else None
                if met is None:
                    product = Made(f"q * {x.text}", ordered({*x.axes, "head"}), x.sizes, x.degree + 1)
                    met = self.reduce(self.name(product), "channel")
                pool.append(self.name(met))
        for _ in range(rng.randint(1, self.size)):
            self.grow(pool)
        members: dict[str, Made] = {}
        returned = []
        for number in range(rng.choice((1, 1, 2))):
            choices = [x for x in pool if "page" in x.axes]
            x = self.late(choices)
            x = self.reduced_to(x, ("page", "head") if rng.random() < 0.35 else ("page",))
            if x.axes == ("page",) and rng.random() < 0.15:
                x = self.name(self.share(x))
            returned.append(x)
            members[f"score.a{number}"] = x
        if rng.random() < 0.3:
            x = self.reduced_to(rng.choice(returned), ())
            returned.append(x)
            members[f"score.a{len(returned) - 1}"] = x
        if len(returned) == 1:
            self.lines.append(f"return {returned[0].text}")
            return {"score": returned[0]}
        self.lines.append(f"return dict({', '.join(f'a{i}={x.text}' for i, x in enumerate(returned))})")
        return members


class _SetWriter:
    """Writes the body of `select`."""

    def __init__(self, writer: ProgramWriter, scores: dict[str, Made]):
        self.writer, self.rng = writer, writer.rng
        self.scores = [Made(text, made.axes) for text, made in scores.items() if "page" in made.axes]
        self.scalars = [text for text, made in scores.items() if not made.axes]

    def output(self, depth: int) -> Made:
        """The selected set; nine in ten programs look at a score, so that few are patterns alone."""
        made = self.make(depth)
        if any(name in made.text for name in _SCORED) or self.rng.random() < 0.1:
            return made
        scored = self._selector(1, _SCORED)
        sign = self.rng.choice(("|", "&", "-"))
        return Made(f"({scored.text} {sign} {made.text})", ordered({*scored.axes, *made.axes}))

    def make(self, depth: int) -> Made:
        rng = self.rng
        if depth <= 0:
            return self._selector(depth)
        draw = rng.random()
        if draw < 0.25:
            return self._selector(depth)
        if draw < 0.8:
            a, b = self.make(depth - 1), self.make(depth - 1)
            sign = rng.choice(("|", "|", "|", "&", "-"))
            return Made(f"({a.text} {sign} {b.text})", ordered({*a.axes, *b.axes}))
        if draw < 0.9:
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
        n = rng.randint(0, 6)
        forms = [
            str(n), str(n), str(n), f"ctx.pages // {rng.randint(2, 6)}", "floor(sqrt(ctx.length))",
            f"ceil(0.{rng.randint(1, 6)} * ctx.pages)", f"where(ctx.layer < 2, {n}, {rng.randint(1, 9)})",
            f"max(2, ctx.pages // {rng.randint(3, 8)})", f"min({n + 1}, ctx.pages - 1)", f"ctx.length % {n + 3} - 1",
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
