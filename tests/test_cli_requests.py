"""`vortex propose`, `pin`, `pause` and `resume`, for runs that are at work and runs that are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator
from face_fixtures import NAME, record, vortex

from vortexlab.agent import inbox
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store

PROGRAM = """
@program(page=16)
class Mine:
    recent = knob.int(1, 64, default=8)
    def select():
        return first(2) | last(recent)
"""
SEEDS_ALONE = 3


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    record(tmp_path / "runs", evaluations=SEEDS_ALONE)
    return tmp_path / "runs"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(PROGRAM)
    return file


def go_on(runs: Path, evaluations: int) -> None:
    Campaign.resume(NAME, runs, evaluations=evaluations, evaluator=FakeEvaluator()).run()


def test_what_is_asked_of_a_run_that_stands_still_waits(runs: Path, mine: Path) -> None:
    words = ("propose", NAME, mine, "--knob", "recent=5", "--label", "by hand", "--runs", runs)
    found = vortex(*words, "--json").json("propose")
    assert (found["kind"], found["running"], found["trial"]) == ("propose", False, None) and found["request"]
    assert found["message"] == (
        f"Mine takes the next slot of run {NAME}, which is not running and has spent its budget: this waits for "
        f"`vortex search --resume {runs / NAME} --evaluations N`"
    )
    pinned = vortex("pin", "t0001", "--runs", runs)
    assert pinned.status == 0 and pinned.out.startswith("t0001 SinkWindow is pinned from the next slot of run")
    status = vortex("status", "--runs", runs, "--json").json("status")
    assert status["waiting"] == ["propose Mine", "pin t0001"] and status["pinned"] == []
    assert "asked for, and not begun: pin t0001" in vortex("status", "--runs", runs).out
    go_on(runs, SEEDS_ALONE + 2)
    shown = vortex("show", "t0003", "--runs", runs, "--json").json("show")
    assert (shown["name"], shown["knobs"], shown["label"]) == ("Mine", {"recent": 5}, "by hand")
    assert vortex("status", "--runs", runs, "--json").json("status")["waiting"] == []
    again = vortex(*words, "--json").json("propose")
    assert (again["request"], again["trial"]) == ("", "t0003") and "evaluated already" in again["message"]


def test_pinned_members_are_marked_until_the_pin_is_removed(runs: Path) -> None:
    vortex("pin", "t0001", "--runs", runs)
    go_on(runs, SEEDS_ALONE + 1)
    board = vortex("leaderboard", "--runs", runs, "--json").json("leaderboard")["entries"]
    assert [entry["id"] for entry in board if entry["pinned"]] == ["t0001"]
    rows = [line.split() for line in vortex("leaderboard", "--runs", runs).out.splitlines()]
    assert [row[0] for row in rows if row[1:2] == ["t0001"]] in (["p"], ["*p"])
    assert vortex("show", "1", "--runs", runs, "--json").json("show")["pinned"] is True
    assert ["pinned", "yes"] in [line.split() for line in vortex("show", "1", "--runs", runs).out.splitlines()]
    assert "pinned: t0001" in vortex("status", "--runs", runs).out
    table = Run.open(NAME, runs).to_pandas()
    assert list(table[table.pinned].id) == ["t0001"]
    removed = vortex("pin", NAME, "t0001", "--remove", "--runs", runs, "--json").json("pin")
    assert removed["kind"] == "unpin" and removed["trial"] == "t0001"
    go_on(runs, SEEDS_ALONE + 2)
    assert vortex("show", "1", "--runs", runs, "--json").json("show")["pinned"] is False
    assert "t0001 is not pinned" in vortex("pin", "t0001", "--remove", "--runs", runs).complaint()


def test_a_pin_that_still_waits_can_be_removed(runs: Path) -> None:
    vortex("pin", "t0001", "--runs", runs)
    assert vortex("pin", "t0001", "--remove", "--runs", runs).status == 0
    go_on(runs, SEEDS_ALONE + 1)
    assert Run.open(NAME, runs).history.pinned == []


def test_a_run_at_work_is_asked_to_wait_and_to_go_on(runs: Path) -> None:
    with Store.write(runs / NAME):
        found = [vortex(command, NAME, "--runs", runs, "--json").json(command) for command in ("pause", "resume")]
        assert [(item["kind"], item["running"]) for item in found] == [("pause", True), ("resume", True)]
        assert "go on with `vortex resume" in vortex("pause", "--runs", runs).out
        assert f"run {NAME} goes on" in vortex("resume", "--runs", runs).out
    assert [path.stem for path in inbox.waiting(runs / NAME)][:2] == [item["request"] for item in found]


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_what_is_not_running_neither_waits_nor_goes_on(command: str, runs: Path) -> None:
    line = vortex(command, "--runs", runs).complaint()
    assert line == f"vortex: run {NAME!r} is not running; go on with `vortex search --resume {runs / NAME}`"
    assert not inbox.waiting(runs / NAME)


def test_bad_input_is_one_line_and_asks_nothing(runs: Path, mine: Path, tmp_path: Path) -> None:
    for words in (("propose", "recordet", mine), ("pin", "recordet", "t0001"), ("pause", "recordet")):
        assert "did you mean recorded?" in vortex(*words, "--runs", runs).complaint()
    assert "there is no trial 't0999'" in vortex("pin", "t0999", "--runs", runs).complaint()
    assert "expected [RUN] ID" in vortex("pin", "a", "b", "c", "--runs", runs).complaint()
    poem = tmp_path / "poem.py"
    poem.write_text("roses are red\n")
    assert f"{poem}:1:" in vortex("propose", poem, "--runs", runs).complaint()
    assert "missing.py" in vortex("propose", tmp_path / "missing.py", "--runs", runs).complaint()
    assert "no knob 'sink'" in vortex("propose", mine, "--knob", "sink=1", "--runs", runs).complaint()
    assert "knob recent" in vortex("propose", mine, "--knob", "recent=99", "--runs", runs).complaint()
    assert not (runs / NAME / inbox.INBOX).exists()
    (runs / NAME / inbox.INBOX).write_text("in the way")
    for words in (("propose", mine), ("pin", "t0001")):
        line = vortex(*words, "--runs", runs).complaint()
        assert f"cannot leave a request in {runs / NAME / inbox.INBOX} (File exists)" in line
    go_on(runs, SEEDS_ALONE + 1)
    assert len(Run.open(NAME, runs).trials) == SEEDS_ALONE + 1
