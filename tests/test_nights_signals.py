"""Nights that go wrong: signals and terminals that close.

Each ends in a state from which `--resume` goes on to the campaign that nothing had happened to.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, Threads, config
from nights import TINY, pool, story, whole

from vortexlab.agent import campaign, glance
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.events import Event
from vortexlab.agent.leaderboard import BOARD
from vortexlab.agent.run import Run
from vortexlab.agent.session import Session
from vortexlab.agent.study import MIRROR, mirrored
from vortexlab.agent.trials import History
from vortexlab.evaluator.verdict import Verdict

SEARCH = """
import sys
from campaign_fakes import FakeEvaluator, Threads
import vortexlab.agent.campaign as campaign
from vortexlab.agent.pool import Here
seconds, parallel = float(sys.argv[1]), int(sys.argv[2])
campaign.make_pool = lambda config, environment="": (
    Threads(parallel, seconds=seconds) if parallel > 1 else Here(FakeEvaluator(seconds=seconds))
)
from vortexlab.cli.main import run
sys.exit(run(["search", *sys.argv[3:]]))
"""


def search(runs: Path, seconds: float, parallel: int = 1, **how: Any) -> subprocess.Popen[str]:
    """A campaign whose evaluations take some time, its progress on standard error as lines of JSON."""
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    words = ("--name", "run", "--runs", str(runs), "--evaluations", "40", "--parallel", str(parallel), "--log", "-")
    more = how.pop("preexec_fn", None)

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have it ignored
        if more is not None:
            more()

    return subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(seconds), str(parallel), *words], text=True,
        env={**os.environ, "PYTHONPATH": places}, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
        preexec_fn=begin,
    )  # fmt: skip


def wait_until(process: subprocess.Popen[str], recorded: int) -> dict[str, Any]:
    """Until so many are recorded and the next is under way."""
    assert process.stderr is not None
    for line in process.stderr:
        state = json.loads(line)
        if state["recorded"] >= recorded and state["phase"] == "evaluating":
            return dict(state)
    raise AssertionError("it ended by itself")


def check_plain(folder: Path) -> Run:
    """Nothing half-written beside a whole record: no log of the database, no torn file."""
    names = {item.name for item in folder.iterdir()}
    assert not {name for name in names if name.endswith(("-wal", "-shm", "-journal", ".new"))}, names
    return whole(folder)


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_lets_what_is_running_finish(tmp_path: Path, number: signal.Signals, parallel: int) -> None:
    process = search(tmp_path, 0.3, parallel)
    wait_until(process, 2)
    process.send_signal(number)
    if number == signal.SIGHUP:  # the system and the shell both send it when a terminal closes
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped after what was running" in out, (out, err)
    states = [json.loads(line) for line in err.splitlines()]
    assert states[-1]["phase"] == "finished" and states[-1]["stopping"] and states[-1]["running"] == 0
    run = check_plain(tmp_path / "run")
    assert run.state == "finished" and not run.history.open and 3 <= len(run.trials) < 16
    Campaign.resume("run", tmp_path, evaluations=20, pool=pool(parallel)).run()
    Campaign(config(tmp_path, name="alone", evaluations=20, parallel=parallel), pool=pool(parallel)).run()
    assert story(whole(tmp_path / "run")) == story(whole(tmp_path / "alone"))


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals, parallel: int) -> None:
    process = search(tmp_path, 4.0 if parallel == 1 else 2.0, parallel)
    wait_until(process, 1)
    process.send_signal(number)
    time.sleep(0.3)  # two at the same moment are one to the system
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped at once" in out and "Traceback" not in err, (out, err)
    run = check_plain(tmp_path / "run")
    assert run.history.running or parallel > 1  # threads cannot be given up: what they still bring is recorded
    assert run.history.finished == run.status()["reason"] != ""
    Campaign.resume("run", tmp_path, evaluations=20, pool=pool(parallel)).run()
    Campaign(config(tmp_path, name="alone", evaluations=20, parallel=parallel), pool=pool(parallel)).run()
    assert story(whole(tmp_path / "run")) == story(whole(tmp_path / "alone"))


@pytest.mark.parametrize("at", [3, 8, 21, 40])
def test_a_second_signal_amid_the_bookkeeping_leaves_a_record_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The handler raises wherever the controller stands: here between an event and the note that it was folded."""
    real, seen = History.add, []

    def add(history: History, event: Event) -> None:
        real(history, event)
        seen.append(event.kind)
        if len(seen) == at:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(History, "add", add)
    settings = config(tmp_path, evaluations=20, mirror=True)
    assert Campaign(settings, evaluator=FakeEvaluator()).run().reason.startswith("stopped at once")
    monkeypatch.undo()
    stopped = check_plain(tmp_path / "run")
    assert stopped.state == "finished" and mirrored(tmp_path / "run" / MIRROR) <= len(stopped.trials)
    Campaign.resume("run", tmp_path, evaluator=FakeEvaluator()).run()
    Campaign(config(tmp_path, name="alone", evaluations=20), evaluator=FakeEvaluator()).run()
    assert story(whole(tmp_path / "run")) == story(whole(tmp_path / "alone"))


def test_nohup_keeps_a_campaign_when_the_terminal_closes(tmp_path: Path) -> None:
    process = search(tmp_path, 0.05, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None)
    wait_until(process, 2)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "the budget is spent: 40 evaluations" in out


def test_a_terminal_that_closes_ends_a_campaign_after_what_is_running(tmp_path: Path) -> None:
    """Nobody reads standard output and error any more; what was running is recorded all the same."""
    ours, theirs = pty.openpty()
    process = search(
        tmp_path, 0.5, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    text = b""
    while text.count(b'"phase": "recorded"') < 2:
        text += os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(60) == 141
    run = check_plain(tmp_path / "run")
    assert run.history.finished == "stopped after what was running" and 2 <= len(run.trials) < 40
    assert not run.history.open


@pytest.mark.slow
def test_ctrl_c_reaches_no_worker(tmp_path: Path) -> None:
    """A terminal sends it to every process of the group; the real worker, in a session of its own, finishes."""
    command = [sys.executable, "-c", REAL, json.dumps(replace(TINY, runs=str(tmp_path), evaluations=8).to_json())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None and any(line == "evaluating 2\n" for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    run = check_plain(tmp_path / "run")
    assert process.returncode == 0 and out.endswith("stopped after what was running\n")
    assert len(run.trials) == 3 and all(t.head and t.head.status != "error" for t in run.trials)


REAL = """
import json, sys
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
campaign = Campaign(CampaignConfig.from_json(json.loads(sys.argv[1])))
print(campaign.run(lambda state: print(state.phase, state.recorded, flush=True)).reason)
"""


class Twice(FakeEvaluator):
    """Ctrl-C while it evaluates the third program."""

    asked = 0

    def evaluate(self, *what: Any, **how: Any) -> Verdict:
        self.asked += 1
        if self.asked == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().evaluate(*what, **how)


def test_a_signal_while_a_campaign_ends_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror_up = Session._mirror_up
    board = BOARD.pack

    def ending(self: Session) -> None:
        if self._interrupt is not None and self._interrupt.over:
            os.kill(os.getpid(), signal.SIGINT)
        mirror_up(self)

    def packing(found: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return board(found)

    monkeypatch.setattr(Session, "_mirror_up", ending)
    monkeypatch.setattr(campaign, "BOARD", replace(BOARD, pack=packing))
    summary = Campaign(config(tmp_path, evaluations=9), evaluator=Twice()).run()
    monkeypatch.undo()
    assert summary.reason == "stopped after what was running"
    found = glance.status("run", tmp_path)
    assert (found["state"], found["reason"], found["recorded"]) == ("finished", summary.reason, 3)


def test_nothing_is_recorded_behind_the_end_of_a_campaign_that_stopped_at_once(tmp_path: Path) -> None:
    class Interrupting(Threads):
        def submit(self, *what: Any) -> Any:
            future = super().submit(*what)
            if len(self.asked) == 8:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return future

    summary = Campaign(config(tmp_path, evaluations=30, parallel=4), pool=Interrupting(4, 1, 0.2)).run()
    run = Run.open("run", tmp_path)
    assert summary.reason.startswith("stopped at once") and summary.state.recorded == len(run.trials)
    assert [event.kind for event in run.events()][-1] == "campaign_finished"
    assert glance.status("run", tmp_path)["recorded"] == len(run.trials)
    Campaign.resume("run", tmp_path, pool=Threads(4)).run()
    alone = Campaign(config(tmp_path, name="alone", evaluations=30, parallel=4), pool=Threads(4))
    alone.run()
    assert story(whole(tmp_path / "run")) == story(whole(tmp_path / "alone"))
