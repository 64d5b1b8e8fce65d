"""Mutation and crossover of programs with parameters, memory, reuse, an attention output and blocks of prefill."""

from __future__ import annotations

import ast
import random
import re
from collections import Counter

import pytest

from vortexlab.agent.novelty import behaviour
from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.dsl.ir import KnobRef, Program
from vortexlab.search_spaces import library
from vortexlab.search_spaces.genome import Genome
from vortexlab.search_spaces.grammar import OPERATORS, cross, mutate
from vortexlab.search_spaces.knobs import is_shared

#: Programs with every kind of part; all others run behind `slow`.
VARIED = ("nsa", "lserve", "h2o_tokens", "retroinfer", "moba", "mla_rope_unaware", "streaming_heads", "twilight")
REST = tuple(name for name in library.NAMES if name not in VARIED)
FIXED = """
@program(page=16)
class Fixed:
    kept = memory.step(pages, every=6)

    def summarize(k): return dict(c=k.mean(token))
    def score(q, s): return dot(q, s.c, channel).max(head)
    def select(score, m): return m.kept | reuse(topk(score, 4), every=6)
    def remember(score): return dict(kept=topk(score, 2))
"""


@pytest.mark.parametrize("name", library.NAMES)
def test_every_published_program_survives_being_taken_apart(name: str) -> None:
    text = library.source(name)
    again = Genome.of(text).render("again")
    assert canonical_hash(parse(again).bind()) == canonical_hash(parse(text).bind())
    assert Genome.of(again).render("again").partition('"""again"""')[2] == again.partition('"""again"""')[2]
    assert max(map(len, again.splitlines())) < 400


def mutated(name: str, count: int = 50) -> tuple[list[Program], Counter[str]]:
    text, rng, tally = library.source(name), random.Random(name), Counter[str]()
    known = {structure_hash(parse(text))}
    made = [mutate(text, rng, known, tally=tally) for _ in range(count)]
    return [parse(item.source) for item in made if item is not None], tally


def check_mutations(name: str) -> None:
    """Nearly every mutation is a program; all are of another structure, and carry on what the program carried."""
    found, tally = mutated(name)
    parent = library.load(name)
    # Everything united with a pattern is everything, so that few operators change `dense`.
    # Everything united with a pattern is everything, so that few operators change `dense`.
    assert len(found) >= (25 if name == "dense" else 45), tally
    assert len({structure_hash(program) for program in found}) >= (3 if name == "dense" else 5)
    assert all(structure_hash(program) != structure_hash(parent) for program in found)
    for program in found:
        assert (program.block, program.pooled is None) == (parent.block, parent.pooled is None)
        assert (program.result is None) == (parent.result is None)
        assert all(parent.params[name] == item for name, item in program.params.items())
        program.bind()
    if parent.params:
        assert sum(set(program.params) == set(parent.params) for program in found) > len(found) / 2


@pytest.mark.parametrize("name", VARIED)
def test_mutations_of_programs_with_every_kind_of_part(name: str) -> None:
    check_mutations(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REST)
def test_mutations_of_all_other_programs(name: str) -> None:
    check_mutations(name)


def test_few_mutations_are_no_programs() -> None:
    """Over the programs above, nine in ten of what operators make parses at once; what does not is counted."""
    tally = Counter[str]()
    for name in VARIED:
        tally += mutated(name, 10)[1]
    tried = tally["valid"] + tally["known"] + tally["discarded"]
    assert tally["discarded"] > 0 and tally["discarded"] <= 0.1 * tried, tally


def test_the_precision_of_summaries_varies_and_that_of_the_cache_does_not() -> None:
    rng, text = random.Random(1), library.source("quest")
    made = [mutate(text, rng, set(), ("change_precision",)) for _ in range(40)]
    found = [parse(item.source) for item in made if item]
    assert {program.kv_dtype for program in found} == {"auto"}
    assert {program.summary_dtype for program in found} == {"bf16", "fp8_e4m3", "fp8_e5m2"}
    back = mutate(library.source("dsa"), random.Random(0), set(), ("change_precision",), depth=2)
    assert back is not None


def test_reuse_and_memory_come_and_go() -> None:
    rng, text = random.Random(2), library.source("quest")
    for operator, part in (("reuse_over_steps", "steps"), ("reuse_over_layers", "layers")):
        made = mutate(text, rng, {structure_hash(parse(text))}, (operator,))
        assert made is not None
        (node,) = [node for node in parse(made.source).nodes if node.op == "reuse"]
        assert node.attrs["over"] == part
        back = mutate(made.source, rng, set(), (operator,))
        assert back is not None and structure_hash(parse(back.source)) == structure_hash(parse(text))
    made = mutate(text, rng, set(), ("smooth_over_steps",))
    assert made is not None and set(parse(made.source).memories) == {"smoothed"}
    back = mutate(made.source, rng, set(), ("smooth_over_steps",))
    assert back is not None and structure_hash(parse(back.source)) == structure_hash(parse(text))


def test_a_period_written_out_becomes_a_shared_knob() -> None:
    made = mutate(FIXED, random.Random(0), set(), ("add_selector",))
    assert made is not None
    program = parse(made.source)
    assert is_shared(program.knobs["every"]) and program.knobs["every"].default == 6
    assert program.memories["kept"].every == KnobRef("every")
    assert [node.attrs["every"] for node in program.nodes if node.op == "reuse"] == [KnobRef("every")]


def test_a_memory_that_nothing_reads_goes_with_its_writer() -> None:
    genome = Genome.of(FIXED)
    text = genome.with_part("select", "", ast.parse("topk(score, 4)", mode="eval").body).render("lean")
    assert "memory" not in text and "remember" not in text and not parse(text).memories


def test_crossover_brings_a_memory_with_its_writer() -> None:
    """Both remember a score of their own: each keeps what it read, under names of its own."""
    other = library.source("running_average").replace("dot(q.mean(head), s.centre, channel)", "s.centre.sum(channel)")
    made = cross(library.source("running_average"), other, random.Random(0), set())
    assert made is not None
    program = parse(made.source)
    assert set(program.memories) == set(program.writes) == {"running", "running2"}
    (written,) = re.findall(r"return dict\((.*)\)\n", made.source.partition("def remember")[2])
    assert "running=score" in written and "running2=decay * m.running2 + s.centre2.sum(channel)" in written


def test_crossover_keeps_parameters_apart() -> None:
    base = "@program(page=16)\nclass {n}:\n    w = param({a})\n    def summarize(k): return dict(c=k.mean(token))\n"
    base += "    def score(q, s): return dot(q, s.c * w, channel).max(head)\n"
    base += "    def select(score): return topk(score, 4)\n"
    first, second = base.format(n="A", a="channel"), base.format(n="B", a="channel, per_kv_head=True")
    made = cross(first, second, random.Random(0), set())
    assert made is not None
    params = parse(made.source).params
    assert {name: (item.tensor, item.per_kv_head) for name, item in params.items()} == {
        "w": ("w", False), "w2": ("w", True),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_crossovers_of_published_programs_are_whole(seed: int) -> None:
    rng, count = random.Random(seed), 0
    for _ in range(12):
        first, second = rng.choice(library.NAMES), rng.choice(VARIED)
        made = cross(library.source(first), library.source(second), rng, set())
        if made is not None:
            program, count = parse(made.source), count + 1
            assert set(program.memories) == set(program.writes)
            program.bind()
    assert count >= 4


def test_a_chain_that_doubles_is_not_taken_apart() -> None:
    lines = "\n".join(f"        a = a + a * {i}.0" for i in range(40))
    text = (
        "@program(page=16)\nclass Chain:\n    def summarize(k): return dict(c=k.mean(token))\n"
        f"    def score(q, s):\n        a = dot(q, s.c, channel).max(head)\n{lines}\n        return a\n"
        "    def select(score): return topk(score, 4)\n"
    )
    parse(text)
    tally = Counter[str]()
    assert mutate(text, random.Random(0), set(), tally=tally) is None and tally["inapplicable"] == 1
    assert cross(text, library.source("quest"), random.Random(0), set()) is None


def test_operators_leave_alone_what_they_do_not_know() -> None:
    parent = Genome.of(library.source("nsa"))
    for operator in OPERATORS.values():
        for seed in range(3):
            made = operator(parent, random.Random(seed))
            if made is not None:
                assert (made.pool, made.attend) == (parent.pool, parent.attend)
                assert made.names.items() >= parent.names.items()


def test_work_moves_between_page_time_and_query_time_and_back() -> None:
    before = parse(library.source("centroid"))
    later = mutate(library.source("centroid"), random.Random(0), set(), ("change_time",))
    assert later is not None and ".mean(token)" in later.source.split("def score")[1], "reduced after the product"
    again = mutate(later.source, random.Random(0), set(), ("change_time",))
    assert again is not None and canonical_hash(parse(again.source).bind()) == canonical_hash(before.bind())


def test_what_needs_no_query_is_written_with_the_page() -> None:
    text = """
from vortexlab.dsl import *


@program(page=16)
class Scaled:
    def summarize(k, v):
        return dict(c=k.mean(token), a=v.norm(channel).mean(token), b=k.norm(channel).max(token))

    def score(q, s):
        return dot(q, s.c, channel).max(head) * (s.a + 0.5 * s.b)

    def select(score):
        return topk(score, 8) | last(2)
"""
    found = {
        made.source for seed in range(30) if (made := mutate(text, random.Random(seed), set(), ("change_time",)))
    }  # fmt: skip
    ahead = [item for item in found if "dot(q, s.c, channel).max(head) * s.part" in item]
    assert len(found) >= 2 and len(ahead) == 1 and set(parse(ahead[0]).fields) == {"c", "part"}
    same, other = behaviour(text), behaviour(ahead[0])
    assert same is not None and other is not None and same.tokens == other.tokens and other.seconds < same.seconds
