"""What the functions and methods of the language take, argument by argument."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from vortexlab.dsl.graph import Place, Value
from vortexlab.dsl.ir import FLOAT, INT, REDUCTIONS, SET, KnobRef, Type

if TYPE_CHECKING:
    from vortexlab.dsl.tracer import Tracer

_SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # name: (required, optional), in order
    "where": (("condition", "a", "b"), ()),
    "clamp": (("x", "low", "high"), ()),
    "dot": (("a", "b", "axis"), ()),
    "softmax": (("x", "axis"), ()),
    "share": (("score", "how"), ()),
    "everything": ((), ()),
    "first": (("n",), ()),
    "last": (("n",), ()),
    "stride": (("n",), ("offset",)),
    "random": (("n",), ("among", "salt")),
    "topk": (("score", "n"), ("among",)),
    "topp": (("score", "p"), ("scale", "max", "among")),
    "above": (("score", "threshold"), ("max", "among")),
    **{name: (("x",), ()) for name in ("abs", "exp", "log", "sqrt", "relu", "sigmoid", "silu", "tanh")},
    **{name: (("x",), ()) for name in ("floor", "ceil", "float")},
    **{name: (("a", "b"), ()) for name in ("maximum", "minimum", "max", "min")},
}
_KEYWORD_ONLY = {"among", "salt", "scale", "max", "offset"}


def _bind(name: str, node: ast.Call, place: Place) -> dict[str, ast.expr]:
    required, optional = _SIGNATURES[name]
    shape = f"{name}({', '.join([*required, *(f'{o}=...' for o in optional)])})"
    positional = [*required, *(o for o in optional if o == "offset")]
    if len(node.args) > len(positional):
        raise place.error("argument-count", f"{name} was given too many arguments", found=str(len(node.args)),
                          expected=shape)  # fmt: skip
    given = dict(zip(positional, node.args, strict=False))
    for keyword in node.keywords:
        key = str(keyword.arg)
        if key not in (*required, *optional):
            raise place.error("unknown-argument", f"{name} has no argument {key}", expected=shape)
        if key in given:
            raise place.error("argument-twice", f"{name} was given {key} twice", expected=shape)
        given[key] = keyword.value
    missing = [key for key in required if key not in given]
    if missing:
        raise place.error("argument-missing", f"{name} lacks {missing[0]}", expected=shape)
    return given


def _axis(tracer: Tracer, node: ast.expr, place: Place) -> str:
    from vortexlab.dsl.tracer import Axis

    item = tracer.item(node)
    if not isinstance(item, Axis):
        raise place.error("axis-expected", "the name of an axis is expected here", expected=", ".join(sorted(tracer.axes)))
    return item.name


def _how(tracer: Tracer, node: ast.expr, place: Place) -> str | KnobRef:
    from vortexlab.dsl.tracer import Text

    item = tracer.item(node)
    if not isinstance(item, Text):
        raise place.error("reduction-expected", "a reduction in quotes, or a choice knob, is expected here",
                          expected=", ".join(f'"{r}"' for r in REDUCTIONS))  # fmt: skip
    if isinstance(item.value, KnobRef):
        from vortexlab.dsl.ir import Knob

        knob = tracer.scope[item.value.name]
        assert isinstance(knob, Knob)
        wrong = [c for c in knob.choices if c not in REDUCTIONS]
        if wrong:
            raise place.error("unknown-reduction", f"knob {knob.name} offers {wrong[0]!r}, which is no reduction",
                              expected=", ".join(REDUCTIONS))  # fmt: skip
    return item.value


def call_method(tracer: Tracer, x: Value, method: str, node: ast.Call, place: Place) -> Value:
    graph = tracer.graph
    if method in REDUCTIONS:
        if len(node.args) != 1 or node.keywords:
            raise place.error("argument-count", f".{method} takes the name of one axis", expected=f"x.{method}(axis)",
                              hint=f"the value has the axes {', '.join(x.type.axes) or 'none'}")  # fmt: skip
        return graph.reduce(x, method, _axis(tracer, node.args[0], place), place)
    if method == "reduce":
        if len(node.args) != 2 or node.keywords:
            raise place.error("argument-count", ".reduce takes a reduction and an axis", expected='x.reduce("max", head)')
        return graph.reduce(x, _how(tracer, node.args[0], place), _axis(tracer, node.args[1], place), place)
    if method == "rename":
        if len(node.args) != 2 or node.keywords or not isinstance(node.args[1], ast.Name):
            raise place.error("argument-count", ".rename takes an axis and its new name", expected="x.rename(old, new)")
        new = node.args[1].id
        _new_axis(tracer, new, place)
        made = graph.rename(x, _axis(tracer, node.args[0], place), new, place)
        tracer.axes.add(new)
        return made
    if method == "split":
        return _split(tracer, x, node, place)
    from vortexlab.dsl.tracer import Text

    item = tracer.item(node.args[0]) if len(node.args) == 1 and not node.keywords else None
    if not isinstance(item, Text) or isinstance(item.value, KnobRef):
        raise place.error("argument-count", ".to takes a precision in quotes", expected='x.to("bf16")')
    return graph.cast(x, item.value, place)


def _new_axis(tracer: Tracer, name: str, place: Place) -> None:
    if name in tracer.scope:
        raise place.error("name-taken", f"{name} is already a name here", hint="choose another name for the axis")


def _split(tracer: Tracer, x: Value, node: ast.Call, place: Place) -> Value:
    if len(node.args) != 1 or len(node.keywords) != 1:
        raise place.error("argument-count", ".split takes an axis and one named count", expected="x.split(token, sub=4)")
    name = str(node.keywords[0].arg)
    _new_axis(tracer, name, place)
    size = tracer.value(node.keywords[0].value)
    made = tracer.graph.nodes[size.index]
    count: int | KnobRef
    if made.op == "const" and size.type.kind == INT:
        count = int(made.attrs["value"])  # type: ignore[arg-type]
        if not 1 <= count <= 64:
            raise place.error("split-size", "the number of parts is out of range", found=str(count), expected="1 to 64")
    elif made.op == "knob" and size.type.kind == INT:
        count = KnobRef(str(made.attrs["name"]))
    else:
        raise place.error("split-size", "the number of parts is a whole number or an int knob", found=str(size))
    value = tracer.graph.split(x, _axis(tracer, node.args[0], place), name, count, place)
    tracer.axes.add(name)
    return value


def call_function(tracer: Tracer, name: str, node: ast.Call, place: Place) -> Value:
    graph = tracer.graph
    if name == "dict":
        raise place.error("mapping", "dict(...) may only be returned", hint="return dict(a=..., b=...)")
    given = _bind(name, node, place)

    def value(key: str) -> Value:
        return tracer.value(given[key])

    if name in ("abs", "exp", "log", "sqrt", "relu", "sigmoid", "silu", "tanh", "floor", "ceil", "float"):
        return graph.unary(name, value("x"), place)
    if name in ("maximum", "minimum", "max", "min"):
        return graph.binary({"max": "maximum", "min": "minimum"}.get(name, name), value("a"), value("b"), place)
    if name == "where":
        return graph.where(value("condition"), value("a"), value("b"), place)
    if name == "clamp":
        return graph.binary("minimum", graph.binary("maximum", value("x"), value("low"), place), value("high"), place)
    if name == "dot":
        return graph.dot(value("a"), value("b"), _axis(tracer, given["axis"], place), place)
    if name == "softmax":
        return graph.softmax(value("x"), _axis(tracer, given["axis"], place), place)
    if name == "share":
        return graph.share(value("score"), _how(tracer, given["how"], place), place)
    return _selector(tracer, name, given, place)


def _selector(tracer: Tracer, name: str, given: dict[str, ast.expr], place: Place) -> Value:
    graph = tracer.graph
    if graph.stage != "query":
        raise place.error("selector-in-summary", f"{name} selects pages; a summary cannot", hint="move it to select")
    if name == "everything":
        return graph.add("everything", Type(SET), (), place)
    among = tracer.value(given["among"]) if "among" in given else None

    def bound() -> Value:
        if "max" in given:
            return graph.count(tracer.value(given["max"]), "max", place)
        return graph.ctx("pages", place)

    if name in ("first", "last"):
        return graph.add(name, Type(SET), (graph.count(tracer.value(given["n"]), "n", place),), place)
    if name == "stride":
        n = graph.count(tracer.value(given["n"]), "n", place)
        offset = graph.count(tracer.value(given["offset"]), "offset", place) if "offset" in given else graph.const(0, place)
        return graph.add(name, Type(SET), (n, offset), place)
    if name == "random":
        n = graph.count(tracer.value(given["n"]), "n", place)
        salt = given.get("salt")
        if salt is not None and not (isinstance(salt, ast.Constant) and type(salt.value) is int and 0 <= salt.value < 2**32):
            raise place.error("salt", "salt is a whole number written out", expected="0 to 4294967295")
        number = salt.value if isinstance(salt, ast.Constant) else 0
        if among is None:
            return graph.add(name, Type(SET), (n,), place, salt=number)  # type: ignore[arg-type]
        graph.page_set(among, "among", place)
        return graph.add(name, Type(SET, among.type.axes), (n, among), place, salt=number)  # type: ignore[arg-type]
    score = tracer.value(given["score"])
    if score.type.kind == INT:
        score = graph.unary("float", score, place)
    if name == "topk":
        return graph.scored(name, score, [graph.count(tracer.value(given["n"]), "n", place)], among, place)
    if name == "topp":
        p = graph.number(tracer.value(given["p"]), "p", place)
        scale = graph.number(tracer.value(given["scale"]), "scale", place) if "scale" in given else graph.const(1.0, place)
        return graph.scored(name, score, [p, scale, bound()], among, place)
    head = ("head",) if "head" in score.type.axes else ()
    threshold = graph.number(tracer.value(given["threshold"]), "threshold", place, head)
    assert threshold.type.kind == FLOAT
    return graph.scored(name, score, [threshold, bound()], among, place)
