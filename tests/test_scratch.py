"""The folder of a worker: what is cleared away, what counts as held, and which changes are seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vortexlab.evaluator import scratch


def test_clearing_away_keeps_nothing_open_and_leaves_what_lives(tmp_path: Path) -> None:
    (tmp_path / "vortex-scratch-left").mkdir()
    living, held = scratch.new_folder(str(tmp_path))
    assert not (tmp_path / "vortex-scratch-left").exists()
    before = set(os.listdir("/proc/self/fd"))
    other, more = scratch.new_folder(str(tmp_path))
    assert living.exists() and other.exists()
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1, "that of the new folder alone"
    for descriptor in (held, more):
        os.close(descriptor)


def test_all_that_lies_below_a_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * (1 << 20))
    (tmp_path / "a" / "link").symlink_to("/usr")
    assert 1 << 20 <= scratch.bytes_on_disk(tmp_path) < 2 << 20
    monkeypatch.setattr(scratch, "_MOST_ENTRIES", 3)
    assert scratch.bytes_on_disk(tmp_path) == 1 << 62


def test_a_stamp_tells_every_change_but_those_of_compiled_code(tmp_path: Path) -> None:
    for folder in ("triton", ".nv", "own", "own/triton"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("x")
    before = scratch.stamps(tmp_path)
    assert set(before) == {"own/file", "own/triton/file"}
    (tmp_path / "own" / "file").write_text("y")
    assert scratch.stamps(tmp_path)["own/file"] != before["own/file"]
    assert scratch.stamp(tmp_path / "gone") == ()


def test_a_shared_file_may_gain_and_lose_names_but_keeps_its_contents(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    shared, alone = tmp_path / "own" / "contexts.kv", tmp_path / "own" / "alone"
    shared.write_text("read")
    alone.write_text("x")
    os.link(shared, tmp_path / "kept")
    seal = scratch.Seal(tmp_path / "own")
    assert seal.holds and seal.names == {"contexts.kv", "alone"}
    os.link(shared, tmp_path / "lent")
    assert seal.holds
    (tmp_path / "lent").unlink()
    (tmp_path / "kept").unlink()
    assert seal.holds
    facts = shared.stat()
    shared.write_text("evil")
    os.utime(shared, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert not seal.holds and not seal.holds, "as long, as old, and not the same"
    shared.write_text("read")
    assert seal.holds
    shared.unlink()
    assert not seal.holds
    shared.write_text("read")
    os.link(alone, tmp_path / "named")
    assert not seal.holds, "another inode, and a file that had no other name when it was sealed"
