"""A campaign with the real evaluator, killed with SIGKILL at random moments, ends as the one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.run import Run
from vortexlab.evaluator.config import EvaluationConfig

KILLS, SEED = 5, 17
CONFIG = CampaignConfig(
    name="run",
    evaluations=18,
    seeds=("dense", "sink_window", "quest"),
    evaluation=EvaluationConfig(
        lengths=(512,), tasks=("needles", "keys"), contexts=3, screen_contexts=1, speed="predicted", threads=2
    ),
)
BEGIN = """
import json, sys
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.cli.live import Display
campaign = Campaign(CampaignConfig.from_json(json.loads(sys.argv[1])))
with Display(campaign.config) as display:
    campaign.run(display)
"""


def controller(config: CampaignConfig, scratch: Path, *, resume: bool) -> subprocess.Popen[str]:
    """A session of the campaign in a process group of its own; its workers' scratch folders lie in `scratch`."""
    command = [sys.executable, "-c", BEGIN, json.dumps(config.to_json())]
    if resume:
        command = [sys.executable, "-m", "vortexlab.cli", "search", "--resume", config.name, "--runs", config.runs]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )  # fmt: skip


def wait_for_verdicts(process: subprocess.Popen[str], count: int) -> None:
    assert process.stderr is not None
    while count:
        line = process.stderr.readline()
        assert line, "the controller ended by itself"
        count -= ": recorded " in line


def workers(scratch: Path) -> list[int]:
    """Processes anywhere on the machine that work in `scratch`."""
    mark, found = f"VORTEX_WORKER={scratch}/".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def story(run: Run) -> list[dict[str, Any]]:
    """All that was recorded of every slot, but for how long it took and what was compiled already."""
    rows = []
    for trial in run.trials:
        assert trial.verdict is not None
        verdict = {**trial.verdict.to_json(), "seconds": 0}
        for gate in verdict["gates"]:
            gate["seconds"] = 0
            gate["details"].pop("cached", None)
        rows.append({
            "slot": trial.slot, "arm": trial.arm, "proposal": trial.proposal.to_json(), "knobs": dict(trial.knobs),
            "hash": trial.hash, "structure": trial.structure, "verdict": verdict,
        })  # fmt: skip
    return rows


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [line for key in keys for line in differences(one.get(key), other.get(key), f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    return [] if one == other else [f"{where}: {one!r} is {other!r}"]


@pytest.mark.slow
def test_five_random_kills_change_no_program_and_no_number(tmp_path: Path) -> None:
    alone, killed, scratch = tmp_path / "alone", tmp_path / "killed", tmp_path / "scratch"
    scratch.mkdir()
    Campaign(CampaignConfig.from_json({**CONFIG.to_json(), "runs": str(alone)})).run()

    rng, config = random.Random(SEED), CampaignConfig.from_json({**CONFIG.to_json(), "runs": str(killed)})
    for kill in range(KILLS):
        process = controller(config, scratch, resume=kill > 0)
        # The first kill needs a record to go on from; later ones may fall before the worker has read its contexts.
        verdicts = rng.randrange(0 if kill else 1, 5)
        wait_for_verdicts(process, verdicts)
        delay = rng.uniform(0, 3 if verdicts else 12)
        time.sleep(delay)
        busy = workers(scratch)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        run = Run.open("run", killed)
        print(f"kill {kill}: {len(run.trials)} slots recorded, {len(busy)} processes of the worker")
        assert run.state == "interrupted", f"kill {kill} came after the end"
        deadline = time.monotonic() + 2
        while workers(scratch) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert workers(scratch) == [], "what the controller started outlives it"
        assert len(list(scratch.iterdir())) <= 1, "scratch folders of earlier controllers pile up"
    process = controller(config, scratch, resume=True)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert list(scratch.iterdir()) == []

    one, other = Run.open("run", alone), Run.open("run", killed)
    assert sum(trial.arm.proposer != "seed" for trial in one.trials) >= 5
    found = differences(story(one), story(other))
    assert not found, "\n".join(found[:20])
    assert other.leaderboard().to_json() == one.leaderboard().to_json()
    assert other.state == "finished" and other.status()["sessions"] == KILLS + 1
