"""A simulated night: what 10,000 evaluations leave behind, and what they cost the controller.

Everything is what a campaign runs (grammar proposer, bandit, sampler, store with a commit for every event, the copy for
optuna-dashboard) but the evaluator: it takes one verdict of the real one and draws every number of it anew, so that
verdicts have the size, and nearly the entropy, of real ones. Prints, and writes as JSON, the memory of the controller
with its slope over the second half, the size of the store, and the seconds that the commands take on it, each in a
process of its own: during the last evaluation, when the campaign is at work, and when it has ended.

    python -m benchmarks.night --evaluations 10000 --out night.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.store import FILE
from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.evaluator.config import EvaluationConfig, versions
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.verdict import Verdict
from vortexlab.search_spaces.library import source

AT_WORK = (("status",), ("leaderboard",))
COMMANDS = (*AT_WORK, ("leaderboard", "--json"), ("report",), ("runs",))
REPEATS = 3


class Drawn:
    """Verdicts that look like `real`, with numbers drawn from the program's hash; one in five is rejected."""

    environment = "night"

    def __init__(self, real: Verdict, begun: Callable[[], None]):
        self._real, self._begun = real.to_json(), begun

    def rank_among(self, points: Iterable[tuple[float, float]]) -> None:
        list(points)

    def evaluate(self, text: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        self._begun()
        program = parse(text)
        mark = canonical_hash(program.bind(knobs))
        rng = random.Random(mark)
        data = _redrawn(self._real, rng)
        data.update(program=program.name, source_hash=mark, structure=structure_hash(program), knobs=dict(knobs or {}))
        data["conditions"] = self._real["conditions"]
        skill = rng.random()
        data["outcomes"] = [
            [*row[:4], row[4], sum(rng.random() < skill for _ in range(row[4]))] for row in self._real["outcomes"]
        ]
        kept = sum(row[5] for row in data["outcomes"]) / max(1, sum(row[4] for row in data["outcomes"]))
        speed = (1 + rng.random()) / (0.1 + skill)
        data["speedup"] = {"value": speed, "low": 0.97 * speed, "high": 1.03 * speed}
        data["accuracy"] = {"value": kept, "low": max(0.0, kept - 0.06), "high": min(1.0, kept + 0.06)}
        if rng.random() < 0.2:
            gates = data["gates"][:4]
            gates[-1] = {**gates[-1], "passed": False, "reason": f"keeps {kept:.2f} of the mass"}
            data.update(status="rejected", gate=gates[-1]["name"], reason=gates[-1]["reason"], gates=gates,
                        speedup=None, accuracy=None, outcomes=[], per_task={})  # fmt: skip
        return Verdict.from_json(data)

    def close(self) -> None:
        return


def _redrawn(value: Any, rng: random.Random) -> Any:
    if isinstance(value, float):
        return value * (0.8 + 0.4 * rng.random())
    if isinstance(value, dict):
        return {key: _redrawn(item, rng) for key, item in value.items()}
    return [_redrawn(item, rng) for item in value] if isinstance(value, list) else value


def _memory_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=250, help="evaluations between two looks at the memory")
    parser.add_argument("--runs", type=Path, help="folder of the run, which is kept; by default a temporary one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with Evaluator(EvaluationConfig(speed="predicted")) as evaluator:
        real = evaluator.evaluate(source("quest"))
    with tempfile.TemporaryDirectory() as made:
        result = measure(options.evaluations, options.every, options.runs or Path(made), real)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(evaluations: int, every: int, runs: Path, real: Verdict) -> dict[str, Any]:
    memory: list[tuple[int, float]] = []
    at_work: dict[str, list[float]] = {}
    began, evaluated = time.monotonic(), 0

    def look() -> None:
        if evaluated == evaluations - 1 and not at_work:
            at_work.update({" ".join(command): _timed(command, runs) for command in AT_WORK})

    def watch(state: Any) -> None:
        nonlocal evaluated
        evaluated = state.evaluations
        if state.phase == "recorded" and state.recorded % every == 0:
            memory.append((state.recorded, _memory_mb()))
            print(f"{state.recorded} recorded, {memory[-1][1]:.0f} MB, {time.monotonic() - began:.0f} s", flush=True)

    config = CampaignConfig(name="night", runs=str(runs), evaluations=evaluations)
    state = Campaign(config, evaluator=Drawn(real, look)).run(watch).state
    later = memory[len(memory) // 2 :]
    slope = float(np.polyfit(*zip(*later, strict=True), 1)[0]) if len(later) > 1 else float("nan")
    folder = runs / "night"
    return {
        "evaluations": state.evaluations,
        "recorded": state.recorded,
        "seconds": time.monotonic() - began,
        "bytes_of_a_verdict": len(json.dumps(real.to_json())),
        "memory_mb": memory,
        "memory_mb_per_1000": 1000 * slope,
        "store_mb": (folder / FILE).stat().st_size / 1e6,
        "mirror_mb": (folder / "study.journal").stat().st_size / 1e6,
        "command_seconds_at_work": at_work,
        "command_seconds": {" ".join(command): _timed(command, runs) for command in COMMANDS},
        "report_mb": (folder / "report.html").stat().st_size / 1e6,
        "machine": platform.processor() or platform.machine(),
        "versions": versions(),
    }


def _timed(command: tuple[str, ...], runs: Path) -> list[float]:
    """Seconds of the whole process, several times."""
    name, *rest = command
    words = [sys.executable, "-m", "vortexlab.cli", name, *([] if name == "runs" else ["night"]), *rest]
    taken = []
    for _ in range(REPEATS):
        began = time.monotonic()
        subprocess.run([*words, "--runs", str(runs)], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.monotonic() - began)
    print(f"{' '.join(command)}: {statistics.median(taken):.2f} s", flush=True)
    return taken


if __name__ == "__main__":
    main()
