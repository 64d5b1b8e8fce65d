"""How long each axis of a value is, as far as the text tells.

The width of a head and the size of a group are known only when a program meets a model, and a page or a number of
parts may be a knob. So a size is a symbol with divisors, and two sizes are equal when they are written alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vortexlab.dsl.ir import Knob, KnobRef

_MANY = 64


@dataclass(frozen=True)
class Size:
    """`base` divided by all of `parts`; a base that is a text belongs to the model: ``head`` or ``channel``."""

    base: int | str | KnobRef
    parts: tuple[int | KnobRef, ...] = ()

    def split(self, count: int | KnobRef) -> Size:
        """The length of one of `count` equal runs."""
        if isinstance(self.base, int) and isinstance(count, int) and not self.parts and count and not self.base % count:
            return Size(self.base // count)
        return Size(self.base, tuple(sorted((*self.parts, count), key=_spelling)))

    def misfits(self, knobs: Mapping[str, Knob]) -> Iterator[tuple[bool, str]]:
        """For each setting of the knobs involved under which the parts do not divide the base: whether these are the
        defaults, and the division in words. A base that belongs to the model is not judged."""
        if isinstance(self.base, str):
            return
        involved = sorted({s.name for s in (self.base, *self.parts) if isinstance(s, KnobRef)})
        for values in itertools.islice(itertools.product(*(_values(knobs[name]) for name in involved)), _MANY * _MANY):
            setting = dict(zip(involved, values, strict=True))
            base, *parts = (setting[s.name] if isinstance(s, KnobRef) else s for s in (self.base, *self.parts))
            product = 1
            for part in parts:
                product *= part
            if product < 1 or base % product:
                is_default = all(value == knobs[name].default for name, value in setting.items())
                yield is_default, f"{base} into {product}"

    def __str__(self) -> str:
        return " / ".join(_spelling(s) for s in (self.base, *self.parts))


def _spelling(size: int | str | KnobRef) -> str:
    return size.name if isinstance(size, KnobRef) else str(size)


def _values(knob: Knob) -> list[int]:
    """The default first; of a wide range only its ends beside it."""
    if knob.kind == "choice":
        values = [int(v) for v in knob.choices if isinstance(v, int)]
    else:
        assert isinstance(knob.low, int) and isinstance(knob.high, int)
        every = range(knob.low, knob.high + 1, int(knob.step or 1))
        values = list(every) if len(every) <= _MANY else [knob.low, knob.high]
    assert isinstance(knob.default, int)
    return [knob.default, *(v for v in values if v != knob.default)]
