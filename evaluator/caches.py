"""Everything on this machine that can be made again, with sizes and caps, and how it is removed: `vortex clean`.

Nothing that a running evaluator holds is touched: recorded contexts and scratch folders are locked by it, and the rest
counts as in use for some minutes after it was touched. Runs are no cache, nor are the tables of `vortex tune`.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import context_cache, locks, scratch
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.tasks.cache import SAMPLES_CAP, cache_folder
from vortexlab.kernels import disk
from vortexlab.kernels.disk import Entry

#: Kinds that may be named.
NAMES = ("contexts", "samples", "kernels", "scratch")
_DAY = 86_400.0


@dataclass(frozen=True)
class Cache:
    """`entries` are all that it holds; `remove` takes one away unless it is in use. `cap` in bytes; None: no growth."""

    name: str
    what: str
    folder: Path
    cap: int | None
    entries: Callable[[], list[Entry]]
    in_use: Callable[[Entry], bool]
    remove: Callable[[Path], bool]


def caches() -> list[Cache]:
    """The caches of this user by the names in `NAMES`, and the locks beside them: one that was removed while somebody
    waits at it would let two evaluators time at once."""
    contexts, samples = cache_folder() / "contexts", cache_folder() / "tasks"
    temporary = Path(tempfile.gettempdir())
    return [
        Cache("contexts", "keys and values of contexts that were read", contexts,
              int(EvaluationConfig.context_cache * 1e9), lambda: _inside(contexts), _context_held, context_cache.evict),
        Cache("samples", "samples of tasks", samples, SAMPLES_CAP, lambda: _inside(samples), _recent, disk.discard),
        Cache("kernels", "generated kernels and reports of the compiler", disk.kernel_folder(), disk.KERNELS_CAP,
              lambda: disk.entries(disk.generated()), _recent, disk.discard),
        Cache("scratch", "folders of workers, and those that killed ones left behind", temporary, None,
              lambda: disk.entries(scratch.folders(temporary)), _scratch_held, locks.remove_unless_held),
        Cache("locks", "what evaluators wait at for their turn; always kept", cache_folder() / "turns", None,
              lambda: _inside(cache_folder() / "turns"), lambda item: True, lambda path: False),
    ]  # fmt: skip


def clean(names: tuple[str, ...] = (), cap: float = 0.0, dry_run: bool = False) -> list[dict[str, Any]]:
    """Removes what is not in use from the caches named (all), until `cap` bytes over all of them are left, what was
    used longest ago first. Rows {name, what, folder, cap, entries, bytes, in_use, removed, removed_bytes, left_bytes}.

    Raises `VortexError`, after all else was removed, where something cannot be.
    """
    chosen = [cache for cache in caches() if not names or cache.name in names]
    refused: list[OSError] = []
    with _readable():
        held = {cache.name: cache.entries() for cache in chosen}
        used = {c.name: {item.path for item in held[c.name] if c.in_use(item)} for c in chosen}
    owner = {item.path: cache for cache in chosen for item in held[cache.name]}

    def remove(path: Path) -> bool:
        cache = owner[path]
        if path in used[cache.name]:
            return False
        if dry_run:
            return True
        try:
            if cache.remove(path) and not path.exists():
                return True
            if not cache.in_use(_entry(path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        except OSError as error:
            refused.append(error)
        return False

    gone = {item.path for item in disk.shrink([item for items in held.values() for item in items], cap, remove)}
    if refused:
        raise VortexError(
            f"{len(refused)} of the cached entries cannot be removed ({refused[0].strerror}: {refused[0].filename}); "
            "make the folder writable for you; nothing else was left in place, and runs were not touched"
        )
    return [_row(cache, held[cache.name], used[cache.name], gone) for cache in chosen]


def _row(cache: Cache, held: list[Entry], used: set[Path], gone: set[Path]) -> dict[str, Any]:
    total, removed = sum(item.bytes for item in held), [item for item in held if item.path in gone]
    freed = sum(item.bytes for item in removed)
    return {
        "name": cache.name, "what": cache.what, "folder": str(cache.folder), "cap": cache.cap, "entries": len(held),
        "bytes": total, "in_use": len(used), "removed": len(removed), "removed_bytes": freed,
        "left_bytes": total - freed,
    }  # fmt: skip


def _inside(folder: Path) -> list[Entry]:
    """The entries of a folder, drafts that killed processes left there (``.part-``) among them."""
    return disk.entries(folder.iterdir()) if folder.is_dir() else []


def _entry(path: Path) -> Entry:
    return next(iter(disk.entries([path])), Entry(path, 0, time.time()))


def _recent(item: Entry) -> bool:
    return item.recent


def _context_held(item: Entry) -> bool:
    """Whether an evaluator has the entry, or may be writing it."""
    if item.path.name.startswith("."):
        return item.recent
    return locks.is_held(item.path / context_cache.LOCK)


def _scratch_held(item: Entry) -> bool:
    return locks.is_held(item.path) or not (scratch.is_held_by_lock(item.path) or item.used < time.time() - _DAY)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VortexError(
            f"{error.filename} cannot be read ({error.strerror}); set VORTEX_CACHE to a folder of yours"
        ) from error
