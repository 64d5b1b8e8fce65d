"""What a run's status and leaderboard are now: read from what is kept beside its record, which is at hand at once.

The record itself is read only where nothing of its last event is kept. So this loads little: `vortex status` is asked
again and again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vortexlab.agent import status as standing
from vortexlab.agent.derived import uncollected
from vortexlab.agent.folders import LATEST, resolve
from vortexlab.agent.leaderboard import BOARD, Leaderboard
from vortexlab.agent.store import Store, is_written


def status(name: str | Path = LATEST, runs: str | Path = "runs") -> dict[str, Any]:
    """As `Run.status`. Raises `VortexError` for an unknown run or a damaged file."""
    folder = resolve(name, runs)
    with Store.read(folder) as store, uncollected():
        written = is_written(folder)  # before the record is read, which may end meanwhile
        found = standing.KEPT.load(folder, store.mark())
        if found is None:
            from vortexlab.agent.run import Run

            found = Run(store, lean=True).recorded_status()
    return standing.at_this_moment(folder, found, written)


def leaderboard(name: str | Path = LATEST, runs: str | Path = "runs") -> Leaderboard:
    """As `Run.leaderboard`. Raises as `status`."""
    folder = resolve(name, runs)
    with Store.read(folder) as store:
        found = BOARD.load(folder, store.mark())
    if found is not None:
        return found
    from vortexlab.agent.run import Run

    return Run.open(folder).leaderboard()
