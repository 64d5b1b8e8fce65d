"""Reads what a class body declares with literals: knobs and the decorator's options."""

from __future__ import annotations

import ast
import math

from vortexlab.dsl.ir import Attr, Knob
from vortexlab.dsl.places import Place, place_of
from vortexlab.dsl.words import precision_hint, suggestion

_INT_LIMIT = 2**31
_SMALL, _LARGE = 1e-30, 1e30
_KINDS = {"int": ("log", "step", "default"), "float": ("log", "step", "default"), "choice": ("default",),
          "bool": ("default",)}  # fmt: skip
_SHAPES = {
    "int": "knob.int(low, high, log=True, default=...)", "float": "knob.float(low, high, log=True, default=...)",
    "choice": 'knob.choice("max", "mean", default="max")', "bool": "knob.bool(default=True)",
}  # fmt: skip
_FIRST = ("low", "high", "min", "max", "lo", "hi", "minimum", "maximum", "start", "stop", "values", "choices")
MAX_CHOICES = 16


def check_number(value: int | float, place: Place) -> int | float:
    """A number that every executor can hold; zero has no sign."""
    if isinstance(value, int) and abs(value) >= _INT_LIMIT:
        raise place.error(
            "number-range",
            "the number is too large",
            found=str(value),
            expected="below 2**31 in size",
            hint="a budget is a number of pages; larger numbers come from ctx.length",
        )
    if isinstance(value, float) and value != 0 and not _SMALL <= abs(value) <= _LARGE:
        raise place.error(
            "number-range",
            "the number is outside the range of the language",
            found=str(value),
            expected=f"0, or between {_SMALL} and {_LARGE} in size",
            hint="to leave pages out, use among=; -inf is not needed",
        )
    return value if isinstance(value, int) or value else 0.0


def literal(node: ast.expr) -> Attr:
    """A number with its sign, a truth value or a text, written out."""
    sign, inner = 1, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        sign, inner = (-1 if isinstance(node.op, ast.USub) else 1), node.operand
    if isinstance(inner, ast.Constant):
        value = inner.value
        if isinstance(value, (bool, str)) and inner is node:
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return check_number(sign * value, place_of(node))
    raise place_of(node).error(
        "literal",
        "a value that is written out is expected here",
        found=shown(node),
        expected="a number, True, False or text in quotes",
        hint="write the values without the list: 8, 16, 32"
        if isinstance(node, (ast.List, ast.Tuple, ast.Set))
        else "ranges and defaults are literals; arithmetic goes into the methods",
    )


def whole_number(node: ast.expr, low: int, high: int) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and low <= node.value <= high:
        return node.value
    raise place_of(node).error(
        "whole-number",
        "a whole number is expected here",
        found=shown(node),
        expected=f"{low} to {high}",
        hint=f"write a number from {low} to {high} out, without a point",
    )


def one_of(node: ast.expr, allowed: tuple[str, ...]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in allowed:
        return node.value
    raise place_of(node).error(
        "unknown-dtype",
        "unknown precision",
        found=shown(node),
        expected=", ".join(f'"{name}"' for name in allowed),
        hint=precision_hint(node.id if isinstance(node, ast.Name) else str(getattr(node, "value", "")), allowed),
    )


def shown(node: ast.AST) -> str:
    return ast.unparse(node)[:40]


def is_knob_call(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "knob"
    )


def check_each_once(name: str, node: ast.Call) -> None:
    """Python's grammar lets a call name an argument twice."""
    seen: set[str | None] = set()
    for keyword in node.keywords:
        if keyword.arg in seen:
            raise place_of(keyword.value).error(
                "argument-count",
                f"{name} is given {keyword.arg} twice",
                found=f"{keyword.arg}={shown(keyword.value)}",
                expected="each argument once",
                hint="keep one of them",
            )
        seen.add(keyword.arg)


def read_knob(name: str, node: ast.Call) -> Knob:
    """`knob.int(low, high, log=, step=, default=)`, `knob.float(...)`, `knob.choice(*values, default=)` or
    `knob.bool(default=)`."""
    place = place_of(node)
    assert isinstance(node.func, ast.Attribute)
    kind = node.func.attr
    if kind not in _KINDS:
        raise place.error(
            "knob-kind",
            f"unknown kind of knob {kind}",
            expected=", ".join(f"knob.{k}" for k in _KINDS),
            found=f"knob.{kind}",
            hint=suggestion(kind, _KINDS),
        )
    shape = _SHAPES[kind]
    check_each_once(f"knob.{kind}", node)
    options: dict[str, Attr] = {}
    for keyword in node.keywords:
        if keyword.arg not in _KINDS[kind]:
            raise place_of(keyword.value).error(
                "unknown-argument",
                f"knob.{kind} has no option {keyword.arg}",
                expected=shape,
                found=f"{keyword.arg}=",
                hint=f"bounds and choices stand first, without names: {shape}"
                if keyword.arg in _FIRST
                else suggestion(str(keyword.arg), _KINDS[kind]),
            )
        options[keyword.arg] = literal(keyword.value)
    values = [literal(arg) for arg in node.args]
    if kind == "bool":
        if values or not isinstance(options.get("default"), bool):
            raise place.error(
                "knob-values",
                f"{name}: knob.bool takes a default alone",
                expected=shape,
                found=shown(node),
                hint="write True or False",
            )
        return Knob(name, kind, options["default"])
    return _choice(name, values, options, place) if kind == "choice" else _range(name, kind, values, options, node)


def _choice(name: str, values: list[Attr], options: dict[str, Attr], place: Place) -> Knob:
    kinds = {str if isinstance(v, str) else bool if isinstance(v, bool) else float for v in values}
    if not 2 <= len(values) <= MAX_CHOICES or len(set(values)) != len(values) or len(kinds) != 1 or kinds == {bool}:
        raise place.error(
            "knob-values",
            f"{name}: knob.choice takes 2 to {MAX_CHOICES} different texts or numbers",
            found=", ".join(map(repr, values)) or "none",
            expected=_SHAPES["choice"],
            hint="texts and numbers do not mix; for True and False there is knob.bool",
        )
    default = options.get("default", values[0])
    if default not in values or isinstance(default, bool):
        raise place.error(
            "knob-default",
            f"the default of {name} is none of its choices",
            found=repr(default),
            expected=", ".join(map(repr, values)),
            hint="take one of the choices",
        )
    if any(isinstance(v, float) for v in values):
        values, default = [float(v) for v in values], float(default)  # type: ignore[arg-type]
    return Knob(name, "choice", default, choices=tuple(values))


def _range(name: str, kind: str, values: list[Attr], options: dict[str, Attr], node: ast.Call) -> Knob:
    place, shape = place_of(node), _SHAPES[kind]
    default, step, log = options.get("default"), options.get("step"), options.get("log", False)
    wanted = (int,) if kind == "int" else (int, float)
    numbers = [*values, *(v for v in (default, step) if v is not None)]
    if len(values) != 2 or any(type(v) not in wanted for v in numbers) or not isinstance(log, bool):
        raise place.error(
            "knob-values",
            f"{name}: knob.{kind} takes its lowest and its highest {kind}",
            expected=shape,
            found=shown(node),
            hint=f"the default has a name: default={values[2]!r}"
            if len(values) == 3
            else f"both bounds and the default are written out and of kind {kind}",
        )
    low, high = values
    assert isinstance(low, (int, float)) and isinstance(high, (int, float))
    if not low <= high:
        raise place.error(
            "knob-range",
            f"the range of {name} is empty",
            found=f"{low} to {high}",
            hint=f"the lowest comes first: {high}, {low}",
            expected="low <= high",
        )
    if log and low <= 0:
        raise place.error(
            "knob-range",
            f"{name} is logarithmic and starts at {low}",
            hint="start above 0, or drop log",
            found=str(low),
            expected="low > 0",
        )
    if step is not None:
        assert isinstance(step, (int, float))
        reached = [(end - low) / step for end in (high, default) if step > 0 and isinstance(end, (int, float))]
        if step <= 0 or log or not all(math.isclose(n, round(n), abs_tol=1e-9) for n in reached):
            raise place.error(
                "knob-range",
                f"the step of {name} does not lead from {low} to {high}",
                found=str(step),
                hint="a log knob has no step" if log
                else f"high - {low} and default - {low} are multiples of the step, which is above 0",
                expected="equal steps from low to high",
            )
    if default is None:
        raise place.error(
            "knob-default", f"{name} has no default", expected=shape, found="no default", hint=f"add default={low}"
        )
    assert isinstance(default, (int, float))
    if not low <= default <= high:
        raise place.error(
            "knob-default",
            f"the default of {name} is outside its range",
            found=str(default),
            expected=f"{low} to {high}",
            hint="widen the range, or move the default",
        )
    if kind == "float":
        low, high, default = float(low), float(high), float(default)
        step = None if step is None else float(step)
    return Knob(name, kind, default, low, high, bool(log), step)
