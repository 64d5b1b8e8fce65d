"""What can be taken out of a program: each ablation is a valid program of its own, with the program's numbers."""

from __future__ import annotations

import random

import pytest

from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.search_spaces import library
from vortexlab.search_spaces.ablations import Ablation, ablations
from vortexlab.search_spaces.grammar import mutate

EXPECTED = {
    "sink_window": ["without first(sink)", "without last(recent)"],
    "quest": [
        "without first(sink)", "without last(recent)", "without topk(score, budget)", "without q * s.lo",
        "without q * s.hi", "with a list for every query head", "with the product of query and mean key as its score",
    ],
    "lserve": [
        "without first(sink)", "without last(recent)", "without topk(score, budget)", "without reuse over steps",
        "without q * s.lo", "without q * s.hi", "with a list for every query head",
        "with whole pages instead of parts", "with the product of query and mean key as its score",
    ],
    "running_average": [
        "without first(sink)", "without last(recent)", "without topk(score, budget)",
        "without the term decay * m.running", "without the term dot(q.mean(head), s.centre, channel)",
        "with the product of query and mean key as its score",
    ],
    "twilight": [
        "without first(sink)", "without last(recent)", "without topp(score.fine, mass)",
        "without the shortlist topk(score.rough, maximum(4, floor(fraction * ctx.pages)))", "without q * s.lo",
        "without q * s.hi", "without the term log(exp(logits - top).sum(token))",
        "with the product of query and mean key as its score rough",
        "with the product of query and mean key as its score fine", "with summaries in the model's precision",
    ],
}  # fmt: skip


def one(name: str, change: str) -> Ablation:
    return next(item for item in ablations(library.source(name)) if item.change == change)


def body(text: str) -> str:
    """A program's text below its docstring."""
    return text.split('"""')[2]


@pytest.mark.parametrize("name", library.NAMES)
def test_ablations_of_every_published_program_are_other_programs(name: str) -> None:
    text = library.source(name)
    whole = parse(text)
    found = ablations(text)
    assert bool(found) == (name != "dense")
    hashes = {canonical_hash(whole.bind())}
    for item in found:
        bound = parse(item.source).bind(item.knobs)
        assert canonical_hash(bound) == item.hash and item.hash not in hashes, item.change
        assert item.change in bound.doc and set(item.knobs) <= set(whole.knobs)
        assert set(bound.live_fields()) == set(bound.fields), item.change  # no dead summaries
        hashes.add(item.hash)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_parts_of_five_programs(name: str) -> None:
    assert [item.change for item in ablations(library.source(name))] == EXPECTED[name]


def test_a_selector_is_taken_out_wherever_it_stands() -> None:
    text = library.source("quest").replace("first(sink) | last(recent)", "last(recent)")
    assert one("quest", "without first(sink)").hash == canonical_hash(parse(text).bind())
    found = body(one("quest", "without topk(score, budget)").source)
    assert "return first(sink) | last(recent)" in found and "score" not in found and "summarize" not in found
    both = one("vattention", "without topk(score, budget)").source  # the output speaks of it as well
    assert "topk" not in body(both) and body(both).count("first(sink) | last(recent)") >= 2


def test_of_two_selectors_in_a_row_each_can_go() -> None:
    first = body(one("twilight", EXPECTED["twilight"][3]).source)
    assert "topp(score.fine, mass, among=~forced)" in first and "topk" not in first and "s.lo" not in first
    second = body(one("twilight", EXPECTED["twilight"][2]).source)
    assert "topk(score.rough" in second and "topp" not in second and "s.keys" not in second


def test_memory_reuse_parts_prefill_and_outputs_go_with_what_served_them() -> None:
    assert "memory" not in body(one("running_average", "without the term decay * m.running").source)
    assert "every" not in body(one("lserve", "without reuse over steps").source)
    assert "split" not in body(one("lserve", "with whole pages instead of parts").source)
    assert "pool" not in body(one("moba", "with dense prefill").source)
    assert "block" not in one("moba", "with dense prefill").source.split("class")[0]
    assert "attend" not in body(one("retroinfer", "with plain attention over the pages").source)
    assert "param" not in body(one("seer_decode", "with the product of query and mean key as its score").source)


def test_an_ablation_that_is_a_published_program_is_that_program() -> None:
    window = parse(library.source("sink_window")).bind({"recent": 2})
    assert one("quest", "without topk(score, budget)").hash == canonical_hash(window)
    quest = parse(library.source("quest")).bind()
    assert one("rocketkv", "without the case size < least").hash == canonical_hash(quest)


def test_knobs_keep_the_values_of_the_member() -> None:
    knobs = {"page": 32, "budget": 128, "sink": 3, "recent": 9}
    for item in ablations(library.source("quest"), knobs):
        assert item.knobs == {name: knobs[name] for name in item.knobs}
    with pytest.raises(VortexError, match="no knob 'sinks'"):
        ablations(library.source("quest"), {"sinks": 3})


def test_what_would_read_everything_or_nothing_is_no_ablation() -> None:
    assert ablations(library.source("dense")) == []
    text = library.source("moba")
    assert not any("topk" in item.change for item in ablations(text))  # nothing would be left
    assert not any("dense prefill" in item.change for item in ablations(library.source("vertical")))


def test_mutated_programs_can_be_taken_apart_as_well() -> None:
    rng, text, known = random.Random(3), library.source("quest"), set[str]()
    for _ in range(12):
        made = mutate(text, rng, known)
        assert made is not None
        text = made.source
        whole = canonical_hash(parse(text).bind())
        for item in ablations(text):
            assert canonical_hash(parse(item.source).bind(item.knobs)) == item.hash != whole
