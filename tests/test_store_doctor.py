"""`vortex doctor RUN`: a sound record, a damaged one, one of a newer release, and files that hold nothing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from campaign_fakes import FakeEvaluator
from face_fixtures import NAME, record, vortex

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.rescue import examine
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store

RECORDED = Path(__file__).with_name("data") / "run_v1.sqlite.gz"  # of form 1


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / NAME))


def change(folder: Path, *statements: str) -> None:
    """Changes the record behind the store's back."""
    raw = sqlite3.connect(folder / FILE)
    for statement in ("DROP TRIGGER IF EXISTS no_update", "DROP TRIGGER IF EXISTS no_delete", *statements):
        raw.execute(statement)
    raw.commit()
    raw.close()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_sound_run_is_said_to_be_sound(folder: Path) -> None:
    before = files(folder)
    done = vortex("doctor", NAME, "--runs", folder.parent)
    assert done.status == 0 and "the record is sound" in done.out, done
    found = vortex("doctor", NAME, "--runs", folder.parent, "--json")
    assert found.status == 0
    plain = found.json("doctor")
    assert plain["rescued"] is None and plain["missing"] == [] and [item["ok"] for item in plain["items"]] == [True]
    trials = len(Run.open(NAME, folder.parent).trials)
    assert plain["items"][0]["detail"].endswith(f" events, {trials} trials")
    assert files(folder) == before and os.listdir(folder.parent) == [NAME]


def test_a_run_that_is_being_written_is_examined_as_it_is(folder: Path) -> None:
    with Store.write(folder) as store:
        store.append("note", {"text": "in the log"})
        done = vortex("doctor", NAME, "--runs", folder.parent)
        assert done.status == 0 and f"{sum(1 for _ in store.events())} events" in done.out


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE events SET detail = substr(detail, 1, 40) WHERE kind = 'verdict' AND slot = 5",
        "UPDATE events SET data = replace(data, '\"status\"', '\"stat\"') WHERE kind = 'verdict' AND slot = 5",
        "DELETE FROM events WHERE kind = 'verdict' AND slot = 5",
    ],
)
def test_a_verdict_that_is_lost_is_measured_again_and_no_other(folder: Path, damage: str) -> None:
    whole = Run.open(NAME, folder.parent)
    change(folder, damage)
    before = files(folder)
    assert f"`vortex doctor {folder}`" in vortex("report", NAME, "--runs", folder.parent).complaint()
    done = vortex("doctor", NAME, "--runs", folder.parent, "--json")
    assert done.status == 1
    rescued = done.json("doctor")["rescued"]
    assert rescued["run"] == f"{NAME}-rescued" and rescued["trials"] == 5
    assert rescued["measured"] == len(whole.trials) - 6
    assert files(folder) == before

    run = Run.open(rescued["run"], folder.parent)
    assert [trial.slot for trial in run.history.running] == [5] and run.state == "interrupted"
    assert any("rescued from" in note for note in run.history.notes)
    evaluator = FakeEvaluator()
    Campaign.resume(rescued["run"], str(folder.parent), evaluator=evaluator).run()
    again = Run.open(rescued["run"], folder.parent)
    assert len(evaluator.calls) == 1
    assert again.leaderboard().to_json()["entries"] == whole.leaderboard().to_json()["entries"]
    assert [event.data["from_run"] for event in again.events("verdict") if "from_run" in event.data] == [NAME] * (
        len(whole.trials) - 6
    )
    assert vortex("doctor", rescued["run"], "--runs", folder.parent).status == 0
    change(folder.parent / rescued["run"], "DELETE FROM events WHERE kind = 'verdict' AND slot = 6")
    twice = vortex("doctor", rescued["run"], "--runs", folder.parent, "--json").json("doctor")["rescued"]
    assert {event.data["from_run"] for event in Run.open(twice["run"], folder.parent).events("measured")} == {NAME}
    second = vortex("doctor", NAME, "--runs", folder.parent)
    assert second.status == 1 and f"vortex search --resume {folder}-rescued-2`" in " ".join(second.out.split())


def test_what_contradicts_itself_is_damaged(folder: Path) -> None:
    whole = Run.open(NAME, folder.parent)
    count = sum(1 for _ in whole.events()) + 1
    data = json.dumps({"slot": 900, "knobs": {}, "key": "k"})
    change(folder, f"INSERT INTO events (time, kind, slot, data) VALUES (1.0, 'trial_started', 900, '{data}')")
    assert f"`vortex doctor {folder}`" in vortex("status", NAME, "--runs", folder.parent).complaint()
    done = vortex("doctor", NAME, "--runs", folder.parent)
    assert done.status == 1 and f"event {count}, of kind trial_started, does not follow from those before" in done.out
    assert Run.open(f"{NAME}-rescued", folder.parent).leaderboard().entries == whole.leaderboard().entries


def test_without_the_pages_that_lead_to_the_events_all_of_them_are_found(folder: Path) -> None:
    whole = Run.open(NAME, folder.parent)
    events = sum(1 for _ in whole.events())
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(os.urandom(4 * 4096) + content[4 * 4096 :])
    done = vortex("doctor", NAME, "--runs", folder.parent, "--json")
    rescued = done.json("doctor")["rescued"]
    assert done.status == 1 and rescued["events"] == events and rescued["measured"] == 0
    assert Run.open(rescued["run"], folder.parent).leaderboard().entries == whole.leaderboard().entries


def test_without_its_first_event_a_run_begins_anew_with_what_was_measured(folder: Path) -> None:
    whole = Run.open(NAME, folder.parent)
    change(folder, "DELETE FROM events WHERE seq = 1")
    done = vortex("doctor", NAME, "--runs", folder.parent, "--json")
    rescued = done.json("doctor")["rescued"]
    assert done.status == 1 and rescued["events"] == 0 and rescued["measured"] == len(whole.trials)
    evaluator = FakeEvaluator()
    Campaign.resume(rescued["run"], str(folder.parent), evaluator=evaluator).run()
    entries = Run.open(rescued["run"], folder.parent).leaderboard().to_json()["entries"]
    assert entries == whole.leaderboard().to_json()["entries"]
    assert len(evaluator.calls) == len(whole.trials) - rescued["measured"]


def test_a_rescued_run_that_loses_its_first_event_is_rescued_again(folder: Path) -> None:
    whole = Run.open(NAME, folder.parent)
    name = NAME
    for _ in range(3):
        change(folder.parent / name, "DELETE FROM events WHERE seq = 1")
        done = vortex("doctor", name, "--runs", folder.parent, "--json")
        assert done.status == 1, done.err
        rescued = done.json("doctor")["rescued"]
        assert rescued["measured"] == len(whole.trials)
        name = rescued["run"]
    assert {event.data["from_run"] for event in Run.open(name, folder.parent).events("measured")} == {NAME}
    evaluator = FakeEvaluator()
    Campaign.resume(name, str(folder.parent), evaluator=evaluator).run()
    assert Run.open(name, folder.parent).leaderboard().to_json()["entries"] == whole.leaderboard().to_json()["entries"]
    assert not evaluator.calls


def test_a_damaged_run_of_form_1_is_rescued_in_the_form_of_this_release(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    content = gzip.decompress(RECORDED.read_bytes())
    (folder / FILE).write_bytes(content)
    assert vortex("doctor", "old", "--runs", tmp_path).status == 0
    whole = Run.open("old", tmp_path)
    (folder / FILE).write_bytes(content[: len(content) // 2])
    assert vortex("doctor", "old", "--runs", tmp_path).status == 1
    run = Run.open("old-rescued", tmp_path)
    assert 0 < len(run.trials) < len(whole.trials)
    assert [trial.verdict for trial in run.trials] == [trial.verdict for trial in whole.trials[: len(run.trials)]]


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"no database at all" * 1000])
def test_files_that_hold_nothing_are_one_line(folder: Path, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    for command in ("status", "leaderboard"):
        assert f"`vortex doctor {folder}`" in vortex(command, NAME, "--runs", folder.parent).complaint()
    line = vortex("doctor", NAME, "--runs", folder.parent).complaint()
    assert f"nothing of a campaign is left in {folder / FILE}" in line
    assert f"{folder / 'config.json'}: start anew with them" in line
    assert os.listdir(folder.parent) == [NAME]
    (folder / "config.json").unlink()
    assert "start anew" not in vortex("doctor", NAME, "--runs", folder.parent).complaint()


def test_a_newer_release_and_an_unknown_run_are_one_line(folder: Path) -> None:
    assert "did you mean" in vortex("doctor", f"{NAME}x", "--runs", folder.parent).complaint()
    raw = sqlite3.connect(folder / FILE)
    raw.execute("PRAGMA user_version = 7")
    raw.close()
    for command in ("doctor", "status"):
        line = vortex(command, NAME, "--runs", folder.parent).complaint()
        assert "has form 7, written by release 0.1.0" in line, line
    assert os.listdir(folder.parent) == [NAME]


def test_a_damaged_run_that_is_being_written_is_left_alone(folder: Path) -> None:
    change(folder, "DELETE FROM events WHERE seq = 9")
    for command in (("status",), ("search", "--resume")):
        line = vortex(*command, NAME, "--runs", folder.parent).complaint()
        assert f"event 9 is lost; see what is left with `vortex doctor {folder}`" in line
    with Store.write(folder):
        line = vortex("doctor", NAME, "--runs", folder.parent).complaint()
    assert "is being written; stop it first" in line and os.listdir(folder.parent) == [NAME]


def test_search_and_status_of_a_damaged_run_point_to_the_doctor(folder: Path) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])
    for arguments in (("status", NAME), ("leaderboard", NAME), ("search", "--resume", NAME), ("show", NAME, "t0001")):
        assert f"`vortex doctor {folder}`" in vortex(*arguments, "--runs", folder.parent).complaint()
    assert json.loads((folder / "config.json").read_text())["name"] == NAME


def test_the_reference_campaign_is_sound(repo_root: Path) -> None:
    folder = repo_root / "runs" / "reference"
    found = examine(folder)
    assert not found.faults and found.trials >= 40 and not found.later
    assert Run.open(folder).progress().evaluations == 40
