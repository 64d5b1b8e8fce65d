"""A campaign that is killed with SIGKILL again and again ends as the one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from campaign_fakes import FakeEvaluator, config

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run

SCRIPT = Path(__file__).with_name("campaign_fakes.py")
EVALUATIONS, KILLS = 26, 5


def controller(runs: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(runs), str(seconds), str(EVALUATIONS), "mirror"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def story(run: Run) -> list[object]:
    rows: list[object] = []
    for trial in run.trials:
        assert trial.verdict is not None
        rows.append((trial.slot, trial.arm, trial.proposal, trial.hash, trial.structure, trial.verdict.to_json()))
    return rows


def test_five_random_kills_change_nothing(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    Campaign(config(alone, evaluations=EVALUATIONS, mirror=True), evaluator=FakeEvaluator()).run()

    seed = int.from_bytes(os.urandom(4))
    print("random kills of seed", seed)
    rng, runs = random.Random(seed), tmp_path / "killed"
    recorded = 0
    for kill in range(KILLS):
        process = controller(runs, 0.02)
        assert process.stdout is not None
        # Some lines of progress, then some milliseconds: the kill may fall anywhere in a slot.
        lines = rng.randrange(1, 11)
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(rng.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        run = Run.open("run", runs)
        assert run.state == "interrupted", f"kill {kill} came after the end"
        assert len(run.trials) >= recorded
        recorded = len(run.trials)
    process = controller(runs, 0.0)
    process.communicate()
    assert process.returncode == 0

    one, other = Run.open("run", alone), Run.open("run", runs)
    assert story(other) == story(one)
    assert [e.id for e in other.leaderboard().entries] == [e.id for e in one.leaderboard().entries]
    assert other.leaderboard().to_json() == one.leaderboard().to_json()
    assert other.state == "finished" and other.status()["sessions"] == KILLS + 1
    started = [event.data["slot"] for event in other.events("trial_started")]
    assert len(started) - len(set(started)) <= KILLS, "a kill costs at most the evaluation that was running"
