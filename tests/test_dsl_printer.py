"""The printer: a program written back is the same program."""

from __future__ import annotations

import random

import pytest
from dsl_programs import program

from vortexlab.dsl import canonical_hash, check, parse, structure_hash, to_source
from vortexlab.dsl.ir import Program
from vortexlab.dsl.limits import MAX_LINE
from vortexlab.dsl.testing import random_program
from vortexlab.search_spaces import seeds

TRICKY = {
    "brackets": "return first(2 * (3 + 1) - (4 - (2 - 1)) // (2 * 3) % 5)",
    "signs": "return first(-(-3) - -2)",
    "logic": "return where(not (ctx.layer < 1 or ctx.layer > 3) and (True or ctx.group == 2), first(1), last(2))",
    "comparisons": "return where((ctx.layer < 1) and not (ctx.layer != 3), first(1), last(2))",
    "set algebra": "return (first(1) | last(2)) & ~(stride(3, offset=1) - (first(9) - last(4)))",
    "difference of a union": "return everything() - (first(1) | last(2)) - stride(2)",
    "random": "return random(3, among=~first(1), salt=9) | random(3, salt=8)",
}


def again(found: Program) -> Program:
    text = to_source(found)
    result, findings = check(text)
    assert result is not None, text + "\n".join(map(str, findings))
    assert max(map(len, text.split("\n"))) <= MAX_LINE
    return result


def assert_round_trip(found: Program) -> None:
    result = again(found)
    assert canonical_hash(result) == canonical_hash(found)
    assert structure_hash(result) == structure_hash(found)
    assert result.knobs == found.knobs and result.page == found.page
    assert (result.name, result.doc) == (found.name, found.doc)


@pytest.mark.parametrize("name", list(seeds()))
@pytest.mark.parametrize("bound", [False, True])
def test_seeds_round_trip(name: str, bound: bool) -> None:
    found = parse(seeds()[name])
    found = found.bind() if bound else found
    assert_round_trip(found)
    assert to_source(again(found)) == to_source(found)


@pytest.mark.parametrize("select", TRICKY.values(), ids=list(TRICKY))
def test_tricky_expressions_round_trip(select: str) -> None:
    assert_round_trip(parse(program(select)))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_round_trip(seed: int) -> None:
    found = parse(random_program(random.Random(seed)))
    assert_round_trip(found)
    assert_round_trip(found.bind())


def test_every_kind_of_value_is_printed() -> None:
    text = program(
        "few = topp(score.a, x, scale=ctx.scale, max=n, among=~first(1))\n"
        "return where(flag, few | above(score.a, score.b, max=3), few)",
        summarize="near = k.split(token, part=4).to('bf16').mean(token)\n"
        "return dict(c=near, g=dot(k, k.rename(channel, other), token))",
        score="near = dot(q, s.c, channel).reduce(how, part)\n"
        "y = s.g.sum(channel, other)\n"
        "return dict(a=where(y > 0, silu(near), -abs(near)), b=near.mean(page) + 0.001)",
        body="n = knob.int(2, 10, step=4, default=6)\nx = knob.float(0.25, 1.0, step=0.25, default=0.5)\n"
        'flag = knob.bool(default=False)\nhow = knob.choice("max", "mean", default="mean")',
        options='page=32, summaries="fp16", seed=5',
    )
    found = parse(text)
    assert_round_trip(found)
    again_found = again(found)
    assert (again_found.seed, again_found.summary_dtype, again_found.page) == (5, "fp16", 32)


@pytest.mark.parametrize(
    "doc", ['says "so"', "back\\slash \\n", 'ends in a quote"', "'''", "two\n\nparagraphs\n    indented", "q·k ≤ ½"]
)
def test_docstrings_survive(doc: str) -> None:
    from dataclasses import replace

    found = replace(parse(program()), doc=doc)
    assert again(found).doc == doc


def test_local_names_avoid_the_programs_own() -> None:
    text = program(
        "pages1 = first(n1) | last(2)\nreturn pages1 | random(x1, among=~pages1)",
        body="n1 = knob.int(1, 4, default=2)\nx1 = knob.int(1, 4, default=3)",
    ).replace("pages1", "n2")
    assert_round_trip(parse(text))
    knobs = text.replace("n1", "pages1")
    assert_round_trip(parse(knobs))


def test_a_bound_program_prints_its_numbers() -> None:
    text = to_source(parse(seeds()["quest"]).bind({"budget": 77, "page": 32}))
    assert "knob" not in text and "topk(score, 77" in text and "@program(page=32)" in text


def test_shared_values_are_written_once() -> None:
    text = to_source(parse(seeds()["quest"]))
    assert text.count("first(sink)") == 1 and text.count("last(recent)") == 1
