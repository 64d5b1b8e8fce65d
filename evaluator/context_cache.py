"""Contexts that were read, kept on disk between evaluators: the next one of the same conditions reads none again.

Runs in the controller, on files of the form that `evaluator.contexts` writes. An entry is a folder named by a hash of
all that keys and values depend on, with their SHA-256 beside them; it is checked whole before it is lent, so a file
that was cut off or changed is noticed and read again. Over all entries there is a cap: the one that was lent longest
ago goes first, and none that an evaluator holds. Where there is no room, or no writing, nothing is kept, and one line
says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vortexlab.dsl.ir import digest
from vortexlab.evaluator import locks
from vortexlab.kernels import disk
from vortexlab.kernels.disk import Entry

FILE, LOCK, _FACTS = "contexts.kv", "lock", "facts.json"
_DRAFT = ".part-"
#: Raised when the form of the file changes.
_FORM = 1


class ContextCache:
    """The entry of `key` under `root`, with at most `limit` bytes over all entries; `say` is told what went wrong."""

    def __init__(self, root: Path, limit: int, key: Mapping[str, Any], say: Callable[[str], None]):
        self._root, self._limit, self._say = root, limit, say
        self.entry = root / digest({"form": _FORM, **key})
        self._held: int | None = None

    def lend(self, scratch: Path) -> bool:
        """Puts the recorded contexts into the worker's folder; False where there are none that are sound."""
        try:
            if not (self.entry / _FACTS).is_file():
                return False
            self._hold()
            facts = json.loads((self.entry / _FACTS).read_text())
            if facts != _facts(self.entry / FILE):
                raise ValueError("its checksum differs")
            (scratch / FILE).unlink(missing_ok=True)
            _place(self.entry / FILE, scratch / FILE)
            os.utime(self.entry / _FACTS)
        except (OSError, ValueError) as error:
            self.close()
            (scratch / FILE).unlink(missing_ok=True)
            self._say(f"recorded contexts in {self.entry} cannot be used ({_line(error)}); the contexts are read again")
            shutil.rmtree(self.entry, ignore_errors=True)
            return False
        return True

    def keep(self, scratch: Path) -> None:
        """Takes up what a worker has read; called before any program has run in it."""
        found = scratch / FILE
        if not found.is_file() or found.is_symlink():
            return
        size = found.stat().st_size
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            if not self._make_room(size):
                self._say(
                    f"{size / 1e9:.2f} GB of contexts are not kept beside what is in use: the cap of {self._root} is "
                    f"{self._limit / 1e9:g} GB (--context-cache)"
                )
                return
            with tempfile.TemporaryDirectory(dir=self._root, prefix=_DRAFT) as part:
                made = Path(part) / "entry"
                made.mkdir()
                _place(found, made / FILE)
                (made / _FACTS).write_text(json.dumps(_facts(made / FILE)))
                (made / LOCK).touch()
                made.rename(self.entry)
            self._hold()
        except OSError as error:
            if not self.entry.is_dir():  # else another evaluator was faster
                self._say(f"contexts are not kept in {self._root} ({_line(error)}); the next run reads them again")

    def close(self) -> None:
        """Lets go of the entry: others may evict it from now on."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _hold(self) -> None:
        if self._held is None:
            self._held = os.open(self.entry / LOCK, os.O_RDONLY)
            fcntl.flock(self._held, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _make_room(self, size: int) -> bool:
        """Evicts what was lent longest ago until `size` bytes fit; whether they do."""
        if size > self._limit:
            return False
        found = [path for path in self._root.iterdir() if (path / _FACTS).is_file()]
        drafts = [item for item in disk.entries(self._root.glob(f"{_DRAFT}*")) if not item.recent]
        disk.shrink(drafts, 0, disk.try_discard)  # of processes that were killed
        held = [Entry(path, _size(path / FILE), (path / _FACTS).stat().st_mtime) for path in found]
        gone = disk.shrink(held, self._limit - size, evict)
        return sum(item.bytes for item in held) - sum(item.bytes for item in gone) + size <= self._limit


def evict(entry: Path) -> bool:
    """Removes an entry unless an evaluator holds it; whether it did. Raises as `locks.remove_unless_held`."""
    return locks.remove_unless_held(entry, entry / LOCK)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _place(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where that is another disk. Nobody writes it any more."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
