"""Random faults of the worker: the controller goes on, no verdict is wrong, no process and no file is left.

A few hundred always, ten thousand with `make test-all`, and two hundred of the evaluator's own worker.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_evaluator_evaluate import CONFIG as REAL_CONFIG
from test_evaluator_rules import CONFIG as RULES_CONFIG
from test_evaluator_rules import FIDELITY, MODEL, NUMERICS, QUEST, TIMING

from vortexlab.evaluator import procfs
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.sandbox import Limits, Sandbox
from vortexlab.evaluator.verdict import Verdict

CONFIG = replace(RULES_CONFIG, tasks=("keys",), contexts=2, screen_contexts=1, turns=1, compile_for=())
SUITE = make_suite(CONFIG)
#: The requests of one evaluation, and the gate that each belongs to.
GATES = ("numerics", "numerics", "fidelity", "screen", "speed", "accuracy")
#: What the worker does instead of answering -> the kind of loss; empty: the answer comes, and counts.
FAULTS = {
    "hang": "time", "stop": "time", "cut off": "time", "kill": "crash", "exit": "crash", "truncated": "crash",
    "child": "crash", "out of memory": "memory", "memory": "memory", "garbage": "garbage time",
    "garbage in a frame": "garbage", "endless": "garbage", "twice": "garbage", "another form": "garbage",
    "another question": "garbage", "a bit": "garbage", "says so": "rejected", "slow": "", "noisy": "",
}  # fmt: skip


class FaultyBox(Sandbox):
    """Runs `faulty_worker`, and tells it at which request of an evaluation to fail, and how."""

    bubblewrap = False
    fault, at, seed, asked = "", -1, 0, 0

    def command(self) -> list[str]:
        return [sys.executable, "-I", "-S", str(Path(__file__).with_name("faulty_worker.py")), str(self.answers)]

    @property
    def answers(self) -> Path:
        return self.scratch.parent / "answers.json"

    def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        if message["op"] in ("hello", "open", "dense"):
            return super().request(message, seconds=20.0)
        fails = self.asked == self.at
        self.asked += 1
        if not fails:
            return super().request(message, seconds=20.0)
        patient = "time" not in FAULTS[self.fault]
        return super().request({**message, "fault": self.fault, "seed": self.seed}, seconds=20.0 if patient else 0.12)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[FaultyBox]:
    found = FaultyBox(Limits(memory_mb=128, seconds=20.0), threads=1, scratch_root=str(tmp_path))
    texts = {f"{i} {turn}": list(SUITE.samples[i].turns[turn].answer) for i, turn in SUITE.forks}
    counts = {str(len(sample.context)): [3, 4] for sample in SUITE.samples}
    answers = {
        "hello": {"gpu": "", "network": "namespace", "walls": [], "threads": 1}, "open": {"model": MODEL}, "dense": {},
        "program": {}, "numerics": NUMERICS, "speed": {"timing": TIMING},
        "fidelity": {**FIDELITY, "picked": [[0.25] * 20 + [1.0]] * len(SUITE.watched())},
        "answers": {"density": 0.25, "reads": 1, "counts": counts}, "texts": texts,
    }  # fmt: skip
    found.answers.write_text(json.dumps(answers))
    yield found
    assert _bearing(found) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.json"]


def _bearing(box: Sandbox) -> list[int]:
    """Processes that carry the mark of the worker."""
    mark, found = f"VORTEX_WORKER={box.scratch}".encode(), []
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and mark in procfs.environment_of(entry.name).split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _plain(verdict: Verdict) -> Verdict:
    """Without the seconds that it took."""
    return replace(verdict, seconds=0.0, gates=tuple(replace(gate, seconds=0.0) for gate in verdict.gates))


def _judge(verdict: Verdict, reference: Verdict, fault: str, at: int) -> None:
    """Whether a verdict is the one that a fault at one request must have."""
    kind, where = FAULTS[fault], f"{fault} at request {at}"
    if not kind:
        assert _plain(verdict) == reference, where
        return
    rejected = kind == "rejected"
    assert verdict.status == ("rejected" if rejected else "error"), where
    assert verdict.gate == GATES[at] and verdict.gates[-1].name == GATES[at], where
    assert all(gate.passed for gate in verdict.gates[:-1]) and not verdict.gates[-1].passed, where
    assert verdict.reason.isprintable() and len(verdict.reason) < 500, where
    if not rejected:
        assert verdict.gates[-1].details["lost"] in kind.split(), f"{where}: {verdict.reason}"
    # What was known before the fault is as it was, and nothing is claimed beyond it.
    assert (verdict.speedup is None) or (at == 5 and verdict.speedup == reference.speedup), where
    known = [outcome for outcome in reference.outcomes if outcome in verdict.outcomes]
    assert len(known) == len(verdict.outcomes), where


def _storm(box: FaultyBox, count: int, seed: int) -> Counter[str]:
    rng, tally = random.Random(seed), Counter[str]()
    descriptors = None
    with Evaluator(CONFIG, suite=SUITE, sandbox=box) as evaluator:
        reference = _plain(evaluator.evaluate(QUEST))
        assert reference.accepted and box.asked == len(GATES)
        for number in range(count):
            box.fault, box.at, box.seed, box.asked = rng.choice(sorted(FAULTS)), rng.randrange(6), number, 0
            verdict = evaluator.evaluate(QUEST)
            _judge(verdict, reference, box.fault, box.at)
            tally[box.fault] += 1
            if number % 50 == 49 or number == count - 1:
                box.at, box.asked = -1, 0
                assert _plain(evaluator.evaluate(QUEST)) == reference
                box.stop()
                assert _bearing(box) == [] and list(box.scratch.iterdir()) == []
                opened = len(os.listdir("/proc/self/fd"))
                assert descriptors in (None, opened), "descriptors leak"
                descriptors = opened
    return tally


def test_random_faults(box: FaultyBox) -> None:
    assert sum(_storm(box, 50, 0).values()) == 50


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_ten_thousand_random_faults(part: int, box: FaultyBox) -> None:
    tally = _storm(box, 2500, 1 + part)
    print(sorted(tally.items()))
    assert sum(tally.values()) == 2500


# --- the evaluator's own worker ------------------------------------------------------------------------------------


class Sabotage(Sandbox):
    """The real worker, to which something happens while it works on one request."""

    at, asked, how, delay = -1, 0, "", 0.0

    def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        if message["op"] in ("hello", "open", "dense"):
            return super().request(message, seconds=seconds)
        self.asked += 1
        if self.asked - 1 != self.at:
            return super().request(message, seconds=seconds)
        if self.how == "a limit of memory":
            limits, self.limits = self.limits, replace(self.limits, memory_mb=1)
            try:
                return super().request(message, seconds=seconds)
            finally:
                self.limits = limits
        hit = threading.Thread(target=self._hit)
        hit.start()
        try:
            return super().request(message, seconds=2.0 if self.how == "STOP" else seconds)
        finally:
            hit.join()

    def _hit(self) -> None:
        time.sleep(self.delay)
        for pid in self._members(thorough=False):
            try:
                os.kill(pid, {"KILL": 9, "STOP": 19, "SEGV": 11}[self.how])
            except ProcessLookupError:
                continue


def _sabotage(count: int, seed: int) -> Counter[str]:
    rng, tally = random.Random(seed), Counter[str]()
    config = replace(REAL_CONFIG, tasks=("keys",), contexts=2, screen_contexts=1, speed="predicted")
    box = Sabotage(Limits(memory_mb=3072, seconds=120.0), threads=1)
    with Evaluator(config, sandbox=box) as evaluator:
        reference = _plain(evaluator.evaluate(QUEST, {"page": 8, "budget": 6}))
        assert reference.accepted
        for _ in range(count):
            box.asked, box.at = 0, rng.randrange(5)
            box.how, box.delay = rng.choice(["KILL", "STOP", "SEGV", "a limit of memory"]), rng.random() ** 3
            verdict = evaluator.evaluate(QUEST, {"page": 8, "budget": 6})
            tally[verdict.status] += 1
            if verdict.status == "error":
                assert verdict.speedup is None and not verdict.gates[-1].passed
                kinds = {"KILL": "crash", "STOP": "time", "SEGV": "crash", "a limit of memory": "memory"}
                # A signal that comes between two requests is found by the one after them.
                assert verdict.gates[-1].details["lost"] == kinds[box.how] or not box.running
            else:
                assert _plain(verdict) == reference, "the fault came too late, and changed nothing"
        box.at, box.asked = -1, 0
        assert _plain(evaluator.evaluate(QUEST, {"page": 8, "budget": 6})) == reference
    assert _bearing(box) == [] and not box.scratch.exists()
    return tally


@pytest.mark.slow
def test_two_hundred_faults_of_the_real_worker() -> None:
    tally = _sabotage(200, 0)
    print(sorted(tally.items()))
    assert tally["error"] >= 100
