"""Folders that are held by a lock, on themselves or on a file in them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vortexlab.evaluator import context_cache, locks, scratch


@contextmanager
def holding(lock: Path, how: int) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDONLY)
    fcntl.flock(descriptor, how)
    try:
        yield
    finally:
        os.close(descriptor)


@pytest.fixture(params=["folder", "file"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "lock").touch()
    return folder if request.param == "folder" else folder / "lock"


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_what_is_held_stays_until_it_is_let_go(lock: Path, how: int, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    where = None if lock == folder else lock
    with holding(lock, how):
        assert locks.is_held(lock) and not locks.remove_unless_held(folder, where) and (folder / "lock").exists()
    before = set(os.listdir("/proc/self/fd"))
    assert not locks.is_held(lock) and locks.remove_unless_held(folder, where) and not folder.exists()
    assert set(os.listdir("/proc/self/fd")) == before
    assert not locks.is_held(lock) and locks.remove_unless_held(folder, where), "gone is gone"


def test_a_folder_without_the_file_of_its_lock_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    assert locks.remove_unless_held(tmp_path / "kept", tmp_path / "kept" / "lock") and not (tmp_path / "kept").exists()


def test_what_belongs_to_another_user_counts_as_held(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: lock.stat().st_uid + 1)
    folder = tmp_path / "kept"
    assert locks.is_held(lock) and not locks.remove_unless_held(folder, None if lock == folder else lock)
    assert folder.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert locks.is_held(tmp_path / "link")
    with pytest.raises(OSError):
        locks.remove_unless_held(tmp_path / "link")
    assert (tmp_path / "kept").is_dir()


def test_workers_and_recorded_contexts_are_held_in_one_way(tmp_path: Path) -> None:
    worker, held = scratch.new_folder(str(tmp_path))
    assert locks.is_held(worker) and not locks.remove_unless_held(worker)
    os.close(held)
    assert locks.remove_unless_held(worker)
    entry = tmp_path / "entry"
    entry.mkdir()
    (entry / context_cache.LOCK).touch()
    with holding(entry / context_cache.LOCK, fcntl.LOCK_SH):
        assert not context_cache.evict(entry) and entry.is_dir()
    assert context_cache.evict(entry) and not entry.exists()
