"""Runs that move between machines: what arrives is what was sent, whole, or nothing at all."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import shutil
import signal
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaign_fakes import FakeEvaluator, config, in_child
from face_fixtures import record, vortex

from vortexlab.agent.campaign import Campaign
from vortexlab.agent.packing import MANIFEST, pack, unpack
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.cli.main import run as command
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.settings import replay_config


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a report, packed."""
    root = tmp_path_factory.mktemp("home")
    record(root / "runs", "first", 12)
    assert command(["report", "first", "--runs", str(root / "runs")]) == 0
    pack("first", root / "runs", root / "first.tar")
    return root


def test_a_run_arrives_as_it_was(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sent = vortex("pack", "first", "--runs", home / "runs", "--json").json("pack")
    assert [item["name"] for item in sent["files"]] == [FILE, "config.json", "report.html"]
    assert Path(sent["file"]) == Path("first.tar") and sent["bytes"] == Path("first.tar").stat().st_size
    got = vortex("unpack", "first.tar", "--runs", "there", "--json").json("unpack")
    assert got["files"] == sent["files"] and Path(got["folder"]) == Path("there/first")
    here, there = Run.open("first", home / "runs"), Run.open("first", "there")
    assert list(there.events()) == list(here.events())
    assert sorted(path.name for path in Path("there").iterdir()) == ["first"]
    for words in (("status",), ("leaderboard",), ("show", "t0003")):
        after = [words[0], "first", *words[1:]]
        mine = vortex(*after, "--runs", home / "runs", "--json").json(words[0])
        theirs = vortex(*after, "--runs", "there", "--json").json(words[0])
        mine.pop("folder", None), theirs.pop("folder", None)
        assert mine == theirs
    assert "exists in there; give this one another name" in vortex("unpack", "first.tar", "--runs", "there").complaint()
    other = vortex("unpack", "first.tar", "--runs", "there", "--name", "second")
    assert other.out.endswith("run second: there/second\n")
    assert Run.open("second", "there").name == "second"


def test_it_goes_on_and_is_replayed_after_the_move(home: Path, tmp_path: Path) -> None:
    unpack(home / "first.tar", tmp_path, "moved")
    Campaign.resume("moved", tmp_path, evaluations=16, evaluator=FakeEvaluator()).run()
    whole = Campaign(config(tmp_path, name="whole", evaluations=16), evaluator=FakeEvaluator()).run().folder
    hashes = [trial.hash for trial in Run.open("moved", tmp_path).trials]
    assert hashes == [trial.hash for trial in Run.open(whole).trials]
    moved = Run.open("moved", tmp_path)
    again = replay_config(moved.config, moved.folder, name="again", runs=tmp_path)
    Campaign(again, evaluator=FakeEvaluator()).run()
    assert [trial.hash for trial in Run.open("again", tmp_path).trials] == hashes
    elsewhere = Campaign.resume("moved", tmp_path, evaluations=20, evaluator=FakeEvaluator("another machine"))
    with pytest.raises(VortexError, match="was measured under other conditions"):
        elsewhere.run()


def test_a_run_is_packed_while_it_is_written(tmp_path: Path) -> None:
    folder = record(tmp_path / "runs", "live", 4)
    with Store.write(folder) as store:
        store.append("note", {"text": "in the log, not yet in the file"})
        assert (folder / f"{FILE}-wal").stat().st_size > 0
        pack("live", tmp_path / "runs", tmp_path / "live.tar")
        store.append("note", {"text": "too late"})
    unpack(tmp_path / "live.tar", tmp_path / "there")
    events = list(Run.open("live", tmp_path / "there").events("note"))
    assert [event.data["text"] for event in events] == ["in the log, not yet in the file"]
    assert sorted(path.name for path in (tmp_path / "there" / "live").iterdir()) == [FILE, "config.json"]


def members(file: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(file, "r:") as archive:
        return [(item, archive.extractfile(item).read()) for item in archive]  # type: ignore[union-attr]


def written(file: Path, items: list[tuple[tarfile.TarInfo, bytes]], **how: Any) -> Path:
    with tarfile.open(file, "w", **how) as archive:
        for item, content in items:
            item.size = len(content) if item.isreg() else 0
            archive.addfile(item, io.BytesIO(content))
    return file


def remade(items: list[tuple[tarfile.TarInfo, bytes]], change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest, and gives it the checksum that it then has."""
    item, content = items[0]
    found = json.loads(content)
    found.pop("sha256")
    change(found)
    items[0] = item, json.dumps({**found, "sha256": digest(found)}).encode()


def plain(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.type, item.linkname = kind, link
    return item


def flipped(items: list[Any]) -> None:
    item, content = items[1]
    items[1] = item, content[:-1] + bytes([content[-1] ^ 1])


CHANGES: dict[str, tuple[Callable[[list[Any]], None], str]] = {
    "a bit": (flipped, "is damaged: campaign.sqlite has SHA-256 "),
    "shorter": (lambda items: items.__setitem__(2, (items[2][0], items[2][1][:-1])), "is damaged: config.json has "),
    "missing": (lambda items: items.pop(2), "is damaged: config.json is missing"),
    "no manifest": (lambda items: items.pop(0), "does not begin with a manifest"),
    "manifest changed": (
        lambda items: items.__setitem__(0, (items[0][0], items[0][1].replace(b'"first"', b'"third"'))),
        "its manifest has another checksum than it names",
    ),
    "manifest of noise": (lambda items: items.__setitem__(0, (items[0][0], b"[1]")), "manifest of"),
    "another form": (lambda items: remade(items, lambda m: m.update(form=9)), "has form 9; this release reads 1"),
    "no files": (lambda items: remade(items, lambda m: m.update(files=[])), "does not describe a run"),
    "a path": (lambda items: remade(items, lambda m: m["files"][0].update(name="../x")), "does not describe a run"),
    "a name that climbs": (lambda items: remade(items, lambda m: m.update(run="../up")), "'../up' is not usable"),
    "something more": (lambda items: items.append((plain("notes.txt"), b"x")), "it holds 'notes.txt', which"),
    "a member that climbs": (lambda items: items.append((plain("../evil"), b"x")), "it holds '../evil', which"),
    "an absolute member": (lambda items: items.append((plain("/tmp/evil"), b"x")), "it holds '/tmp/evil', which"),
    "twice": (lambda items: items.append((plain("config.json"), b"{}")), "it holds 'config.json', which"),
    "a link": (
        lambda items: items.__setitem__(2, (plain("config.json", tarfile.SYMTYPE, "/etc/passwd"), b"")), "is refused: "
    ),
    "a hard link": (
        lambda items: items.__setitem__(2, (plain("config.json", tarfile.LNKTYPE, FILE), b"")), "is refused: "
    ),
    "a device": (lambda items: items.__setitem__(2, (plain("config.json", tarfile.CHRTYPE), b"")), "is refused: "),
    "a folder": (lambda items: items.__setitem__(2, (plain("config.json", tarfile.DIRTYPE), b"")), "is refused: "),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_refused_and_leaves_nothing(name: str, home: Path, tmp_path: Path) -> None:
    change, expected = CHANGES[name]
    items = members(home / "first.tar")
    change(items)
    file = written(tmp_path / "first.tar", items)
    assert expected in vortex("unpack", file, "--runs", tmp_path / "runs").complaint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar"]


def test_every_flipped_byte_of_the_heads_and_every_cut_is_noticed(home: Path, tmp_path: Path) -> None:
    whole = (home / "first.tar").read_bytes()
    file = tmp_path / "first.tar"
    for length in (0, 1, 511, 512, 700, len(whole) // 3, len(whole) // 2):
        file.write_bytes(whole[:length])
        vortex("unpack", file, "--runs", tmp_path / "runs").complaint()
    for place in (*range(0, 512, 37), 600, 800, len(whole) // 2, len(whole) - 15_000):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        done = vortex("unpack", file, "--runs", tmp_path / "runs")
        if done.status == 0:  # a byte that says nothing, such as padding
            assert (tmp_path / "runs" / "first" / FILE).read_bytes() in whole
            shutil.rmtree(tmp_path / "runs")
        else:
            done.complaint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: whole + b"more" * 999, "goes on behind its end"),
        (lambda whole: whole + whole, "goes on behind its end"),
        (lambda whole: whole.rstrip(b"\0").ljust(-(-len(whole.rstrip(b"\0")) // 512) * 512, b"\0"), "was cut off"),
    ],
)
def test_a_pack_ends_where_it_ends(
    change: Callable[[bytes], bytes], says: str, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "first.tar"
    file.write_bytes(change((home / "first.tar").read_bytes()))
    assert says in vortex("unpack", file, "--runs", tmp_path / "runs").complaint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar"]


def test_a_new_name_is_one_that_needs_no_quotes(home: Path, tmp_path: Path) -> None:
    for name in ("a b", "ü", "x" * 65, "../x", "latest"):
        line = vortex("unpack", home / "first.tar", "--runs", tmp_path / "runs", "--name", name).complaint()
        assert "is not usable: " in line and not list(tmp_path.iterdir())


def test_a_run_of_a_newer_release_is_not_damaged(tmp_path: Path) -> None:
    folder = record(tmp_path, "tomorrow", 3)
    for form, state, says in ((99, "newer", "go on with a release that is as new"), (-1, "damaged", "or damaged")):
        raw = sqlite3.connect(folder / FILE)
        raw.execute(f"PRAGMA user_version = {form}")
        raw.close()
        (row,) = vortex("runs", "--runs", tmp_path, "--json").json("runs")["runs"]
        assert row["state"] == state and says in row["reason"]


def test_a_sound_pack_of_an_unsound_record_is_refused(home: Path, tmp_path: Path) -> None:
    for content, expected in ((b"noise" * 100, "no SQLite file"), (b"", "no such table: events")):
        items = members(home / "first.tar")
        items[1] = items[1][0], content
        facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        remade(items, lambda manifest, facts=facts: manifest["files"][0].update(facts))  # type: ignore[misc]
        file = written(tmp_path / "first.tar", items)
        line = vortex("unpack", file, "--runs", tmp_path / "runs").complaint()
        assert "holds no run that this release can read" in line and expected in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["first.tar"]


def test_packing_refuses_what_is_damaged_or_there(home: Path, tmp_path: Path) -> None:
    assert "exists; give another file with --out" in vortex(
        "pack", "first", "--runs", home / "runs", "--out", home / "first.tar"
    ).complaint()
    folder = record(tmp_path, "torn", 6)
    content = bytearray((folder / FILE).read_bytes())
    content[8192:8300] = b"\xff" * 108
    (folder / FILE).write_bytes(content)
    assert "is damaged" in vortex("pack", "torn", "--runs", tmp_path, "--out", tmp_path / "torn.tar").complaint()
    folder = record(tmp_path, "untrue", 6)  # sound for SQLite, and no story
    raw = sqlite3.connect(folder / FILE)
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute("UPDATE events SET data = '{}' WHERE seq = 5")
    raw.commit()
    raw.close()
    line = vortex("pack", "untrue", "--runs", tmp_path, "--out", tmp_path / "untrue.tar").complaint()
    assert "cannot be packed" in line and f"`vortex doctor {folder}`" in line
    assert "cannot be written" in vortex(
        "pack", "first", "--runs", home / "runs", "--out", tmp_path / "no" / "x.tar"
    ).complaint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn", "untrue"]
    assert "no packed run" in vortex("unpack", folder / FILE, "--runs", tmp_path).complaint()
    assert "cannot be read (No such file" in vortex("unpack", tmp_path / "none.tar").complaint()


def test_unpacking_into_a_file_says_that_a_folder_is_meant(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "runs"
    place.write_text("no folder")
    line = vortex("unpack", home / "first.tar", "--runs", place).complaint()
    assert line == f"vortex: {place} is a file; give the folder of your runs with --runs"
    assert "cannot be written (Not a directory)" in vortex(
        "unpack", home / "first.tar", "--runs", place / "below"
    ).complaint()
    assert place.read_text() == "no folder"


@pytest.mark.parametrize("how", ["pack", "unpack"])
def test_a_full_disk_is_one_line_and_leaves_nothing(how: str, home: Path, tmp_path: Path) -> None:
    """The limit on file size stands in for the end of the disk."""

    def fill() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            if how == "pack":
                pack("first", home / "runs", tmp_path / "first.tar")
            else:
                unpack(home / "first.tar", tmp_path / "runs")
        except VortexError as error:
            return str(error)
        return "it fitted"

    line = in_child(fill)
    why = "disk I/O error" if how == "pack" else "File too large"
    assert f"cannot be written ({why}); check the folder, its permissions and free space" in line and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_runs_lists_all_and_says_what_is_damaged(home: Path, tmp_path: Path) -> None:
    record(tmp_path, "sound", 8)
    record(tmp_path, "later", 3)
    for name in ("noise", "empty", "gone", "strange", "torn"):
        shutil.copytree(tmp_path / "sound", tmp_path / name)
    (tmp_path / "noise" / FILE).write_bytes(b"noise" * 1000)
    (tmp_path / "empty" / FILE).write_bytes(b"")
    (tmp_path / "gone" / FILE).unlink()
    content = bytearray((tmp_path / "torn" / FILE).read_bytes())
    content[8192:8300] = b"\xff" * 108
    (tmp_path / "torn" / FILE).write_bytes(content)
    raw = sqlite3.connect(tmp_path / "strange" / FILE)
    raw.execute("INSERT INTO events (time, kind, data) VALUES (1, 'verdict', '{}')")
    raw.commit()
    raw.close()
    (tmp_path / "no-run").mkdir()
    rows = vortex("runs", "--runs", tmp_path, "--json").json("runs")["runs"]
    assert [row["name"] for row in rows[:2]] == ["later", "sound"]
    assert {row["name"]: row["state"] for row in rows[2:]} == dict.fromkeys(
        ("noise", "empty", "gone", "strange", "torn"), "damaged"
    )
    reasons = {row["name"]: row["reason"] for row in rows}
    assert "no SQLite file" in reasons["noise"] and "is missing" in reasons["gone"] and "damaged" in reasons["torn"]
    assert "does not follow" in reasons["strange"] and "no such table" in reasons["empty"]
    sound, opened = rows[1], Run.open("sound", tmp_path)
    assert (sound["evaluations"], sound["budget"], sound["frontier"]) == (
        opened.progress().evaluations, 8, opened.progress().frontier,
    )  # fmt: skip
    front = [item for item in opened.members() if item.on_frontier and (item.accuracy or 0) >= 0.95]
    assert sound["best"]["speedup"] == max(item.speedup or 0 for item in front)
    assert sound["bytes"] >= (tmp_path / "sound" / FILE).stat().st_size
    text = vortex("runs", "--runs", tmp_path)
    assert text.status == 0 and "damaged" in text.out and "later" in text.out
    with Store.write(tmp_path / "sound"):
        live = in_child(lambda: vortex("runs", "--runs", tmp_path, "--json").out)
    assert {row["name"]: row["state"] for row in json.loads(live)["runs"]}["sound"] == "finished"


def test_the_manifest_names_where_a_run_was_measured(home: Path) -> None:
    (first, content), *_ = members(home / "first.tar")
    found = json.loads(content)
    assert first.name == MANIFEST and found["environment"] == "fake" and found["versions"]["python"]
    assert found["measured_with"] == Run.open("first", home / "runs").history.started["versions"]
    assert found["run"] == "first"
