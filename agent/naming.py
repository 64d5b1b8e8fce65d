"""What a command that we recommend calls a run."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

RUNS = "runs"


def called(folder: Path) -> str:
    """The name of a run in `runs/`, for any other its folder; quoted for a shell where that needs it."""
    return quote(folder.name if folder.parent == Path(RUNS) else str(folder))
