"""How a campaign stands, as `vortex status` says it. A campaign at work keeps it beside its record whenever it waits,
so that nobody has to read thousands of events for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vortexlab.agent import inbox
from vortexlab.agent.derived import Derived

FORM = 1  # to be raised when other numbers are computed from the same record


def _checked(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    if missing := {"reason", "requests", "paused", "asked"} - found.keys():
        raise KeyError(*missing)
    return dict(found)


#: What only the record decides (`progress.recorded`).
KEPT = Derived[dict[str, Any]]("status.cache", {"form": FORM}, dict, _checked)


def at_this_moment(folder: Path, recorded: dict[str, Any], written: bool) -> dict[str, Any]:
    """With what is so now: what people asked of it, and the state; `written`: whether somebody was at work on the run
    before the record was read."""
    found = dict(recorded)
    reason, known = found.pop("reason"), set(found.pop("requests"))
    state = state_of(written, found.pop("paused"), reason is not None)
    asked = [f"propose {name}" for name in found.pop("asked")]
    asked += [inbox.described(path) for path in inbox.waiting(folder) if path.stem not in known]
    return {
        **found, "run": folder.name, "phase": state, "folder": str(folder), "state": state, "reason": reason or "",
        "waiting": asked,
    }  # fmt: skip


def state_of(written: bool, paused: bool, finished: bool) -> str:
    """``running``, ``paused``, ``finished`` or ``interrupted``, as `Run.state`."""
    if finished:
        return "finished"
    if written:
        return "paused" if paused else "running"
    return "interrupted"
