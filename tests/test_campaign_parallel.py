"""Several evaluations at a time: the same campaign at any speed of any worker, killed or not."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, Threads, config

from vortexlab.agent import requests
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.verdict import Verdict

SCRIPT = Path(__file__).with_name("campaign_fakes.py")
PARALLEL = 4


def story(run: Run) -> list[object]:
    return [(t.slot, t.arm, t.proposal, t.hash, t.structure, t.verdict.to_json()) for t in run.trials if t.verdict]


def campaign(runs: Path, seed: int = 0, **changes: Any) -> Run:
    settings = config(runs, parallel=PARALLEL, **changes)
    Campaign(settings, pool=Threads(PARALLEL, seed)).run()
    return Run.open("run", runs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return campaign(tmp_path_factory.mktemp("alone"))


def test_the_speed_of_the_workers_changes_nothing(alone: Run, tmp_path: Path) -> None:
    pool = Threads(1, seed=9)  # one worker, and four slots open
    Campaign(config(tmp_path, parallel=PARALLEL), pool=pool).run()
    other = Run.open("run", tmp_path)
    assert story(other) == story(alone)
    assert other.leaderboard().to_json() == alone.leaderboard().to_json()
    assert pool.most == 1


def test_several_run_at_a_time_within_the_budget_and_nothing_runs_twice(alone: Run, tmp_path: Path) -> None:
    pool = Threads(PARALLEL, seed=1, seconds=0.05)
    summary = Campaign(config(tmp_path, parallel=PARALLEL, evaluations=20), pool=pool).run()
    run = Run.open("run", tmp_path)
    assert pool.most == PARALLEL and summary.state.evaluations == run.progress().evaluations == 20
    assert summary.reason == "the budget is spent: 20 evaluations" and not run.history.open
    assert len({trial.hash for trial in run.trials}) == len(run.trials)
    order = [event.data["slot"] for event in run.events("verdict")]
    assert sorted(order) == list(range(len(order)))
    assert any(a > b for a, b in itertools.pairwise(order)), "verdicts came in the order of the slots"
    # A longer campaign of the same seed begins alike: how near the end is decides nothing before the last slots.
    assert [t.hash for t in run.trials[:14]] == [t.hash for t in alone.trials[:14]]


def test_a_program_is_ranked_among_the_same_ones_whoever_was_faster(tmp_path: Path) -> None:
    first, second = Threads(PARALLEL, 5), Threads(2, 6)
    for pool, runs in ((first, tmp_path / "a"), (second, tmp_path / "b")):
        Campaign(config(runs, parallel=PARALLEL), pool=pool).run()
    assert first.asked == second.asked


def test_one_at_a_time_is_the_campaign_that_there_always_was(tmp_path: Path) -> None:
    Campaign(config(tmp_path / "here"), evaluator=FakeEvaluator()).run()
    Campaign(config(tmp_path / "pool", parallel=1), pool=Threads(1)).run()
    assert story(Run.open("run", tmp_path / "here")) == story(Run.open("run", tmp_path / "pool"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kills", "parallel"), [(6, 4), pytest.param(100, 1, marks=SLOW), pytest.param(100, 4, marks=SLOW)]
)
def test_kills_cost_at_most_what_was_running(tmp_path: Path, kills: int, parallel: int) -> None:
    """Campaigns that are killed at random moments are the campaign that was left alone; where one ends before all
    kills fell, the next begins."""
    pool = Threads(parallel)
    Campaign(config(tmp_path / "alone", parallel=parallel, mirror=True), pool=pool).run()
    alone = Run.open("run", tmp_path / "alone")
    seed = int.from_bytes(os.urandom(4))
    print("random kills of seed", seed)
    rng, number, fallen = random.Random(seed), 0, 0
    while fallen < kills:
        runs, here, number = tmp_path / str(number), 0, number + 1
        while True:
            command = [sys.executable, str(SCRIPT), str(runs), "0.1", "28", "mirror", str(parallel)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            assert process.stdout is not None
            for _ in range(rng.randrange(1, 24) if fallen < kills else 1 << 30):
                if not process.stdout.readline():
                    break
            if fallen < kills:
                time.sleep(rng.random() * 0.1)
                process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            run = Run.open("run", runs)
            assert len(run.history.running) <= parallel
            if run.state == "finished":
                break
            fallen, here = fallen + 1, here + 1
        assert story(run) == story(alone) and run.leaderboard().to_json() == alone.leaderboard().to_json()
        started = [event.data["slot"] for event in run.events("trial_started")]
        assert len(started) - len(set(started)) <= parallel * here
    print(f"{fallen} kills in {number} campaigns")


def test_what_is_asked_meanwhile_has_the_same_slot_in_a_replay(tmp_path: Path) -> None:
    settings = config(tmp_path, parallel=PARALLEL, evaluations=24)
    asked: list[str] = []

    def watch(state: Any) -> None:
        if state.recorded >= 15 and not asked:
            best = Run.open("run", tmp_path).history.frontier()[0]
            asked.append(best.id)
            requests.pin(best.id, "run", tmp_path)

    Campaign(settings, pool=Threads(PARALLEL, 3)).run(watch)
    run = Run.open("run", tmp_path)
    assert run.status()["pinned"] == asked
    again = config(tmp_path, name="again", parallel=PARALLEL, evaluations=24, replay="run")
    Campaign(again, pool=Threads(2, 8)).run()
    assert story(Run.open("again", tmp_path)) == story(run)


class Stuck(Threads):
    """Evaluations end when they are told to."""

    def __init__(self, width: int):
        super().__init__(width)
        self.futures: list[Future[Verdict]] = []

    def submit(self, source: str, knobs: Any, points: Any) -> Future[Verdict]:
        self.futures.append(Future())
        self.asked.append((source, list(points)))
        return self.futures[-1]


def test_a_verdict_is_on_the_disk_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """Also while the controller waits for an earlier slot, or for a language model."""
    pool = Stuck(PARALLEL)
    made = Campaign(config(tmp_path, parallel=PARALLEL), pool=pool)
    said: list[str] = []

    def work() -> None:
        try:
            made.run()
        except VortexError as error:
            said.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while len(pool.futures) < PARALLEL:
        time.sleep(0.01)
    late = FakeEvaluator().evaluate(pool.asked[2][0], {})
    pool.futures[2].set_result(late)
    run = Run.open("run", tmp_path)
    assert [trial.slot for trial in run.history.running] == [0, 1, 3] and not run.trials
    assert len(pool.futures) == PARALLEL, "slots ahead of the oldest open one are bounded"
    pool.futures[0].set_exception(VortexError("the disk is gone"))
    thread.join(20)
    assert said == ["the disk is gone"] and Run.open("run", tmp_path).state == "interrupted"
    rest = Threads(PARALLEL)
    Campaign.resume("run", tmp_path, evaluations=8, pool=rest).run()
    assert late.program not in [source for source, _ in rest.asked]
    assert Run.open("run", tmp_path).trials[2].verdict == late


def test_ctrl_c_lets_all_that_run_finish(tmp_path: Path) -> None:
    asked: list[int] = []

    def watch(state: Any) -> None:
        if state.recorded >= 9 and not asked:
            asked.append(state.recorded)
            os.kill(os.getpid(), signal.SIGINT)

    summary = Campaign(config(tmp_path, parallel=PARALLEL), pool=Threads(PARALLEL)).run(watch)
    run = Run.open("run", tmp_path)
    assert summary.reason == "stopped after what was running" and not run.history.open
    assert len(run.trials) <= asked[0] + PARALLEL and run.state == "finished"


def test_the_number_belongs_to_the_campaign(tmp_path: Path) -> None:
    Campaign(config(tmp_path, parallel=3, evaluations=4), pool=Threads(3)).run()
    with pytest.raises(VortexError, match="parallel is 3 there and 5 here"):
        Campaign(config(tmp_path, parallel=5), pool=Threads(5))
    Campaign(config(tmp_path, evaluations=6), pool=Threads(2)).run()  # 0: what it was
    assert json.loads((tmp_path / "run" / "config.json").read_text())["parallel"] == 3
    with pytest.raises(VortexError, match="parallel must lie in"):
        config(tmp_path, parallel=-1)
