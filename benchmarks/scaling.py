"""How evaluations scale over the workers of a Ray cluster, with an evaluator that only sleeps.

Efficiency is the time that workers spent on evaluations over workers x wall clock, from the first task of a campaign
to its last verdict, on workers that are up (a campaign before it warms them). Ray's hosts are processes of this
machine, with as many CPUs as told: sleeping needs none. What is lost is the controller's work, the queue's and Ray's.

    python -m benchmarks.scaling --workers 1 2 4 8 --seconds 2 --out scaling.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.cluster import Cluster
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.run import Run
from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.evaluator.config import EvaluationConfig, versions
from vortexlab.evaluator.verdict import GATES, Estimate, GateResult, Verdict


class Sleeper:
    """Sleeps for `config.seconds`, up to a fifth more or less by the program's hash."""

    environment = "sleep"

    def __init__(self, config: EvaluationConfig):
        self._seconds = config.seconds

    def rank_among(self, points: Iterable[tuple[float, float]]) -> None:
        list(points)

    def evaluate(self, text: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        began = time.monotonic()
        program = parse(text)
        mark = canonical_hash(program.bind(knobs))
        share = int(hashlib.sha256(mark.encode()).hexdigest()[:8], 16) / 2**32
        time.sleep(self._seconds * (0.8 + 0.4 * share))
        speed = Estimate(1 + share, 1 + share, 1 + share)
        return Verdict(
            program.name, mark, structure_hash(program), dict(knobs or {}), "accepted",
            gates=tuple(GateResult(name, True, 0.0) for name in GATES), speedup=speed,
            accuracy=Estimate(1 - share, 1 - share, 1 - share), conditions={"speed": "predicted"},
            seconds=time.monotonic() - began,
        )  # fmt: skip

    def close(self) -> None:
        return


class Kept(Cluster):
    """Outlives its campaigns."""

    def close(self) -> None:
        return


def measure(workers: int, seconds: float, rounds: int, hosts: int) -> dict[str, Any]:
    """One campaign of `rounds` evaluations a worker."""
    import ray
    from ray.cluster_utils import Cluster as Several

    several = Several(initialize_head=True, head_node_args={"num_cpus": 0})
    for host in range(hosts):
        several.add_node(num_cpus=workers // hosts + (host < workers % hosts))
    try:
        pool = Kept(replace(EvaluationConfig(), threads=1, seconds=seconds), several.address, make=Sleeper)
        with tempfile.TemporaryDirectory() as runs:
            for name, evaluations in (("warm", 3 * workers), ("timed", rounds * workers)):
                config = CampaignConfig(
                    name=name, runs=runs, evaluations=evaluations, parallel=2 * workers, mirror=False
                )
                Campaign(config, pool=pool).run()
            run = Run.open("timed", runs)
            began = next(run.events("trial_started")).time
            ended = [event.time for event in run.events("verdict")][-1]
        slept = sum(trial.head.seconds for trial in run.trials if trial.head)
        width = pool.width
    finally:
        ray.shutdown()
        several.shutdown()
    return {
        "workers": workers, "width": width, "evaluations": len(run.trials), "wall_seconds": ended - began,
        "worker_seconds": slept, "efficiency": slept / (workers * (ended - began)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=2.0, help="of an evaluation, in the mean")
    parser.add_argument("--rounds", type=int, default=20, help="evaluations a worker")
    parser.add_argument("--hosts", type=int, default=1, help="hosts that the workers are spread over")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    here = str(Path(__file__).parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))  # for the workers
    rows = []
    for workers in options.workers:
        rows.append(measure(workers, options.seconds, options.rounds, min(options.hosts, workers)))
        print(json.dumps(rows[-1]), flush=True)
    machine = platform.processor() or platform.machine()
    result = {"seconds": options.seconds, "rows": rows, "machine": machine, "versions": versions()}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
