"""What the controller makes of the worker's answers, gate by gate, with answers that are written here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vortexlab import exporting, search_spaces
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import config as config_module
from vortexlab.evaluator import evaluator as evaluator_module
from vortexlab.evaluator import turns
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import SCREEN_FLOOR, TIE_SHARE, Evaluator
from vortexlab.evaluator.samples import Suite, make_suite
from vortexlab.evaluator.sandbox import WorkerLost
from vortexlab.evaluator.tasks import Sample, Turn
from vortexlab.evaluator.verdict import GATES, Verdict

CONFIG = EvaluationConfig(
    tasks=("needles", "keys"), lengths=(320,), contexts=4, screen_contexts=2, compile_for=("sm_90",), audit_share=0.0,
    stop_below=0.0, threads=1, context_cache=0.0,
)  # fmt: skip
SUITE = make_suite(CONFIG)
QUEST, TOP_P = search_spaces.seeds()["quest"], search_spaces.seeds()["top_p"]
MODEL = {
    "layers": 2, "kv_heads": 2, "group": 2, "head_dim": 16, "scale": 0.25, "vocabulary": 1024, "max_length": 4096,
    "architecture": "fake",
}  # fmt: skip
NUMERICS = {"failure": "", "cases": 6, "steps": 20, "pages": 100, "open": 0}
FIDELITY = {
    "finite": True, "error_mean": 0.1, "error_p95": 0.2, "error_worst_head": 0.3,
    "worst_heads": [{"layer": 1, "head": 2, "error": 0.3}],
    "layer_density": [0.3, 0.1], "cache_error": 0.0,
    "selection_error": 0.1, "mass": 0.9, "mass_of_best": 0.9,
    "density": 0.2, "ties": 0.0, "steps": 2, "dense_limit": 1e-3,
    "picked": [[0.25] * 20 + [1.0]] * 2, "divergence": 0.1,
}  # fmt: skip
TIMING = {
    "ratios": [2.0, 4.0, 4.0, 4.0, 9.0], "dense_ms": 4.0, "sparse_ms": 1.0, "summary_ms": 0.1, "select_ms": 0.4,
    "attend_ms": 0.5, "baseline": "sdpa", "baselines_ms": {"sdpa": 4.0}, "density": 0.2, "batch": 4, "worst_error": 0.0,
    "drift": 0.0, "inputs": "recorded", "by_inputs": {"synthetic": 4.5, "recorded": 4.0},
}  # fmt: skip

Right = Callable[[str, int, str], bool]  # (task, question, order) -> whether it is answered right


def always(task: str, number: int, order: str) -> bool:
    return True


class Scripted:
    """Stands for the sandbox: answers every request as `changes` say, and keeps what was asked."""

    threads, running, intact, suite = 1, True, True, SUITE

    def __init__(self, right: Right = always, right_densely: Right = always, **changes: dict[str, Any]):
        self.right, self.right_densely, self.changes = right, right_densely, changes
        self.asked: list[dict[str, Any]] = []
        self.stops = self.seals = self.starts = self.ends = 0

    @property
    def sealed(self) -> bool:
        return self.seals > 0

    def seal(self) -> None:
        self.seals += 1

    def start(self) -> None:
        self.starts += 1

    def stop(self) -> None:
        self.stops += 1

    def close(self) -> None:
        self.ends += 1

    def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        self.asked.append(message)
        operation = message["op"]
        if "lost" in self.changes.get(operation, {}):
            raise WorkerLost("crash", "the worker was killed by SIGSEGV")
        plain = {
            "hello": {"gpu": "", "network": "namespace", "walls": ["files"], "threads": 1},
            "open": {"model": MODEL},
            "program": {},
            "numerics": NUMERICS,
            "read": {},
            "compile": {"failure": "", "kernels": [], "cached": False},
            "fidelity": FIDELITY,
            "rehearse": {},
            "speed": {"timing": TIMING},
        }
        if operation in ("dense", "answers"):
            order = message.get("order", "forward")
            answered = [self._answer(pair, order, operation) for pair in message["forks"]]
            plain["dense"] = {"answers": answered}
            counts = {str(len(self.suite.samples[i].context)): [3, 1000] for i, _ in message["forks"]}
            density = 0.25 if order == "forward" else 0.5
            plain["answers"] = {
                "answers": answered, "density": density * len(answered), "reads": len(answered), "counts": counts,
            }  # fmt: skip
        return {"ok": {**plain[operation], **self.changes.get(operation, {})}}

    def _answer(self, pair: list[int], order: str, operation: str) -> list[int]:
        i, turn = pair
        sample = self.suite.samples[i]
        rule = self.right_densely if operation == "dense" else self.right
        answer = list(sample.turns[turn].answer)
        return answer if rule(sample.task, 4 * sample.index + turn, order) else [0] * len(answer)

    def operations(self) -> list[str]:
        return [message["op"] for message in self.asked][3:]


def evaluate(box: Scripted, source: str = QUEST, **changes: Any) -> Verdict:
    evaluator = Evaluator(replace(CONFIG, **changes), suite=SUITE, sandbox=box)  # type: ignore[arg-type]
    return evaluator.evaluate(source)


def test_the_gates_come_in_the_order_of_their_cost() -> None:
    box = Scripted()
    verdict = evaluate(box)
    assert verdict.accepted
    assert tuple(gate.name for gate in verdict.gates) == GATES
    assert box.operations() == ["program", "numerics", "compile", "fidelity", "answers", "speed", "answers"]
    # What a program reads may depend on data: then accuracy comes before speed, which it gives its page counts.
    box = Scripted()
    verdict = evaluate(box, TOP_P)
    assert [gate.name for gate in verdict.gates][-2:] == ["accuracy", "speed"]
    assert box.operations()[-3:] == ["answers", "answers", "speed"]
    most = -(-320 // 16)
    assert sorted(set(box.asked[-1]["counts"])) == [3, most], "counts beyond the timed length are cut"


@pytest.mark.parametrize(
    ("operation", "change", "status", "reason"),
    [
        ("numerics", {"failure": "reads pages 3, 4"}, "rejected", "reads pages 3, 4"),
        ("compile", {"failure": "spills 9000 bytes"}, "rejected", "spills 9000 bytes"),
        ("fidelity", {"finite": False}, "rejected", "not finite"),
        ("fidelity", {"picked": [[0.5]]}, "error", "other recorded steps"),
        ("fidelity", {"picked": [[1.5]] * 2}, "error", "agreed form"),
        ("fidelity", {"density": 1.0, "selection_error": 2e-3}, "rejected", "every page is read, yet"),
        ("speed", {"timing": None, "failure": "a timed output is off"}, "rejected", "a timed output is off"),
        ("speed", {"timing": None}, "rejected", "no timing"),
        ("speed", {"timing": {**TIMING, "density": 1.5}}, "error", "agreed form"),
        ("speed", {"timing": {**TIMING, "ratios": [0.0]}}, "error", "agreed form"),
        ("numerics", {"lost": True}, "error", "SIGSEGV"),
        ("speed", {"lost": True}, "error", "SIGSEGV"),
        ("answers", {"answers": [[1]]}, "error", "other lengths than asked"),
        ("answers", {"counts": {"77": [1]}}, "error", "contexts of other lengths"),
        ("answers", {"reads": 0}, "error", "agreed form"),
    ],
)
def test_each_gate_says_no_and_nothing_comes_after_it(
    operation: str, change: dict[str, Any], status: str, reason: str
) -> None:
    box = Scripted(**{operation: change})
    verdict = evaluate(box)
    gate = "screen" if operation == "answers" else operation
    assert (verdict.status, verdict.gate) == (status, gate)
    assert reason in verdict.reason and "\n" not in verdict.reason
    assert box.operations()[-1] == operation
    assert [item.passed for item in verdict.gates] == [True] * (len(verdict.gates) - 1) + [False]
    assert verdict.speedup is None
    assert (box.stops > 0) is (status == "error"), "a worker that cannot be believed is ended"


def test_on_a_gpu_a_run_is_rehearsed_beside_other_evaluators_before_it_is_timed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone: list[tuple[str, bool]] = []

    @contextmanager
    def turn(device: str, alone_now: bool) -> Iterator[None]:
        alone.append((device, alone_now))
        yield

    for module in (config_module, evaluator_module):
        monkeypatch.setattr(module, "device_name", lambda device: "some GPU")
    monkeypatch.setattr(config_module, "tuned_tables", lambda device: [])
    monkeypatch.setattr(turns, "turn", lambda device, alone: turn(device, alone))
    box = Scripted()
    box.seals = 1  # no tables of a GPU's are lent here
    assert evaluate(box, device="cuda", lengths=(320,)).accepted
    assert box.operations()[-3:] == ["rehearse", "speed", "answers"]
    by_name = {message["op"]: message for message in box.asked}
    assert {**by_name["rehearse"], "op": "speed"} == by_name["speed"]
    assert [seen for _, seen in alone][-3:] == [False, True, False]
    order = [message["op"] for message in box.asked]
    assert {order[i] for i, (device, _) in enumerate(alone) if device == "cpu"} == {"compile"}, "no work for the GPU"
    box = Scripted(rehearse={"lost": True})
    box.seals = 1
    verdict = evaluate(box, device="cuda")
    assert (verdict.status, verdict.gate) == ("error", "speed") and box.stops == 1


def test_the_folder_is_sealed_once_and_a_worker_whose_folder_was_changed_is_opened_again() -> None:
    box = Scripted()
    evaluator = Evaluator(CONFIG, suite=SUITE, sandbox=box)  # type: ignore[arg-type]
    assert evaluator.evaluate(QUEST).accepted and evaluator.evaluate(QUEST).accepted
    assert box.seals == 1 and [message["op"] for message in box.asked].count("open") == 1
    box.intact = False
    assert evaluator.evaluate(QUEST).accepted
    assert [message["op"] for message in box.asked].count("open") == 2


def test_in_the_prefill_phase_the_program_reads_before_it_answers() -> None:
    box = Scripted(read={})
    source = search_spaces.load("quest").source
    Evaluator(replace(CONFIG, phase="prefill"), suite=SUITE, sandbox=box).evaluate(source)  # type: ignore[arg-type]
    operations = box.operations()
    assert operations.index("read") == operations.index("answers") - 1 and operations.count("read") == 1
    box = Scripted()
    evaluate(box)
    assert "read" not in box.operations()


@pytest.mark.parametrize(("device", "drift", "alarms"), [("cuda", 0.2, 1), ("cuda", 0.05, 0), ("cpu", 0.2, 0)])
def test_a_clock_that_changed_on_a_gpu_is_an_alarm(device: str, drift: float, alarms: int) -> None:
    box = Scripted(speed={"timing": {**TIMING, "drift": drift}})
    evaluator = Evaluator(CONFIG, suite=SUITE, sandbox=box)  # type: ignore[arg-type]
    evaluator.open()
    evaluator.config = replace(CONFIG, device=device)
    evaluator._conditions = dict  # type: ignore[method-assign]  # no GPU is asked for its name here
    found = evaluator.evaluate(QUEST).alarms
    assert len(found) == alarms and all("clocks changed" in alarm and "20 %" in alarm for alarm in found)


def test_reading_everything_may_err_by_rounding_and_no_more() -> None:
    assert evaluate(Scripted(fidelity={"density": 1.0, "selection_error": 0.9e-3, "error_mean": 0.5})).accepted
    assert evaluate(Scripted(fidelity={"density": 0.9, "selection_error": 0.5})).accepted


def test_the_screen_rejects_only_what_surely_keeps_too_little() -> None:
    nothing = evaluate(Scripted(lambda *_: False))
    assert (nothing.gate, nothing.answers) == ("screen", 16)
    upper = nothing.gates[-1].details["kept_upper"]
    assert 0 < upper < SCREEN_FLOOR == 0.2
    one = evaluate(Scripted(lambda task, number, order: number == 0))
    assert one.accepted and one.gate_result("screen").details["kept_upper"] > SCREEN_FLOOR  # type: ignore[union-attr]


@pytest.mark.parametrize(("ties", "orders"), [(TIE_SHARE, ["forward"]), (0.02, ["forward", "reversed"])])
def test_where_ties_decide_the_worse_order_counts(ties: float, orders: list[str]) -> None:
    """The reversed order answers half of the questions and reads twice as much."""
    box = Scripted(lambda task, number, order: order == "forward" or number % 2 == 0, fidelity={"ties": ties})
    verdict = evaluate(box)
    asked = [message["order"] for message in box.asked if message["op"] == "answers"]
    assert asked == orders * 2 and TIE_SHARE == 0.01
    assert verdict.accuracy is not None
    worse = len(orders) == 2
    assert verdict.accuracy.value == pytest.approx(0.5 if worse else 1.0)
    assert verdict.density == pytest.approx(0.5 if worse else 0.25)


def test_no_more_is_asked_of_a_program_that_surely_keeps_too_little() -> None:
    """What is asked one third at a time ends once the bet against half of dense is won."""
    config = replace(CONFIG, contexts=24)
    suite = make_suite(config)

    def found(right: Right, stop_below: float) -> tuple[Verdict, int]:
        box = Scripted(right)
        box.suite = suite
        changed = replace(config, stop_below=stop_below)
        verdict = Evaluator(changed, suite=suite, sandbox=box).evaluate(QUEST)  # type: ignore[arg-type]
        return verdict, box.operations().count("answers")

    poor, good = (lambda task, number, order: number % 4 == 0), (lambda task, number, order: number % 4 != 0)
    stopped, asked = found(poor, 0.5)
    assert stopped.accepted and asked < 4 and stopped.answers < len(suite.forks) == 192
    assert stopped.conditions["stopped"]["p"] <= 0.025 and stopped.conditions["stopped"]["of"] == 192
    assert stopped.accuracy is not None and stopped.accuracy.value == pytest.approx(0.25, abs=0.05)
    assert stopped.non_inferiority["decision"] == "inferior"
    whole, asked = found(poor, 0.0)
    assert asked == 2 and whole.answers == 192 and "stopped" not in whole.conditions
    kept, asked = found(good, 0.5)
    assert asked == 4 and kept.answers == 192 and "stopped" not in kept.conditions
    assert kept.non_inferiority["margin"] == config.margin == 0.02


def test_a_program_may_be_limited_in_what_it_keeps() -> None:
    kept = evaluate(Scripted(), speed="predicted").state
    # Minimum and maximum of 128 channels in bf16 a page of 16 tokens, 8 KV heads and 36 layers; keys and values.
    assert kept["state"] == 2 * 128 * 2 / 16 * 8 * 36 and kept["kv"] == 2 * 128 * 2 * 8 * 36
    assert kept["device"] == "h200" and kept["batch"] == {"320": int(1.41e11 // (320 * (kept["state"] + kept["kv"])))}
    on_cpu = evaluate(Scripted()).state
    assert on_cpu["kv"] == 2 * kept["kv"] and on_cpu["batch"] == {"320": None}
    box = Scripted()
    refused = evaluate(box, max_state=kept["state"] - 1, speed="predicted")
    assert (refused.status, refused.gate) == ("rejected", "parse") and "9,216 bytes of state" in refused.reason
    assert box.operations() == []
    assert evaluate(Scripted(), max_state=kept["state"], speed="predicted").accepted


def test_the_pages_with_the_needle_are_found_by_the_parent() -> None:
    samples = make_suite(replace(CONFIG, tasks=("needles", "chain", "frequent", "late"), lengths=(640,)))
    for row, (i, turn) in enumerate(samples.forks):
        sample = samples.samples[i]
        pages = samples.needle_pages(row, 16)
        if sample.task in ("frequent", "late"):
            assert pages == []
            continue
        answer = sample.turns[turn].answer
        held = {token for page in pages for token in sample.context[16 * page : 16 * page + 16]}
        assert pages and set(answer) <= held
    verdict = evaluate(Scripted())
    assert verdict.gate_result("fidelity").details["needle_hits"] == pytest.approx(0.25)  # type: ignore[union-attr]
    assert "picked" not in verdict.gate_result("fidelity").details  # type: ignore[union-attr]


def test_the_ladder_stops_what_lies_behind_and_an_audit_goes_on() -> None:
    def judged(audit: float) -> Verdict:
        evaluator = Evaluator(replace(CONFIG, audit_share=audit, promoted=0.5), suite=SUITE, sandbox=Scripted())  # type: ignore[arg-type]
        evaluator.rank_among([(50.0, 1.1)] * 30)
        return evaluator.evaluate(QUEST)

    stopped, audited = judged(0.0), judged(1.0)
    assert (stopped.status, stopped.gate) == ("rejected", "screen") and "behind 30 of 31 programs" in stopped.reason
    assert stopped.speedup is None
    assert (audited.status, audited.gate) == ("rejected", "screen") and audited.speedup is not None
    assert audited.conditions["audit"] is True and audited.answers == len(SUITE.forks)


def test_a_task_that_dense_attention_seldom_solves_does_not_count() -> None:
    def some(task: str, number: int, order: str) -> bool:
        return task == "keys" or number % 4 == 0

    verdict = evaluate(Scripted(right_densely=some))
    assert set(verdict.per_task) == {"keys"} and verdict.contexts == 4
    assert verdict.conditions["left_out"] == ["needles"] and verdict.conditions["dense_scores"]["needles"] == 0.25
    half = evaluate(Scripted(right_densely=lambda task, number, order: task == "keys" or number % 2 == 0))
    assert set(half.per_task) == {"keys", "needles"} and EvaluationConfig().dense_floor == 0.5
    with pytest.raises(VortexError, match="nothing tells programs apart"):
        evaluate(Scripted(right_densely=lambda *_: False))


def test_the_screen_asks_few_short_questions_and_fidelity_one_of_every_task() -> None:
    def sample(task: str, index: int, *sizes: int) -> Sample:
        return Sample(task, 320, index, [5] * 320, [Turn([3] * size, [7]) for size in sizes])

    suite = Suite((sample("a", 0, 4, 40), sample("a", 1, 4), sample("a", 2, 4), sample("b", 0, 32, 33)))
    assert suite.forks == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1)]
    assert suite.split(2) == ([0, 2, 4], [1, 3, 5])
    assert suite.watched() == [0, 4]
    long = Suite((sample("a", 0, 40), sample("a", 1, 40)))
    assert long.split(1) == ([0], [1]), "where all are long, long ones are asked"


def test_an_answer_counts_only_when_all_of_it_is_right() -> None:
    class Careless(Scripted):
        def _answer(self, pair: list[int], order: str, operation: str) -> list[int]:
            answer = super()._answer(pair, order, operation)
            return answer if operation == "dense" else [*answer[:-1], answer[-1] + 1]

    assert all(len(turn.answer) > 1 for sample in SUITE.samples for turn in sample.turns)
    verdict = evaluate(Careless())
    assert verdict.gate == "screen" and verdict.accuracy is not None and verdict.accuracy.value == 0.0


def test_dense_answers_of_other_lengths_are_refused() -> None:
    with pytest.raises(VortexError, match="other lengths than asked"):
        evaluate(Scripted(dense={"answers": [[1]]}))


def test_measured_speed_is_that_of_the_paired_ratios_and_predicted_speed_is_the_models() -> None:
    measured = evaluate(Scripted())
    assert measured.speedup is not None and measured.speedup.value == pytest.approx(4.0)
    assert measured.speedup.low < 4.0 <= measured.speedup.high
    assert measured.conditions["speed"] == "measured" and "predicted" not in measured.conditions["device"]
    assert measured.conditions["tables"] == [] and "data" not in measured.conditions
    assert measured.conditions["inputs"] == {"320": "recorded"}
    assert measured.stages["measured_ms"]["320"]["dense_ms"] == 4.0
    details = measured.gate_result("speed").details["320"]  # type: ignore[union-attr]
    assert details["sparse_ms"] == 1.0 and "ratios" not in details and measured.speed_samples["320"] == TIMING["ratios"]
    box = Scripted()
    predicted = evaluate(box, speed="predicted")
    assert predicted.speedup is not None and "speed" not in box.operations()
    assert predicted.speedup.value == predicted.predicted_speedup and not predicted.speed_samples
    assert predicted.conditions["device"] == "h200 (predicted)" and "tables" not in predicted.conditions
    assert set(predicted.stages["predicted"]) == {"h200", "cpu"}
    assert predicted.conditions["batch"] == {"320": (1 << 20) // 320}  # the GPU's, wherever the campaign runs
    asked = evaluate(Scripted(), speed="predicted", batch_tokens=32 * 320, geometry="qwen3-1.7b")
    stage = asked.stages["predicted"]["h200"]["320"]
    assert asked.conditions["batch"] == {"320": 32} and (stage["batch"], stage["geometry"]["group"]) == (32, 2)
    assert asked.speedup is not None and asked.speedup.value == pytest.approx(stage["speedup_over_dense"])
    assert [gate.name for gate in predicted.gates][-2:] == ["accuracy", "speed"]


def test_the_compile_gate_can_be_left_out_and_names_its_targets() -> None:
    box = Scripted()
    evaluate(box)
    asked = next(message for message in box.asked if message["op"] == "compile")
    assert asked["targets"] == ["sm_90"] and asked["geometry"]["name"] == CONFIG.geometry
    box = Scripted()
    evaluate(box, compile_for=())
    assert "compile" not in box.operations()


def test_a_package_says_under_which_conditions_its_numbers_hold() -> None:
    """All of a verdict's conditions, but for paths and what speaks of this machine's sandbox."""
    measured = evaluate(Scripted()).conditions
    assert set(measured) - set(exporting._CONDITIONS) == {"model", "left_out", "network", "walls"}


def test_the_worker_is_told_no_answers() -> None:
    box = Scripted()
    evaluate(box)
    opened = next(message for message in box.asked if message["op"] == "open")
    assert all(set(turn) == {"question", "answer"} for item in opened["contexts"] for turn in item["turns"])
    assert all(isinstance(turn["answer"], int) for item in opened["contexts"] for turn in item["turns"])


def test_what_keeps_a_worker_from_opening_is_told_in_one_line() -> None:
    def said(box: Scripted) -> str:
        with pytest.raises(VortexError) as error:
            Evaluator(CONFIG, suite=SUITE, sandbox=box).open()  # type: ignore[arg-type]
        return str(error.value)

    killed = "the evaluation worker cannot be opened: the worker was killed by SIGSEGV"
    assert said(Scripted(hello={"lost": True})) == killed
    assert said(Scripted(dense={"lost": True})) == killed
    box = Scripted()
    box.request = lambda message, seconds=None: {"refused": "no model here"}  # type: ignore[method-assign]
    assert said(box) == "no model here"


@pytest.mark.parametrize(("device", "lent"), [("cuda", 1), ("cpu", 0)])
def test_tuned_tables_are_lent_to_a_worker_on_a_gpu_before_its_folder_is_sealed(
    device: str, lent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vortexlab.evaluator import workplace as module
    from vortexlab.kernels.gpu import tuning

    asked: list[tuple[str, bool]] = []
    box = Scripted()
    box.scratch = None  # type: ignore[attr-defined]
    monkeypatch.setattr(tuning, "lend", lambda name, folder: asked.append((name, box.sealed)))
    monkeypatch.setattr(module, "device_name", lambda device: "a GPU")
    evaluator = Evaluator(CONFIG, suite=SUITE, sandbox=box)  # type: ignore[arg-type]
    object.__setattr__(evaluator.config, "device", device)
    try:
        evaluator.open()
        evaluator._place.opened = False
        evaluator.open()
    finally:
        object.__setattr__(evaluator.config, "device", "cpu")
    assert asked == [("a GPU", False)] * lent and box.seals == 1


def test_an_evaluator_makes_what_it_is_not_given_and_opens_when_it_is_asked() -> None:
    with Evaluator(CONFIG) as plain:
        assert not plain._place.sandbox.limits.cuda and plain.suite.forks == SUITE.forks

    def fresh() -> Evaluator:
        return Evaluator(CONFIG, suite=SUITE, sandbox=Scripted())  # type: ignore[arg-type]

    assert fresh().suite is SUITE
    assert sorted(fresh().tasks) == ["keys", "needles"]
    assert fresh().dense_scores() == {"needles": 1.0, "keys": 1.0}
    assert len(fresh().dense_row().outcomes) == len(SUITE.samples)


def test_what_is_no_program_keeps_the_knobs_that_were_asked_for() -> None:
    box = Scripted()
    evaluator = Evaluator(CONFIG, suite=SUITE, sandbox=box)  # type: ignore[arg-type]
    assert evaluator.evaluate("nonsense", {"budget": 3}).knobs == {"budget": 3}
    found = evaluator.evaluate("nonsense")
    assert found.knobs == {} and (found.status, found.gate) == ("rejected", "parse")


def test_an_unknown_device_or_depth_is_refused() -> None:
    with pytest.raises(VortexError, match="abacus"):
        Evaluator(replace(CONFIG, predicted_device="abacus"), suite=SUITE, sandbox=Scripted())  # type: ignore[arg-type]
    with pytest.raises(VortexError, match="'deep'"):
        Evaluator(CONFIG, suite=SUITE, sandbox=Scripted()).evaluate(QUEST, fidelity="deep")  # type: ignore[arg-type]


def test_the_worker_is_started_once_and_ends_with_the_evaluator() -> None:
    box = Scripted()
    with Evaluator(CONFIG, suite=SUITE, sandbox=box) as evaluator:  # type: ignore[arg-type]
        assert box.starts == 0
        evaluator.evaluate(QUEST)
        evaluator.evaluate(TOP_P)
        assert (box.starts, box.ends) == (1, 0)
    assert box.ends == 1


def test_a_text_that_is_no_program_comes_back_with_its_diagnostics() -> None:
    text = "@program(page=16)\nclass Odd:\n    def select(score):\n        return topk(score, 4)\n"
    verdict = evaluate(Scripted(), text)
    (gate,) = verdict.gates
    assert (verdict.status, verdict.gate) == ("rejected", "parse") and gate.details["diagnostics"][0]["line"] >= 1
    wrong = Evaluator(CONFIG, suite=SUITE, sandbox=Scripted()).evaluate(QUEST, {"budget": -1})  # type: ignore[arg-type]
    assert (wrong.status, wrong.gate) == ("rejected", "parse") and "diagnostics" not in wrong.gates[0].details


def test_no_speed_is_told_of_a_program_that_was_stopped_before_its_gate() -> None:
    stopped = evaluate(Scripted(fidelity={"finite": False}), speed="predicted")
    assert (stopped.status, stopped.gate, stopped.speedup) == ("rejected", "fidelity", None)
    assert stopped.predicted_speedup is not None
    assert evaluate(Scripted(), speed="predicted").speedup is not None


def test_what_the_worker_remarks_on_opening_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Evaluator(CONFIG, suite=SUITE, sandbox=Scripted()).open()  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    Evaluator(CONFIG, suite=SUITE, sandbox=Scripted(open={"prefilled": 3})).open()  # type: ignore[arg-type]
    assert capsys.readouterr().err == "", "nothing is kept where no contexts are to be"
    box = Scripted(open={"note": "read in pieces\x1b[31m\nand slowly"})
    Evaluator(CONFIG, suite=SUITE, sandbox=box).open()  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.startswith("vortex: read in pieces") and said.count("\n") == 1 and said.strip().isprintable()


def test_an_evaluator_that_ends_lets_go_of_its_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path))
    box = Scripted()
    evaluator = Evaluator(replace(CONFIG, context_cache=1.0), suite=SUITE, sandbox=box)  # type: ignore[arg-type]
    evaluator._place.hello = evaluator._place._greet()
    cache = evaluator._place._cache()
    assert cache is not None
    closed: list[bool] = []
    monkeypatch.setattr(cache, "close", lambda: closed.append(True))
    evaluator.close()
    assert closed == [True]
