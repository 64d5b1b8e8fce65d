"""How long each axis of a value is, as far as the text tells.

The widths of keys and values and the size of a group are known only when a program meets a model, and a page or a
number of parts may be a knob. So a size is a sum of products of symbols, and two sizes are equal when they are equal
whatever the symbols stand for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vortexlab.dsl.ir import Attr, Knob, KnobRef

_MANY = 64
MAX_TERMS = 16  #: terms of a size, and factors of a term
MAX_LENGTH = 2**20  #: the longest axis, and the most numbers of a value on all axes whose lengths are written out
MAX_AXES = 12  #: axes of a value beside page
#: Lengths that belong to the model: query heads of a KV head, channels of a key, channels of a value.
MODEL_SIZES = ("head", "channel", "value")

#: Powers of symbols; a text is a length of the model.
Product = tuple[tuple[str | KnobRef, int], ...]


@dataclass(frozen=True)
class Size:
    """A sum of products of symbols with factors; make one with `Size.of`."""

    terms: tuple[tuple[Product, Fraction], ...]

    @staticmethod
    def of(base: int | str | KnobRef) -> Size:
        """A number, a knob, or the name of a length of the model."""
        return _sum([((), Fraction(base))]) if isinstance(base, int) else _sum([(((base, 1),), Fraction(1))])

    def __add__(self, other: Size) -> Size:
        return _sum([*self.terms, *other.terms])

    def __sub__(self, other: Size) -> Size:
        return _sum([*self.terms, *((product, -factor) for product, factor in other.terms)])

    def __mul__(self, other: Size) -> Size:
        return _sum([(_product(p, q), a * b) for p, a in self.terms for q, b in other.terms])

    def split(self, count: int | KnobRef) -> Size:
        """The length of one of `count` equal runs."""
        if isinstance(count, int):
            return _sum([(product, factor / max(1, count)) for product, factor in self.terms])
        return _sum([(_product(product, ((count, -1),)), factor) for product, factor in self.terms])

    def number(self) -> int | None:
        """The length where it is written out and a whole number."""
        whole = len(self.terms) == 1 and not self.terms[0][0] and self.terms[0][1].denominator == 1
        return self.terms[0][1].numerator if whole else None

    def is_unwieldy(self) -> bool:
        """Whether no program needs such a length. A product of two that are not stays small to compute."""
        powers = [sum(abs(power) for _, power in product) for product, _ in self.terms]
        parts = [part for _, factor in self.terms for part in (abs(factor.numerator), factor.denominator)]
        return len(self.terms) > MAX_TERMS or max(powers, default=0) > MAX_TERMS or max(parts, default=0) > MAX_LENGTH

    def knobs(self) -> set[str]:
        return {symbol.name for product, _ in self.terms for symbol, _ in product if isinstance(symbol, KnobRef)}

    def value(self, setting: Mapping[str, Attr]) -> Fraction | None:
        """The length under a setting of the knobs; None where it belongs to the model."""
        total = Fraction(0)
        for product, factor in self.terms:
            above, below = factor.numerator, factor.denominator
            for symbol, power in product:
                if not isinstance(symbol, KnobRef):
                    return None
                value = setting[symbol.name]
                assert isinstance(value, int)
                above, below = (above * value**power, below) if power > 0 else (above, below * value**-power)
            total += Fraction(above, below)
        return total

    def __str__(self) -> str:
        return " + ".join(_term(product, factor) for product, factor in self.terms).replace("+ -", "- ") or "0"


def settings(names: Sequence[str] | set[str], knobs: Mapping[str, Knob]) -> Iterator[tuple[bool, dict[str, Attr]]]:
    """Settings of int knobs: whether all are defaults, and their values.

    All settings where these are few; else the defaults, and each knob at its ends with the others left alone.
    """
    ordered = sorted(names)
    offered = [_values(knobs[name]) for name in ordered]
    if math.prod(map(len, offered)) <= _MANY:
        every = [dict(zip(ordered, values, strict=True)) for values in itertools.product(*offered)]
    else:
        defaults = {name: knobs[name].default for name in ordered}
        ends = [(name, end) for name, values in zip(ordered, offered, strict=True) for end in values[1:2] + values[-1:]]
        every = [defaults, *({**defaults, name: end} for name, end in ends[:_MANY])]
    for setting in every:
        yield all(value == knobs[name].default for name, value in setting.items()), setting


def _values(knob: Knob) -> list[Attr]:
    """The default first, then the others in order; of a wide range only its ends."""
    values: list[Attr]
    if knob.kind == "choice":
        values = list(knob.choices)
    else:
        assert isinstance(knob.low, int) and isinstance(knob.high, int)
        every = range(knob.low, knob.high + 1, int(knob.step or 1))
        values = list(every) if len(every) <= _MANY else [knob.low, knob.high]
    return [knob.default, *(v for v in values if v != knob.default)]


def _sum(terms: Sequence[tuple[Product, Fraction]]) -> Size:
    found: dict[Product, Fraction] = {}
    for product, factor in terms:
        found[product] = found.get(product, Fraction(0)) + factor
    kept = [(product, factor) for product, factor in found.items() if factor]
    return Size(tuple(sorted(kept, key=lambda term: ([(_spelling(s), p) for s, p in term[0]] or [("~", 0)]))))


def _product(a: Product, b: Product) -> Product:
    powers: dict[str | KnobRef, int] = {}
    for symbol, power in (*a, *b):
        powers[symbol] = powers.get(symbol, 0) + power
    return tuple(sorted(((s, p) for s, p in powers.items() if p), key=lambda item: _spelling(item[0])))


def _term(product: Product, factor: Fraction) -> str:
    above = [_spelling(symbol) for symbol, power in product for _ in range(power)]
    below = [_spelling(symbol) for symbol, power in product for _ in range(-power)]
    if abs(factor.numerator) != 1 or not above:
        above.insert(0, str(abs(factor.numerator)))
    if factor.denominator != 1:
        below.append(str(factor.denominator))
    return ("-" if factor < 0 else "") + " / ".join([" * ".join(above), *below])


def _spelling(symbol: str | KnobRef) -> str:
    if isinstance(symbol, KnobRef):
        return symbol.name
    return {"channel": "channels of a key", "value": "channels of a value", "head": "heads"}.get(symbol, symbol)
