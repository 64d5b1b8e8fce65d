"""Whole evaluations through a confined worker, on the reference model with short contexts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vortexlab import dsl, search_spaces
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.sandbox import Limits, Sandbox
from vortexlab.evaluator.verdict import GATES, Verdict

CONFIG = EvaluationConfig(
    tasks=("needles", "keys"), lengths=(320,), contexts=4, screen_contexts=2, batch_tokens=1280, compile_for=(),
    geometry="qwen3-1.7b", audit_share=0.0, threads=1,
)  # fmt: skip
OWN_PAGE = "@program(page=8)\nclass {name}:\n    def select():\n        return last(1)\n"
EVERYTHING = "@program(page=16)\nclass {name}:\n    def select():\n        return everything()\n"
QUEST = search_spaces.seeds()["quest"]


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    with Evaluator(CONFIG) as found:
        yield found


@pytest.fixture(scope="module")
def quest(evaluator: Evaluator) -> Verdict:
    return evaluator.evaluate(QUEST, {"page": 8, "budget": 6})


def test_a_program_passes_every_gate_in_order(quest: Verdict, evaluator: Evaluator) -> None:
    assert (quest.status, quest.gate, quest.reason) == ("accepted", None, "")
    assert [gate.name for gate in quest.gates] == [name for name in GATES if name != "compile"]
    assert quest.knobs == {"page": 8, "budget": 6, "sink": 1, "recent": 2}
    assert quest.source_hash == dsl.canonical_hash(dsl.parse(QUEST).bind({"page": 8, "budget": 6}))
    assert quest.structure == dsl.structure_hash(dsl.parse(QUEST))
    assert (quest.answers, quest.contexts) == (32, 8)
    assert quest.accuracy is not None and 0.2 < quest.accuracy.value <= 1.1
    assert quest.speedup is not None and quest.speedup.value > 0
    assert quest.density is not None and 8 * 8 / 325 < quest.density < 9 * 8 / 320
    assert Verdict.from_json(json.loads(json.dumps(quest.to_json(), allow_nan=False))) == quest


def test_every_number_carries_its_conditions(quest: Verdict, evaluator: Evaluator) -> None:
    conditions = quest.conditions
    assert conditions["environment"] == evaluator.environment == CONFIG.environment_key()
    for name in ("device", "model_digest", "dtype", "protocol", "lengths", "split", "seed", "versions", "threads"):
        assert conditions[name] not in (None, "")
    assert conditions["geometry"]["name"] == "qwen3-1.7b" and conditions["batch"] == {"320": 4}
    assert conditions["baseline"]["320"] and conditions["speed"] == "measured"
    assert conditions["network"] in ("namespace", "audit hook")
    assert quest.stages["measured_ms"]["320"]["dense_ms"] > 0
    assert quest.stages["predicted"]["h200"]["320"]["kind"] == "predicted"


def test_fidelity_tells_what_reading_less_does(quest: Verdict, evaluator: Evaluator) -> None:
    def found(verdict: Verdict) -> dict[str, float]:
        gate = verdict.gate_result("fidelity")
        assert gate is not None
        return dict(gate.details)

    dense = found(evaluator.evaluate(EVERYTHING.format(name="All")))
    some = found(quest)
    own = found(evaluator.evaluate(OWN_PAGE.format(name="Own"), fidelity="screen"))
    assert dense["divergence"] < 1e-5 and dense["needle_hits"] == 1.0 and dense["error_worst_head"] < 1e-4
    assert 0 < some["divergence"] < own["divergence"]
    assert 1 > some["needle_hits"] > own["needle_hits"] == 0.0
    assert some["worst_heads"][0]["error"] == some["error_worst_head"]
    assert sum(some["layer_density"]) / len(some["layer_density"]) == pytest.approx(some["density"])
    assert some["error_mean"] <= some["error_p95"] and some["error_mean"] <= some["error_worst_head"]


def test_accuracy_is_paired_with_dense_on_the_same_contexts(quest: Verdict, evaluator: Evaluator) -> None:
    dense = evaluator.dense_row()
    assert [(o.context, o.dense) for o in quest.outcomes] == [(o.context, o.dense) for o in dense.outcomes]
    assert all(o.sparse == o.dense for o in dense.outcomes)
    assert dense.accuracy is not None and dense.accuracy.value == 1.0 and dense.density == 1.0
    assert quest.per_task["keys"]["dense"] == dense.per_task["keys"]["sparse"] > 0.8


def test_no_program_is_rejected_at_parse_with_every_diagnostic(evaluator: Evaluator) -> None:
    for text, knobs in (("import os", {}), ("\x00", {}), (QUEST, {"page": 7}), (QUEST, {"depth": 1})):
        verdict = evaluator.evaluate(text, knobs)
        assert (verdict.status, verdict.gate) == ("rejected", "parse")
        assert verdict.reason and "\n" not in verdict.reason
        assert len(verdict.source_hash) == len(verdict.structure) == 64
    assert evaluator.evaluate("import os").gates[0].details["diagnostics"][0]["line"] == 1


def test_the_screen_rejects_what_answers_nothing_and_an_audit_goes_on(evaluator: Evaluator) -> None:
    verdict = evaluator.evaluate(OWN_PAGE.format(name="Blind"))
    assert (verdict.status, verdict.gate) == ("rejected", "screen")
    assert "less than 0.2" in verdict.reason and verdict.answers == 16 and verdict.speedup is None
    evaluator.config = replace(CONFIG, audit_share=1.0)
    try:
        audited = evaluator.evaluate(OWN_PAGE.format(name="Blind"))
    finally:
        evaluator.config = CONFIG
    assert (audited.status, audited.gate) == ("rejected", "screen")
    assert audited.answers == 32 and audited.speedup is not None and audited.conditions["audit"] is True


def test_budgets_that_depend_on_data_are_timed_with_live_counts(evaluator: Evaluator) -> None:
    verdict = evaluator.evaluate(search_spaces.seeds()["top_p"], {"page": 8, "mass": 0.6})
    names = [gate.name for gate in verdict.gates]
    assert names.index("accuracy") < names.index("speed")
    speed = verdict.gate_result("speed")
    assert speed is not None and verdict.density is not None
    assert speed.details["320"]["density"] == pytest.approx(verdict.density, rel=0.25)


def test_ties_that_decide_count_against_the_program(evaluator: Evaluator) -> None:
    """All scores equal: which pages are read is luck of the order, so both orders are asked and the worse counts."""
    blind = (
        "@program(page=8)\nclass Ties:\n    def summarize(k):\n        return dict(c=k.mean(token) * 0)\n"
        "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score, ctx):\n        return topk(score, ctx.pages // 2) | last(2)\n"
    )
    verdict = evaluator.evaluate(blind)
    result = verdict.gate_result("accuracy")
    assert result is not None and result.details["order"] == "both"


def test_the_screen_fidelity_stops_there(evaluator: Evaluator) -> None:
    verdict = evaluator.evaluate(QUEST, {"page": 8}, fidelity="screen")
    assert verdict.accepted and verdict.gates[-1].name == "screen" and verdict.answers == 16
    with pytest.raises(VortexError, match="fidelity"):
        evaluator.evaluate(QUEST, fidelity="half")


def test_a_program_is_compiled_for_the_geometry_that_speed_is_measured_at(evaluator: Evaluator) -> None:
    evaluator.config = replace(CONFIG, compile_for=("sm_90",))
    try:
        compiled = evaluator.evaluate(QUEST, {"page": 8, "budget": 6}, fidelity="screen").gate_result("compile")
    finally:
        evaluator.config = CONFIG
    assert compiled is not None and compiled.passed
    assert {"summarize", "attend_split"} <= {kernel["kernel"] for kernel in compiled.details["kernels"]}


def test_predicted_campaigns_repeat_to_the_last_digit() -> None:
    config = replace(CONFIG, speed="predicted", tasks=("keys",))

    def verdict() -> Verdict:
        with Evaluator(config) as fresh:
            found = fresh.evaluate(QUEST, {"page": 8, "budget": 6})
        return replace(found, seconds=0.0, gates=tuple(replace(gate, seconds=0.0) for gate in found.gates))

    first = verdict()
    assert first == verdict()
    assert first.conditions["device"] == "h200 (predicted)" and not first.speed_samples
    assert first.speedup is not None and first.speedup.value == first.predicted_speedup


class HostileSandbox(Sandbox):
    """Runs `hostile_evaluation` in place of the evaluator's worker."""

    module = "hostile_evaluation"

    def environment(self) -> dict[str, str]:
        known = super().environment()
        paths = [str(Path(__file__).parent), known.get("PYTHONPATH", "")]
        return known | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@pytest.fixture(scope="module")
def attacked() -> Iterator[Evaluator]:
    config = replace(CONFIG, tasks=("keys",), seconds=60.0)
    with Evaluator(config, sandbox=HostileSandbox(Limits(memory_mb=3072, seconds=60.0), threads=1)) as found:
        found.open()
        yield found


@pytest.mark.parametrize(
    ("name", "status", "gate", "kind"),
    [
        ("Crash", "error", "numerics", "crash"),
        ("Fault", "rejected", "fidelity", None),
        ("Bomb", "error", "speed", "memory"),
        ("Loop", "error", "screen", "time"),
    ],
)
def test_a_lost_worker_costs_one_evaluation(
    attacked: Evaluator, name: str, status: str, gate: str, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = EVERYTHING.format(name=name)
    if name == "Loop":
        monkeypatch.setattr(attacked._place.sandbox, "limits", Limits(memory_mb=3072, seconds=8.0))
    verdict = attacked.evaluate(source)
    assert (verdict.status, verdict.gate) == (status, gate), verdict.reason
    assert verdict.reason and "\n" not in verdict.reason
    assert verdict.gates[-1].details.get("lost") == kind
    assert verdict.speedup is None
    monkeypatch.undo()
    prefilled = (attacked._place.sandbox.scratch / "contexts.kv").stat().st_mtime_ns
    well = attacked.evaluate(EVERYTHING.format(name="Well"), fidelity="screen")
    assert well.accepted and well.accuracy is not None and well.accuracy.value == 1.0
    assert (attacked._place.sandbox.scratch / "contexts.kv").stat().st_mtime_ns == prefilled


def test_an_evaluator_that_cannot_work_says_so_in_one_line(tmp_path: Path) -> None:
    def refused(config: EvaluationConfig) -> str:
        with pytest.raises(VortexError) as error, Evaluator(config) as broken:
            broken.open()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.json" in refused(replace(CONFIG, model=str(tmp_path)))
    assert "unknown task" in refused(replace(CONFIG, tasks=("riddles",)))
    assert "geometry" in refused(replace(CONFIG, geometry="qwen9"))
    assert "device" in refused(replace(CONFIG, predicted_device="abacus"))
    (tmp_path / "config.json").write_text("{}")
    assert "cannot be loaded" in refused(replace(CONFIG, model=str(tmp_path)))
