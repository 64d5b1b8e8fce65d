"""The nearest published program, and the difference in words."""

from __future__ import annotations

import pytest

from vortexlab.dsl import distance, parse
from vortexlab.search_spaces import library
from vortexlab.search_spaces.catalogue import TWINS
from vortexlab.search_spaces.genome import expression
from vortexlab.search_spaces.nearest import citation, nearest
from vortexlab.search_spaces.spelling import blank

QUEST = library.source("quest")


@pytest.mark.parametrize("name", library.NAMES)
def test_the_nearest_program_of_a_published_one_is_itself(name: str) -> None:
    found = nearest(library.source(name))
    assert found.program in (name, *TWINS.get(name, ())[:1]) and found.distance == 0.0 and found.same
    assert str(found) == f"{found.program} ({found.citation}) itself"


def test_citations_name_authors_and_number() -> None:
    assert citation("quest") == "Tang et al., arXiv 2406.10774"
    assert citation("h2o_blocks") == "Vortex, arXiv 2606.06453"
    assert citation("arkvale") == "Chen et al., NeurIPS 2024"
    assert all(citation(name) for name in library.NAMES)


def test_a_published_program_with_other_numbers_is_told_as_such() -> None:
    found = nearest(QUEST, {"page": 32, "budget": 128})
    assert (found.program, found.same, found.differences) == ("quest", True, ())
    assert str(found) == (
        "quest (Tang et al., arXiv 2406.10774) with other numbers: pages of 32 tokens instead of 16; "
        "topk(score, 128) instead of topk(score, 64)"
    )


def told(*changes: tuple[str, str], knobs: dict[str, int] | None = None, text: str = QUEST) -> str:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    found = nearest(text, knobs)
    others = {name: distance(parse(text), library.load(name)) for name in library.NAMES}
    assert found.distance == min(others.values()) == others[found.program] > 0
    return str(found)


def test_the_difference_of_mutated_programs_in_words() -> None:
    as_quest = "as quest (Tang et al., arXiv 2406.10774), but "
    assert told(("return forced |", "return forced | random(4) |"), knobs={"page": 32}) == (
        as_quest + "adds random(4); pages of 32 tokens instead of 16"
    )
    mean = told((".max(head)", ".mean(head)"))
    assert mean == as_quest + "joins the heads by their mean instead of by the best of them"
    early = told(("score(q, s): return maximum(q * s.lo, q * s.hi)", "score(q, s): x = q.sum(head); return "
                  "maximum(x * s.lo, x * s.hi)"), (".max(head)", ""))  # fmt: skip
    assert "one list a KV head, which joins the heads by their sum in the query, instead of one a query head" in early
    assert told(("return forced |", "return last(recent) |")) == as_quest + "never reads first(1) by itself"
    assert told(("first(sink) | last(recent)", "last(recent)")) == as_quest + "without first(1)"
    reused = told(("topk(score, budget, among=~forced)", "reuse(topk(score, budget, among=~forced), every=4)"))
    assert reused == as_quest + "reuses pages over steps"
    energy = told(
        ("hi=k.max(token))", "hi=k.max(token), e=v.norm(channel).mean(token))"), ("summarize(k)", "summarize(k, v)"),
        (".max(head)", ".max(head) * s.e"),
    )  # fmt: skip
    assert energy == as_quest + "adds v.norm(channel).mean(token) to the score"
    mass = told(("topk(score, budget,", "topp(score, 0.9, scale=ctx.scale,"), ("select(score)", "select(score, ctx)"))
    assert mass == as_quest + "topp(score, 0.9, scale=ctx.scale) instead of topk(score, 64)"
    assert "a KV cache in fp8_e4m3 instead of the model's precision" in told(
        ("default=16))", 'default=16), kv="fp8_e4m3")'), (".max(head)", ".mean(head)")
    )
    assert told((", among=~forced", "")) == as_quest + "topk(score, 64) chooses among all pages"


def test_texts_are_equal_where_only_numbers_names_and_order_differ() -> None:
    def text(written: str) -> str:
        return blank(expression(written), {"budget", "weight"})

    assert text("first(2) | last(budget) | random(4)") == text("random(1) | (first(weight) | last(3))")
    assert text("weight * dot(q, s.c, channel) + 1") == text("2 + dot(q, s.c, channel) * 0.5")
    different = ("s.lo", "s.hi", "s.lo - s.hi", "s.hi - s.lo", "s.lo < s.hi", "s.lo > s.hi", "-s.lo", "s.lo.max(head)")
    assert len(set(map(text, different))) == len(different)


def test_names_order_and_variables_are_no_difference() -> None:
    text = QUEST.replace("budget", "many").replace("forced | topk(", "topk(")
    text = text.replace("among=~forced)", "among=~forced) | forced")
    found = nearest(text)
    assert found.same and str(found) == "quest (Tang et al., arXiv 2406.10774) itself"
