"""Random operations on values, typed by construction."""

from __future__ import annotations

import random

from vortexlab.dsl.ir import FP8, ordered
from vortexlab.dsl.writer_parts import Made

#: Sizes at most, for bounding the work per page.
_LARGEST = {"page": 1, "head": 16, "query": 128, "token": 64, "channel": 256}
_MOST_ELEMENTS = 1 << 16
_MOST_DEGREE = 4


class ValueWriter:
    """Writes lines that make values from values; `smooth` also by operations that fp32 rounds.

    Without `whole` it leaves out the operations along an axis and the fp8 precisions.
    """

    def __init__(self, rng: random.Random, smooth: bool, whole: bool):
        self.rng, self.smooth, self.whole = rng, smooth, whole
        self.lines: list[str] = []
        self.count = 0
        self.in_pages = False

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
            length = 0
            for part in value.size_of(axis).split("+"):
                whole, _, parts = part.partition("/")
                length += max(1, (int(whole) if whole.isdigit() else _LARGEST[whole]) // int(parts or 1))
            count *= length
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
            (f'{t}.to("{rng.choice(("fp32", "bf16", "bf16", *(FP8 if self.whole else ())))}")', x.degree),
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

    def moved(self, x: Made, other: Made) -> Made | None:
        """One of the operations that move, order or number what a value holds along one axis."""
        rng, t = self.rng, x.text
        axes = [axis for axis in x.axes if axis != "query"]
        if not axes:
            return None
        axis = rng.choice(axes)
        size, fill = x.size_of(axis), rng.choice(("", f", fill={self.number()}"))
        near, taken = rng.randint(2, 4), ""
        length: str | None
        forms: list[tuple[str, tuple[str, ...], str | None]] = [
            (f"{t}.shift({axis}, {rng.choice((-2, -1, 1, 2))}{fill})", x.axes, size),
            (f"{t}.{rng.choice(('cummax', 'cummin', 'cumsum'))}({axis})", x.axes, size),
            (f"{t}.sort({axis}" + rng.choice((")", ', "up")')), x.axes, size),
            (f"float({t}.argmax({axis}))", tuple(a for a in x.axes if a != axis), None),
            (f"float({t}.index({axis}))", (axis,), size),
            (f"{t} + {t}.index({axis})", x.axes, size),
            (f"{t}.take({axis}, {t}.index({axis}) + {rng.choice((-1, 1, 2))}{fill})", x.axes, size),
        ]
        if f"near{near}" not in x.axes:
            forms.append((f"{t}.window({axis}, near{near}={near}{fill})", ordered({*x.axes, f"near{near}"}), size))
        if axis in other.axes and x.fits(other):
            rest = {*x.axes} - {axis} | {*other.axes} - {axis}
            taken = f"{t}.take({axis}, {other.text}.argmax({axis}){fill})"
            forms.append((taken, ordered(rest), None))
        if axis in ("token", "channel") and size == axis:
            start, cut = rng.choice((("0, 4", "4"), ("-4", "4"), ("1, 3", "2"), ("2, 8", "6")))
            forms.append((f"{t}.slice({axis}, {start})", x.axes, cut))
            forms.append((f"concat({t}, {t}.slice({axis}, 0, 4), {axis})", x.axes, f"{axis}+4"))
        parts = [name for name in x.axes if name.startswith(f"{axis}_part") and "/" in size]
        if parts and size == f"{axis}/{x.size_of(parts[0])}":
            first, second = rng.choice(((parts[0], axis), (axis, parts[0])))
            left = tuple(name for name in x.axes if name != parts[0])
            forms.append((f"{t}.merge({first}, {second}, into={axis})", left, axis))
            forms = forms[-1:] if rng.random() < 0.5 else forms
        if axis in ("page", "head") and not self.in_pages and x.axes in (("page",), ("page", "head")):
            chosen = rng.choice((f"topk({t}, {rng.randint(1, 4)})", f"stride({rng.randint(2, 3)})", "first(2)"))
            forms.append((f"where(member({chosen}), {t}, {self.number()})", x.axes, size))
        text, left, length = rng.choice(forms)
        # Only what takes by `other` has its axes; another's "channel" may be shorter than this one's.
        met = {**other.sizes, **x.sizes} if text == taken else x.sizes
        sizes = {a: s for a, s in met.items() if a in left}
        if length is not None and axis in left and length != axis:
            sizes[axis] = length
        elif axis in left:
            sizes.pop(axis, None)
        if f"near{near}" in left and f"near{near}" not in x.axes:
            sizes[f"near{near}"] = str(near)
        return Made(text, left, sizes, x.degree)

    def share(self, x: Made) -> Made:
        return Made(f'share({x.text}, "{self.rng.choice(("sum", "max", "mean"))}")', x.axes, x.sizes, x.degree)

    def grow(self, pool: list[Made]) -> None:
        """Adds one random value to the pool, made from values that are there."""
        rng = self.rng
        for _ in range(20):
            a, b = self.late(pool), rng.choice(pool)
            made: Made | None = None
            draw = rng.random()
            if draw < 0.2:
                made = self.unary(a)
            elif draw < 0.4:
                made = self.binary(a, b) if a.fits(b) else None
            elif draw < 0.56 and self.whole:
                made = self.moved(a, b)
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
