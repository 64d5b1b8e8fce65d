"""What people ask of a campaign, while it runs or before it goes on: files in `RUN/inbox`.

Each holds one request as JSON, whole or not at all. Names sort by time, and a file's name is the id of its request. The
controller reads them between slots; it records a request before it deletes the file, and what was recorded under an id
is not done again, so a kill loses nothing and repeats nothing. `agent.requests` writes them.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vortexlab.agent.arms import Arm
from vortexlab.agent.prepared import Prepared, prepare
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.trials import HANDOFF, PAUSE, PIN, PROPOSE, REQUESTS, UNPIN, History, Trial
from vortexlab.dsl.errors import VortexError, one_line
from vortexlab.search_spaces.parsed import parsed

INBOX = "inbox"
PROPOSED = "proposed"  # the operator of what people propose
_LIMIT = 1 << 20  # bytes of a request
_LABEL = 100  # characters


def send(folder: Path, request: Mapping[str, Any]) -> str:
    """Leaves a request for the campaign in `folder` and returns its id.

    Raises `VortexError` when the inbox cannot be written.
    """
    inbox = folder / INBOX
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    draft = inbox / f".{name}"
    try:
        inbox.mkdir(exist_ok=True)
        with draft.open("x", encoding="utf-8") as file:
            json.dump(request, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(inbox / f"{name}.json")
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise VortexError(
            f"cannot leave a request in {inbox} ({reason}); make the folder writable for you, or free some space"
        ) from error
    return name


def waiting(folder: Path) -> list[Path]:
    """Files of the requests that nobody has taken yet, in order."""
    try:
        found = [path for path in (folder / INBOX).iterdir() if path.suffix == ".json" and path.name[0] != "."]
    except OSError:
        return []
    return sorted(found, key=lambda path: path.name)


def described(path: Path) -> str:
    """A waiting request in a few words."""
    try:
        request, _ = _read(path)
    except (VortexError, OSError):
        return f"{path.name}, which cannot be read"
    return " ".join(str(request[key]) for key in ("kind", "name", "trial") if request.get(key))


def unread(folder: Path, history: History) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Waiting requests with the data of their events; None for one that was recorded before a kill.

    Nothing that lies in the inbox raises: what is no request, or asks for what cannot be, has an event that says so.
    """
    for path in waiting(folder):
        if path.stem in history.requests:
            yield path, None
        elif (judged := _judged(path, history)) is not None:
            yield path, {"id": path.stem, **judged}


def discard(path: Path) -> None:
    """Deletes a recorded request. Where that fails it stays, and its id keeps it from being done again."""
    with suppress(OSError):
        path.unlink()


def proposal(source: str, knobs: Mapping[str, Any], label: str) -> Prepared:
    """What a person proposes. Raises `VortexError` when the text is no program, a knob cannot be, or the label is long.
    """
    if len(label) > _LABEL:
        raise VortexError(f"a label stands beside a name: {_LABEL} characters at most, found {len(label)}")
    name = parsed(source).name
    return prepare(Proposal(source, name, HANDOFF, PROPOSED, knobs=knobs, label=label), Arm(HANDOFF, PROPOSED))


def known(history: History, hash: str) -> str:
    """Where the campaign has this program already, in words; empty where it has not."""
    trial = next((trial for trial in history.trials if trial.hash == hash), None)
    if trial is not None:
        return f"was evaluated already: {trial.id}"
    trial = next((trial for trial in history.open.values() if trial.hash == hash), None)
    if trial is not None:
        return f"is being evaluated: {trial.id}"
    return "waits for its slot already" if any(item["hash"] == hash for item in history.asked) else ""


def pinnable(history: History, identifier: str) -> Trial:
    """Raises `VortexError` for an unknown trial, and for one that was not accepted."""
    trial = history.find(identifier)
    if trial.point is None:
        raise VortexError(f"{trial.id} was not accepted, so it cannot be pinned; pin one of `vortex leaderboard`")
    return trial


def _judged(path: Path, history: History) -> dict[str, Any] | None:
    """The request as it is recorded, or why it is refused; None where it was taken back."""
    kind = ""
    try:
        request, written = _read(path)
        kind = str(request.get("kind", ""))[:40]
        return {"kind": kind, **_checked(kind, request, written, history)}
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever somebody wrote there must not end a campaign
        line = one_line(error) or type(error).__name__
        about = f"`vortex {kind}` was refused" if kind in REQUESTS else f"{path.name} in the inbox is no request"
        return {"kind": kind, "refused": f"{about}: {line}"}


def _checked(kind: str, request: Mapping[str, Any], written: float, history: History) -> dict[str, Any]:
    """What is recorded of a request beside its kind. Raises `VortexError` when it cannot be done."""
    if kind not in REQUESTS:
        raise VortexError(f"its kind {kind!r} is not one of {', '.join(REQUESTS)}")
    if kind == PROPOSE:
        source, knobs, label = request.get("source"), request.get("knobs", {}), request.get("label", "")
        if not isinstance(source, str) or not isinstance(knobs, dict) or not isinstance(label, str):
            raise VortexError("a proposal has a `source`, and may have `knobs` by name and a `label`")
        made = proposal(source, knobs, label)
        if where := known(history, made.hash):
            raise VortexError(f"{made.proposal.name} {where}")
        return {"program": made.to_json()}
    if kind in (PIN, UNPIN):
        return {"trial": pinnable(history, str(request.get("trial", ""))).id}
    if kind == PAUSE and written < history.sessions[-1][0]:
        raise VortexError("it was asked of an earlier session of the campaign")
    return {}


def _read(path: Path) -> tuple[Mapping[str, Any], float]:
    """The JSON object of a file and when it was written. Raises `VortexError` or `OSError`."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise VortexError("it is no plain file")
    if info.st_size > _LIMIT:
        raise VortexError(f"it is larger than {_LIMIT} bytes")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VortexError(f"it is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise VortexError("it is no JSON object")
    return found, info.st_mtime
