"""What a proposal costs beside its evaluation: the controller and the proposers over a long campaign.

The evaluator is trivial, the language model a script in this process, and everything else what a campaign runs: the
bandit, the prompt, reading the reply, the sampler of the knobs, and the store with a commit to disk for every event.
Prints the mean milliseconds of the first and of the last proposals, by the clock (which other work on the machine
lengthens) and of this process's CPU time, and writes them as JSON.

    python -m benchmarks.proposer_overhead --proposals 2000 --out overhead.json
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import random
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from vortexlab.agent import assemble
from vortexlab.agent.budget import Budget
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.base import Proposer
from vortexlab.agent.proposers.endpoint import Call, Completion
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.proposers.llm import LLMProposer
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.trials import History
from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.testing import random_program
from vortexlab.evaluator.config import versions
from vortexlab.evaluator.verdict import GATES, Estimate, GateResult, Verdict

_Seconds = tuple[float, float]  # by the clock, and of the CPU


def _now() -> _Seconds:
    return time.perf_counter(), time.process_time()


def _since(began: _Seconds) -> _Seconds:
    clock, cpu = _now()
    return clock - began[0], cpu - began[1]


class Trivial:
    """Verdicts drawn from the program's hash; one in five is rejected."""

    environment = "trivial"

    def __init__(self) -> None:
        self.spans: list[_Seconds] = []  # of each evaluation, which are not overhead

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        began = _now()
        program = parse(source)
        mark = canonical_hash(program.bind(knobs))
        rng = random.Random(mark)
        kept, rejected = rng.random(), rng.random() < 0.2
        speed = Estimate(*[(1 + rng.random()) / (0.1 + kept)] * 3)
        gates = tuple(GateResult(name, not rejected, 0.0) for name in (GATES[:3] if rejected else GATES))
        verdict = Verdict(
            program.name, mark, structure_hash(program), dict(knobs or {}), "rejected" if rejected else "accepted",
            gate=GATES[2] if rejected else None, reason=f"keeps {kept:.2f} of the mass" if rejected else "",
            gates=gates, speedup=None if rejected else speed, accuracy=None if rejected else Estimate(kept, kept, kept),
            density=kept, conditions={"speed": "predicted"}, seconds=0.1,
        )  # fmt: skip
        self.spans.append(_since(began))
        return verdict

    def rank_among(self, points: Any) -> None:
        list(points)

    def close(self) -> None:
        return


class Script:
    """A model that writes random typed programs; every tenth reply is prose and goes back once."""

    label = "script"

    def __init__(self) -> None:
        self.spent = (0.0, 0.0)  # in answers, which are no overhead

    def complete(self, call: Call) -> Completion:
        began = _now()
        answer = self._answer(call)
        clock, cpu = _since(began)
        self.spent = self.spent[0] + clock, self.spent[1] + cpu
        return answer

    def _answer(self, call: Call) -> Completion:
        seed = call.request["seed"]
        if seed % 10 == 0 and call.attempt == 0:
            return Completion("let me think", (12_000, 4))
        rng = random.Random(seed)
        while True:
            text = random_program(rng)
            try:
                parse(text).bind()
                break
            except VortexError:
                continue
        reply = {"hypothesis": f"idea {seed}", "predicted_effect": {"speedup": 2.0, "accuracy": 0.9}, "program": text}
        return Completion(json.dumps(reply), (12_000, 400))

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        return


def measure(proposals: int, runs: Path, mirror: bool) -> list[_Seconds]:
    """Milliseconds of each slot in order, evaluation and answers of the model aside, by the clock and of the CPU."""
    limits = LLMConfig((ModelConfig("script"),), calls=10**9, tokens=10**12)
    config = CampaignConfig(
        name="overhead", runs=str(runs), evaluations=proposals, attempts=1.0, mirror=mirror,
        proposers=("grammar", "llm"), llm=limits,
    )  # fmt: skip
    evaluator, script = Trivial(), Script()

    def proposers(record: assemble.Recorder, history: History) -> list[Proposer]:
        budget, about = Budget(limits.calls, limits.tokens), assemble.briefing(config)
        exchange = partial(record, "exchange")
        return [GrammarProposer(), LLMProposer(limits.models[0], limits, about, exchange, budget, script)]

    marks = [_now()]  # less what the script took so far

    def watch(state: Any) -> None:
        if state.phase == "recorded":
            clock, cpu = _now()
            marks.append((clock - script.spent[0], cpu - script.spent[1]))

    Campaign(config, evaluator=evaluator, proposers=proposers).run(watch)
    spans = zip(marks, marks[1:], evaluator.spans, strict=False)
    return [
        (1000 * (end[0] - begin[0] - evaluation[0]), 1000 * (end[1] - begin[1] - evaluation[1]))
        for begin, end, evaluation in spans
    ]


def _summary(milliseconds: list[float]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(milliseconds), "median": statistics.median(milliseconds), "max": max(milliseconds),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--proposals", type=int, default=2000)
    parser.add_argument("--window", type=int, default=200, help="proposals of the first and of the last mean")
    parser.add_argument("--no-mirror", action="store_true", help="without the copy for optuna-dashboard")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        if options.profile:
            profile.enable()
        spans = measure(options.proposals, Path(folder), not options.no_mirror)
        profile.disable()
    window = min(options.window, len(spans) // 2)
    first, first_cpu = map(list, zip(*spans[:window], strict=True))
    last, last_cpu = map(list, zip(*spans[-window:], strict=True))
    result = {
        "proposals": len(spans),
        "window": window,
        "mirror": not options.no_mirror,
        "first_ms": _summary(first),
        "last_ms": _summary(last),
        "first_cpu_ms": _summary(first_cpu),
        "last_cpu_ms": _summary(last_cpu),
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
    }
    for name, part, cpu in (("first", first, first_cpu), ("last", last, last_cpu)):
        mean, busy = statistics.fmean(part), statistics.fmean(cpu)
        print(f"{name} {window}: {mean:.1f} ms a proposal, {busy:.1f} ms of the CPU")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
