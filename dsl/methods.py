"""The methods of a value, argument by argument."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import TYPE_CHECKING

from vortexlab.dsl.arguments import Signature, new_axis, read_axis, read_number, read_whole, read_word
from vortexlab.dsl.declarations import shown
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import DTYPES, INT, REDUCTIONS, Attr, KnobRef
from vortexlab.dsl.items import Text
from vortexlab.dsl.places import Finding, Named, Place, place_of
from vortexlab.dsl.sizes import Size, settings
from vortexlab.dsl.words import SCANS, precision_hint

if TYPE_CHECKING:
    from vortexlab.dsl.expressions import Expressions

MAX_PARTS = 64
_FAR = 2**20
ORDERS = ("down", "up")
_SIGNATURES = {
    signature.name: signature
    for signature in (
        Signature("merge", ("first", "second", "into"), owner="x.", example="x.merge(part, token, into=tokens)"),
        Signature("slice", ("axis", "start"), ("stop",), owner="x."),
        Signature("take", ("axis", "index"), ("fill",), owner="x."),
        Signature("shift", ("axis", "by"), ("fill",), owner="x."),
        Signature("sort", ("axis",), ("how",), owner="x."),
        *(Signature(name, ("axis",), owner="x.") for name in (*SCANS, "argmax", "index")),
    )
}


def call_method(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    assert isinstance(node.func, ast.Attribute)
    method = node.func.attr
    special = {"split": _split, "rename": _rename, "to": _to, "window": _window}.get(method)
    if special is not None:
        return special(tracer, x, node, place)
    if method in _SIGNATURES:
        return _bound(tracer, x, method, _SIGNATURES[method].bind(node, place), place)
    shape = 'x.reduce("max", axis)' if method == "reduce" else f"x.{method}(axis)"
    least = 2 if method == "reduce" else 1
    if len(node.args) < least or node.keywords:
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        named = [item.id for item in given if isinstance(item, ast.Name) and item.id in tracer.axes]
        if method == "reduce":
            named = []
        raise place.error(
            "argument-count",
            f".{method} takes the names of the axes it runs over",
            found=shown(node),
            expected=shape,
            hint=f"write x.{method}({', '.join(named)})" if named
            else f"the value has the axes {', '.join(x.type.axes) or 'none'}",
        )
    how: str | KnobRef = read_word(tracer, node.args[0], REDUCTIONS) if method == "reduce" else method
    for argument in node.args[least - 1 :]:
        x = tracer.graph.reduce(x, how, read_axis(tracer, argument), place)
    return x


def _bound(tracer: Expressions, x: Value, method: str, given: dict[str, ast.expr], place: Place) -> Value:
    graph = tracer.graph
    if method == "merge":
        return _merge(tracer, x, given, place)
    axis = read_axis(tracer, given["axis"])
    if method in SCANS:
        return graph.scan(x, SCANS[method], axis, place)
    if method == "sort":
        how = read_word(tracer, given["how"], ORDERS) if "how" in given else ORDERS[0]
        return graph.sort(x, axis, how, place)
    if method == "argmax":
        return graph.argmax(x, axis, place)
    if method == "index":
        return graph.index(axis, x, place)
    if method == "slice":
        return _slice(tracer, x, axis, given, place)
    fill = read_number(tracer, given.get("fill"))
    if method == "shift":
        by = read_whole(tracer, given["by"], "the distance", -_FAR, _FAR)
        return graph.shift(x, axis, by.number, fill, place)
    return graph.gather(x, axis, tracer.value(given["index"]), fill, place)


def _merge(tracer: Expressions, x: Value, given: dict[str, ast.expr], place: Place) -> Value:
    first, second = read_axis(tracer, given["first"]), read_axis(tracer, given["second"])
    into = given["into"]
    if not isinstance(into, ast.Name):
        raise place_of(into).error(
            "axis-expected",
            "the merged axis has a plain name",
            found=shown(into),
            expected="x.merge(part, token, into=tokens)",
            hint="write a new name, or one of the two axes",
        )
    named = Named(into.id, place_of(into))
    if into.id not in tracer.axes:
        new_axis(tracer, into.id, named.place)
    made = tracer.graph.merge(x, first, second, named, place)
    tracer.axes.add(into.id)
    return made


def _rename(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    if len(node.args) != 2 or node.keywords or not isinstance(node.args[1], ast.Name):
        raise place.error(
            "argument-count",
            ".rename takes an axis and its new name",
            found=shown(node),
            expected="x.rename(old, new)",
            hint="x.rename(channel, other)",
        )
    new = new_axis(tracer, node.args[1].id, place_of(node.args[1]))
    made = tracer.graph.rename(x, read_axis(tracer, node.args[0]), new, place)
    tracer.axes.add(new)
    return made


def _to(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    argument = node.args[0] if len(node.args) == 1 and not node.keywords else None
    if isinstance(argument, ast.Name) and not tracer.has(argument.id):
        raise place_of(argument).error(
            "unknown-dtype", ".to takes a precision in quotes", found=argument.id,
            expected=", ".join(f'"{name}"' for name in DTYPES), hint=precision_hint(argument.id, DTYPES),
        )  # fmt: skip
    item = tracer.item(argument) if argument is not None else None
    if not isinstance(item, Text) or isinstance(item.value, KnobRef):
        raise place.error(
            "unknown-dtype",
            ".to takes a precision in quotes",
            found=shown(node),
            expected=", ".join(f'x.to("{name}")' for name in DTYPES),
            hint="write the precision in quotes",
        )
    assert argument is not None
    return tracer.graph.cast(x, item.value, place_of(argument))


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
    name = new_axis(tracer, str(keyword.arg), here)
    count = read_whole(
        tracer, keyword.value, "the number of parts", 1, MAX_PARTS, "split-size", "a page is cut into a few parts"
    ).number
    axis = read_axis(tracer, node.args[0])
    before = tracer.graph.sizes[x.index].get(axis.name)
    value = tracer.graph.split(x, axis, name, count, place)
    tracer.axes.add(name)
    assert before is not None
    involved = before.knobs() | ({count.name} if isinstance(count, KnobRef) else set())
    for is_default, setting in settings(involved, tracer.knobs):
        length, parts = before.value(setting), _resolved(count, setting)
        if length is not None and (length / parts).denominator != 1:
            finding = here.error(
                "split-size",
                f"the parts do not divide the {'page' if axis.name == 'token' else axis.name}",
                found=f"{length} into {parts}",
                expected="a divisor of the page size" if axis.name == "token" else f"a divisor of {length}",
                hint="choose page and parts among powers of two",
            )
            _refuse(tracer, finding, is_default)
            break
    return value


def _window(tracer: Expressions, x: Value, node: ast.Call, place: Place) -> Value:
    named = [keyword for keyword in node.keywords if keyword.arg != "fill"]
    if len(node.args) != 1 or len(named) != 1:
        raise place.error(
            "argument-count",
            ".window takes an axis and one named width",
            found=shown(node),
            expected="x.window(page, near=3, fill=0.0)",
            hint="the new axis `near` counts the neighbours",
        )
    name = new_axis(tracer, str(named[0].arg), place_of(named[0].value))
    size = read_whole(tracer, named[0].value, "the width", 1, MAX_PARTS, hint="a window has a few neighbours")
    fill = read_number(tracer, next((k.value for k in node.keywords if k.arg == "fill"), None))
    made = tracer.graph.window(x, read_axis(tracer, node.args[0]), name, size.number, fill, place)
    tracer.axes.add(name)
    return made


# ---- slices


def _slice(tracer: Expressions, x: Value, axis: Named, given: dict[str, ast.expr], place: Place) -> Value:
    size = tracer.graph.sizes[x.index].get(axis.name, Size.of(1))
    start, low = _limit(tracer, given["start"], size)
    stop, high = _limit(tracer, given["stop"], size) if "stop" in given else (None, size)
    width = high - low
    made = tracer.graph.slice(x, axis, start, stop, width, place)
    here = place_of(given["start"])
    for is_default, setting in settings(size.knobs() | low.knobs() | high.knobs(), tracer.knobs):
        length, first, last = size.value(setting), low.value(setting), high.value(setting)
        span = width.value(setting)
        empty = span is not None and span <= 0
        outside = length is not None and axis.name != "query" and (
            (first is not None and not 0 <= first < length) or (last is not None and not 0 < last <= length)
        )  # fmt: skip
        if empty or outside or (first is not None and first < 0):
            finding = here.error(
                "slice-range",
                f"the slice is {'empty' if empty else 'not inside the axis'}",
                found=f"{axis.name} from {low if first is None else first} to {high if last is None else last}",
                expected=f"a run inside 0 to {size if length is None else length}",
                hint=f"x.slice({axis.name}, 0, n) are the first n, x.slice({axis.name}, -n) the last n",
            )
            _refuse(tracer, finding, is_default)
            break
    return made


def _limit(tracer: Expressions, node: ast.expr, size: Size) -> tuple[int | str | KnobRef, Size]:
    """A bound of a slice, and where it lies."""
    value = tracer.value(node)
    made = tracer.graph.nodes[value.index]
    if made.op == "ctx" and made.attrs["name"] in ("latent", "head_dim"):
        name = str(made.attrs["name"])
        return name, tracer.graph.lengths["value" if name == "latent" else "channel"]
    if value.type.kind == INT and made.op in ("const", "knob"):
        whole = read_whole(tracer, node, "the bound of a slice", -_FAR, _FAR)
        if whole.low >= 0 or whole.high < 0:
            place = Size.of(whole.number)
            return whole.number, place if whole.low >= 0 else size + place
    raise place_of(node).error(
        "slice-bound",
        "a slice is bounded by whole numbers",
        found=shown(node),
        expected="a whole number, an int knob of one sign, ctx.latent or ctx.head_dim",
        hint="x.slice(channel, 0, 64); below 0 counts from the end; for a computed place use x.take(axis, i)",
    )


def _resolved(number: int | KnobRef, setting: dict[str, Attr]) -> int:
    value = setting[number.name] if isinstance(number, KnobRef) else number
    assert isinstance(value, int)
    return value


def _refuse(tracer: Expressions, finding: Finding, is_default: bool) -> None:
    """What is wrong with the defaults is an error, what is wrong with other settings a warning."""
    if is_default:
        raise finding
    tracer.findings.append(replace(finding.diagnostic, severity="warning"))
