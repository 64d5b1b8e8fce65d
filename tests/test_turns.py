"""Evaluators take turns on a device: many at once, or one alone."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.turns import turn


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path))
    yield tmp_path


class Visit:
    """A turn in a thread of its own, from `enter` until `leave`."""

    def __init__(self, alone: bool, device: str = "cuda"):
        self._in, self._out = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._stay, args=(device, alone), daemon=True)
        self._thread.start()

    def _stay(self, device: str, alone: bool) -> None:
        with turn(device, alone):
            self._in.set()
            self._out.wait(60)

    def is_in(self, seconds: float = 30.0) -> bool:
        return self._in.wait(seconds)

    def leave(self) -> None:
        self._out.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_many_work_beside_each_other() -> None:
    visits = [Visit(alone=False) for _ in range(3)]
    assert all(visit.is_in() for visit in visits)
    for visit in visits:
        visit.leave()


def test_one_who_times_is_alone_and_is_not_passed_by_those_who_come_later() -> None:
    first = Visit(alone=False)
    assert first.is_in()
    timing = Visit(alone=True)
    assert not timing.is_in(0.3)
    later = Visit(alone=False)
    assert not later.is_in(0.3)
    first.leave()
    assert timing.is_in() and not later.is_in(0.3)
    timing.leave()
    assert later.is_in()
    later.leave()


def test_devices_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = Visit(alone=True)
    assert timing.is_in()
    other = Visit(alone=True, device="cpu")
    assert other.is_in()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    second = Visit(alone=True)
    assert second.is_in()
    for visit in (timing, other, second):
        visit.leave()


def test_an_error_ends_the_turn() -> None:
    with pytest.raises(ZeroDivisionError), turn("cpu", alone=True):
        raise ZeroDivisionError
    visit = Visit(alone=True, device="cpu")
    assert visit.is_in()
    visit.leave()


def test_without_a_cache_the_folder_for_temporary_files_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with turn("cpu", alone=True):
        assert len(list((tmp_path / "temporary").iterdir())) == 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(VortexError, match="set VORTEX_CACHE"), turn("cpu", alone=False):
        pass
