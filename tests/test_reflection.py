"""What limits a program, and that proposers are told."""

from __future__ import annotations

import json
import random
from dataclasses import replace

from test_llm_proposer import ABOUT, member

from vortexlab.agent import prompt
from vortexlab.agent.reflection import limits
from vortexlab.evaluator.verdict import GateResult, Verdict


def stage(name: str, seconds: float, held: float) -> dict[str, object]:
    return {"name": name, "seconds": seconds, "bytes": held}


VERDICT = Verdict(
    "Quest", "h", "s", {}, "accepted",
    gates=(
        GateResult("fidelity", True, 1.0, "", {
            "layer_density": [1.0, 0.12345], "worst_heads": [{"layer": 1, "head": 3, "error": 0.4567}],
            "mass_of_best": 0.98765, "needle_hits": None,
        }),
    ),
    per_task={
        "keys": {"dense": 0.9, "sparse": 0.4}, "needles": {"dense": 1.0, "sparse": 0.99},
        "words": {"dense": 0.8, "sparse": 0.75}, "more": {"dense": 0.5, "sparse": 0.9},
    },
    stages={"predicted": {
        "cpu": {"4096": {"stages": [stage("score", 1.0, 1.0)]}},
        "h200": {
            "512": {"stages": [stage("select", 9.0, 9.0)]},
            "4096": {"stages": [stage("score", 1.0, 10.0), stage("attend", 3.0, 89.9), stage("combine", 0.0, 0.1)]},
        },
    }},
    conditions={"device": "h200 (predicted)"},
)  # fmt: skip


def test_limits_name_the_stages_layers_heads_and_tasks() -> None:
    assert limits(VERDICT) == {
        "time": {"score": 0.25, "attend": 0.75}, "bytes": {"score": 0.1, "attend": 0.9},
        "density_by_layer": [1.0, 0.123], "worst_heads": [[1, 3, 0.46]], "mass_of_best": 0.988,
        "lost": {"keys": -0.5, "words": -0.05},
    }  # fmt: skip


def test_stages_are_those_of_the_device_that_was_timed() -> None:
    measured = replace(VERDICT, conditions={"device": "some CPU x2"})
    assert limits(measured)["time"] == {"score": 1.0}


def test_what_was_not_measured_is_left_out() -> None:
    assert limits(Verdict("Broken", "", "", {}, "rejected", gate="parse", reason="no")) == {}
    old = replace(VERDICT, gates=(GateResult("fidelity", True, 1.0, "", {"mass_of_best": 0.5}),), stages={})
    assert limits(old) == {"mass_of_best": 0.5, "lost": {"keys": -0.5, "words": -0.05}}


def test_a_language_model_is_told_what_limits_a_program() -> None:
    told = member(limits=limits(VERDICT))
    system, user = prompt.compose([told], random.Random(0), ABOUT).messages
    lines = [json.loads(line) for line in user["content"].splitlines() if line.startswith("{")]
    assert [line["limits"] for line in lines if "limits" in line] == [limits(VERDICT)]
    assert all(f"`{name}`" in system["content"] for name in limits(VERDICT))
    assert prompt.compose([member()], random.Random(0), ABOUT).messages[1]["content"].count('"limits"') == 0
