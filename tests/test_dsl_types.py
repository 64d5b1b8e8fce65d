"""Types, axes and the typed form: what each construct of the language becomes."""

from __future__ import annotations

import ast

import pytest
from dsl_programs import program

from vortexlab.dsl import check, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.expressions import Expressions
from vortexlab.dsl.graph import RESERVED_AXES
from vortexlab.dsl.ir import (
    DYNAMIC_CTX,
    FLOAT,
    INT,
    PAGE_STAGE,
    QUERY_STAGE,
    SET,
    STATIC_CTX,
    Knob,
    KnobRef,
    Memory,
    Param,
    Program,
    Static,
    Type,
)
from vortexlab.dsl.items import Record, knob_item
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.places import Finding, Place
from vortexlab.dsl.rules import Graph

HERE = Place(1, 1)
KNOBS = {
    "n": Knob("n", "int", 4, 1, 8),
    "x": Knob("x", "float", 0.5, 0.0, 1.0),
    "flag": Knob("flag", "bool", True),
    "how": Knob("how", "choice", "max", choices=("max", "mean")),
    "width": Knob("width", "choice", 4, choices=(2, 4)),
    "ratio": Knob("ratio", "choice", 0.5, choices=(0.5, 1.0)),
}


GATE = Param("gate", FLOAT, ("head", "rank", "channel"), {"rank": 8}, "gate")
PLACES = Param("places", INT, ("rank",), {"rank": 8}, "places")
MASS = Memory("mass", "step", Type(FLOAT, ("page", "head")))
KEPT = Memory("kept", "step", Type(SET))


def evaluated(expression: str) -> tuple[Graph, Type]:
    """An expression over k, v of a page of 16, q, summaries s.c, s.d (of v), s.e, parameters, memories and knobs."""
    graph = Graph()
    sizes = graph.lengths

    def leaf(op: str, *axes: str, **attrs: str):  # type: ignore[no-untyped-def]
        return graph.add(op, Type(FLOAT, axes), (), HERE, sizes, **attrs)

    scope = {
        "k": leaf("k", "token", "channel"),
        "v": leaf("v", "token", "channel"),
        "q": leaf("q", "head", "channel"),
        "s": Record("s", {"c": lambda place: leaf("field", "page", "channel", name="c"),
                          "d": lambda place: leaf("field", "page", "channel", name="d"),
                          "e": lambda place: leaf("field", "page", name="e")}),
        "m": Record("m", {"mass": lambda place: graph.memory(MASS, place),
                          "kept": lambda place: graph.memory(KEPT, place)}),
        "gate": graph.param("gate", GATE, HERE),
        "places": graph.param("places", PLACES, HERE),
        "ctx": Record("ctx", {name: (lambda place, name=name: graph.ctx(name, place))  # type: ignore[misc]
                              for name in (*STATIC_CTX, *DYNAMIC_CTX)}),
        **{name: knob_item(graph, knob, HERE) for name, knob in KNOBS.items()},
    }  # fmt: skip
    tracer = Expressions(graph, scope, {*RESERVED_AXES, "rank"}, KNOBS, "attend")
    return graph, tracer.value(ast.parse(expression, mode="eval").body).type


TYPES = {
    # kinds
    "3": "int", "0.5": "float", "True": "bool", "-3": "int", "n": "int", "x": "float", "flag": "bool", "width": "int",
    "ratio": "float", "ctx.layer": "int", "ctx.scale": "float", "ctx.length": "int", "1 + 2": "int", "1 + 2.0": "float",
    "4 / 2": "float", "5 // 2": "int", "5 % 2": "int", "n * x": "float", "maximum(1, n)": "int", "max(1, x)": "float",
    "min(n, 3)": "int", "floor(x)": "int", "ceil(2.5)": "int", "floor(n)": "int", "float(n)": "float", "abs(-3)": "int",
    "clamp(n, 1, 3)": "int", "+n": "int", "+x": "float",
    "sqrt(4)": "float", "n < 3": "bool", "n >= x": "bool", "not flag": "bool", "flag and n > 1": "bool",
    "where(flag, 1, 2)": "int", "where(flag, 1, 2.0)": "float", "where(flag, True, False)": "bool",
    # axes are united by name and kept in one order
    "k": "float[token, channel]", "q": "float[head, channel]", "q * s.c": "float[page, head, channel]",
    "s.c * q": "float[page, head, channel]", "s.e + 1": "float[page]", "q + n": "float[head, channel]",
    "k * q": "float[head, token, channel]", "s.e > q": "bool[page, head, channel]",
    "where(s.e > 0, q, 1.0)": "float[page, head, channel]", "where(s.e > 0, 1, 2)": "int[page]",
    # reductions, contractions, shape
    "k.mean(token)": "float[channel]", "k.norm(channel)": "float[token]", "k.sum(token, channel)": "float",
    'k.reduce("max", token)': "float[channel]", "k.reduce(how, token)": "float[channel]",
    "dot(q, s.c, channel)": "float[page, head]", "dot(k, v, token)": "float[channel]",
    "dot(k, k.rename(channel, other), token)": "float[other, channel]",
    "k.split(token, part=4)": "float[part, token, channel]",
    "k.split(token, part=width)": "float[part, token, channel]",
    "k.split(channel, half=2)": "float[half, token, channel]", "s.e.max(page)": "float",
    # pages
    "softmax(s.e, page)": "float[page]", "softmax(dot(q, s.c, channel), page)": "float[page, head]",
    'share(s.e, "sum")': "float[page]", "share(s.e, how)": "float[page]",
    # positions, runs, neighbours, orders
    "index(page)": "int[page]", "index(head)": "int[head]", "k.index(token)": "int[token]",
    "k.split(token, part=4).index(part)": "int[part]", "index(page) // 4": "int[page]",
    "k.slice(channel, 0, 8)": "float[token, channel]", "k.slice(token, -n)": None,
    "k.slice(channel, n)": "float[token, channel]",
    "concat(k, v, token)": "float[token, channel]", "concat(s.e.window(page, near=3), s.c, page)": None,
    "concat(k, k.index(token), token)": "float[token, channel]",
    "k.split(token, part=4).merge(part, token, into=tokens)": "float[tokens, channel]",
    "k.split(token, part=4).merge(part, token, into=token)": "float[token, channel]",
    "k.merge(token, channel, into=channel)": "float[channel]",
    "k.take(token, 3)": "float[channel]", "k.take(token, n)": "float[channel]", "q.take(channel, places)":
    "float[head, rank]", "s.c.take(page, index(page) - 1)": "float[page, channel]",
    "s.e.take(page, s.e.argmax(page))": "float", "s.c.take(channel, s.c.argmax(channel))": "float[page]",
    "index(page).take(page, 3)": "int", "index(page).take(page, 3, fill=0.5)": "float",
    "s.c.shift(page, 1)": "float[page, channel]", "s.e.shift(page, -n, fill=x)": None,
    "s.e.shift(page, n, fill=x)": "float[page]", "index(page).shift(page, 1)": "int[page]",
    "s.e.window(page, near=3, fill=-1.0)": "float[page, near]",
    "k.window(token, near=n)": "float[near, token, channel]",
    "s.e.cumsum(page)": "float[page]", "k.cummax(token)": "float[token, channel]", "index(page).cummin(page)":
    "float[page]",
    "s.e.sort(page)": "float[page]", 'k.sort(token, "up")': "float[token, channel]", "index(page).sort(page)":
    "int[page]", "s.c.argmax(channel)": "int[page]", "s.e.argmax(page)": "int",
    # learned constants and memories
    "gate": "float[head, rank, channel]", "dot(q, gate, channel)": "float[head, rank]", "places + 1": "int[rank]",
    "m.mass": "float[page, head]", "m.kept | first(1)": "set", "0.5 * m.mass + s.e": "float[page, head]",
    # sets as values, and sets kept
    "member(first(3))": "bool[page]", "member(topk(m.mass, 4))": "bool[page, head]",
    "reuse(first(n), every=8)": "set", "reuse(topk(m.mass, n), layers=ctx.layer % n == 0)": "set[head]",
    "reuse(first(1), every=n)": "set", "reuse(first(1), layers=not ctx.prefill or flag)": "set",
    # the output
    "attention(first(1))": "float[head, channel]", "attention(pages=topk(m.mass, 4), log_weight=s.e)":
    "float[head, channel]", "attention(keys=s.c, values=s.d)": "float[head, channel]",
    "attention(first(1), keys=s.c, values=s.d, among=~first(1), log_weight=m.mass, entry_log_weight=s.e)":
    "float[head, channel]", "attention(keys=s.c, values=s.d, log_weight=x)": "float[head, channel]",
    # precision: a cast is visible in the type, arithmetic is fp32 again
    'k.to("bf16")': "float[token, channel]",
    # sets
    "everything": "set", "everything()": "set", "first(n)": "set", "~last(2)": "set", "stride(4, 1)": "set",
    "random(3, among=first(9), salt=7)": "set", "topk(s.e, 4)": "set", "topk(dot(q, s.c, channel), 4)": "set[head]",
    "topp(s.e, x)": "set", "above(dot(q, s.c, channel), q.mean(channel))": "set[head]",
    "topk(s.e, 4, among=topk(dot(q, s.c, channel), 8))": "set[head]",
    "first(1) | topk(dot(q, s.c, channel), 4)": "set[head]",
    "where(flag, first(1), last(2))": "set", "topk(s.e, floor(s.e.max(page)))": "set",
}  # fmt: skip


TYPED = {expression: type_ for expression, type_ in TYPES.items() if type_}


@pytest.mark.parametrize(("expression", "expected"), TYPED.items(), ids=list(TYPED))
def test_type_of_expression(expression: str, expected: str) -> None:
    assert str(evaluated(expression)[1]) == expected


@pytest.mark.parametrize("expression", [expression for expression, type_ in TYPES.items() if type_ is None])
def test_expression_without_a_type(expression: str) -> None:
    with pytest.raises(Finding):
        evaluated(expression)


def test_a_cast_is_visible_and_arithmetic_is_fp32_again() -> None:
    assert evaluated('k.to("bf16")')[1].dtype == "bf16"
    assert evaluated('k.to("bf16") * 2.0')[1].dtype == "fp32"
    assert evaluated('k.to("fp16").rename(channel, other)')[1].dtype == "fp16"


@pytest.mark.parametrize("spec", OPS.values(), ids=list(OPS))
def test_every_op_can_be_written(spec) -> None:  # type: ignore[no-untyped-def]
    """The expressions of the table above use every op of the op table with the inputs and attributes it declares."""
    extra = ["-q", "exp(q)", "log(q)", "relu(q)", "sigmoid(q)", "silu(q)", "tanh(q)", "q - 1", "q == 1", "q != 1",
             "flag or flag", "q.min(head)", "first(1) & last(2)", "first(1) - last(2)", "q <= 1"]  # fmt: skip
    nodes = [node for text in (*TYPED, *extra) for node in evaluated(text)[0].nodes if node.op == spec.name]
    assert nodes
    for node in nodes:
        assert spec.arity[0] <= len(node.inputs) <= spec.arity[1]
        assert set(node.attrs) <= set(spec.attrs)
        assert set(node.attrs) == set(spec.attrs) or spec.name == "reuse"


def test_larger_comparisons_are_written_with_smaller_ones() -> None:
    graph, _ = evaluated("n > x")
    node = graph.nodes[-1]
    assert node.op == "lt" and [graph.nodes[i].attrs["name"] for i in node.inputs] == ["x", "n"]
    assert evaluated("n >= x")[0].nodes[-1].op == "le"


def test_what_is_left_out_of_selectors_is_put_in() -> None:
    graph, _ = evaluated("topp(s.e, 0.5)")
    scale, limit = (graph.nodes[i] for i in graph.nodes[-1].inputs[2:])
    assert scale.attrs == {"value": 1.0} and (limit.op, limit.attrs["name"]) == ("ctx", "pages")
    graph, _ = evaluated("above(s.e, 0.5)")
    assert graph.nodes[graph.nodes[-1].inputs[2]].attrs["name"] == "pages"
    graph, _ = evaluated("stride(3)")
    assert graph.nodes[graph.nodes[-1].inputs[1]].attrs == {"value": 0}
    assert evaluated("random(3)")[0].nodes[-1].attrs == {"salt": 0}


def test_clamp_is_a_maximum_within_a_minimum() -> None:
    graph, _ = evaluated("clamp(x, 0.25, 0.75)")
    outer = graph.nodes[-1]
    inner = graph.nodes[outer.inputs[0]]
    assert (outer.op, inner.op) == ("minimum", "maximum")
    assert [graph.nodes[i].attrs.get("value") for i in (inner.inputs[1], outer.inputs[1])] == [0.25, 0.75]


def test_equal_expressions_are_one_node() -> None:
    text = "dot(q, s.c, channel).max(head)"
    assert len(evaluated(f"{text} + {text}")[0].nodes) == len(evaluated(text)[0].nodes) + 1


def test_one_and_true_and_one_point_zero_are_different() -> None:
    graph, _ = evaluated("where(True, 1, 2) + 1.0")
    assert [type(n.attrs["value"]) for n in graph.nodes if n.op == "const"] == [bool, int, int, float]


QUEST = """
from vortexlab.dsl import *

@program(page=knob.choice(8, 16, default=16), summaries="fp32", seed=7)
class Quest:
    '''A docstring.'''
    budget = knob.int(4, 512, log=True, default=64)
    how = knob.choice("max", "mean", default="max")
    parts = knob.choice(2, 4, default=2)
    twice = 2 * budget

    def summarize(k):
        x = k.split(token, part=parts)
        return {"lo": x.min(token) * twice, "unused": k.mean(token)}

    def score(q, s):
        a = dot(q, s.lo, channel)
        a += 1
        return a.max(part).reduce(how, head)

    def select(score, ctx):
        return topk(score, twice)
"""


def test_the_parts_of_a_program() -> None:
    found = parse(QUEST)
    assert (found.name, found.doc, found.seed, found.summary_dtype) == ("Quest", "A docstring.", 7, "fp32")
    assert found.page == KnobRef("page") and found.source == QUEST
    assert list(found.knobs) == ["page", "budget", "how", "parts"]
    assert found.knobs["budget"] == Knob("budget", "int", 64, 4, 512, True)
    assert found.defaults == {"page": 16, "budget": 64, "how": "max", "parts": 2}
    assert found.nodes[found.output].type == Type(SET)


def test_knobs_stay_symbolic_until_bound() -> None:
    found = parse(QUEST)
    symbols = {v for n in found.nodes for v in n.attrs.values() if isinstance(v, KnobRef)}
    assert symbols == {KnobRef("how"), KnobRef("parts")}
    bound = found.bind({"budget": 9, "how": "mean", "parts": 4, "page": 8})
    assert bound.page_size == 8 and bound.is_bound
    assert not any(isinstance(v, KnobRef) for n in bound.nodes for v in n.attrs.values())
    assert {n.attrs["how"] for n in bound.nodes if n.op == "reduce" and n.attrs["axis"] == "head"} == {"mean"}
    with pytest.raises(VortexError, match="no knob 'bugdet'"):
        found.bind({"bugdet": 1})


def test_dead_code_is_left_out() -> None:
    found = parse(QUEST)
    assert set(found.fields) == {"lo"}
    assert sorted(found.live()) == list(range(len(found.nodes)))


def test_a_class_constant_has_a_node_in_every_stage_that_reads_it() -> None:
    found = parse(QUEST)
    for node in found.nodes:
        stages = {found.nodes[i].stage for i in node.inputs}
        assert stages <= {node.stage}
    assert {n.stage for n in found.nodes if n.op == "knob"} == {PAGE_STAGE, QUERY_STAGE}


def test_nodes_remember_their_lines() -> None:
    found = parse(QUEST)
    lines = QUEST.split("\n")
    start = {"dot": "dot(q", "split": "k.split(", "topk": "topk(", "share": "share(", "knob": "budget", "k": "k.split"}
    for node in found.nodes:
        if node.op in start and node.attrs.get("name", "budget") in ("budget", "part"):
            assert lines[node.line - 1][node.column - 1 :].startswith(start[node.op])


def test_json_form_round_trips() -> None:
    found = parse(QUEST)
    assert Program.from_json(found.to_json()) == found


def test_axis_sizes_of_a_bound_program() -> None:
    bound = parse(QUEST).bind({"page": 8, "parts": 4})
    sizes = bound.axis_sizes(Static(kv_heads=2, group=3, head_dim=80, scale=1.0))
    split = next(i for i, node in bound if node.op == "split")
    assert sizes[split] == {"part": 4, "token": 2, "channel": 80}
    dot = next(i for i, node in bound if node.op == "dot")
    assert sizes[dot] == {"head": 3, "part": 4}


# ---- rules of meaning that the parser keeps


def test_rule_1_an_axis_occurs_once_and_rename_makes_a_second() -> None:
    assert str(evaluated("dot(k, k.rename(channel, other), token)")[1]) == "float[other, channel]"
    _, findings = check(program(summarize="return dict(c=k.rename(channel, token))"))
    assert [f.code for f in findings] == ["axis-taken"]


def test_rule_1_a_leftover_axis_is_an_error_with_a_hint() -> None:
    summarize, score = "return dict(c=k.mean(token))", "return q * s.c"
    _, findings = check(program("return topk(score, 4)", summarize=summarize, score=score))
    assert findings[0].code == "score-axes" and "channel" in findings[0].hint


def test_rule_2_share_takes_scores_alone() -> None:
    assert str(evaluated('share(s.e, "max")')[1]) == "float[page]"
    _, findings = check(program("return topk(share(score, 'max'), 4)", summarize="return dict(c=k.mean(token))",
                                score="return dot(q, s.c, channel)"))  # fmt: skip
    assert findings[0].code == "share-axes"


def test_rule_8_a_summary_knows_nothing_of_the_request() -> None:
    for name in (*DYNAMIC_CTX, "prefill"):
        _, findings = check(program(summarize=f"return dict(c=k.mean(token) * ctx.{name})"))
        assert [f.code for f in findings] == ["summary-not-pure"]
    for name in STATIC_CTX:
        if name == "prefill":
            continue
        text = program("return topk(score, 4)", summarize=f"return dict(c=k.mean(token) * ctx.{name})",
                       score="return s.c.max(channel)")  # fmt: skip
        assert check(text)[1] == []


def test_rule_9_a_condition_known_at_compile_time_chooses_between_sets() -> None:
    found = parse(program("return where(ctx.layer < 2, everything(), first(1))"))
    assert found.nodes[found.output].op == "where" and found.nodes[found.output].type.kind == SET
