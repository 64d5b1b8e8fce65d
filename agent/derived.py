"""Files beside a record that hold what was computed from it, so that it is computed once for every state of it.

A derived file is never the truth. It says what it was computed from (the last event, the release); one that says
something else, is damaged or cannot be read is computed anew, and one that cannot be written is not kept.
"""

from __future__ import annotations

import gc
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vortexlab import __version__
from vortexlab.agent.events import Mark
from vortexlab.kernels import disk

T = TypeVar("T")
#: Whatever a damaged file makes of us.
_DAMAGED = (OSError, zlib.error, ValueError, TypeError, AttributeError, LookupError, RecursionError)


@dataclass(frozen=True)
class Derived(Generic[T]):
    """A file of the run's folder. `facts` tell how it was computed, beside the record and the release; `pack` and
    `unpack` turn the value into plain JSON and back, the latter with the run's folder."""

    file: str
    facts: dict[str, Any]
    pack: Callable[[T], Any]
    unpack: Callable[[Path, Any], T]

    def kept(
        self, folder: Path, mark: Mark, compute: Callable[[], T], *, still: Callable[[], bool] = lambda: True
    ) -> T:
        """What follows from the record up to `mark`: what is at hand, or the computed value, which is then kept where
        that is `still` the record's end."""
        with uncollected():
            found = self.load(folder, mark)
            if found is None:
                found = compute()
                if still():
                    self.keep(folder, mark, found)
            return found

    def load(self, folder: Path, mark: Mark) -> T | None:
        """What is kept, None where there is nothing of that mark."""
        try:
            with uncollected():
                found = json.loads(zlib.decompress((folder / self.file).read_bytes()))
                return self.unpack(folder, found["is"]) if found["of"] == self._of(mark) else None
        except _DAMAGED:
            return None

    def tidy(self, folder: Path) -> None:
        """Deletes what killed processes have left of it."""
        disk.drop_drafts(folder / self.file)

    def _of(self, mark: Mark) -> dict[str, Any]:
        return {**self.facts, "release": __version__, "event": mark.seq, "time": mark.time}

    def keep(self, folder: Path, mark: Mark, value: T) -> None:
        """Where it can be written."""
        found = {"of": self._of(mark), "is": self.pack(value)}
        with suppress(OSError):
            disk.replace(folder / self.file, zlib.compress(json.dumps(found, separators=(",", ":")).encode(), 1))


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the collector of cycles, which would look again and again through thousands of records that all stay."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
