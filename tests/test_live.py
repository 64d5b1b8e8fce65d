"""What is shown of a running campaign: the view at many sizes, the log in JSON, and a terminal of its own."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import vortex
from rich.console import Console

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.pareto import Curve
from vortexlab.agent.progress import ProgressState, Standing
from vortexlab.agent.run import Run
from vortexlab.cli.forms.campaigns import Logged
from vortexlab.cli.live import STOPPING
from vortexlab.cli.panel import View, spark

HOSTILE = "Q\x1b[2J\x1b]0;owned\x07\nnew\tline\u202etxt" + "é" * 300


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[ProgressState]:
    seen: list[ProgressState] = []
    settings = config(tmp_path_factory.mktemp("runs"), evaluations=40, hours=8.0)
    Campaign(settings, evaluator=FakeEvaluator()).run(seen.append)
    return seen


def drawn(state: ProgressState, width: int, height: int, **how: object) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO(), highlight=False, markup=False)
    console.print(View(state, **how))  # type: ignore[arg-type]
    return console.export_text().rstrip("\n").split("\n")


def busy(state: ProgressState) -> ProgressState:
    """With language models, several slots and names that would take the terminal over."""
    return replace(
        state, run="night", running=11, under_way=[HOSTILE, *(f"Program{n}" for n in range(7))], latest=HOSTILE,
        calls=12, tokens=123_456, money=0.3125, model_seconds=200.0, errors=2, current=HOSTILE,
        limits={"calls": 400, "tokens": 20_000_000, "money": 5.0, "model_seconds": None},
        best=[Standing("t0001", HOSTILE, 7.5, 0.9), *state.best[1:]],
    )  # fmt: skip


def test_the_view_tells_the_whole_story_at_eighty_columns_and_at_twice_that(states: list[ProgressState]) -> None:
    state = busy(next(item for item in states if item.recorded == 25))
    for width in (80, 160):
        lines = drawn(state, width, 24, waited=3600.0)
        text = "\n".join(lines)
        for words in (
            "night: ", f"{state.evaluations} of 40, ", "11 running: Q", "12/400 calls, 123k/20M tokens, 0.31/5 money",
            "waited 3 min 20 s", "proposed", "accuracy", f"{state.frontier} programs, area {state.hypervolume:.3f}",
            "7.50x  0.900 kept  t0001 Q", "last note", "Ctrl-C finishes what is running", "█", "━",
            f"{state.accepted} accepted, {state.rejected} rejected, 2 lost", "1 h 00 min, about ",
        ):  # fmt: skip
            assert words in text, (width, words, text)
        assert len(lines) <= 23
    assert "and 3 more" in "\n".join(drawn(replace(state, under_way=["A", "B"], running=5), 80, 24))


def test_the_view_fits_any_terminal_and_no_name_steers_it(states: list[ProgressState]) -> None:
    for state in (states[0], states[1], busy(states[len(states) // 2]), states[-1], busy(states[-1])):
        for width in (1, 5, 20, 40, 79, 80, 119, 120, 160, 400):
            for height in (1, 2, 3, 6, 9, 12, 24, 60):
                lines = drawn(state, width, height, stopping=True)
                assert len(lines) <= max(1, height - 1), (width, height)
                assert all(len(item) <= width for item in lines), (width, height)
                assert all(item.isprintable() for item in lines), (width, height)


def test_the_view_says_how_to_stop_and_that_it_does(states: list[ProgressState]) -> None:
    state = states[len(states) // 2]
    assert STOPPING in "\n".join(drawn(state, 80, 24, stopping=True))
    assert STOPPING in "\n".join(drawn(replace(state, stopping=True), 80, 24))
    paused = "\n".join(drawn(replace(state, phase="paused", running=0), 80, 24, waited=7200.0))
    assert "`vortex resume run`" in paused and "2 h" not in paused
    cut = "\n".join(drawn(replace(state, running=1), 80, 24, ended=True))
    assert "1 cut off, done again on resume" in cut and "Ctrl-C" not in cut
    assert "Ctrl-C" not in "\n".join(drawn(states[-1], 80, 24))


def test_a_sparkline_is_as_wide_as_it_may_be() -> None:
    assert spark([], 10) == "" and spark([3.0], 10) == "▁" and spark([0, 1], 10) == "▁█"
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█" and spark(range(1000), 2) == "▁█"
    assert len(spark(range(64), 30)) == 30


def test_a_curve_keeps_as_many_samples_of_a_million_values_as_of_a_hundred() -> None:
    curve, most = Curve(), 0
    for value in range(100_000):
        curve.add(value)
        most = max(most, len(curve.samples))
    samples = curve.drawn()
    assert most == Curve.MOST and len(samples) > Curve.MOST // 2 and samples[0] == 0 and samples[-1] == 99_999
    steps = {b - a for a, b in pairwise(samples[:-1])}
    assert len(steps) == 1, "equal distances"


def test_progress_holds_what_is_shown(states: list[ProgressState]) -> None:
    last = states[-1]
    assert last.growth == sorted(last.growth) and last.growth[-1] == pytest.approx(last.hypervolume, abs=1e-4)
    assert len(last.best) == 3 and last.best == sorted(last.best, key=lambda item: -item.speedup)
    under_way = [state for state in states if state.phase == "evaluating"]
    assert all(state.under_way == [state.current] and state.running == 1 for state in under_way)
    assert last.hours == 8.0 and not last.stopping and last.latest.endswith("the worker was lost")
    assert all(len(json.dumps(state.to_json())) < 3000 for state in states)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", lambda config: FakeEvaluator())


def logged(text: str) -> list[Logged]:
    return [Logged.model_validate_json(item) for item in text.splitlines()]


def test_the_log_has_a_line_for_every_change(tmp_path: Path, made: None) -> None:
    log = tmp_path / "night.jsonl"
    words = ("search", "--name", "a", "--runs", tmp_path / "runs", "--log", log)
    done = vortex(*words, "--evaluations", "12")
    assert done.status == 0 and "[" in done.err and "/12 evaluated" in done.err
    lines = logged(log.read_text())
    run = Run.open("a", tmp_path / "runs")
    assert [item.recorded for item in lines if item.phase == "recorded"] == list(range(1, len(run.trials) + 1))
    assert lines[0].phase == "starting" and lines[-1].phase == "finished" and lines[-1].evaluations == 12
    assert [item.time for item in lines] == sorted(item.time for item in lines)
    more = vortex("search", "--resume", "a", "--evaluations", "14", "--runs", tmp_path / "runs", "--log", log)
    assert more.status == 0 and logged(log.read_text())[: len(lines)] == lines
    assert logged(log.read_text())[-1].evaluations == 14
    import pandas

    assert pandas.read_json(log, lines=True).evaluations.iloc[-1] == 14


def test_the_log_can_take_the_place_of_the_lines(tmp_path: Path, made: None) -> None:
    done = vortex("search", "--name", "a", "--runs", tmp_path, "--evaluations", "3", "--log", "-", "--json")
    assert logged(done.err)[-1].phase == "finished" and done.json("search")["run"] == "a"
    assert not Path("-").exists()


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, made: None) -> None:
    for name, path, why in (
        ("folder", tmp_path, "Is a directory"), ("missing", tmp_path / "no" / "log", "No such file or directory"),
        ("full", Path("/dev/full"), "No space left on device"),
    ):  # fmt: skip
        done = vortex("search", "--name", name, "--runs", tmp_path / "r", "--evaluations", "4", "--log", path)
        told = [item for item in done.err.splitlines() if "the log" in item]
        assert done.status == 0 and told == [f"the log {path} is not written any longer: {why}"]
        assert len(Run.open(name, tmp_path / "r").trials) == 4


FULL = """
import resource, sys
from campaign_fakes import FakeEvaluator, config
from vortexlab.agent.campaign import Campaign
from vortexlab.cli.live import Display
settings = config(sys.argv[1], evaluations=12)
campaign = Campaign(settings, evaluator=FakeEvaluator())
with Display(settings, sys.argv[2]) as display:
    def watch(state):
        if state.recorded == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
        display(state)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    campaign.run(watch)
"""


def environment(**more: str) -> dict[str, str]:
    """This process's but for what would say another size than the terminal does: readline leaves such behind."""
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**own, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), **more}


def test_a_log_whose_disk_fills_keeps_whole_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path), str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and done.stderr.count("is not written any longer: File too large") == 1, done.stderr
    assert "12/12 evaluated" in done.stderr
    lines = logged((tmp_path / "log").read_text())
    assert lines and lines[-1].recorded <= 5


SEARCH = """
import sys
from campaign_fakes import FakeEvaluator
import vortexlab.evaluator.evaluator as place
place.Evaluator = lambda config: FakeEvaluator(seconds=float(sys.argv[1]))
from vortexlab.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


def search(runs: Path, evaluations: int, seconds: float = 0.2) -> list[str]:
    words = ("search", "--name", "a", "--runs", str(runs), "--evaluations", str(evaluations))
    return [sys.executable, "-c", SEARCH, str(seconds), *words]


def on_a_terminal(
    command: list[str], columns: int, rows: int, act: Callable[[int, subprocess.Popen[bytes]], None] | None = None,
    **variables: str,
) -> tuple[int, str]:  # fmt: skip
    """Status and all that was written. `act` gets the terminal after a second."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    before = termios.tcgetattr(theirs)
    more = environment(**{"TERM": "xterm-256color", "LANG": "C.UTF-8", **variables})
    started = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=more, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    text, until, acted = b"", time.monotonic() + 60, act is None
    while time.monotonic() < until:
        os.set_blocking(ours, False)
        try:
            text += os.read(ours, 1 << 16)
        except BlockingIOError:
            if started.poll() is not None:
                break
            time.sleep(0.02)
        if not acted and b"running:" in text:
            assert act is not None
            act(ours, started)
            acted = True
    assert started.wait(30) is not None and termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    return started.returncode, text.decode()


def last_frame(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text[text.rindex("╭") :]).replace("\r", "")


def test_on_a_terminal_the_view_runs_and_its_last_frame_stays(tmp_path: Path) -> None:
    def resize(terminal: int, started: subprocess.Popen[bytes]) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 130, 0, 0))

    status, text = on_a_terminal(search(tmp_path, 6, seconds=0.8), 80, 24, resize)
    frame = last_frame(text)
    assert status == 0 and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    assert " a: finished " in frame and "6 of 6" in frame and "Run a in" in frame, frame
    widths = {len(item) for item in frame.split("\n") if item.startswith("│")}
    assert widths == {130}
    assert text.count("╭") > 1 and "\x1b[2J" not in text


def test_on_a_terminal_ctrl_c_says_what_it_does(tmp_path: Path) -> None:
    def interrupt(terminal: int, started: subprocess.Popen[bytes]) -> None:
        os.write(terminal, b"\x03")

    status, text = on_a_terminal(search(tmp_path, 30, seconds=1.5), 100, 40, interrupt)
    assert status == 0 and STOPPING in text and "stopped after what was running" in last_frame(text)
    run = Run.open("a", tmp_path)
    assert run.state == "finished" and 0 < len(run.trials) < 30 and not run.history.open


def test_a_terminal_that_can_do_nothing_gets_lines(tmp_path: Path) -> None:
    for number, variables in enumerate(({"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"})):
        status, text = on_a_terminal(search(tmp_path / str(number), 3), 80, 24, **variables)
        assert status == 0 and "3/3 evaluated" in text and "╭" not in text and "\x1b" not in text
