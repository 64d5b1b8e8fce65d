"""A long campaign in one process: what it holds does not grow but by its record."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, Threads, config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run

EVALUATIONS, LOOKS = 1200, 8
MOST_KB = 60  # of memory for each evaluation; it was 22 on two cores when this was written


def held() -> tuple[float, int, int]:
    """KB of memory, open files, threads."""
    status = Path("/proc/self/status").read_text()
    memory = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    return memory, len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 4])
def test_a_long_campaign_holds_its_record_and_nothing_else(tmp_path: Path, parallel: int) -> None:
    looks: list[tuple[int, float, int, int]] = []

    def watch(state: Any) -> None:
        if state.phase == "recorded" and state.recorded >= len(looks) * EVALUATIONS // LOOKS:
            looks.append((state.recorded, *held()))

    settings = config(tmp_path, evaluations=EVALUATIONS, mirror=True, parallel=parallel)
    pool: dict[str, Any] = {"pool": Threads(parallel, seconds=0.0)} if parallel > 1 else {"evaluator": FakeEvaluator()}
    Campaign(settings, **pool).run(watch)
    (begun, memory, files, threads), (done, more, last_files, last_threads) = looks[len(looks) // 2], looks[-1]
    print(f"{(more - memory) / (done - begun):.1f} KB an evaluation; files {files}, {last_files}")
    assert (more - memory) / (done - begun) < MOST_KB
    assert last_files <= files + 2 and last_threads <= threads + 2
    run = Run.open("run", tmp_path)
    assert run.progress().evaluations == EVALUATIONS and not run.history.open
