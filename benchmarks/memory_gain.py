"""What `--memory` brings: campaigns with and without the lessons of an earlier run, on other and shorter contexts.

    python benchmarks/memory_gain.py --json benchmarks/results/memory-gain.json --seconds 600 --traces /tmp

On recorded traces, as in `benchmarks/rediscovery.py`: accuracy is needle mass, speed is predicted. By the grammar
alone, so of the lessons only the frontier counts; what a language model makes of the rest is not measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from records import Records, add_options
from rediscovery import USEFUL, mean_of, point_of

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.lessons import lessons
from vortexlab.agent.pareto import hypervolume
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.agent.run import Run
from vortexlab.evaluator.config import device_name, versions
from vortexlab.evaluator.traces import TraceConfig, TraceEvaluator

EARLIER_SEED = 100  # of the earlier campaigns, added to that of the later one


def campaign(evaluator: TraceEvaluator, runs: Path, name: str, seed: int, count: int, memory: tuple[Any, ...]) -> Run:
    config = CampaignConfig(name=name, runs=str(runs), seed=seed, evaluations=count, mirror=False, memory=memory)
    config = replace(config, evaluation=replace(config.evaluation, lengths=(evaluator.config.length,)))
    library = config.library()
    Campaign(config, evaluator=evaluator, proposers=lambda *_: [GrammarProposer(library)]).run()
    return Run.open(name, runs)


def areas(run: Run) -> dict[str, float]:
    """Hypervolume over everything and above half of the dense accuracy."""
    points = [point for trial in run.trials if trial.verdict and (point := point_of(trial.verdict))]
    return {
        "hypervolume": hypervolume(points),
        "useful": hypervolume([(speed, kept - USEFUL) for speed, kept in points]),
    }


def both(earlier: TraceEvaluator, later: TraceEvaluator, seed: int, before: int, after: int) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        taught = lessons(campaign(earlier, runs, "earlier", EARLIER_SEED + seed, before, ()))
        alone = areas(campaign(later, runs, "alone", seed, after, ()))
        taken = areas(campaign(later, runs, "taught", seed, after, (taught,)))
    return {
        "programs": len(taught["programs"]), "alone": alone, "taught": taken, "seconds": time.monotonic() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--earlier", type=int, default=200, help="evaluations of the earlier campaign")
    parser.add_argument("--evaluations", type=int, default=100, help="of the later campaigns, the seeds included")
    parser.add_argument("--traces", type=Path, help="folder that keeps the recorded traces for the next time")
    add_options(parser, "memory-gain.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known, wanted = TraceConfig(length=1024, contexts=1, seed=1), TraceConfig(length=2048, contexts=1, seed=0)
    conditions = {
        "device": device_name("cpu"), "threads": 1, "versions": versions(), "earlier_traces": known.to_json(),
        "traces": wanted.to_json(), "earlier_evaluations": options.earlier, "evaluations": options.evaluations,
    }  # fmt: skip
    records = Records(options, conditions, ("seed",))
    with torch.inference_mode():
        earlier, later = (TraceEvaluator(config, folder=options.traces) for config in (known, wanted))
    for seed in range(options.seeds):
        row = records.measure(
            {"seed": seed}, lambda seed=seed: both(earlier, later, seed, options.earlier, options.evaluations)
        )
        if row is not None:
            print(row, flush=True)
    rows = [row for row in records.rows if "error" not in row]
    for name in ("useful", "hypervolume"):
        gains = [row["taught"][name] - row["alone"][name] for row in rows]
        if len(gains) > 1:
            records.sums[name] = dict(zip(("gain", "low", "high"), mean_of(gains), strict=True)) | {"seeds": len(gains)}
            print(name, records.sums[name])
    records.write()


if __name__ == "__main__":
    main()
