"""Hashes that see the meaning: what leaves them alone and what changes them."""

from __future__ import annotations

import itertools
import random

import pytest
from dsl_programs import program

from vortexlab.dsl import canonical_hash, distance, parse, structure_hash, to_source
from vortexlab.dsl.testing import random_program
from vortexlab.search_spaces import load, seeds

BASE = """
@program(page=knob.choice(8, 16, default=16), seed=3)
class Base:
    n = knob.int(1, 64, default=8)
    m = knob.int(1, 64, default=8)
    how = knob.choice("max", "mean", default="max")

    def summarize(k, v):
        x = k.split(token, part=4)
        return dict(lo=x.min(token), hi=x.max(token), e=v.norm(channel).mean(token))

    def score(q, s):
        bound = maximum(q * s.lo, q * s.hi).sum(channel)
        return dict(a=bound.max(part).reduce(how, head) + s.e, b=s.e * 2.0 - 1.0)

    def select(score, ctx):
        forced = first(m) | last(2)
        few = topk(score.b, n, among=~forced) & ~random(5, salt=1)
        return where(ctx.layer < 2, everything(), forced | topk(score.a, n, among=~forced - few) | few)
"""

SAME = {
    "variables": BASE.replace("forced", "f").replace("bound", "b1").replace("x.m", "y.m").replace("x =", "y ="),
    "fields": BASE.replace("lo=", "low=").replace("s.lo", "s.low").replace("e=v", "power=v").replace("s.e", "s.power"),
    "scores": BASE.replace("a=bound", "first_one=bound").replace("score.a", "score.first_one"),
    "knobs": BASE.replace("    n = ", "    few_pages = ").replace("score.b, n", "score.b, few_pages").replace(
        "score.a, n", "score.a, few_pages").replace("    m = ", "    n = ").replace("first(m)", "first(n)").replace(
        "how", "reduction"),
    "knob order": BASE.replace("    n = knob.int(1, 64, default=8)\n", "", 1).replace(
        '"max")\n', '"max")\n    n = knob.int(1, 64, default=8)\n', 1),
    "axis names": BASE.replace("part", "piece"),
    "class name and docs": BASE.replace("class Base:", "class Other:\n    '''Says something.'''"),
    "field order": BASE.replace("dict(lo=x.min(token), hi=x.max(token), ", "dict(hi=x.max(token), lo=x.min(token), "),
    "commuted": BASE.replace("q * s.lo, q * s.hi", "s.hi * q, q * s.lo").replace(
        "first(m) | last(2)", "last(2) | first(m)"),
    "flattened unions": BASE.replace("forced | topk(score.a, n, among=~forced - few) | few",
                                     "few | (forced | topk(score.a, n, among=~forced - few))"),
    "set algebra": BASE.replace("~forced - few", "~(forced | few)").replace("& ~random", "- random"),
    "repeated sets": BASE.replace("| few)", "| few | few | first(m))"),
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
    "one knob in both roles": BASE.replace("first(m)", "first(n)"),
    "roles of knobs": BASE.replace("first(m)", "first(n)").replace("score.b, n", "score.b, m"),
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
    found = parse(BASE).bind({"n": 5, "m": 3, "how": "mean", "page": 8})
    written = BASE.replace("knob.choice(8, 16, default=16)", "8").replace(", n, ", ", 5, ")
    written = written.replace("first(m)", "first(3)").replace(".reduce(how, head)", ".mean(head)")
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
