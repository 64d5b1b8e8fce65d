"""The Triton executor equals the reference, in Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
from triton_runs import interpreted

from vortexlab.search_spaces.library import SEEDS


def agrees(found: dict, cases: int) -> None:
    assert not found["disagreements"], "\n".join(found["disagreements"])
    assert found["cases"] == cases


def test_every_seed_program_equals_the_reference():
    found = interpreted("compare", names=list(SEEDS), programs=[], seeds=[3])
    agrees(found, len(SEEDS))
    assert found["determined"] > 20


def test_random_programs_equal_the_reference():
    agrees(interpreted("compare", names=[], programs=list(range(7_000, 7_005)), seeds=[]), 5)


def test_learned_constants_are_those_of_each_layer_and_kv_head():
    agrees(interpreted("compare", names=["seer_decode", "streaming_heads", "loki"], programs=[], seeds=[4]), 3)


def test_latent_keys_of_a_real_width_equal_the_reference():
    agrees(interpreted("latent", names=["mla_rope_weighted"], dtypes=["float32", "float8_e4m3fn"]), 2)


def test_random_programs_over_fp8_caches_and_latent_keys_equal_the_reference():
    found = interpreted("covered", programs=[12, 26, 43, 81, 85, 102, 119, 148])
    agrees(found, 8)
    assert found["latent"] == 3 and found["fp8_caches"] == 4 and found["fp8_summaries"] == 5


def test_fp8_summaries_of_a_published_program_equal_the_reference():
    agrees(interpreted("compare", names=["twilight"], programs=[], seeds=[4]), 1)


def test_fp8_codes_are_those_of_torch():
    assert interpreted("fp8") == {"float8_e4m3fn": [0, 0, 0], "float8_e5m2": [0, 0, 0]}


def test_layout_row_order_later_tokens_and_growth_change_nothing():
    agrees(interpreted("invariances", names=["quest"], seeds=[11]), 1)


def test_lists_of_a_state_are_padded_anew_at_every_step():
    found = interpreted("steps")
    assert found["clean"] and found["same"]
    totals = [sum(counts) for counts in found["counts"]]
    assert any(later < earlier for earlier, later in itertools.pairwise(totals)), "no list ever shrank"


def test_chosen_physical_pages_are_summarised_and_no_others():
    assert interpreted("pages") == {"2": True, "8": True, "16": True}


def test_query_and_cache_may_differ_in_precision():
    found = interpreted("mixed")
    assert len(found) == 4 and not [pair for pair, worst in found.items() if worst > 1e-5], found


def test_planted_faults_are_found():
    found = interpreted("faults")
    assert len(found) == 22
    assert not [fault for fault, disagreement in found.items() if disagreement is None]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_seed_program_on_ten_configurations(name):
    agrees(interpreted("compare", names=[name], programs=[], seeds=list(range(100, 110)), timeout=1800), 10)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(7_100, 7_200, 10))
def test_hundred_random_programs(first):
    agrees(interpreted("compare", names=[], programs=list(range(first, first + 10)), seeds=[], timeout=1800), 10)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 400, 40))
def test_hundred_covered_programs_of_the_whole_language(first):
    found = interpreted("covered", programs=list(range(first, first + 40)), timeout=1800)
    assert not found["disagreements"], "\n".join(found["disagreements"])
    assert found["cases"] >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa_quest", "top_p", "value_energy", "bigbird", "subpage_quest"])
def test_invariances_of_more_programs(name):
    agrees(interpreted("invariances", names=[name], seeds=[1, 2, 3], timeout=1800), 3)
