"""Nights that go wrong: disks that fill, folders that turn read-only, endpoints that are down, signals.

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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import ANSWER, FakeEvaluator, Threads, config
from face_fixtures import Done, vortex
from llm_server import serving

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.pool import Here, Pool
from vortexlab.agent.proposers import endpoint as endpoints
from vortexlab.agent.proposers.endpoint import Call, Completion, EndpointError
from vortexlab.agent.proposers.llm import TRIES
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.run import Run
from vortexlab.agent.slots import _BREAKER, _COOL_DOWN, _DOUBLINGS
from vortexlab.agent.store import FILE, Event, Store
from vortexlab.agent.study import MIRROR, mirrored
from vortexlab.agent.trials import History
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.verdict import Verdict

# --- disks -----------------------------------------------------------------------------------------------------------


def mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")


@contextmanager
def mounted(place: Path, *words: str | Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    mount(*words, place)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 kB."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=700k", "tmpfs") as place:
        yield place


def free(place: Path) -> None:
    (place / "filler").unlink(missing_ok=True)
    mount("-o", "remount,size=64m", place)


def fill(place: Path) -> None:
    """To the last byte."""
    with (place / "filler").open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


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


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_disk_that_fills_is_read_and_goes_on_when_there_is_space(small: Path, tmp_path: Path, parallel: int) -> None:
    settings = config(tmp_path / "alone", evaluations=60, parallel=parallel)
    Campaign(settings, pool=pool(parallel)).run()
    with pytest.raises(VortexError, match=f"the disk of {small}/run is full or failing .*--resume run"):
        Campaign(replace(settings, runs=str(small)), pool=pool(parallel)).run()
    fill(small)
    full = whole(small / "run")
    assert full.state == "interrupted" and 2 < len(full.trials) < 60
    for command in ("status", "leaderboard"):
        assert vortex(command, "run", "--runs", small, "--json").json(command)["run"] == "run"
    with pytest.raises(VortexError, match=r"full or failing|free some space"):
        Campaign.resume("run", small, pool=pool(parallel)).run()
    assert story(whole(small / "run")) == story(full)
    free(small)
    Campaign.resume("run", small, pool=pool(parallel)).run()
    alone, resumed = Run.open("run", tmp_path / "alone"), whole(small / "run")
    assert story(resumed) == story(alone) and resumed.leaderboard().to_json() == alone.leaderboard().to_json()


def test_the_command_says_so_in_one_line(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", lambda config: FakeEvaluator())
    done = vortex("search", "--name", "a", "--runs", small, "--evaluations", "200", "--log", small / "log")
    assert done.status == 2 and "Traceback" not in done.err
    told = [line for line in done.err.splitlines() if line.startswith("vortex: ")]
    assert told == done.err.splitlines()[-1:] and "vortex search --resume a" in told[0]
    assert all(json.loads(line) for line in (small / "log").read_text().splitlines())


TINY = CampaignConfig(
    name="run", evaluations=4, seeds=("dense", "sink_window", "quest"), mirror=False,
    evaluation=EvaluationConfig(
        lengths=(512,), tasks=("needles",), contexts=2, screen_contexts=1, speed="predicted", threads=1
    ),
)  # fmt: skip


@pytest.mark.slow
def test_caches_on_a_full_disk_end_no_campaign(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(small)
    monkeypatch.setenv("VORTEX_CACHE", str(small))
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(small))
    summary = Campaign(replace(TINY, runs=str(tmp_path))).run()
    assert summary.reason == "the budget is spent: 4 evaluations" and summary.state.errors == 0
    assert [item.name for item in small.iterdir() if item.is_file()] == ["filler"]


# --- folders that are read-only --------------------------------------------------------------------------------------


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Also for root, whom permissions do not bind."""
    with mounted(folder, "--bind", folder):
        mount("-o", "remount,bind,ro", folder)
        yield


def test_a_read_only_run_is_read_and_whoever_writes_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", lambda config: FakeEvaluator())
    runs = tmp_path / "runs"

    def on(*words: str | Path) -> Done:
        return vortex(*words, "--runs", runs)

    assert on("search", "--name", "run", "--evaluations", "8").status == 0
    program = tmp_path / "mine.py"
    program.write_text("@program(page=16)\nclass Mine:\n    def select():\n        return first(2)\n")
    with read_only(runs):
        before = whole(runs / "run")
        for words in (("status", "run"), ("leaderboard", "run"), ("show", "run", "t0001"), ("runs",)):
            assert on(*words).status == 0, words
        assert on("report", "run", "--out", tmp_path / "page.html").status == 0
        for writing in (
            ("search", "--resume", "run", "--evaluations", "9"), ("search", "--name", "other"),
            ("search", "--name", "run", "--evaluations", "8"), ("report", "run"), ("pause", "run"),
            ("pin", "run", "t0001"), ("propose", "run", program), ("tell", "run", program),
        ):  # fmt: skip
            assert "Read-only file system" in on(*writing).complaint() or writing[0] == "pause", writing
    assert story(whole(runs / "run")) == story(before)
    assert on("search", "--resume", "run", "--evaluations", "9").status == 0


def test_readers_see_what_a_killed_campaign_left_in_its_log_on_a_read_only_disk(tmp_path: Path) -> None:
    folder = Campaign(config(tmp_path, evaluations=4), evaluator=FakeEvaluator()).run().folder
    with Store.write(folder) as store:
        store.append("note", {"text": "in the log"})
        copy = tmp_path / "copies" / "run"
        copy.mkdir(parents=True)
        for name in (FILE, f"{FILE}-wal"):
            (copy / name).write_bytes((folder / name).read_bytes())
    with read_only(tmp_path / "copies"):
        assert Run.open("run", tmp_path / "copies").history.notes == ["in the log"]


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_folder_that_turns_read_only_ends_the_campaign_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    """SQLite refuses to write from some verdict on, as it does where the system makes a failing disk read-only."""
    settings = config(tmp_path / "alone", parallel=parallel)
    Campaign(settings, pool=pool(parallel)).run()
    real = Store.append

    def append(store: Store, kind: str, *rest: Any, **more: Any) -> Any:
        if kind == "verdict" and more["slot"] >= 5:
            store._connection.execute("PRAGMA query_only = ON")
        return real(store, kind, *rest, **more)

    monkeypatch.setattr(Store, "append", append)
    with pytest.raises(VortexError, match=r"run folder .*run cannot be written \(attempt to write a readonly data"):
        Campaign(replace(settings, runs=str(tmp_path / "failing")), pool=pool(parallel)).run()
    monkeypatch.undo()
    assert len(whole(tmp_path / "failing" / "run").trials) <= 5 + parallel
    Campaign.resume("run", tmp_path / "failing", pool=pool(parallel)).run()
    assert story(whole(tmp_path / "failing" / "run")) == story(Run.open("run", tmp_path / "alone"))


# --- endpoints that are down -----------------------------------------------------------------------------------------

BEGIN, HALF_AN_HOUR = 600.0, 1800.0  # of the outage, in seconds of a clock of its own


class Killed(BaseException):
    """Ends the controller where it stands."""


@dataclass
class Night:
    """A clock that evaluations (`seconds` each), answers and pauses move on, and what happens by it."""

    seconds: float = 60.0
    now: float = 0.0
    dies: float = float("inf")
    asked: list[float] = field(default_factory=list)

    @property
    def down(self) -> bool:
        return BEGIN <= self.now < BEGIN + HALF_AN_HOUR

    def during(self) -> list[float]:
        return [when for when in self.asked if BEGIN <= when < BEGIN + HALF_AN_HOUR]


class Timed(FakeEvaluator):
    def __init__(self, night: Night, then: Callable[[], object] = lambda: None):
        super().__init__()
        self.night, self.then = night, then

    def evaluate(self, source: str, knobs: dict[str, Any] | None = None, *, fidelity: str = "full") -> Verdict:
        self.night.now += self.night.seconds
        self.then()
        if self.night.now >= self.night.dies:
            self.night.dies = float("inf")
            raise Killed
        return super().evaluate(source, knobs, fidelity=fidelity)


#: How an endpoint is down: the kind of its errors, whether it may charge for them, seconds until each.
DOWN = {"unreachable": ("broken", False, 0.1), "overloaded": ("busy", True, 0.1), "silent": ("timeout", True, None)}


@dataclass
class Model:
    night: Night
    trouble: tuple[str, bool, float | None]
    label = "live"

    def paid(self, call: Call) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        self.night.now += seconds

    def complete(self, call: Call) -> Completion:
        kind, charged, after = self.trouble
        self.night.asked.append(self.night.now)
        if self.night.down:
            seconds = call.seconds if after is None else after
            self.night.now += seconds
            raise EndpointError("the endpoint is down", kind, charged=charged, seconds=seconds)
        self.night.now += 5
        number = call.request["seed"] % 497 + 4
        return Completion(f"```python{ANSWER.format(n=number)}```", (8_000, 200), seconds=5.0)


def guided(runs: Path, evaluations: int, model: ModelConfig | None = None) -> CampaignConfig:
    priced = model or ModelConfig("scripted", input_price=1.0, output_price=4.0)
    return config(
        runs, evaluations=evaluations, proposers=("llm",), seeds=("dense", "quest"), budget_points=(),
        structure_share=1.0, llm=LLMConfig((priced,), calls=2000, tokens=10**9, money=500.0, repairs=1),
    )  # fmt: skip


def most_slots(slots: int) -> int:
    """How many of so many slots in a row the breaker gives to a model that fails every time."""
    count, slot = 0, 0
    while slot < slots:
        count += 1
        slot += 1 if count < _BREAKER else _COOL_DOWN * 2 ** min(count - _BREAKER, _DOUBLINGS)
    return count


def test_the_bound_of_calls_in_half_an_hour() -> None:
    assert [most_slots(slots) for slots in (30, 180, 1800)] == [4, 7, 17]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("trouble", DOWN)
@pytest.mark.parametrize("seconds", [60.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_an_endpoint_that_is_down_for_half_an_hour_costs_little_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, killed: bool, seconds: float
) -> None:
    night = Night(seconds, dies=BEGIN + HALF_AN_HOUR / 2 if killed else float("inf"))
    monkeypatch.setattr(endpoints, "OpenAIEndpoint", lambda config: Model(night, DOWN[trouble]))
    evaluations = int((BEGIN + 3 * HALF_AN_HOUR) / seconds)
    campaign = Campaign(guided(tmp_path, evaluations), evaluator=Timed(night))
    if killed:
        with pytest.raises(Killed):
            campaign.run()
        assert Run.open("run", tmp_path).state == "interrupted"
        campaign = Campaign.resume("run", tmp_path, evaluator=Timed(night))
    assert campaign.run().reason == f"the budget is spent: {evaluations} evaluations"

    run, sessions = whole(tmp_path / "run"), 2 if killed else 1
    kind, charged, _ = DOWN[trouble]
    tries = 1 if kind == "timeout" else TRIES  # a call that took all of a slot's time is not made again
    failed = [event.data for event in run.events("exchange") if event.data["error"]]
    assert 0 < len(failed) == len(night.during()) <= sessions * tries * most_slots(int(HALF_AN_HOUR / seconds))
    paid = sum(item["money"] for item in failed)
    ceiling = max(event.data["money"] for event in run.events("reserved"))
    assert paid <= len(failed) * ceiling if charged else paid == 0  # who may have charged is taken to have
    assert not run.history.stopped() and len(run.history.failures) == len(failed) / tries
    lost = {failure["slot"] for failure in run.history.failures}
    assert {run.trials[slot].arm.proposer for slot in lost} <= {"grammar", "knobs"}
    after = [t for t in run.trials if t.slot > max(lost) and t.arm.proposer == "llm:scripted"]
    assert len(after) > 5 and any(trial.point for trial in after)
    # As many slots again as the outage took, at most twice, pass until it is asked again.
    assert after[0].slot - max(lost) <= 2 * HALF_AN_HOUR / seconds


@pytest.mark.parametrize("killed", [False, True])
def test_a_server_that_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    """The real client: refused connections are no time, no tokens and no money."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    night = Night(dies=BEGIN + HALF_AN_HOUR / 2 if killed else float("inf"))
    monkeypatch.setattr(endpoints.OpenAIEndpoint, "wait", lambda _, seconds: setattr(night, "now", night.now + seconds))
    replies = [f"```python{ANSWER.format(n=number)}```" for number in range(4, 150)]
    with ExitStack() as up:
        first = up.enter_context(serving(replies))
        port, again = int(first.url.split(":")[2].split("/")[0]), []

        def then() -> None:
            if night.down and not again:
                up.close()
                again.append(None)
            elif night.now >= BEGIN + HALF_AN_HOUR and again == [None]:
                again[0] = up.enter_context(serving(replies[100:], port=port))

        settings = guided(tmp_path, 70, ModelConfig("m", base_url=first.url, input_price=1.0, output_price=4.0))
        campaign = Campaign(settings, evaluator=Timed(night, then))
        if killed:
            with pytest.raises(Killed):
                campaign.run()
            campaign = Campaign.resume("run", tmp_path, evaluator=Timed(night, then))
        assert campaign.run().state.evaluations == 70
        run = whole(tmp_path / "run")
        exchanges = [event.data for event in run.events("exchange")]
        failed = [item for item in exchanges if item["error"]]
        assert 0 < len(failed) <= (2 if killed else 1) * TRIES * most_slots(30)
        assert {(item["tokens"], item["money"]) for item in failed} == {(0, 0.0)}
        assert all("cannot be reached" in item["error"] for item in failed)
        assert len(first.requests) > 2 and len(again[0].requests) > 5, "asked before and after"
        assert len(exchanges) - len(failed) == len(first.requests) + len(again[0].requests)


# --- signals ---------------------------------------------------------------------------------------------------------

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
    assert stopped.state == "finished" and mirrored(tmp_path / "run" / MIRROR) == len(stopped.trials)
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
