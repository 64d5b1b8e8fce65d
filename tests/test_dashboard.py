"""`vortex dashboard`: the trials of a run in optuna-dashboard, whatever state its mirror is in, and nothing written."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from face_fixtures import record, vortex

from vortexlab import dashboard
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.agent.study import MIRROR, mirrored
from vortexlab.cli.schemas import OUTPUTS

needs_dashboard = pytest.mark.skipif(
    importlib.util.find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed"
)
PROGRAMS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return record(tmp_path, evaluations=PROGRAMS, mirror=True)


@contextmanager
def serving(run: Path, end: signal.Signals = signal.SIGINT) -> Iterator[dict[str, Any]]:
    """The command in a process of its own on a free port, and what it printed; stopped by a signal, with status 0."""
    words = [sys.executable, "-m", "vortexlab.cli", "dashboard", str(run), "--port", "0", "--json"]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert started.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = started.stdout.readline()
            assert line, started.stderr.read() if started.stderr else ""
            text += line
        yield OUTPUTS["dashboard"].model_validate_json(text).model_dump()
        started.send_signal(end)
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 0 and errors == ""
    finally:
        started.kill()
        started.wait()


def fetched(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}{path}", timeout=60) as answer:
        return json.load(answer)


@pytest.mark.dashboard
@needs_dashboard
def test_the_trials_of_a_run_are_served_until_ctrl_c(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with serving(folder) as told:
        assert told["file"] == str(folder / MIRROR) and not told["live"] and told["run"] == folder.name
        (study,) = fetched(told["address"], "api/studies")["study_summaries"]
        assert study["study_name"] == folder.name and len(study["directions"]) == 2
        shown = fetched(told["address"], f"api/studies/{study['study_id']}?after=0")["trials"]
        run = Run.open(folder)
        assert len(shown) == len(run.trials) >= PROGRAMS
        assert [tuple(trial["values"]) for trial in shown] == [trial.point or (0.0, 0.0) for trial in run.trials]
        request = urllib.request.Request(f"{told['address']}api/studies/{study['study_id']}", method="DELETE")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=60)
        assert len(fetched(told["address"], "api/studies")["study_summaries"]) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.dashboard
@needs_dashboard
def test_a_missing_mirror_is_made_anew_elsewhere(folder: Path) -> None:
    (folder / MIRROR).unlink()
    with serving(folder, signal.SIGTERM) as told:
        assert Path(told["file"]).is_file() and folder not in Path(told["file"]).parents
        (study,) = fetched(told["address"], "api/studies")["study_summaries"]
        assert len(fetched(told["address"], f"api/studies/{study['study_id']}?after=0")["trials"]) >= PROGRAMS
    assert not Path(told["file"]).parent.exists() and not (folder / MIRROR).exists()


@pytest.mark.dashboard
@needs_dashboard
def test_a_port_in_use_is_one_line(folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in vortex("dashboard", folder, "--port", port).complaint()
    assert "cannot listen at 203.0.113.1" in vortex("dashboard", folder, "--host", "203.0.113.1").complaint()


def test_a_mirror_is_taken_when_it_is_as_far_as_the_record(folder: Path) -> None:
    run = Run.open(folder)
    with dashboard.mirror(run) as (file, live):
        assert file == folder / MIRROR and not live and mirrored(file) == len(run.trials)
    with Store.write(folder) as store:
        store.append("campaign_resumed", {name: store.first().data[name] for name in ("config", "versions")})
        with dashboard.mirror(Run.open(folder)) as (file, live):
            assert file == folder / MIRROR and live, "a campaign is at work"


@pytest.mark.parametrize("damage", ["gone", "behind", "torn", "no journal", "of nobody"])
def test_any_other_mirror_is_made_anew(folder: Path, damage: str) -> None:
    own = folder / MIRROR
    lines = own.read_bytes().splitlines(keepends=True)
    if damage == "gone":
        own.unlink()
    else:
        own.write_bytes({"behind": b"".join(lines[:-1]), "torn": b"".join(lines)[:-9], "no journal": b"\x00{]\n\n",
                         "of nobody": b""}[damage])  # fmt: skip
    before = own.read_bytes() if own.exists() else None
    run = Run.open(folder)
    with dashboard.mirror(run) as (file, live):
        assert file != own and not live and mirrored(file) == len(run.trials)
    assert not file.exists() and (own.read_bytes() if own.exists() else None) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_shown(folder: Path) -> None:
    (folder / MIRROR).unlink()
    run = Run.open(folder)
    folder.chmod(0o555)
    try:
        with dashboard.mirror(run) as (file, _):
            assert mirrored(file) == len(run.trials)
    finally:
        folder.chmod(0o755)


def test_a_missing_package_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'vortexlab[dashboard]'" in vortex("dashboard", folder).complaint()
