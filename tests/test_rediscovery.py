"""The rediscovery benchmark: what is withheld, what counts as found, how evaluations are counted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator

from vortexlab.dsl import parse, structure_hash
from vortexlab.evaluator.traces import TraceConfig
from vortexlab.search_spaces.library import SEEDS, source

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import rediscovery


class Fake(FakeEvaluator):
    config = TraceConfig(model="none")


def test_seeds_with_the_same_score_are_withheld() -> None:
    assert set(SEEDS) - set(rediscovery.remaining("centroid")) == {"centroid", "top_p", "value_energy"}
    assert set(SEEDS) - set(rediscovery.remaining("quest")) == {"quest", "gqa_quest", "subpage_quest"}
    assert set(SEEDS) - set(rediscovery.remaining("hierarchical")) == {"subpage_quest"}
    assert rediscovery.remaining("sink + window + top-k") == ("dense", "sink_window", "bigbird", "strided")


def test_a_case_is_made_harder_until_no_seed_reaches_the_target() -> None:
    reached: dict[str, list[Any]] = {name: [(1.0, 0.1)] for name in SEEDS}
    reached |= {"subpage_quest": [(2.0, 0.9)], "quest": [(2.0, 0.9)], "gqa_quest": [(1.97, 0.895)]}
    case = rediscovery.case_of("hierarchical", reached)
    assert set(case["harder"]) == {"quest", "gqa_quest"} and case["target"] == (2.0, 0.9)
    assert not rediscovery.reaches((1.95, 0.9), (2.0, 0.9)) and not rediscovery.reaches(None, (2.0, 0.9))


@pytest.mark.parametrize("method", rediscovery.METHODS)
def test_every_method_counts_its_evaluations(method: str) -> None:
    seeds = ("dense", "quest")
    missed = rediscovery.search(Fake(), method, seeds, 8, 0, lambda _: False)  # type: ignore[arg-type]
    assert missed["found"] is None and missed["evaluations"] >= 8 and missed["hypervolume"] > 0
    form = structure_hash(parse(source("quest")))
    hit = rediscovery.search(Fake(), method, seeds, 8, 0, lambda v: v.structure == form)  # type: ignore[arg-type]
    assert hit["found"] == hit["evaluations"] == 2 and hit["structure"] == form


def test_the_table_says_what_was_not_found() -> None:
    rows = [
        {"case": "quest", "method": "grammar", "seed": 0, "found": 30, "hypervolume": 1.0},
        {"case": "quest", "method": "grammar", "seed": 1, "found": None, "hypervolume": 1.0},
        *({"case": rediscovery.ALL, "method": name, "seed": seed, "found": None, "hypervolume": value + seed}
          for seed in (0, 1) for name, value in (("grammar", 3.0), ("random", 1.0))),
    ]  # fmt: skip
    text = rediscovery.table({"rows": rows})
    assert "| quest | 30 [30, 30], 1 of 2 |" in text
    assert "| random | 1.500 | 2.000 [2.000, 2.000] | 2 |" in text
