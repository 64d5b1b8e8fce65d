"""Hashes that see the meaning: what leaves them alone and what changes them."""

from __future__ import annotations

import itertools
import random

import pytest
from dsl_programs import program

from vortexlab.dsl import canonical_hash, distance, parse, structure_hash, to_source
from vortexlab.dsl.parameters import Parameters
from vortexlab.dsl.testing import random_program
from vortexlab.search_spaces import load, seeds

BASE = """
@program(page=knob.choice(8, 16, default=16), seed=3)
class Base:
    n = knob.int(1, 64, default=8)
    w = knob.int(1, 64, default=8)
    how = knob.choice("max", "mean", default="max")

    def summarize(k, v):
        x = k.split(token, part=4)
        return dict(lo=x.min(token), hi=x.max(token), e=v.norm(channel).mean(token))

    def score(q, s):
        bound = maximum(q * s.lo, q * s.hi).sum(channel)
        return dict(a=bound.max(part).reduce(how, head) + s.e, b=s.e * 2.0 - 1.0)

    def select(score, ctx):
        forced = first(w) | last(2)
        few = topk(score.b, n, among=~forced) & ~random(5, salt=1)
        return where(ctx.layer < 2, everything(), forced | topk(score.a, n, among=~forced - few) | few)
"""

SAME = {
    "variables": BASE.replace("forced", "f").replace("bound", "b1").replace("x.m", "y.m").replace("x =", "y ="),
    "fields": BASE.replace("lo=", "low=").replace("s.lo", "s.low").replace("e=v", "power=v").replace("s.e", "s.power"),
    "scores": BASE.replace("a=bound", "first_one=bound").replace("score.a", "score.first_one"),
    "knobs": BASE.replace("    n = ", "    few_pages = ").replace("score.b, n", "score.b, few_pages").replace(
        "score.a, n", "score.a, few_pages").replace("    w = ", "    n = ").replace("first(w)", "first(n)").replace(
        "how", "reduction"),
    "knob order": BASE.replace("    n = knob.int(1, 64, default=8)\n", "", 1).replace(
        '"max")\n', '"max")\n    n = knob.int(1, 64, default=8)\n', 1),
    "axis names": BASE.replace("part", "piece"),
    "class name and docs": BASE.replace("class Base:", "class Other:\n    '''Says something.'''"),
    "field order": BASE.replace("dict(lo=x.min(token), hi=x.max(token), ", "dict(hi=x.max(token), lo=x.min(token), "),
    "commuted": BASE.replace("q * s.lo, q * s.hi", "s.hi * q, q * s.lo").replace(
        "first(w) | last(2)", "last(2) | first(w)"),
    "flattened unions": BASE.replace("forced | topk(score.a, n, among=~forced - few) | few",
                                     "few | (forced | topk(score.a, n, among=~forced - few))"),
    "set algebra": BASE.replace("~forced - few", "~(forced | few)").replace("& ~random", "- random"),
    "repeated sets": BASE.replace("| few)", "| few | few | first(w))"),
    "dead code": BASE.replace("        bound =", "        unused = q.max(channel)\n        bound =").replace(
        "lo=x", "dead=k, lo=x"),
    "dead knobs": BASE.replace("    how =", "    dead = knob.bool(default=True)\n    how ="),
    "folded constants": BASE.replace("last(2)", "last(8 // 4)").replace("2.0 - 1.0", "(4.0 / 2.0) - (0.5 + 0.5)"),
    "ints among floats": BASE.replace("s.e * 2.0 - 1.0", "s.e * 2 - 1"),
    "negative terms": BASE.replace("* 2.0 - 1.0", "* 2.0 + -1.0"),
    "spelling": BASE.replace("maximum(", "max(").replace("ctx.layer < 2", "2 > ctx.layer").replace(
        "everything()", "everything"),
    "mapping": BASE.replace("dict(lo=x.min(token), hi=x.max(token), e=v.norm(channel).mean(token))",
                            '{"lo": x.min(token), "hi": x.max(token), "e": v.norm(channel).mean(token)}'),
    "comments and layout": BASE.replace("\n\n", "\n    # a comment\n"),
    "same summary twice": BASE.replace("hi=x", "lo2=x.min(token), hi=x").replace("q * s.lo", "q * s.lo2"),
    "among everything": BASE.replace("random(5, salt=1)", "random(5, salt=1, among=everything())"),
}  # fmt: skip

OTHER = {
    "page": BASE.replace("8, 16, default=16", "8, 16, default=8"),
    "seed": BASE.replace("seed=3", "seed=4"),
    "salt": BASE.replace("salt=1", "salt=2"),
    "summaries": BASE.replace("seed=3", 'seed=3, summaries="fp32"'),
    "number": BASE.replace("last(2)", "last(3)"),
    "knob range": BASE.replace("n = knob.int(1, 64", "n = knob.int(1, 65"),
    "one knob in both roles": BASE.replace("first(w)", "first(n)"),
    "roles of knobs": BASE.replace("first(w)", "first(n)").replace("score.b, n", "score.b, w"),
    "operands of a difference": BASE.replace("~forced - few", "few - ~forced"),
    "axis": BASE.replace("x.min(token)", "k.min(token)"),
    "order of comparison": BASE.replace("ctx.layer < 2", "ctx.layer <= 2"),
    "branches": BASE.replace("everything(), forced", "first(1), forced"),
    "int or float": BASE.replace("- 1.0", "- 1.5"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=list(SAME))
def test_hash_does_not_see_how_a_program_is_written(text: str) -> None:
    assert text != BASE
    assert canonical_hash(parse(text)) == canonical_hash(parse(BASE))
    assert structure_hash(parse(text)) == structure_hash(parse(BASE))
    assert distance(parse(text), parse(BASE)) == 0
    assert canonical_hash(parse(text).bind()) == canonical_hash(parse(BASE).bind())


@pytest.mark.parametrize("text", OTHER.values(), ids=list(OTHER))
def test_hash_sees_what_a_program_means(text: str) -> None:
    assert text != BASE
    assert canonical_hash(parse(text)) != canonical_hash(parse(BASE))


def test_all_changes_differ_from_one_another() -> None:
    hashes = [canonical_hash(parse(text)) for text in (BASE, *OTHER.values())]
    assert len(set(hashes)) == len(hashes)
    assert all(len(h) == 64 and set(h) <= set("0123456789abcdef") for h in hashes)


@pytest.mark.parametrize("name", ["page", "seed", "salt", "number", "knob range", "roles of knobs"])
def test_structure_blanks_numbers_and_knobs(name: str) -> None:
    assert structure_hash(parse(OTHER[name])) == structure_hash(parse(BASE))
    assert distance(parse(OTHER[name]), parse(BASE)) == 0


@pytest.mark.parametrize("name", ["operands of a difference", "axis", "order of comparison", "branches", "summaries"])
def test_structure_sees_operations(name: str) -> None:
    assert structure_hash(parse(OTHER[name])) != structure_hash(parse(BASE))


def test_a_number_and_a_knob_are_the_same_structure() -> None:
    knob = program("return first(n)", body="n = knob.int(1, 9, default=3)")
    arithmetic = program("return first(maximum(n, 4))", body="n = knob.int(1, 9, default=3)")
    assert len({structure_hash(parse(text)) for text in (knob, arithmetic, program("return first(7)"))}) == 1
    assert structure_hash(parse(program("return first(ctx.pages)"))) != structure_hash(parse(knob))


def test_a_bound_program_equals_the_one_with_the_numbers_written_out() -> None:
    found = parse(BASE).bind({"n": 5, "w": 3, "how": "mean", "page": 8})
    written = BASE.replace("knob.choice(8, 16, default=16)", "8").replace(", n, ", ", 5, ")
    written = written.replace("first(w)", "first(3)").replace(".reduce(how, head)", ".mean(head)")
    assert canonical_hash(found) == canonical_hash(parse(written))


def test_swapping_two_knobs_of_one_kind_in_symmetric_roles_changes_nothing() -> None:
    a, b = "a = knob.int(1, 9, default=3)\n", "b = knob.int(1, 9, default=3)\n"
    text = program("return stride(a) | stride(b)", body=a + b)
    swapped = program("return stride(b) | stride(a)", body=b + a)
    assert canonical_hash(parse(text)) == canonical_hash(parse(swapped))
    assert canonical_hash(parse(text)) != canonical_hash(parse(text.replace("stride(b)", "stride(a)")))


def test_three_symmetric_pairs_of_knobs() -> None:
    """Interchangeable knobs keep their pairing: (a,b)(c,d) is not (a,c)(b,d) once a and b share another use."""
    names = "abcd"
    body = "\n".join(f"{n} = knob.int(1, 9, default=3)" for n in names)

    def text(order: str) -> str:
        w, x, y, z = order
        return program(f"return stride({w}, {x}) | stride({y}, {z}) | first({w})", body=body)

    reference = canonical_hash(parse(text("abcd")))
    assert {canonical_hash(parse(text("".join(p)))) for p in itertools.permutations(names)} == {reference}
    other = program("return stride(a, b) | stride(c, d) | first(b)", body=body)
    assert canonical_hash(parse(other)) != reference


def test_seeds_are_all_different() -> None:
    programs = [load(name) for name in seeds()]
    assert len({canonical_hash(p) for p in programs}) == len({structure_hash(p) for p in programs}) == len(programs)
    for a, b in itertools.combinations(programs, 2):
        assert 0 < distance(a, b) <= 1 and distance(a, b) == distance(b, a)
    assert all(distance(p, p) == 0 for p in programs)


def test_distance_grows_with_the_change() -> None:
    quest, gqa, dense = load("quest"), load("gqa_quest"), load("dense")
    assert distance(quest, gqa) < distance(quest, load("top_p")) < distance(quest, dense) == 1


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_keep_their_hash_under_json_and_node_order(seed: int) -> None:
    found = parse(random_program(random.Random(seed)))
    order = _shuffled(found, random.Random(seed))
    assert order.nodes != found.nodes or len(found.nodes) < 4
    assert canonical_hash(order) == canonical_hash(found)
    assert structure_hash(order) == structure_hash(found)


def _shuffled(found, rng):  # type: ignore[no-untyped-def]
    """The program with its nodes in another order in which inputs still come first."""
    from dataclasses import replace

    place: dict[int, int] = {}
    nodes = []
    waiting = set(range(len(found.nodes)))
    while waiting:
        ready = [
            i for i in sorted(waiting)
            if all(j in place for j in found.nodes[i].inputs)
            and (found.nodes[i].op != "field" or found.fields[found.nodes[i].attrs["name"]] in place)
        ]  # fmt: skip
        index = rng.choice(ready)
        waiting.remove(index)
        place[index] = len(nodes)
        nodes.append(replace(found.nodes[index], inputs=tuple(place[j] for j in found.nodes[index].inputs)))
    fields = {name: place[i] for name, i in found.fields.items()}
    return replace(found, nodes=tuple(nodes), fields=fields, output=place[found.output])


def test_shared_parts_are_visited_once() -> None:
    """Every level uses the one below it twice; work that followed every path would never end."""
    scalars = "n = 1.0 * ctx.pages\n" + "n = n * 0.5 + n * 0.25\n" * 40
    sets = "f = first(1)\n" + "f = (f | first(3)) & (f | last(2)) | random(2, among=~f)\n" * 22
    found = parse(program(scalars + sets + "return f | first(floor(n))"))
    assert len({canonical_hash(found), structure_hash(found)}) == 2 and distance(found, found) == 0
    assert canonical_hash(parse(to_source(found))) == canonical_hash(found)


STATE = """
@program(page=16, block=64, kv="fp8_e4m3", summaries="fp8_e4m3")
class State:
    period = knob.int(1, 8, default=4)
    gate = param("gate.weight", head, channel, per_kv_head=True)
    down = param(channel, rank=8)
    mass = memory.step(page, init=0.5, every=period)
    kept = memory.layer(pages)

    def summarize(k, v):
        return dict(c=dot(k.mean(token), down, channel), k=k.mean(token), v=v.mean(token))

    def pool(q):
        return q.slice(query, -8).mean(query)

    def score(q, s, m):
        return (dot(q, down, channel) * s.c).sum(rank).max(head) + m.mass

    def select(score, m):
        return last(2) | reuse(topk(score, 4, among=~m.kept), every=period) | m.kept

    def attend(q, s, pages):
        w = index(page) * -1.0
        return sigmoid(dot(q, gate, channel)) * attention(pages, keys=s.k, values=s.v, entry_log_weight=w)

    def remember(score, m, pages):
        return dict(mass=0.9 * m.mass + score, kept=pages & first(9))
"""

SAME_STATE = {
    "memories": STATE.replace("mass", "energy").replace("kept", "before"),
    "order of memories": STATE.replace("    kept = memory.layer(pages)\n", "").replace(
        "    mass = mem", "    kept = memory.layer(pages)\n    mass = mem"),
    "parameters": STATE.replace("gate = param(", "door = param(").replace("dot(q, gate", "dot(q, door"),
    "made axes": STATE.replace("rank", "width"),
    "times one": STATE.replace("+ m.mass", "* 1 + m.mass * 1.0 / 1"),
    "plus zero": STATE.replace("+ m.mass", "+ (0.0 + m.mass - 0)"),
    "double negation": STATE.replace("+ m.mass", "+ (- -m.mass)"),
    "a | a": STATE.replace("| m.kept", "| m.kept | (m.kept | m.kept)"),
    "where(True, a, b)": STATE.replace("+ m.mass", "+ where(True, m.mass, 3.0 * m.mass)"),
    "where(not c, b, a)": STATE.replace("+ m.mass", "+ where(not (m.mass < m.mass), m.mass, m.mass)"),
    "commuted": STATE.replace("sigmoid(dot(q, gate, channel)) * attention(", "attention(").replace(
        "weight=w)", "weight=w) * sigmoid(dot(gate, q, channel))"),
    "whole slices": STATE.replace("k=k.mean(token)", "k=k.slice(token, 0).mean(token)"),
    "casts to fp32": STATE.replace("+ m.mass", '+ m.mass.to("fp32")'),
}  # fmt: skip

OTHER_STATE = {
    "scope": STATE.replace("memory.layer(pages)", "memory.step(pages)"),
    "initial value": STATE.replace("init=0.5", "init=0.25"),
    "period of a memory": STATE.replace("every=period)\n    kept", "every=3)\n    kept"),
    "period of reuse": STATE.replace("among=~m.kept), every=period", "among=~m.kept), every=3"),
    "what is written": STATE.replace("pages & first(9)", "pages & first(8)"),
    "block": STATE.replace("block=64", "block=32"),
    "pooling": STATE.replace("slice(query, -8)", "slice(query, -4)"),
    "kv": STATE.replace('kv="fp8_e4m3"', 'kv="fp8_e5m2"'),
    "summaries": STATE.replace('summaries="fp8_e4m3"', 'summaries="bf16"'),
    "tensor": STATE.replace("gate.weight", "gate.bias"),
    "rows of a tensor": STATE.replace("per_kv_head=True", "per_kv_head=False"),
    "size of a tensor": STATE.replace("rank=8", "rank=4"),
    "gate": STATE.replace("sigmoid(dot(q, gate, channel))", "tanh(dot(q, gate, channel))"),
    "weights": STATE.replace("entry_log_weight", "log_weight"),
    "times two": STATE.replace("+ m.mass", "+ m.mass * 2"),
}  # fmt: skip


@pytest.mark.parametrize("text", SAME_STATE.values(), ids=list(SAME_STATE))
def test_hash_does_not_see_how_state_is_written(text: str) -> None:
    assert text != STATE
    assert canonical_hash(parse(text)) == canonical_hash(parse(STATE))
    assert canonical_hash(parse(text).bind()) == canonical_hash(parse(STATE).bind())


def test_hash_sees_what_is_remembered_learned_and_attended() -> None:
    assert all(text != STATE for text in OTHER_STATE.values())
    hashes = [canonical_hash(parse(text)) for text in (STATE, *OTHER_STATE.values())]
    assert len(set(hashes)) == len(hashes)
    for name in ("initial value", "period of a memory", "period of reuse", "block"):
        assert structure_hash(parse(OTHER_STATE[name])) == structure_hash(parse(STATE)), name
    for name in ("scope", "kv", "tensor", "gate", "weights"):
        assert structure_hash(parse(OTHER_STATE[name])) != structure_hash(parse(STATE)), name


def test_hash_sees_the_content_of_the_parameters() -> None:
    files = [Parameters("/one", "1" * 64), Parameters("/two", "1" * 64), Parameters("/one", "2" * 64)]
    one, moved, other = (canonical_hash(parse(STATE).bind(parameters=file)) for file in files)
    assert one == moved != other
    assert canonical_hash(parse(BASE).bind(parameters=files[0])) == canonical_hash(parse(BASE).bind())


def test_two_memories_that_are_read_crosswise_are_not_two_that_are_not() -> None:
    text = """
@program(page=16)
class Two:
    a = memory.step(page)
    b = memory.step(page)

    def score(q, m): return m.a - m.b
    def select(score): return topk(score, 4)
    def remember(m): return dict(a=m.b * 0.5, b=m.a + 1.0)
"""
    renamed = text.replace("m.a", "m.x").replace("m.b", "m.a").replace("m.x", "m.b").replace(
        "dict(a=", "dict(x=").replace("b=m.", "a=m.").replace("x=", "b=")
    straight = text.replace("a=m.b", "a=m.a").replace("b=m.a +", "b=m.b +")
    assert renamed != text != straight
    assert canonical_hash(parse(renamed)) == canonical_hash(parse(text)) != canonical_hash(parse(straight))
