"""Contexts are paid once: a second evaluator reads none, and no fault of the disk stops one."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.context_cache import FILE, ContextCache
from vortexlab.evaluator.contexts import Context, ContextStore, Turn
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.models import load_model

SMALL = EvaluationConfig(tasks=("needles",), lengths=(256,), contexts=2, turns=1, dense_floor=0.0, threads=1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "contexts"


def opened(config: EvaluationConfig = SMALL) -> tuple[int, dict[str, float]]:
    """Contexts that an evaluator read, and what dense attention scored on them."""
    with Evaluator(config) as evaluator:
        evaluator.open()
        assert evaluator.prefilled is not None
        return evaluator.prefilled, evaluator.dense_scores()


def test_a_second_evaluator_reads_no_context(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, scores = opened()
    assert first == 2
    assert opened() == (0, scores)
    assert "vortex:" not in capfd.readouterr().err
    (file,) = root.glob(f"*/{FILE}")
    os.truncate(file, file.stat().st_size // 2)
    assert opened() == (2, scores)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vortex:")]
    assert len(lines) == 1 and "cannot be used" in lines[0] and "read again" in lines[0]


@pytest.mark.slow
def test_other_contexts_are_read_and_none_are_kept_where_asked(root: Path) -> None:
    assert opened()[0] == 2
    assert opened(replace(SMALL, seed=1))[0] == 2 and len(list(root.iterdir())) == 2
    assert opened(replace(SMALL, seed=2, context_cache=0))[0] == 2 and len(list(root.iterdir())) == 2


@pytest.mark.slow
def test_a_restarted_worker_reads_no_context(root: Path) -> None:
    with Evaluator(replace(SMALL, context_cache=0)) as evaluator:
        evaluator.open()
        evaluator._place.sandbox.stop()
        evaluator.open()
        assert evaluator.prefilled == 2 and not root.exists()


@pytest.mark.parametrize("fault", ["truncated", "changed", "without facts", "without a file"])
def test_a_damaged_entry_is_noticed_and_kept_anew(fault: str, tmp_path: Path) -> None:
    said: list[str] = []
    cache = entry(tmp_path / "contexts", "a", 10_000, 5000, said)
    cache.close()
    file, scratch = cache.entry / FILE, tmp_path / "scratch"
    scratch.mkdir()
    if fault == "truncated":
        os.truncate(file, 1000)
    elif fault == "changed":
        with open(file, "r+b") as stream:
            stream.seek(1000)
            stream.write(b"\x55" * 8)
    elif fault == "without facts":
        (file.parent / "facts.json").write_text("{")
    else:
        file.unlink()
    assert not cache.lend(scratch) and not list(scratch.iterdir()) and not cache.entry.exists()
    assert len(said) == 1 and "cannot be used" in said[0] and "read again" in said[0]
    (tmp_path / "scratch-a" / FILE).unlink()
    entry(tmp_path / "contexts", "a", 10_000, 5000, said).close()
    assert cache.lend(scratch) and len(said) == 1


def test_a_disk_that_cannot_be_written_costs_one_line(tmp_path: Path) -> None:
    """Tests may run as root, whom permissions do not stop: a file in the place of a folder does."""
    said: list[str] = []
    (tmp_path / "file").write_text("a file")
    cache = entry(tmp_path / "file" / "contexts", "a", 10_000, 5000, said, tmp_path)
    assert not cache.lend(tmp_path)
    assert len(said) == 1 and "are not kept" in said[0] and "the next run reads them again" in said[0]


def test_more_than_the_cap_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    small = entry(tmp_path / "contexts", "a", 1000, 500, said)
    small.close()
    assert not entry(tmp_path / "contexts", "b", 1000, 5000, said).entry.exists() and small.entry.exists()
    assert len(said) == 1 and "--context-cache" in said[0]


def entry(root: Path, name: str, limit: int, size: int, said: list[str], place: Path | None = None) -> ContextCache:
    """An entry of `size` bytes, held by its maker, who read it in `place`."""
    scratch = (place or root.parent) / f"scratch-{name}"
    scratch.mkdir(exist_ok=True)
    (scratch / FILE).write_bytes(bytes(size))
    cache = ContextCache(root, limit, {"name": name}, said.append)
    cache.keep(scratch)
    return cache


def test_the_oldest_goes_first_and_nothing_in_use(tmp_path: Path) -> None:
    said: list[str] = []
    root = tmp_path / "contexts"
    made = {name: entry(root, name, 300, 100, said) for name in ("a", "b", "c")}
    for age, name in enumerate("abc"):
        os.utime(made[name].entry / "facts.json", (1000 + age, 1000 + age))
    assert not entry(root, "d", 300, 100, said).entry.exists()  # everything is in use
    assert len(said) == 1 and "beside what is in use" in said[0]
    for cache in made.values():
        cache.close()
    again = tmp_path / "again"
    again.mkdir()
    assert made["a"].lend(again) and (again / FILE).stat().st_size == 100  # now the newest, and in use
    late = entry(root, "d", 300, 100, said)
    assert [made[name].entry.exists() for name in "abc"] == [True, False, True] and late.entry.exists()
    entry(root, "e", 300, 100, said)
    assert [made[name].entry.exists() for name in "abc"] == [True, False, False]
    assert len(said) == 1
    assert sum(path.stat().st_size for path in root.glob(f"*/{FILE}")) == 300


def test_a_full_disk_puts_contexts_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(SMALL.model)
    contexts = [Context(tuple(range(100, 300)), (Turn((5, 6), 1),))]
    usual = ContextStore(model, contexts, tmp_path)

    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    (tmp_path / "other").mkdir()
    found = ContextStore(model, contexts, tmp_path / "other")
    assert "No space left" in found.note and "lie in memory" in found.note and not usual.note
    assert not list((tmp_path / "other").iterdir())
    for mine, theirs in zip(found.caches(16), usual.caches(16), strict=True):
        assert mine.dense(0)[0].equal(theirs.dense(0)[0]) and mine.dense(0)[1].equal(theirs.dense(0)[1])


def test_a_file_of_another_size_is_read_again(tmp_path: Path) -> None:
    model = load_model(SMALL.model)
    contexts = [Context(tuple(range(100, 300)), (Turn((5, 6), 1),))]
    assert ContextStore(model, contexts, tmp_path).prefilled == 1
    assert ContextStore(model, contexts, tmp_path).prefilled == 0
    os.truncate(tmp_path / FILE, 1000)
    assert ContextStore(model, contexts, tmp_path).prefilled == 1
