"""Mutation and crossover: valid, new, and what each operator says it does."""

from __future__ import annotations

import ast
import random

import pytest

from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.search_spaces.genome import Genome, expression, swapped
from vortexlab.search_spaces.grammar import OPERATORS, cross, mutate
from vortexlab.search_spaces.joining import grafted
from vortexlab.search_spaces.library import seeds, source

LIBRARY = seeds()
TWO_SCORES = """
@program(page=16)
class Two:
    half = knob.int(1, 64, default=8)

    def summarize(k, v):
        centre = k.mean(token)
        return {"c": centre, "e": v.norm(channel).mean(token)}

    def score(q, s):
        near = dot(q, s.c, channel)
        near *= 2.0
        return dict(near=near.max(head), loud=s.e)

    def select(score):
        return topk(score.near, half) | topk(score.loud, half)
"""


@pytest.mark.parametrize("source", [*LIBRARY.values(), TWO_SCORES], ids=[*LIBRARY, "two"])
def test_a_genome_renders_the_same_program(source: str) -> None:
    again = parse(Genome.of(source).render("again"))
    assert canonical_hash(again.bind()) == canonical_hash(parse(source).bind())


def test_what_nothing_uses_is_left_out() -> None:
    genome = Genome.of(LIBRARY["quest"]).with_part("select", "", expression("first(sink)"))
    program = parse(genome.render("lean"))
    assert not program.fields and set(program.knobs) == {"page", "sink"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_make_valid_new_structures(operator: str) -> None:
    rng = random.Random(operator)
    plain = LIBRARY["quest"].replace(", among=~forced", "")
    bare = plain.replace("return forced | topk", "return topk")
    parents = (LIBRARY["value_energy"], LIBRARY["centroid"], plain, bare, LIBRARY["sink_window"],
               LIBRARY["subpage_quest"], source("twilight"))  # fmt: skip
    known = {structure_hash(parse(text)) for text in parents}
    made = [mutate(source, rng, known, (operator,)) for source in parents]
    found = [item for item in made if item]
    assert found, f"{operator} applies to none of the parents"
    for item in found:
        assert structure_hash(parse(item.source)) not in known
        assert item.operator == operator and item.note


def test_the_same_random_state_makes_the_same_program() -> None:
    first, second = (mutate(LIBRARY["quest"], random.Random(7), set(), depth=2) for _ in range(2))
    assert first is not None and first == second


def test_known_structures_are_not_made_again() -> None:
    rng = random.Random(0)
    known: set[str] = set()
    for _ in range(40):
        made = mutate(LIBRARY["quest"], rng, known)
        if made:
            mark = structure_hash(parse(made.source))
            assert mark not in known
            known.add(mark)
    assert len(known) >= 25


def test_crossover_reads_the_summaries_of_both_parents() -> None:
    made = cross(LIBRARY["quest"], LIBRARY["value_energy"], random.Random(0), set())
    assert made is not None
    program = parse(made.source)
    assert len(program.live_fields()) == 4
    assert cross(LIBRARY["dense"], LIBRARY["quest"], random.Random(1), set()) is None


def test_a_score_comes_from_nothing() -> None:
    known: set[str] = set()
    made = [mutate(LIBRARY["sink_window"], random.Random(n), known, ("choose_by_score",)) for n in range(8)]
    programs = [parse(item.source) for item in made if item]
    assert len(programs) == 8 and all(program.fields and "budget" in program.knobs for program in programs)


def test_parts_of_pages_go_and_come_back() -> None:
    known: set[str] = set()
    whole = mutate(LIBRARY["subpage_quest"], random.Random(0), known, ("whole_pages",))
    assert whole is not None and structure_hash(parse(whole.source)) == structure_hash(parse(LIBRARY["quest"]))
    parts = mutate(LIBRARY["quest"], random.Random(0), known, ("subdivide",))
    assert parts is not None
    assert structure_hash(parse(parts.source)) == structure_hash(parse(LIBRARY["subpage_quest"]))


def test_a_shortlist_goes_again() -> None:
    coarse = mutate(LIBRARY["quest"], random.Random(0), set(), ("coarse_to_fine",))
    assert coarse is not None and coarse.source.count("topk(") == 2
    again = mutate(coarse.source, random.Random(0), set(), ("one_selector",))
    assert again is not None and again.source.count("topk(") == 1


def test_a_score_comes_under_another_selection() -> None:
    made = grafted(Genome.of(LIBRARY["quest"]), Genome.of(LIBRARY["top_p"]))
    assert made is not None
    program = parse(made.render("both"))
    assert len(program.fields) == 2 and "mass" in program.knobs
    assert grafted(Genome.of(LIBRARY["dense"]), Genome.of(LIBRARY["top_p"])) is None


def test_a_hostile_docstring_stays_a_docstring() -> None:
    text = Genome.of(LIBRARY["quest"]).render('"""\nimport os\n\\')
    assert parse(text).doc


def test_swapped_replaces_one_subtree_and_leaves_the_original() -> None:
    tree = expression("a + a")
    made = swapped(tree, tree.left, expression("b"))  # type: ignore[attr-defined]
    assert ast.unparse(made) == "b + a" and ast.unparse(tree) == "a + a"
