"""What the functions of the language take, argument by argument."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from vortexlab.dsl.arguments import Signature, read_axis, read_whole, read_word
from vortexlab.dsl.declarations import shown, whole_number
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import BOOL, SET, Type
from vortexlab.dsl.places import Place, place_of
from vortexlab.dsl.rules import ATTENTION_PARTS
from vortexlab.dsl.state import MAX_PERIOD
from vortexlab.dsl.words import BINARY, SELECTORS, UNARY

if TYPE_CHECKING:
    from vortexlab.dsl.expressions import Expressions

_SHARES = ("sum", "max", "mean")
SIGNATURES = {
    signature.name: signature
    for signature in (
        *(Signature(name, ("x",)) for name in UNARY),
        *(
            Signature(name, ("a", "b"), example=f"{name}(a, b); along an axis it is x.{name[:3]}(axis)")
            for name in BINARY
        ),
        Signature("where", ("condition", "a", "b")),
        Signature("clamp", ("x", "low", "high")),
        Signature("dot", ("a", "b", "axis")),
        Signature("softmax", ("x", "axis")),
        Signature("share", ("score", "how")),
        Signature("member", ("pages",)),
        Signature("index", ("axis",)),
        Signature("concat", ("a", "b", "axis")),
        Signature("everything"),
        Signature("first", ("n",)),
        Signature("last", ("n",)),
        Signature("stride", ("n",), ("offset",)),
        Signature("random", ("n",), ("among", "salt"), 1),
        Signature("topk", ("score", "n"), ("among",), 2),
        Signature("topp", ("score", "p"), ("scale", "max", "among"), 2),
        Signature("above", ("score", "threshold"), ("max", "among"), 2),
        Signature("reuse", ("pages",), ("every", "layers"), 1),
        Signature("attention", (), ATTENTION_PARTS, 1),
    )
}


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
    given = SIGNATURES[name].bind(node, place)

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
        return graph.dot(value("a"), value("b"), read_axis(tracer, given["axis"]), place)
    if name == "softmax":
        return graph.softmax(value("x"), read_axis(tracer, given["axis"]), place)
    if name == "share":
        return graph.share(value("score"), read_word(tracer, given["how"], _SHARES), place)
    if name == "member":
        return graph.member(graph.page_set(value("pages"), "what member looks into", place_of(given["pages"])), place)
    if name == "concat":
        return graph.concat(value("a"), value("b"), read_axis(tracer, given["axis"]), place)
    if name == "index":
        return graph.index(read_axis(tracer, given["axis"]), None, place)
    if name == "attention":
        return _attention(tracer, given, place)
    if name == "reuse":
        return _reuse(tracer, given, place)
    assert name in SELECTORS
    return _selector(tracer, name, given, place)


def _selector(tracer: Expressions, name: str, given: dict[str, ast.expr], place: Place) -> Value:
    graph = tracer.graph
    graph.selecting(name, place)

    def count(key: str) -> Value:
        return graph.count(tracer.value(given[key]), key, place_of(given[key]), shown(given[key]))

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


def _reuse(tracer: Expressions, given: dict[str, ast.expr], place: Place) -> Value:
    graph = tracer.graph
    graph.selecting("reuse", place)
    pages = graph.page_set(tracer.value(given["pages"]), "what reuse keeps", place_of(given["pages"]))
    if ("every" in given) == ("layers" in given):
        raise place.error(
            "reuse-kind",
            "reuse keeps a set over steps or over layers",
            found="both" if "every" in given else "neither",
            expected="reuse(pages, every=8) or reuse(pages, layers=ctx.layer % 4 == 0)",
            hint="nest the two to have both: reuse(reuse(pages, every=8), layers=c)",
        )
    if "every" in given:
        every = read_whole(tracer, given["every"], "every", 1, MAX_PERIOD, hint="1 makes the set at every step")
        return graph.reuse_steps(pages, every.number, place)
    condition = tracer.value(given["layers"])
    if condition.type.kind != BOOL or not graph.is_compile_time(condition):
        raise place_of(given["layers"]).error(
            "reuse-condition",
            "layers= is a truth value that is known when a layer is compiled",
            found=f"{shown(given['layers'])} ({condition})",
            expected="a comparison of ctx.layer, knobs and numbers",
            hint="write for example layers=ctx.layer % 4 == 0; ctx.length, ctx.position and scores are not known then",
        )
    return graph.reuse_layers(pages, condition, place)


def _attention(tracer: Expressions, given: dict[str, ast.expr], place: Place) -> Value:
    if tracer.method != "attend":
        raise place.error(
            "attention-place",
            "attention(...) makes the output, which attend returns",
            found=f"attention in {tracer.method or 'the class body'}",
            expected="def attend(q, s, score, pages, m, ctx)",
            hint="select returns a set of pages; what attention makes of it stands in attend",
        )
    places = {name: place_of(node) for name, node in given.items()}
    return tracer.graph.attention({name: tracer.value(node) for name, node in given.items()}, places, place)
