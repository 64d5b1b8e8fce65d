"""What tests of nights that go wrong share: sound records, and what a campaign came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from campaign_fakes import FakeEvaluator, Threads

from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.pool import Here, Pool
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.evaluator.config import EvaluationConfig

#: A campaign of the real evaluator.
TINY = CampaignConfig(
    name="run", evaluations=4, seeds=("dense", "sink_window", "quest"), mirror=False,
    evaluation=EvaluationConfig(
        lengths=(512,), tasks=("needles",), contexts=2, screen_contexts=1, speed="predicted", threads=1
    ),
)  # fmt: skip


def story(run: Run) -> list[Any]:
    return [(t.slot, t.arm, t.proposal, t.hash, t.verdict.to_json() if t.verdict else None) for t in run.trials]


def pool(parallel: int) -> Pool:
    return Threads(parallel) if parallel > 1 else Here(FakeEvaluator())


def whole(folder: Path) -> Run:
    """The run, whose record must be sound and without gaps."""
    with Store.read(folder) as store:
        store.check()
    run = Run.open(folder.name, folder.parent)
    assert [trial.slot for trial in run.trials] == list(range(len(run.trials)))
    return run
