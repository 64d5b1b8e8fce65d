"""Files that appear whole, and folders of what can be made again: where generated kernels lie, and how a folder stays
under its cap."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Bytes of generated kernels and of their reports, together.
KERNELS_CAP = 500_000_000
#: Seconds for which something that nobody locks counts as in use after it was touched.
RECENT = 600.0


@dataclass(frozen=True)
class Entry:
    """A file or a folder with all that is in it. `used` is when it was last touched, in seconds since the epoch."""

    path: Path
    bytes: int
    used: float

    @property
    def recent(self) -> bool:
        return time.time() - self.used < RECENT


def kernel_folder() -> Path:
    """Where generated code is kept: ``$VORTEX_CACHE_DIR``, else ``~/.cache/vortexlab``."""
    return Path(os.environ.get("VORTEX_CACHE_DIR") or Path.home() / ".cache" / "vortexlab") / "kernels"


def generated() -> list[Path]:
    """Generated kernels, the reports of their compilation, and drafts of both. Tables of the tuner are measurements."""
    folder = kernel_folder()
    return [*folder.glob("k*.py"), *folder.glob("*.tmp"), *(folder / "reports").glob("*")]


def entries(paths: Iterable[Path]) -> list[Entry]:
    """Sizes and times of those that are there; a folder was touched when anything in it was."""
    found = []
    for path in paths:
        size, used = 0, 0.0
        with suppress(OSError):
            todo = [(path, path.lstat())]
            while todo:
                item, facts = todo.pop()
                size, used = size + facts.st_size, max(used, facts.st_mtime)
                if stat.S_ISDIR(facts.st_mode):
                    with suppress(OSError):
                        todo += [(Path(inner.path), inner.stat(follow_symlinks=False)) for inner in os.scandir(item)]
            found.append(Entry(path, size, used))
    return found


def shrink(held: Iterable[Entry], limit: float, remove: Callable[[Path], bool]) -> list[Entry]:
    """Removes what was used longest ago until `limit` bytes are left, and returns it. `remove` says whether it did."""
    held = sorted(held, key=lambda item: (item.used, item.path))
    total, gone = sum(item.bytes for item in held), []
    for item in held:
        if total <= limit:
            break
        if remove(item.path):
            total -= item.bytes
            gone.append(item)
    return gone


def trim(paths: Iterable[Path], cap: float) -> None:
    """Keeps files and folders under a cap; what was touched a moment ago stays, and so does what cannot be removed."""
    held = entries(paths)
    if sum(item.bytes for item in held) > cap:
        recent = sum(item.bytes for item in held if item.recent)
        shrink([item for item in held if not item.recent], cap - recent, try_discard)


def discard(path: Path) -> bool:
    """Removes a file or a folder; whether it is gone. Raises `OSError` where that is not allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def try_discard(path: Path) -> bool:
    """The same, False where it is not allowed."""
    with suppress(OSError):
        return discard(path)
    return False


def replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a reader sees the old one or the new one. Several processes may do so at once.
    A kill leaves a draft behind, ``.NAME.*.tmp``. Raises `OSError`, and leaves none, where it cannot be written."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as draft:
        try:
            draft.write(content)
            draft.flush()
            os.chmod(draft.name, 0o644)
            os.replace(draft.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft.name)
            raise


def drop_drafts(path: Path) -> None:
    """Deletes what kills have left of `replace`. A process that is just writing the file does not get it done."""
    for draft in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            draft.unlink()


def touch(path: Path) -> None:
    """Says that something is used now. Where that cannot be written it costs nothing but the order of leaving."""
    with suppress(OSError):
        os.utime(path)
