"""All runs of a folder in a row each, damaged ones with what is wrong with them: `vortex runs`."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from vortexlab.agent.config import SETTINGS
from vortexlab.agent.derived import uncollected
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, NewerForm, Store
from vortexlab.dsl.errors import VortexError, one_line
from vortexlab.evaluator.scratch import bytes_on_disk

DAMAGED, NEWER = "damaged", "newer"
#: The best program is the fastest on the frontier that keeps this share of dense accuracy, else the most accurate one.
KEEPS = 0.95


def overview(runs: str | Path = "runs") -> list[dict[str, Any]]:
    """Every run of the folder, the newest first, damaged ones last. `started` is in seconds since the epoch; `best` is
    {id, name, speedup, accuracy}, the point estimates, or None.

    Raises `VortexError` where the folder cannot be read; one that is not there has no runs.
    """
    root = Path(runs)
    try:
        found = [folder for folder in root.iterdir() if _is_run(folder)] if root.exists() else []
    except OSError as error:
        raise VortexError(
            f"folder of the runs {root} cannot be read ({error.strerror}); give another with --runs"
        ) from error
    rows = [_row(folder) for folder in found]
    return sorted(rows, key=lambda row: (-(row["started"] or 0.0), row["name"]))


def _is_run(folder: Path) -> bool:
    return not folder.name.startswith(".") and any((folder / name).exists() for name in (FILE, SETTINGS))


def _row(folder: Path) -> dict[str, Any]:
    size = bytes_on_disk(folder)
    row: dict[str, Any] = {
        "name": folder.name, "folder": str(folder), "state": DAMAGED, "reason": "", "started": None, "evaluations": 0,
        "budget": None, "frontier": 0, "best": None, "bytes": size,
    }  # fmt: skip
    try:
        with Store.read(folder) as store, uncollected():
            store.check()
            run = Run(store, lean=True)
        state = run.progress()
        return row | {
            "state": run.state, "reason": run.history.finished or "", "started": run.history.sessions[0][0],
            "evaluations": state.evaluations, "budget": state.budget, "frontier": state.frontier, "best": _best(run),
        }  # fmt: skip
    except NewerForm as error:
        return row | {"state": NEWER, "reason": one_line(error, 1000)}
    except (VortexError, OSError, sqlite3.Error) as error:
        return row | {"reason": one_line(error, 1000)}
    except Exception as error:  # events of another form: whatever reading them runs into, the other runs are listed
        text = f"{type(error).__name__} {one_line(error, 1000)}".strip()
        return row | {"reason": f"its events cannot be read ({text})"}


def _best(run: Run) -> dict[str, Any] | None:
    front = [item for item in run.members() if item.on_frontier and item.speedup is not None]
    if not front:
        return None
    enough = [item for item in front if (item.accuracy or 0.0) >= KEEPS]
    fastest, surest = (lambda item: item.speedup or 0.0), (lambda item: item.accuracy or 0.0)
    chosen = max(enough, key=fastest) if enough else max(front, key=surest)
    return {"id": chosen.id, "name": chosen.name, "speedup": chosen.speedup, "accuracy": chosen.accuracy}
