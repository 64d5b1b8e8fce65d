"""The file that a benchmark writes: conditions, and one row for each figure, whole after every row.

A benchmark that was cut off goes on where it stopped: `--resume FILE` keeps the rows that FILE has and measures the
rest, as long as device, versions and kernels are the same; rows that ended in an error are measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vortexlab.dsl.errors import VortexError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """--json, --resume, --seconds. `name` is that of the file where no other is given."""
    parser.add_argument("--json", type=Path, default=Path(name), metavar="FILE", help=f"what to write; {name}")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep the rows of this file, measure the rest")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing new after so many; 540")


def conditions(**more: Any) -> dict[str, Any]:
    """What every figure of a run was measured under. `kernels` is a digest over the sources of our kernels."""
    import triton

    digest = hashlib.sha256()
    for path in sorted((ROOT / "kernels" / "gpu").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu", "torch": torch.__version__,
        "triton": triton.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
        "kernels": digest.hexdigest()[:12], **more,
    }  # fmt: skip


class Records:
    """Rows by key, in one JSON file.

    `keys` names the fields that tell a row from the others. Raises `VortexError` when the file to go on from cannot be
    read or was written under other conditions.
    """

    def __init__(self, options: argparse.Namespace, conditions: dict[str, Any], keys: tuple[str, ...]):
        self.path: Path = options.json
        self.conditions, self.keys = conditions, keys
        self.rows: list[Row] = []
        self.sums: dict[str, Any] = {}  # what sums the rows up; in the file beside them
        self._ends = time.monotonic() + options.seconds
        if options.resume and options.resume.exists():
            self._take(options.resume)

    def _take(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text())
            rows, under = list(found["rows"]), dict(found["conditions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VortexError(f"{path} cannot be gone on from ({error}); leave out --resume to start again") from error
        if other := sorted(key for key in self.conditions | under if self.conditions.get(key) != under.get(key)):
            raise VortexError(f"{path} was written under another {', '.join(other)}; leave out --resume to start again")
        self.rows = [row for row in rows if "error" not in row]

    def key(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.keys)

    def find(self, **where: Any) -> Row | None:
        """The row with these fields, if there is one and it is no error."""
        rows = (row for row in self.rows if "error" not in row)
        return next((row for row in rows if all(row.get(key) == value for key, value in where.items())), None)

    @property
    def seconds_left(self) -> float:
        """Of the time in which new cells may begin."""
        return self._ends - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the time in which new cells may begin is over."""
        return self.seconds_left < 0

    def measure(self, row: Row, work: Callable[[], Row]) -> Row | None:
        """`row` with what `work` finds, unless the file has it or time is over (None). An error becomes the row."""
        if (have := self.find(**{name: row[name] for name in self.keys})) is not None:
            return have
        if self.is_over:
            return None
        try:
            row = row | work()
        except Exception as error:
            row = row | {"error": f"{type(error).__name__}: {str(error)[:400]}"}
        self.rows.append(row)
        self.write()
        return row

    def write(self) -> None:
        """Writes the file by way of another, so that it is whole at every moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"conditions": self.conditions, **self.sums, "rows": self.rows}, indent=1, allow_nan=False)
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(text + "\n")
        os.replace(partial, self.path)

    def errors(self) -> Iterator[str]:
        """A line for every row that is an error."""
        for row in self.rows:
            if "error" in row:
                yield f"{' '.join(map(str, self.key(row)))}: {row['error']}"


def read_rows(path: Path) -> list[Row]:
    """The rows of a kept file, errors left out, each with the conditions of the file."""
    found = json.loads(path.read_text())
    conditions = found.get("conditions", {key: value for key, value in found.items() if isinstance(value, str)})
    rows = found.get("rows", found.get("table"))
    return [{"conditions": conditions, **row} for row in rows if "error" not in row]
