"""Bad input: one line that says what is wrong and how to mend it, status 2, nothing lost, never a traceback."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import NAME, record, vortex

from vortexlab.agent import glance
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.cli import main

PROGRAM = "@program(page=16)\nclass Mine:\n    def select():\n        return first(2)\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    record(folder, evaluations=6)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vortexlab.evaluator.evaluator.Evaluator", lambda config: FakeEvaluator())


def events(folder: Path) -> list[tuple[int, str]]:
    with Store.read(folder) as store:
        return [(event.seq, event.kind) for event in store.events()]


@pytest.mark.parametrize("command", ["status", "leaderboard", "report", "ask"])
def test_an_unknown_run(command: str, runs: Path, tmp_path: Path) -> None:
    line = vortex(command, "recordet", "--runs", runs).complaint()
    assert "there is no run 'recordet'" in line and "did you mean recorded?" in line
    assert "start one with `vortex search`" in vortex(command, "--runs", tmp_path).complaint()


READERS = [
    ("status",), ("leaderboard",), ("show", "t0001"), ("compare", "t0001", "t0002"), ("report",), ("dashboard",),
    ("explain",), ("finals",), ("export", "t0001"), ("ask",), ("tell", "reply.json"), ("propose", "quest"),
    ("pin", "t0001"), ("pause",), ("resume",), ("runs",), ("pack",), ("doctor", NAME), ("search", "--resume", NAME),
    ("init", "--from", NAME),
]  # fmt: skip


@pytest.mark.parametrize("words", READERS, ids=lambda words: words[0])
def test_a_folder_of_runs_that_is_not_there(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    assert f"there is no folder {tmp_path / 'none'}; " in vortex(*words, "--runs", tmp_path / "none").complaint()
    assert "file is a file; give the folder of your runs" in vortex(*words, "--runs", "file").complaint()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_folder_of_runs_may_not_be_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert vortex("runs", "--json").json("runs") == {"folder": "runs", "runs": []}
    done = vortex("runs")
    assert (done.status, done.out) == (0, "there are no runs in runs/ yet; start one with `vortex search`\n")
    assert "start one with `vortex search`" in vortex("status").complaint()
    (tmp_path / "empty").mkdir()
    assert "start one with `vortex search --runs empty`" in vortex("runs", "--runs", "empty").out


@pytest.mark.parametrize(
    "words", [("show", "t0999"), ("export", "t0999"), ("compare", "t0001", "t0999"), ("show", "t"), ("show", "Quest")]
)
def test_an_unknown_id(words: tuple[str, ...], runs: Path) -> None:
    line = vortex(*words, "--runs", runs).complaint()
    assert f"there is no trial {words[-1]!r}" in line and "ids go from t0000 to t0005" in line


@pytest.mark.parametrize("words", [("show",), ("show", "a", "b", "c"), ("compare", "t0001"), ("tell",), ("bench",)])
def test_too_few_and_too_many_words(words: tuple[str, ...], runs: Path) -> None:
    assert vortex(*words, *(("--runs", runs) if words[0] != "bench" else ())).complaint()


@pytest.mark.parametrize("command", ["check", "eval", "bench"])
def test_a_file_that_is_no_program(command: str, tmp_path: Path) -> None:
    cases = {
        "poem.py": b"roses are red\n",
        "empty.py": b"",
        "binary.py": bytes(range(256)),
        "other.py": b"import os\nprint(os.getcwd())\n",
        "wrong.py": PROGRAM.replace("first(2)", "first(q)").encode(),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        line = vortex(command, tmp_path / name).complaint()
        assert str(tmp_path / name) in line, name
    for missing in (tmp_path / "missing.py", tmp_path):
        assert str(missing) in vortex(command, missing).complaint()


@pytest.mark.parametrize("command", ["check", "eval", "bench"])
def test_a_word_that_is_neither_file_nor_published_program(command: str) -> None:
    assert "'qest'; did you mean quest?" in vortex(command, "qest").complaint()
    assert "the programs are dense, sink_window" in vortex(command, "zebra").complaint()


def test_a_finding_names_line_column_and_hint(tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(PROGRAM.replace("first(2)", "frist(2)"))
    done = vortex("check", file)
    assert f"{file}:4:16: error:" in done.complaint() and "hint:" in done.err
    place, text, mark = done.out.splitlines()[:3]
    assert place.startswith(f"{file}:4:16: error:") and text.index("frist") == mark.index("^")
    found = vortex("check", file, "--json").json("check")
    assert found["ok"] is False and found["diagnostics"][0]["line"] == 4


@pytest.mark.parametrize("words", [("--knob", "sink=3"), ("--knob", "budget"), ("--knob", "budget=many"),
                                   ("--knob", "budget=100000"), ("--knob", "page=15"), ("--target", "sm_1"),
                                   ("--predict-for", "abacus"), ("--geometry", "gpt-0"), ("--dtype", "int1"),
                                   ("--batch", "0"), ("--lengths", "0")])  # fmt: skip
def test_settings_of_check(words: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "@program(page=knob.choice(8, 16, default=16))\nclass Mine:\n    budget = knob.int(1, 512, default=4)\n"
        "    def select():\n        return first(budget)\n"
    )
    assert vortex("check", file, *(() if words[0] == "--target" else ("--target", "none")), *words).complaint()


@pytest.mark.parametrize("command", ["eval", "search"])
def test_a_model_path_without_a_config(command: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PROGRAM)
    words = (file,) if command == "eval" else ("--runs", tmp_path / "runs")
    for folder in (tmp_path, tmp_path / "nowhere", file):
        assert "has no config.json" in vortex(command, *words, "--model-dir", folder).complaint()
    assert not (tmp_path / "runs").exists()


def test_a_model_folder_that_holds_no_model(tmp_path: Path) -> None:
    """What the evaluator's worker says of the model arrives as one line too."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "mine.py").write_text(PROGRAM)
    words = ("--model-dir", tmp_path, "--lengths", "512", "--contexts", "1", "--tasks", "needle", "--device", "cpu")
    done = vortex("eval", tmp_path / "mine.py", *words, "--json")
    assert "cannot be loaded" in done.err.splitlines()[-1] and done.status == 2 and "Traceback" not in done.err


def test_a_folder_of_runs_that_cannot_be_written(tmp_path: Path, fake: None) -> None:
    """Tests may run as root, whom permissions do not stop: a file in the place of a folder does."""
    (tmp_path / "runs").write_text("a file")
    line = vortex("search", "--runs", tmp_path / "runs", "--evaluations", "3").complaint()
    assert str(tmp_path / "runs") in line
    assert (tmp_path / "runs").read_text() == "a file"
    assert "report" in vortex("report", NAME, "--runs", record(tmp_path / "good", evaluations=2).parent,
                              "--out", tmp_path / "runs" / "x.html").complaint()  # fmt: skip


def test_a_run_that_cannot_be_written_is_still_read(runs: Path, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = events(runs / NAME), os.open

    def refused(path: object, flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(runs / NAME)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    line = vortex("search", "--resume", NAME, "--evaluations", "9", "--runs", runs).complaint()
    assert "Read-only file system" in line and "make it writable" in line
    assert vortex("leaderboard", NAME, "--runs", runs, "--json").json("leaderboard")["entries"]
    monkeypatch.undo()
    assert events(runs / NAME) == before


def test_two_campaigns_on_one_run(tmp_path: Path, fake: None) -> None:
    folder = record(tmp_path, evaluations=4)
    with Store.write(folder):
        before = events(folder)
        line = vortex("search", "--resume", NAME, "--evaluations", "9", "--runs", tmp_path).complaint()
        assert f"is being written by process {os.getpid()}" in line
        assert events(folder) == before
    assert vortex("search", "--resume", NAME, "--evaluations", "5", "--runs", tmp_path).status == 0


def test_a_damaged_record(tmp_path: Path) -> None:
    folder = record(tmp_path, evaluations=2)
    (folder / FILE).write_bytes(b"no database at all" * 100)
    assert "is damaged or no SQLite file" in vortex("leaderboard", NAME, "--runs", tmp_path).complaint()


LIMITED = """
import resource, sys
from campaign_fakes import FakeEvaluator
import vortexlab.evaluator.evaluator as place
place.Evaluator = lambda config: FakeEvaluator()
from vortexlab.cli.main import run
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
status = run(sys.argv[2:])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sys.exit(status)
"""


def limited(size: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that may write files of `size` bytes and no more, as on a disk that fills up."""
    command = [sys.executable, "-c", LIMITED, str(size), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_full_disk_ends_a_campaign_and_loses_nothing(tmp_path: Path, fake: None) -> None:
    Campaign(config(tmp_path, name=NAME, evaluations=4), evaluator=FakeEvaluator()).run()
    size = (tmp_path / NAME / FILE).stat().st_size
    done = limited(size + 60_000, "search", "--resume", NAME, "--evaluations", "40", "--runs", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("vortex: ") and "full or failing" in last and "--resume" in last
    kept = len(Run.open(NAME, tmp_path).trials)
    assert 4 < kept < 40
    assert vortex("search", "--resume", NAME, "--evaluations", str(kept + 2), "--runs", tmp_path).status == 0
    assert len(Run.open(NAME, tmp_path).trials) >= kept + 2


def test_a_full_disk_leaves_the_report_that_was_there(tmp_path: Path) -> None:
    folder = record(tmp_path, evaluations=2)
    page = folder / "report.html"
    page.write_text("the page of yesterday")
    done = limited(100_000, "report", NAME, "--runs", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write the report" in done.stderr
    assert page.read_text() == "the page of yesterday"
    assert not [item for item in folder.iterdir() if item.name.startswith("tmp")]


def test_output_that_cannot_be_written(runs: Path) -> None:
    command = [sys.executable, "-m", "vortexlab.cli", "leaderboard", "--json", "--runs", str(runs)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert gone.returncode == main.BROKEN_PIPE and gone.stderr == ""


def test_words_that_are_no_command() -> None:
    assert "Did you mean 'search'" in vortex("serch").complaint()
    assert "--nonsense" in vortex("status", "--nonsense").complaint()
    assert "vortex search --help" in vortex("search", "--seed", "x").complaint()


def test_interruption_and_faults_of_ours(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(glance, "status", interrupted)
    assert vortex("status", "--runs", runs).status == main.INTERRUPTED
    monkeypatch.setattr(glance, "status", broken)
    done = vortex("status", "--runs", runs)
    assert done.status == main.FAULT and "RuntimeError: a fault" in done.err and "please report it" in done.err


EARLY = """
import importlib, os, signal, sys, tomllib
from pathlib import Path

project, interrupted, how = sys.argv[1:]

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == interrupted:
            if how == "signal":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
scripts = tomllib.loads(Path(project).read_text())["project"]["scripts"]
module, function = scripts["vortex"].split(":")
sys.argv[1:] = ["status"]
getattr(importlib.import_module(module), function)()
"""


@pytest.mark.parametrize("how", ["signal", "exception"])
@pytest.mark.parametrize("module", ["vortexlab.cli.main", "typer", "vortexlab.dsl.errors", "vortexlab.agent.folders"])
def test_interruption_while_modules_are_loaded(module: str, how: str, repo_root: Path, tmp_path: Path) -> None:
    """`module` is loaded by the installed command when Ctrl-C comes."""
    words = [sys.executable, "-c", EARLY, str(repo_root / "pyproject.toml"), module, how]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may have it ignored
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False, preexec_fn=heard)
    assert (done.returncode, done.stdout) == (main.INTERRUPTED, "")
    assert done.stderr in ("", "interrupted\n")  # typer may have ended the command by itself


def test_names_that_a_terminal_cannot_show(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / NAME, tmp_path / "\u00fcb\x1b[31m")
    assert "\x1b" not in vortex("status", "none", "--runs", tmp_path).complaint()
    words = [sys.executable, "-m", "vortexlab.cli", "runs", "--runs", str(tmp_path)]
    done = subprocess.run(words, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"\\xfcb\\ufffd[31m" in done.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_change_nothing(closed: str, tmp_path: Path) -> None:
    record(tmp_path, evaluations=3)
    words = f"{shlex.quote(sys.executable)} -m vortexlab.cli pack {NAME} --runs {tmp_path} --out {tmp_path / 'x.tar'}"
    done = subprocess.run(["sh", "-c", f"{words} {closed}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "x.tar").is_file()
