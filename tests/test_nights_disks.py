"""Nights that go wrong: disks that fill and folders that turn read-only.

Each ends in a state from which `--resume` goes on to the campaign that nothing had happened to.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config
from face_fixtures import Done, vortex
from nights import TINY, pool, story, whole

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.dsl.errors import VortexError


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


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_disk_that_fills_is_read_and_goes_on_when_there_is_space(small: Path, tmp_path: Path, parallel: int) -> None:
    settings = config(tmp_path / "alone", evaluations=60, parallel=parallel)
    Campaign(settings, pool=pool(parallel)).run()
    with pytest.raises(VortexError, match=f"the disk of {small}/run is full or failing .*--resume {small}/run"):
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
    assert told == done.err.splitlines()[-1:] and f"vortex search --resume {small}/a" in told[0]
    assert all(json.loads(line) for line in (small / "log").read_text().splitlines())


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
