"""A campaign's evaluator that needs no model: verdicts that follow from the program and its knobs alone.

Run as a script it works on one campaign until the budget is spent, for tests that kill it.
"""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.pool import Here
from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.evaluator.verdict import GATES, Estimate, GateResult, Outcome, Verdict
from vortexlab.search_spaces.library import seeds

CONTEXTS = 12
#: A program for a scripted model, another one for each `n`.
ANSWER = """
@program(page=16)
class Answer{n}:
    budget = knob.int(4, 512, log=True, default={n})
    def summarize(k):
        return dict(c=k.mean(token))
    def score(q, s):
        return (dot(q, s.c, channel).max(head) + {n}) * {n}
    def select(score):
        return topk(score, budget) | first({n}) | last(2)
"""
SEED_NAMES = {parse(text).name for text in seeds().values()}


class FakeEvaluator:
    """Speed-up falls and accuracy rises with the page budget, and the program's hash decides how good it is.

    Of the programs that are no seeds, every thirteenth hash is rejected at the fidelity gate and every nineteenth
    loses its worker. `seconds` is slept.
    """

    def __init__(self, environment: str = "fake", seconds: float = 0.0):
        self.environment, self.seconds = environment, seconds
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.points: list[tuple[float, float]] = []
        self.closed = False

    def evaluate(
        self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full", parameters: Any = None
    ) -> Verdict:
        self.calls.append((source, dict(knobs or {})))
        time.sleep(self.seconds)
        program = parse(source)
        bound = program.bind(knobs)
        mark, structure = canonical_hash(bound), structure_hash(program)
        number = int(mark[:8], 16)
        base = Verdict(
            program.name,
            mark,
            structure,
            dict(knobs or {}),
            "accepted",
            conditions={"predicted_device": "fake", "speed": "predicted"},
        )
        if program.name not in SEED_NAMES and number % 13 == 0:
            return self._stopped(base, "rejected", "fidelity", "keeps 0.10 of the mass")
        if program.name not in SEED_NAMES and number % 19 == 0:
            return self._stopped(base, "error", "numerics", "the worker was lost")
        return self._measured(base, density(program.name, knobs or {}), structure)

    def _stopped(self, base: Verdict, status: str, gate: str, reason: str) -> Verdict:
        reached = GATES[: GATES.index(gate) + 1]
        gates = tuple(GateResult(name, name != gate, 0.01, reason if name == gate else "") for name in reached)
        return Verdict(**{
            **base.__dict__, "status": status, "gate": gate, "reason": reason, "gates": gates, "speedup": None,
            "accuracy": None, "outcomes": (),
        })  # fmt: skip

    def _measured(self, base: Verdict, share: float, structure: str) -> Verdict:
        skill = 0.5 + (int(structure[:6], 16) % 1000) / 1000
        rng = random.Random(base.source_hash)
        kept = 1.0 if share == 1.0 else 1 - math.exp(-skill * 12 * share)
        outcomes = tuple(
            Outcome(task, f"{task}{n}", 4096, 4, 4, 4 if share == 1.0 else sum(rng.random() < kept for _ in range(4)))
            for task in ("needle", "many") for n in range(CONTEXTS)
        )  # fmt: skip
        value = sum(item.sparse for item in outcomes) / sum(item.dense for item in outcomes)
        speed = 1 / (share + 0.05 * (1 - share) * (0.5 + skill))
        return Verdict(**{
            **base.__dict__,
            "gates": tuple(GateResult(name, True, 0.01) for name in GATES),
            "speedup": Estimate(speed, speed, speed),
            "accuracy": Estimate(value, max(0.0, value - 0.05), min(1.0, value + 0.05)),
            "density": share,
            "answers": 8 * CONTEXTS,
            "contexts": 2 * CONTEXTS,
            "outcomes": outcomes,
            "seconds": 0.1,
        })  # fmt: skip

    def rank_among(self, points: Iterable[tuple[float, float]]) -> None:
        self.points = list(points)

    def close(self) -> None:
        self.closed = True


class Threads:
    """A pool of fake evaluators in threads; each evaluation takes some milliseconds, by a seed of its own."""

    def __init__(self, width: int, seed: int = 0, seconds: float = 0.01):
        self.environment, self.width = "fake", width
        self.asked: list[tuple[str, list[tuple[float, float]]]] = []
        self.most = self._now = 0
        self._rng, self._seconds = random.Random(seed), seconds
        self._threads = ThreadPoolExecutor(width)

    def submit(
        self, source: str, knobs: Mapping[str, Any], points: Iterable[tuple[float, float]]
    ) -> Future[Verdict]:
        self.asked.append((source, list(points)))
        delay = self._seconds * 2 * self._rng.random()
        return self._threads.submit(self._evaluate, source, dict(knobs), delay)

    def oracle(self, source: str, knobs: Mapping[str, Any]) -> Future[Verdict | None]:
        done: Future[Verdict | None] = Future()
        done.set_result(None)
        return done

    def _evaluate(self, source: str, knobs: dict[str, Any], delay: float) -> Verdict:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return FakeEvaluator(seconds=delay).evaluate(source, knobs)
        finally:
            self._now -= 1

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def density(name: str, knobs: dict[str, Any]) -> float:
    if name == "Dense" or not knobs:
        return 1.0
    pages = 4096 / knobs.get("page", 16)
    read = sum(float(knobs.get(key, 0)) for key in ("budget", "sink", "recent", "random_pages"))
    read += knobs.get("fraction", 0.0) * pages + pages / knobs.get("stride_pages", pages)
    return min(1.0, (read + 1) / pages)


def config(runs: Path, **changes: Any) -> CampaignConfig:
    return CampaignConfig(**{"name": "run", "runs": str(runs), "evaluations": 28, "mirror": False, **changes})


def in_child(action: Callable[[], str]) -> str:
    """Runs the action in a forked process and returns the line it gives back."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            line = action()
        except BaseException as error:
            line = f"{type(error).__name__}: {error}"
        os.write(write_end, line.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        line = pipe.read()
    os.waitpid(pid, 0)
    return line


if __name__ == "__main__":
    folder, seconds, evaluations, mirror, *more = sys.argv[1:]
    width = int(more[0]) if more else 1
    settings = config(Path(folder), evaluations=int(evaluations), mirror=mirror == "mirror", parallel=width)
    pool = Threads(width, os.getpid(), float(seconds)) if width > 1 else Here(FakeEvaluator(seconds=float(seconds)))
    Campaign(settings, pool=pool).run(
        lambda state: print(state.phase, state.recorded, flush=True)
    )
