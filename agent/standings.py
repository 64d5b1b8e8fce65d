"""A run's leaderboard, kept beside its record: thousands of programs are read and compared once for every state of it.

The file is derived and never the truth. It says what it was computed from (the last event, the seed, the release); one
that says something else, is damaged or cannot be read is computed anew, and one that cannot be written is not kept.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vortexlab import __version__
from vortexlab.agent.leaderboard import Comparison, Entry, Leaderboard
from vortexlab.agent.store import Mark
from vortexlab.evaluator.verdict import Estimate

FILE = "leaderboard.cache"
FORM = 1  # to be raised when other numbers are computed from the same record
SEED = 0
_FIELDS = tuple(Entry.__dataclass_fields__)
_ESTIMATES = tuple(_FIELDS.index(name) for name in ("speedup", "accuracy", "shrunk"))
_RIVAL, _CONDITIONS = _FIELDS.index("beats_seed"), _FIELDS.index("conditions")


def kept(folder: Path, mark: Mark, compute: Callable[[], Leaderboard]) -> Leaderboard:
    """The leaderboard of the record up to `mark`: the one at hand, or the computed one, which is then kept."""
    with uncollected():
        found = load(folder, mark)
        if found is None:
            found = compute()
            with suppress(OSError):
                _save(folder, mark, found)
        return found


def load(folder: Path, mark: Mark) -> Leaderboard | None:
    """The leaderboard that is kept, None where there is none of that mark."""
    try:
        with uncollected():
            found = json.loads(zlib.decompress((folder / FILE).read_bytes()))
            if found["of"] != _facts(mark) or found["fields"] != list(_FIELDS):
                return None
            return Leaderboard(folder.name, tuple(_entry(row, found["conditions"]) for row in found["entries"]))
    except (OSError, zlib.error, ValueError, TypeError, KeyError, IndexError):  # whatever a damaged file makes of us
        return None


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


def _facts(mark: Mark) -> dict[str, Any]:
    return {"form": FORM, "release": __version__, "seed": SEED, "event": mark.seq, "time": mark.time}


def _save(folder: Path, mark: Mark, board: Leaderboard) -> None:
    """A reader sees the old file or the new one."""
    conditions: dict[str, tuple[int, Any]] = {}  # mostly the same for all
    places: dict[int, int] = {}  # by the object, since equal ones mostly are one
    rows = []
    for entry in board.entries:
        row = [getattr(entry, name) for name in _FIELDS]
        for at in _ESTIMATES:
            row[at] = _ends(row[at])
        if entry.beats_seed is not None:
            rival = entry.beats_seed
            row[_RIVAL] = [rival.seed, rival.name, _ends(rival.difference)]
        if id(entry.conditions) not in places:
            text = json.dumps(entry.conditions)
            places[id(entry.conditions)] = conditions.setdefault(text, (len(conditions), entry.conditions))[0]
        row[_CONDITIONS] = places[id(entry.conditions)]
        rows.append(row)
    found = {"of": _facts(mark), "fields": _FIELDS, "conditions": [c for _, c in conditions.values()], "entries": rows}
    packed = zlib.compress(json.dumps(found, separators=(",", ":")).encode(), 1)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{FILE}.", delete=False) as file:
        try:
            file.write(packed)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, folder / FILE)
        except BaseException:
            os.unlink(file.name)
            raise


def _entry(row: list[Any], conditions: list[Any]) -> Entry:
    for at in _ESTIMATES:
        row[at] = Estimate(*row[at])
    if row[_RIVAL] is not None:
        seed, name, difference = row[_RIVAL]
        row[_RIVAL] = Comparison(seed, name, Estimate(*difference))
    row[_CONDITIONS] = conditions[row[_CONDITIONS]]
    return Entry(*row)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high
