"""The folder of a worker: it outlives the worker, goes with the controller, and changes to it can be seen."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from vortexlab.evaluator import locks

_NAME, _UNNAMED = "vortex-scratch-", "vortex-new-"
#: Private copies of runs whose folders cannot be written (`agent.store`); nobody locks these.
READING = "vortex-read-"
_MOST_ENTRIES = 1_000_000
#: Folders of compiled code, Triton's and the driver's. Compilers rewrite files there, so they go with every worker.
_COMPILED = ("triton", ".nv")
Stamp = tuple[int, ...]


def new_folder(root: str) -> tuple[Path, int]:
    """A new folder and the descriptor whose lock says that its controller lives.

    Folders that killed controllers left behind, which hold gigabytes of contexts, are removed first. A folder gets the
    name by which it is found only when it is locked, so that nobody removes one that is being made.
    """
    for left in Path(root).glob(f"{_NAME}*"):
        with suppress(OSError):
            locks.remove_unless_held(left)
    made = Path(tempfile.mkdtemp(prefix=_UNNAMED, dir=root))
    held = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = made.with_name(made.name.replace(_UNNAMED, _NAME))
        made.rename(named)
    except OSError:  # a file system without locks: the folder stays under a name that nobody clears away
        os.close(held)
        return made, -1
    return named, held


def folders(root: Path) -> list[Path]:
    """Our folders below `root`, held or left behind."""
    return [path for name in (_NAME, _UNNAMED, READING) for path in root.glob(f"{name}*")]


def is_held_by_lock(folder: Path) -> bool:
    """Whether a folder of this name is locked for as long as it is used."""
    return folder.name.startswith(_NAME)


def bytes_on_disk(folder: Path) -> int:
    """Bytes on disk below a folder; beyond `_MOST_ENTRIES` entries it counts as endless."""
    total, seen, todo = 0, 0, [str(folder)]
    while todo:
        with suppress(OSError):
            for entry in os.scandir(todo.pop()):
                seen += 1
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        if seen > _MOST_ENTRIES:
            return 1 << 62
    return total


def stamps(folder: Path) -> dict[str, Stamp]:
    """Files below a folder but compiled code, with what changes when they do."""
    found: dict[str, Stamp] = {}
    for where, folders, files in os.walk(folder):
        if where == str(folder):
            folders[:] = [name for name in folders if name not in _COMPILED]
        for name in files:
            if told := stamp(Path(where, name)):
                found[os.path.relpath(os.path.join(where, name), folder)] = told
    return found


class Seal:
    """What a folder holds, compiled code aside, and whether that is still so.

    Times of change cannot be set back by whoever changes a file. A file that has other names, as contexts have that
    several evaluators read, gets a new one with every name that comes or goes: then its contents decide.
    """

    def __init__(self, folder: Path):
        self._folder, self._stamps = folder, stamps(folder)
        shared = [name for name in self._stamps if os.lstat(folder / name).st_nlink > 1]
        self._digests = {name: _digest(folder / name) for name in shared}

    @property
    def names(self) -> set[str]:
        """Of the files, relative to the folder."""
        return set(self._stamps)

    @property
    def holds(self) -> bool:
        return all(self._is_same(name) for name in self.names)

    def _is_same(self, name: str) -> bool:
        path, told = self._folder / name, self._stamps[name]
        now = stamp(path)
        if now == told:
            return True
        if now[:2] != told[:2] or not self._digests.get(name) or _digest(path) != self._digests[name]:
            return False
        self._stamps[name] = now  # as before it was read: a change since then shows the next time
        return True


def _digest(path: Path) -> str:
    """SHA-256 of a file; empty when it cannot be read."""
    with suppress(OSError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def stamp(path: Path) -> Stamp:
    """Inode, size and time of change of a file; empty when it is gone."""
    try:
        facts = os.lstat(path)
    except OSError:
        return ()
    return facts.st_ino, facts.st_size, facts.st_ctime_ns
