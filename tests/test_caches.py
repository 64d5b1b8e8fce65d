"""Caches: what they hold, what goes first, what nobody may touch, and disks that refuse."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign_fakes import in_child
from face_fixtures import vortex

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import caches, scratch
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.context_cache import FILE, ContextCache
from vortexlab.evaluator.tasks import cache as samples
from vortexlab.evaluator.tasks import make_samples
from vortexlab.evaluator.tasks.tokenizer import load_tokenizer
from vortexlab.kernels import disk

OLD = time.time() - 3 * 86_400


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of our own: caches, temporary files and runs below one folder."""
    for name in ("cache", "kernels", "tmp", "runs/first"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "first" / "campaign.sqlite").write_bytes(b"a run")
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield tmp_path


def aged(path: Path, content: bytes = b"x" * 1000, when: float = OLD) -> Path:
    """A file, or a folder with one, that was touched at `when`."""
    file = path / "content" if not path.suffix else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    for item in {file, path}:
        os.utime(item, (when, when))
    return path


def context(place: Path, name: str, size: int = 1000) -> ContextCache:
    """An entry that its maker holds."""
    worker = place / "tmp" / f"worker-{name}"
    worker.mkdir()
    (worker / FILE).write_bytes(bytes(size))
    made = ContextCache(place / "cache" / "contexts", 1_000_000, {"name": name}, lambda line: None)
    made.keep(worker)
    return made


def everything(place: Path) -> dict[str, Path]:
    kernels = place / "kernels" / "kernels"
    closed, held = context(place, "closed"), context(place, "held")
    closed.close()
    assert held.entry.is_dir()
    folder, _ = scratch.new_folder(str(place / "tmp"))
    return {
        "context": closed.entry, "held context": held.entry, "worker": folder,
        "draft": aged(place / "cache" / "contexts" / ".part-killed"),
        "fresh draft": aged(place / "cache" / "contexts" / ".part-alive", when=time.time()),
        "samples": aged(place / "cache" / "tasks" / "abc"),
        "fresh samples": aged(place / "cache" / "tasks" / "def", when=time.time()),
        "kernel": aged(kernels / "k0.py"), "report": aged(kernels / "reports" / "r.json"),
        "tuned": aged(kernels / "tables" / "h200.json"),
        "turns": aged(place / "cache" / "turns" / "cpu.lock"),
        "killed worker": aged(place / "tmp" / "vortex-scratch-killed"),
        "killed before it had a name": aged(place / "tmp" / "vortex-new-killed"),
        "copy": aged(place / "tmp" / "vortex-read-killed"),
        "fresh copy": aged(place / "tmp" / "vortex-read-alive", when=time.time()),
        "somebody's": aged(place / "tmp" / "other"), "run": place / "runs" / "first" / "campaign.sqlite",
    }  # fmt: skip


STAY = {
    "held context", "worker", "fresh draft", "fresh samples", "tuned", "turns", "fresh copy", "somebody's", "run",
}  # fmt: skip


def test_clean_removes_what_nobody_uses(place: Path) -> None:
    things = everything(place)
    shown = vortex("clean", "--dry-run", "--json").json("clean")
    assert all(path.exists() for path in things.values()) and shown["dry_run"]
    done = vortex("clean", "--json").json("clean")
    assert {**done, "dry_run": True} == shown
    assert {name for name, path in things.items() if path.exists()} == STAY
    rows = {row["name"]: row for row in done["caches"]}
    assert {name: (row["entries"], row["in_use"], row["removed"]) for name, row in rows.items()} == {
        "contexts": (4, 2, 2), "samples": (2, 1, 1), "kernels": (2, 0, 2), "scratch": (5, 2, 3),
        "locks": (1, 1, 0),
    }  # fmt: skip
    assert rows["contexts"]["cap"] == 20_000_000_000 and rows["samples"]["removed_bytes"] >= 1000
    assert done["freed_bytes"] == sum(row["removed_bytes"] for row in rows.values())
    text = vortex("clean").out
    assert "0 B freed" in text and "contexts" in text


def test_clean_takes_the_kinds_that_are_named(place: Path) -> None:
    things = everything(place)
    assert [row["name"] for row in vortex("clean", "--samples", "--kernels", "--json").json("clean")["caches"]] == [
        "samples", "kernels",
    ]  # fmt: skip
    gone = {name for name, path in things.items() if not path.exists()}
    assert gone == {"samples", "kernel", "report"}


def test_a_cap_keeps_what_was_used_last_over_all_kinds(place: Path) -> None:
    kernels = place / "kernels" / "kernels"
    for age in range(4):
        aged(kernels / f"k{age}.py", when=OLD - 100 * age)
        aged(place / "cache" / "tasks" / f"s{age}.x", when=OLD - 100 * age - 50)
    done = vortex("clean", "--cap", "3e-6", "--json").json("clean")
    assert sum(row["left_bytes"] for row in done["caches"]) == 3000
    assert sorted(path.name for path in kernels.iterdir()) == ["k0.py", "k1.py"]
    assert [path.name for path in (place / "cache" / "tasks").iterdir()] == ["s0.x"]
    for cap in ("-1", "nan", "inf"):
        assert "--cap needs GB" in vortex("clean", "--cap", cap).complaint()


def test_an_entry_that_another_process_holds_stays(place: Path) -> None:
    made = context(place, "a")
    made.close()
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = os.open(made.entry / "lock", os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.write(ready[1], b"!")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert vortex("clean", "--json").json("clean")["freed_bytes"] == 0 and made.entry.exists()
    os.write(go[1], b"!")
    os.waitpid(pid, 0)
    assert vortex("clean", "--json").json("clean")["freed_bytes"] >= 1000 and not made.entry.exists()


def test_folders_that_cannot_be_changed_are_one_line(place: Path) -> None:
    for parent in (place, *place.parents):
        if parent.stat().st_uid == os.getuid() and parent not in (Path("/"), Path("/tmp")):
            parent.chmod(0o755)
    kept = aged(place / "cache" / "tasks" / "abc")

    def as_nobody() -> str:
        """Root may remove anything; the check must be made by somebody else."""
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        else:
            kept.parent.chmod(0o555)
        try:
            return str(caches.clean(("samples",)))
        except VortexError as error:
            return str(error)

    line = in_child(as_nobody)
    assert line.startswith("1 of the cached entries cannot be removed (Permission denied: ") and "\n" not in line
    assert (kept / "content").read_bytes() == b"x" * 1000
    (place / "cache" / "contexts").write_text("a file in its place")
    assert vortex("clean", "--contexts").status == 0


def test_drafts_of_killed_processes_go_with_the_next_entry(place: Path) -> None:
    old, new = (aged(place / "cache" / "contexts" / f".part-{n}", when=t) for n, t in (("a", OLD), ("b", time.time())))
    entry = context(place, "next").entry
    assert entry.exists() and new.exists() and not old.exists()


def test_kernels_keep_their_cap(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = pytest.importorskip("vortexlab.kernels.gpu.modules")
    folder = place / "kernels" / "kernels"
    for age in range(3):
        aged(folder / f"k{age}.py", when=OLD - age)
    monkeypatch.setattr(disk, "KERNELS_CAP", 2500)
    text = "VALUE = 3  # " + "y" * 700
    kept = modules.store_source(text)
    assert {path.name for path in folder.iterdir()} == {kept.name, "k0.py"}
    os.utime(kept, (OLD, OLD))
    assert modules.load_source(text).VALUE == 3 and kept.stat().st_mtime > OLD  # touched when it is used


def test_samples_that_were_used_longest_ago_go_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, _ = load_tokenizer(str(REFERENCE_MODEL))
    drawn = make_samples("needle", 128, 1, seed=1)
    folder = place / "cache" / "tasks"
    for age in range(3):
        aged(folder / f"s{age}.x", b"x" * 5000, when=OLD - age)
    monkeypatch.setattr(samples, "SAMPLES_CAP", 12_000)
    assert samples.cached({"a": 1}, tokenizer, lambda: drawn) == drawn
    (mine,) = (path for path in folder.iterdir() if path.is_dir())
    own = disk.entries([mine])[0].bytes
    assert {path.name for path in folder.iterdir()} - {mine.name} == ({"s0.x"} if own <= 7000 else set())
    os.utime(mine, (OLD, OLD))
    assert samples.cached({"a": 1}, tokenizer, lambda: []) == drawn and mine.stat().st_mtime > OLD
