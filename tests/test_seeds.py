"""The published programs and the shared knobs."""

from __future__ import annotations

import pytest
from dsl_programs import program

from vortexlab.dsl import check, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import SET, Static
from vortexlab.dsl.scalars import pages_of
from vortexlab.search_spaces import load, seeds
from vortexlab.search_spaces.knobs import SHARED, is_shared
from vortexlab.search_spaces.library import SEEDS, source

STATIC = Static(kv_heads=2, group=4, head_dim=64, scale=0.125)


def test_there_are_ten_and_each_says_where_it_is_from() -> None:
    assert len(SEEDS) == 10 == len(seeds())
    for name, text in seeds().items():
        found = load(name)
        assert "arXiv" in found.doc and len(found.doc.split("\n")[0]) > 20, name
        assert found.source == text == source(name)


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_free_of_warnings(name: str) -> None:
    assert check(seeds()[name])[1] == []


@pytest.mark.parametrize("name", SEEDS)
def test_knobs_of_seeds_are_the_shared_ones(name: str) -> None:
    found = load(name)
    assert all(is_shared(knob) for knob in found.knobs.values())
    assert name == "dense" or found.knobs["page"].default == 16


@pytest.mark.parametrize("name", SEEDS)
def test_every_page_size_and_choice_binds(name: str) -> None:
    found = load(name)
    for knob in found.knobs.values():
        for value in knob.choices or (knob.low, knob.default, knob.high):
            bound = found.bind({knob.name: value})
            assert bound.is_bound and bound.nodes[bound.output].type.kind == SET
            bound.axis_sizes(STATIC)
    for page in found.knobs["page"].choices if "page" in found.knobs else ():
        for sub in found.knobs["sub"].choices if "sub" in found.knobs else ():
            found.bind({"page": page, "sub": sub}).axis_sizes(STATIC)


def test_shared_knobs_can_be_declared_as_they_stand() -> None:
    for shared in SHARED.values():
        if shared.name == "page":
            text = program(options=f"page={shared.declaration}")
        else:
            text = program(body=f"{shared.name} = {shared.declaration}")
        assert is_shared(parse(text).knobs[shared.name]), shared.name
        assert shared.meaning


def test_a_shared_name_of_another_kind_is_private() -> None:
    text = program("return first(budget)", body="budget = knob.int(4, 512, default=64)")
    assert not is_shared(parse(text).knobs["budget"])


@pytest.mark.parametrize("name", SEEDS)
@pytest.mark.parametrize("length", [1024, 16384])
def test_knobs_reach_from_one_to_fifty_percent(name: str, length: int) -> None:
    """Pages that the counts of a seed allow, own page included, at the sparsest and the densest knobs."""
    from vortexlab.dsl.bounds import page_bound

    if name == "dense":
        assert page_bound(load(name).bind(), STATIC, length) == pages_of(length, 16)
        return
    found = load(name)
    low = {k.name: k.low for k in found.knobs.values() if k.low is not None}
    high = {k.name: k.high for k in found.knobs.values() if k.high is not None}
    if name == "strided":
        low["stride_pages"], high["stride_pages"] = high["stride_pages"], low["stride_pages"]
    pages = pages_of(length, 16)
    sparsest = page_bound(found.bind(low), STATIC, length)
    densest = page_bound(found.bind(high), STATIC, length)
    assert sparsest <= max(0.011 * pages, 6), (name, sparsest, pages)
    assert densest >= 0.5 * pages, (name, densest, pages)


def test_an_unknown_seed_is_one_clear_line() -> None:
    with pytest.raises(VortexError, match="did you mean quest") as raised:
        load("qest")
    assert "\n" not in str(raised.value)
