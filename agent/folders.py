"""Folders of runs: all of them, and the one that somebody names."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from vortexlab.agent.store import Store, exists
from vortexlab.dsl.errors import VortexError, one_line

LATEST = "latest"


def run_folders(runs: str | Path = "runs") -> list[Path]:
    """Folders of all campaigns under `runs`, the newest first."""
    root = Path(runs)
    try:
        found = [folder for folder in root.iterdir() if exists(folder)]
    except OSError:
        return []
    return sorted(found, key=lambda folder: (_born(folder), folder.name), reverse=True)


def _born(folder: Path) -> float:
    try:
        with Store.read(folder) as store:
            return store.first().time
    except VortexError:  # damaged: still listed, last, so that naming it tells why
        return 0.0


def resolve(name: str | Path = LATEST, runs: str | Path = "runs") -> Path:
    """The folder of a run given by name, by path, or as `latest`. Raises `VortexError` for an unknown one."""
    text = str(name)
    if text == LATEST:
        folders = run_folders(runs)
        if not folders:
            raise VortexError(f"there is no run in {os.fspath(runs)}/ yet; start one with `vortex search`")
        return folders[0]
    for folder in (Path(runs) / text, Path(text)):
        if exists(folder):
            return folder.resolve() if folder == Path(text) else folder
    known = [folder.name for folder in run_folders(runs)]
    close = difflib.get_close_matches(text, known, 1)
    where = os.fspath(Path(runs))
    if close:
        hint = f"did you mean {close[0]}?"
    else:
        hint = f"known runs: {', '.join(known[:8])}" if known else "there are none yet; start one with `vortex search`"
    raise VortexError(f"there is no run {one_line(text, 80)!r} in {where}/; {hint}")
