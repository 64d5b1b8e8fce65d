"""Verdicts, configuration, statistics: what the evaluator says and how sure it is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import config as config_module
from vortexlab.evaluator import statistics
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.fronts import frontier_probability, non_dominated
from vortexlab.evaluator.geometries import GEOMETRIES, find_geometry
from vortexlab.evaluator.measured import Measured
from vortexlab.evaluator.verdict import Estimate, GateResult, Outcome, Verdict


def _outcomes(sparse: list[int], task: str = "keys", dense: int = 4, length: int = 512) -> tuple[Outcome, ...]:
    return tuple(Outcome(task, f"{task}/{length}/{i}", length, 4, dense, right) for i, right in enumerate(sparse))


def _verdict(speed: float, sparse: list[int], **changes: object) -> Verdict:
    outcomes = _outcomes(sparse)
    return Verdict(
        program="p", source_hash="0" * 64, structure="1" * 64, knobs={"budget": 8}, status="accepted",
        gates=(GateResult("parse", True, 0.1, details={"a": 1}),), speedup=Estimate(speed, speed * 0.9, speed * 1.1),
        accuracy=statistics.accuracy(outcomes).kept, density=0.1, outcomes=outcomes,
        speed_samples={"512": [speed * 0.95, speed, speed * 1.05]}, alarms=("a",), **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_verdict_survives_json() -> None:
    verdict = _verdict(2.0, [4, 3, 4, 2])
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert Verdict.from_json(json.loads(text)) == verdict
    with pytest.raises(ValueError, match="version"):
        Verdict.from_json({**verdict.to_json(), "version": 99})


def test_a_verdict_knows_whether_it_is_accepted_and_finds_its_gates() -> None:
    verdict = _verdict(2.0, [4, 3])
    assert verdict.accepted and verdict.gate_result("speed") is None
    assert verdict.gate_result("parse") is verdict.gates[0]
    assert not Verdict("p", "0" * 64, "1" * 64, {}, "rejected").accepted
    assert not Verdict("p", "0" * 64, "1" * 64, {}, "error").accepted


def test_an_estimate_is_finite_and_a_status_is_known() -> None:
    with pytest.raises(ValueError, match="finite"):
        Estimate(1.0, 0.5, math.inf)
    with pytest.raises(ValueError, match="status"):
        Verdict("p", "0" * 64, "1" * 64, {}, "maybe")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "split"),
        ({"device": "tpu"}, "device"),
        ({"speed": "guessed"}, "speed"),
        ({"contexts": 0}, "contexts"),
        ({"lengths": ()}, "lengths"),
        ({"lengths": (512, 512)}, "differ"),
        ({"audit_share": 2.0}, "audit_share"),
        ({"margin": 0.0}, "margin"),
        ({"stop_below": 1.0}, "stop_below"),
        ({"promoted": 0.0}, "promoted"),
        ({"max_state": -1.0}, "max_state"),
        ({"seed": -1}, "negative"),
    ],
)
def test_a_configuration_refuses_nonsense(changes: dict[str, object], words: str) -> None:
    with pytest.raises(VortexError, match=words):
        EvaluationConfig(**changes)  # type: ignore[arg-type]


def test_a_configuration_survives_json_and_knows_its_keys() -> None:
    config = EvaluationConfig(lengths=(512, 1024), tasks=("keys",))
    assert EvaluationConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(VortexError, match="unknown"):
        EvaluationConfig.from_json({"lenghts": [1]})


def test_the_environment_changes_with_what_is_measured_and_with_nothing_else(tmp_path: Path) -> None:
    base = EvaluationConfig()
    assert base.environment_key() == EvaluationConfig(seconds=1.0, memory_mb=100).environment_key()
    other = [EvaluationConfig(seed=1), EvaluationConfig(lengths=(2048,)), base.with_split("validation")]
    assert len({base.environment_key(), *(config.environment_key() for config in other)}) == 4
    copy = tmp_path / "model"
    copy.mkdir()
    for file in REFERENCE_MODEL.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    assert EvaluationConfig(model=str(copy)).environment_key() == base.environment_key()
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert EvaluationConfig(model=str(copy)).environment_key() != base.environment_key()
    with pytest.raises(VortexError, match=r"config\.json"):
        EvaluationConfig(model=str(tmp_path)).environment_key()


def test_the_environment_knows_versions_device_and_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {EvaluationConfig().environment_key()}
    for name, other in (
        ("versions", lambda: {"torch": "0.0"}), ("device_name", lambda device: "abacus"), ("PROTOCOL_VERSION", 0),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(config_module, name, other)
            keys.add(EvaluationConfig().environment_key())
    assert len(keys) == 4


def test_splits_draw_from_different_seeds() -> None:
    seeds = {
        EvaluationConfig(seed=seed).with_split(split).split_seed() for seed in (0, 1) for split in ("search", "sealed")
    }
    assert len(seeds) == 4


def test_the_sign_test_and_the_wilson_bound_have_their_textbook_values() -> None:
    assert statistics.sign_test(0, 6) == pytest.approx(2 / 64)
    assert statistics.sign_test(3, 3) == 1.0
    assert statistics.sign_test(0, 0) == 1.0
    assert statistics.wilson_upper(0, 10) == pytest.approx(0.2775, abs=1e-4)
    assert statistics.wilson_upper(5, 10) == pytest.approx(0.7634, abs=1e-4)


def test_accuracy_kept_is_sparse_over_dense_and_tasks_count_alike() -> None:
    found = statistics.accuracy(_outcomes([4] * 10, "many") + _outcomes([0, 0], "few"))
    assert found.kept is not None and found.kept.value == pytest.approx(0.5)
    assert found.per_task["few"]["sparse"] == 0.0 and found.per_task["many"]["n"] == 40
    assert (found.answers, found.contexts) == (48, 12)
    assert found.difference.value == pytest.approx(-0.5)


def test_intervals_are_clustered_by_context() -> None:
    """The same number of right answers is less sure when contexts answer all or nothing."""
    spread = statistics.accuracy(_outcomes([2] * 20)).kept
    clumped = statistics.accuracy(_outcomes([4, 0] * 10)).kept
    assert spread is not None and clumped is not None
    assert spread.value == clumped.value == pytest.approx(0.5)
    assert clumped.high - clumped.low > 0.3 > spread.high - spread.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        sparse = rng.binomial(4, 0.7, size=30).tolist()
        kept = statistics.accuracy(_outcomes(sparse), seed=seed, draws=300).kept
        assert kept is not None
        hits += kept.low <= 0.7 <= kept.high
    assert 86 <= hits <= 100


def test_equal_answers_are_no_certainty() -> None:
    kept = statistics.accuracy(_outcomes([4] * 10)).kept
    assert kept == Estimate(1.0, 0.7, 1.0)


def test_sparse_significantly_above_dense_is_an_alarm() -> None:
    calm = statistics.accuracy(_outcomes([3, 4, 3, 4] * 5))
    assert calm.alarms == ()
    loud = statistics.accuracy(_outcomes([4] * 20, dense=2))
    assert any("keys" in alarm for alarm in loud.alarms) and any("all tasks" in alarm for alarm in loud.alarms)
    lucky = statistics.accuracy(_outcomes([2] * 19 + [3], dense=2))
    assert lucky.alarms == ()


def test_the_screen_bound_never_claims_zero_and_is_honest_about_few_answers() -> None:
    assert statistics.kept_upper(_outcomes([0] * 2)) > 0.2
    assert statistics.kept_upper(_outcomes([0] * 16)) < 0.2
    assert statistics.kept_upper(_outcomes([1] * 16)) > 0.2
    assert statistics.kept_upper(_outcomes([0] * 16, dense=0)) == math.inf


def test_the_speed_up_is_the_geometric_mean_over_lengths_of_medians() -> None:
    found = statistics.ratio({"512": [1.0, 2.0, 9.0], "1024": [8.0, 8.0, 8.0]})
    assert found.value == pytest.approx(4.0)
    assert found.low < 4.0 < found.high
    steady = statistics.ratio({"512": [2.0] * 5})
    assert (steady.value, steady.low, steady.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_frontier_is_what_nothing_beats() -> None:
    speed, kept = np.array([1.0, 2.0, 2.0, 3.0, 1.0]), np.array([1.0, 0.9, 0.8, 0.1, 1.0])
    assert non_dominated(speed, kept).tolist() == [True, True, False, True, True]


def test_frontier_probability_knows_the_clear_and_the_close() -> None:
    good, close, bad = _verdict(3.0, [4] * 12), _verdict(3.01, [4] * 11 + [3]), _verdict(1.0, [1] * 12)
    broken = Verdict("x", "0" * 64, "1" * 64, {}, "error")
    found = frontier_probability(*statistics.joint_draws(Measured.of([broken, good, close, bad])))
    assert found[0] > 0.5 and 0.2 < found[1] < 0.9 and found[2] == 0.0 and len(found) == 3


def test_geometries_come_by_name_and_from_config_files(tmp_path: Path) -> None:
    assert find_geometry("qwen3-8b") == GEOMETRIES["qwen3-8b"]
    found = find_geometry(str(REFERENCE_MODEL))
    assert (found.layers, found.kv_heads, found.group, found.head_dim) == (6, 2, 2, 64)
    with pytest.raises(VortexError, match="did you mean qwen3-8b"):
        find_geometry("qwen3-8B")
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(VortexError, match="no attention geometry"):
        find_geometry(str(tmp_path))
    (tmp_path / "config.json").write_text(
        '{"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 96, "num_hidden_layers": 2}'
    )
    with pytest.raises(VortexError, match="do not divide"):
        find_geometry(str(tmp_path))


def test_accuracy_kept_is_paired_in_every_draw() -> None:
    """Where every context keeps the same share no draw says another, however much contexts differ."""
    half = tuple(Outcome("keys", f"keys/{i}", 512, 4, 2 + 2 * (i % 2), 1 + i % 2) for i in range(8))
    kept = statistics.accuracy(half).kept
    assert kept is not None and (kept.low, kept.value, kept.high) == pytest.approx((0.5, 0.5, 0.5))
    none = tuple(Outcome("keys", f"keys/{i}", 512, 4, 4 * (i == 0), 4 * (i == 0)) for i in range(4))
    rare = statistics.accuracy(none).kept  # some draws leave out the one context that dense attention answers
    assert rare is not None and math.isfinite(rare.high)
    with pytest.raises(ValueError, match="needs outcomes"):
        statistics.accuracy(())


def test_only_verdicts_with_both_objectives_are_drawn() -> None:
    whole = _verdict(2.0, [4] * 4)
    part = Verdict("x", "0" * 64, "1" * 64, {}, "rejected", speedup=Estimate(2, 2, 2), outcomes=whole.outcomes)
    measured = Measured.of([part, whole])
    speed, kept = statistics.joint_draws(measured, draws=10)
    assert measured.index.tolist() == [1] and speed.shape == kept.shape == (1, 10)
