"""Which of the requests in a campaign's inbox it takes, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vortexlab.agent import inbox
from vortexlab.agent.arms import Arm
from vortexlab.agent.prepared import Prepared, prepare
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.trials import HANDOFF, PAUSE, PIN, PROPOSE, REQUESTS, UNPIN, History, Trial
from vortexlab.dsl.errors import VortexError, one_line
from vortexlab.search_spaces.parsed import parsed

PROPOSED = "proposed"  # the operator of what people propose
_LABEL = 100  # characters


def unread(folder: Path, history: History) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Waiting requests with the data of their events; None for one that was recorded before a kill.

    Nothing that lies in the inbox raises: what is no request, or asks for what cannot be, has an event that says so.
    """
    for path in inbox.waiting(folder):
        if path.stem in history.requests:
            yield path, None
        elif (judged := _judged(path, history)) is not None:
            yield path, {"id": path.stem, **judged}


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
        request, written = inbox.read(path)
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
