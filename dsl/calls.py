"""What the functions and methods of the language take, argument by argument."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from vortexlab.dsl.declarations import shown, whole_number
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import DTYPES, INT, PAGE_STAGE, REDUCTIONS, SET, KnobRef, Type
from vortexlab.dsl.items import Axis, Text
from vortexlab.dsl.places import Named, Place, place_of
from vortexlab.dsl.words import BINARY, SELECTORS, UNARY, suggestion

if TYPE_CHECKING:
    from vortexlab.dsl.expressions import Expressions

MAX_PARTS = 64
_SHARES = ("sum", "max", "mean")
#: Required and optional arguments in order; the last ones, from the marked number on, by keyword only.
_SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    **{name: (("x",), (), 1) for name in UNARY},
    **{name: (("a", "b"), (), 2) for name in BINARY},
    "where": (("condition", "a", "b"), (), 3),
    "clamp": (("x", "low", "high"), (), 3),
    "dot": (("a", "b", "axis"), (), 3),
    "softmax": (("x", "axis"), (), 2),
    "share": (("score", "how"), (), 2),
    "everything": ((), (), 0),
    "first": (("n",), (), 1),
    "last": (("n",), (), 1),
    "stride": (("n",), ("offset",), 2),
    "random": (("n",), ("among", "salt"), 1),
    "topk": (("score", "n"), ("among",), 2),
    "topp": (("score", "p"), ("scale", "max", "among"), 2),
    "above": (("score", "threshold"), ("max", "among"), 2),
}


def signature(name: str) -> str:
    required, optional, _ = _SIGNATURES[name]
    return f"{name}({', '.join([*required, *(f'{key}=...' for key in optional)])})"


def _bind(name: str, node: ast.Call, place: Place) -> dict[str, ast.expr]:
    required, optional, positional = _SIGNATURES[name]
    if len(node.args) > positional:
        extra = node.args[positional]
        hint = f"write {optional[0]}={shown(extra)}" if optional and positional == len(required) else "leave it out"
        raise place_of(extra).error(
            "argument-count", f"{name} has too many arguments", found=shown(extra), expected=signature(name), hint=hint
        )
    given = dict(zip((*required, *optional), node.args, strict=False))
    for keyword in node.keywords:
        key = str(keyword.arg)
        if key not in (*required, *optional):
            raise place_of(keyword.value).error(
                "unknown-argument",
                f"{name} has no argument {key}",
                found=f"{key}=",
                expected=signature(name),
                hint=suggestion(key, [*required, *optional]),
            )
        if key in given:
            raise place_of(keyword.value).error(
                "argument-count",
                f"{name} is given {key} twice",
                found=f"{key}=",
                expected=signature(name),
                hint="give it once",
            )
        given[key] = keyword.value
    missing = [key for key in required if key not in given]
    if missing:
        raise place.error(
            "argument-count",
            f"{name} lacks {missing[0]}",
            found=shown(node),
            expected=signature(name),
            hint=f"write {signature(name)}",
        )
    return given


def _axis(tracer: Expressions, node: ast.expr) -> Named:
    item = tracer.item(node)
    if not isinstance(item, Axis):
        raise place_of(node).error(
            "axis-expected",
            "the name of an axis is expected here",
            found=shown(node),
            expected=", ".join(sorted(tracer.axes)),
            hint="axes have names and no positions",
        )
    return Named(item.name, place_of(node))


def _how(tracer: Expressions, node: ast.expr, allowed: tuple[str, ...]) -> str | KnobRef:
    item = tracer.item(node)
    expected = ", ".join(f'"{name}"' for name in allowed)
    if not isinstance(item, Text):
        raise place_of(node).error(
            "unknown-reduction",
            "a reduction in quotes, or a choice knob of them, is expected here",
            found=shown(node),
            expected=expected,
            hint=f"write {expected.split(', ')[0]}",
        )
    offered = (item.value,) if isinstance(item.value, str) else tracer.knobs[item.value.name].choices
    wrong = [choice for choice in offered if choice not in allowed]
    if wrong:
        raise place_of(node).error(
            "unknown-reduction",
            "this is no reduction here",
            found=repr(wrong[0])[:40],
            expected=expected,
            hint=suggestion(str(wrong[0]), allowed),
        )
    return item.value


# ---- methods of a value


def call_method(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    assert isinstance(node.func, ast.Attribute)
    method = node.func.attr
    if method == "split":
        return _split(tracer, x, node, place)
    if method == "rename":
        return _rename(tracer, x, node, place)
    if method == "to":
        return _to(tracer, x, node, place)
    shape = 'x.reduce("max", axis)' if method == "reduce" else f"x.{method}(axis)"
    least = 2 if method == "reduce" else 1
    if len(node.args) < least or node.keywords:
        raise place.error(
            "argument-count",
            f".{method} takes the names of the axes it runs over",
            found=shown(node),
            expected=shape,
            hint=f"the value has the axes {', '.join(x.type.axes) or 'none'}",
        )
    how: str | KnobRef = _how(tracer, node.args[0], REDUCTIONS) if method == "reduce" else method
    for argument in node.args[least - 1 :]:
        x = tracer.graph.reduce(x, how, _axis(tracer, argument), place)
    return x


def _new_axis(tracer: Expressions, name: str, place: Place) -> str:
    if tracer.has(name):
        raise place.error(
            "axis-taken",
            f"{name} is the name of a value here",
            hint="choose another name for the axis",
            found=name,
            expected="a name of its own",
        )
    return name


def _rename(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    if len(node.args) != 2 or node.keywords or not isinstance(node.args[1], ast.Name):
        raise place.error(
            "argument-count",
            ".rename takes an axis and its new name",
            found=shown(node),
            expected="x.rename(old, new)",
            hint="x.rename(channel, other)",
        )
    new = _new_axis(tracer, node.args[1].id, place_of(node.args[1]))
    made = tracer.graph.rename(x, _axis(tracer, node.args[0]), new, place)
    tracer.axes.add(new)
    return made


def _to(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    item = tracer.item(node.args[0]) if len(node.args) == 1 and not node.keywords else None
    if not isinstance(item, Text) or isinstance(item.value, KnobRef):
        raise place.error(
            "unknown-dtype",
            ".to takes a precision in quotes",
            found=shown(node),
            expected=", ".join(f'x.to("{name}")' for name in DTYPES),
            hint="write the precision in quotes",
        )
    return tracer.graph.cast(x, item.value, place_of(node.args[0]))


def _split(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    if len(node.args) != 1 or len(node.keywords) != 1:
        raise place.error(
            "argument-count",
            ".split takes an axis and one named number of parts",
            found=shown(node),
            expected="x.split(token, part=4)",
            hint="the new axis `part` counts the parts; the old one gets their length",
        )
    keyword = node.keywords[0]
    here = place_of(keyword.value)
    name = _new_axis(tracer, str(keyword.arg), here)
    size = tracer.value(keyword.value)
    made = tracer.graph.nodes[size.index]
    count: int | KnobRef
    if made.op == "const" and size.type.kind == INT:
        count = int(made.attrs["value"])  # type: ignore[arg-type]
        low = high = count
    elif made.op == "knob" and size.type.kind == INT:
        knob = tracer.knobs[str(made.attrs["name"])]
        count = KnobRef(knob.name)
        numbers = [n for n in (*knob.choices, knob.low, knob.high) if isinstance(n, int)]
        low, high = min(numbers), max(numbers)
    else:
        raise here.error(
            "split-size",
            "the number of parts is a whole number or an int knob",
            found=shown(keyword.value),
            expected=f"1 to {MAX_PARTS}",
            hint="write a number, or name a knob.int or a knob.choice of whole numbers",
        )
    if not 1 <= low <= high <= MAX_PARTS:
        raise here.error(
            "split-size",
            "the number of parts is out of range",
            found=f"{low} to {high}" if high > low else str(low),
            expected=f"1 to {MAX_PARTS}",
            hint="a page is cut into a few parts",
        )
    value = tracer.graph.split(x, _axis(tracer, node.args[0]), name, count, place)
    tracer.axes.add(name)
    misfits = list(
        tracer.graph.sizes[value.index][str(tracer.graph.nodes[value.index].attrs["axis"])].misfits(tracer.knobs)
    )
    if misfits:
        finding = here.error(
            "split-size",
            "the parts do not divide the page",
            found=misfits[0][1],
            expected="a divisor of the page size",
            hint="choose page and parts among powers of two",
        )
        if any(is_default for is_default, _ in misfits):
            raise finding
        tracer.findings.append(replace(finding.diagnostic, severity="warning"))
    return value


# ---- functions


def call_function(tracer: Expressions, name: str, node: ast.Call, place: Place) -> Value:
    graph = tracer.graph
    if name == "dict":
        raise place.error(
            "mapping",
            "dict(...) stands only behind return",
            found=shown(node),
            hint="return dict(a=..., b=...)",
            expected="a value",
        )
    given = _bind(name, node, place)

    def value(key: str) -> Value:
        return tracer.value(given[key])

    if name in UNARY:
        return graph.unary(name, value("x"), place)
    if name in BINARY:
        return graph.binary(BINARY[name], value("a"), value("b"), place)
    if name == "where":
        return graph.where(value("condition"), value("a"), value("b"), place)
    if name == "clamp":
        return graph.binary("minimum", graph.binary("maximum", value("x"), value("low"), place), value("high"), place)
    if name == "dot":
        return graph.dot(value("a"), value("b"), _axis(tracer, given["axis"]), place)
    if name == "softmax":
        return graph.softmax(value("x"), _axis(tracer, given["axis"]), place)
    if name == "share":
        return graph.share(value("score"), _how(tracer, given["how"], _SHARES), place)
    assert name in SELECTORS
    return _selector(tracer, name, given, place)


def _selector(tracer: Expressions, name: str, given: dict[str, ast.expr], place: Place) -> Value:
    graph = tracer.graph
    if graph.stage == PAGE_STAGE:
        raise place.error(
            "selector-in-summary",
            f"{name} selects pages, which a summary cannot",
            found=f"{name}()",
            hint="move it to select",
            expected="a float made of k or v",
        )

    def count(key: str) -> Value:
        return graph.count(tracer.value(given[key]), key, place_of(given[key]))

    def number(key: str, axes: tuple[str, ...] = ()) -> Value:
        return graph.number(tracer.value(given[key]), key, place_of(given[key]), axes)

    if name == "everything":
        return graph.add(name, Type(SET), (), place)
    if name in ("first", "last"):
        return graph.add(name, Type(SET), (count("n"),), place)
    if name == "stride":
        offset = count("offset") if "offset" in given else graph.const(0, place)
        return graph.add(name, Type(SET), (count("n"), offset), place)
    among: tuple[Value, ...] = ()
    if "among" in given:
        among = (graph.page_set(tracer.value(given["among"]), "among", place_of(given["among"])),)
    if name == "random":
        salt = whole_number(given["salt"], 0, 2**32 - 1) if "salt" in given else 0
        return graph.add(name, Type(SET, among[0].type.axes if among else ()), (count("n"), *among), place, salt=salt)
    score = graph.score(name, tracer.value(given["score"]), place_of(given["score"]))
    if name == "topk":
        return graph.scored(name, (score, count("n"), *among), place)
    limit = count("max") if "max" in given else graph.ctx("pages", place)
    if name == "topp":
        scale = number("scale") if "scale" in given else graph.const(1.0, place)
        return graph.scored(name, (score, number("p"), scale, limit, *among), place)
    threshold = number("threshold", tuple(axis for axis in score.type.axes if axis == "head"))
    return graph.scored(name, (score, threshold, limit, *among), place)
