"""What a person asks of a campaign from another process: try this program, build on that one, wait, go on.

What can be checked is checked at once, against what is recorded; then the request waits in the run's inbox
(`agent.inbox`) until its campaign takes it before the next slot, or until the run is started again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vortexlab.agent import admission, inbox
from vortexlab.agent.folders import LATEST
from vortexlab.agent.naming import called
from vortexlab.agent.run import Run
from vortexlab.agent.store import is_written
from vortexlab.agent.trials import PAUSE, PIN, PROPOSE, RESUME, UNPIN
from vortexlab.dsl.errors import VortexError


@dataclass(frozen=True)
class Receipt:
    """What was asked. `request` is its id, empty where nothing had to be asked; `running`: a campaign is at work;
    `trial` the one that is meant, or that evaluated the program already; `message` one line for people."""

    run: str
    kind: str
    request: str
    running: bool
    trial: str | None
    message: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def propose(
    source: str,
    run: str | Path = LATEST,
    runs: str | Path = "runs",
    *,
    knobs: Mapping[str, Any] | None = None,
    label: str = "",
) -> Receipt:
    """Asks for the evaluation of a program in the next slot, within the budget; `knobs` left out take their defaults.

    A program that is known to the run is not asked for again. Raises `ProgramError` when the text is no program,
    `VortexError` for a knob that cannot be, an unknown run, and an inbox that cannot be written.
    """
    made = admission.proposal(source, knobs or {}, label)
    opened, name = Run.open(run, runs), made.proposal.name
    if where := admission.known(opened.history, made.hash):
        twin = next((trial.id for trial in opened.trials if trial.hash == made.hash), None)
        return Receipt(opened.name, PROPOSE, "", is_written(opened.folder), twin, f"{name} {where}")
    request = {"kind": PROPOSE, "name": name, "source": source, "knobs": dict(made.proposal.knobs), "label": label}
    return _send(opened, request, None, f"{name} takes the next slot of run {opened.name}")


def pin(identifier: str, run: str | Path = LATEST, runs: str | Path = "runs", *, remove: bool = False) -> Receipt:
    """Asks that an accepted program be built upon; `remove` takes that back.

    Half of all parents are drawn from the pinned ones, prompts show them first, and their knobs are tuned as those of
    the frontier.

    Raises `VortexError` for an unknown run or trial, one that was not accepted, and one without a pin to remove.
    """
    opened = Run.open(run, runs)
    trial = admission.pinnable(opened.history, identifier)
    if remove and trial.slot not in opened.history.pinned and not inbox.waiting(opened.folder):
        raise VortexError(f"{trial.id} is not pinned; `vortex status {called(opened.folder)}` lists what is")
    kind = UNPIN if remove else PIN
    done = f"{trial.id} {trial.proposal.name} is {'no longer ' if remove else ''}pinned"
    return _send(opened, {"kind": kind, "trial": trial.id}, trial.id, f"{done} from the next slot of run {opened.name}")


def pause(run: str | Path = LATEST, runs: str | Path = "runs") -> Receipt:
    """Asks a running campaign to wait once the running evaluation is finished. Raises `VortexError` when none runs."""
    opened = _running(run, runs)
    on = f"go on with `vortex resume {called(opened.folder)}`"
    message = f"run {opened.name} pauses after the evaluation that is running; {on}"
    return _send(opened, {"kind": PAUSE}, None, message)


def resume(run: str | Path = LATEST, runs: str | Path = "runs") -> Receipt:
    """Asks a paused campaign to go on. Raises `VortexError` when none runs."""
    opened = _running(run, runs)
    return _send(opened, {"kind": RESUME}, None, f"run {opened.name} goes on")


def _running(run: str | Path, runs: str | Path) -> Run:
    opened = Run.open(run, runs)
    if not is_written(opened.folder):
        on = f"go on with `vortex search --resume {called(opened.folder)}`"
        raise VortexError(f"run {opened.name!r} is not running; {on}")
    return opened


def _send(opened: Run, request: Mapping[str, Any], trial: str | None, message: str) -> Receipt:
    """`message` says what happens once a campaign takes the request; where none can yet, what it waits for is added."""
    identifier, running = inbox.send(opened.folder, request), is_written(opened.folder)
    limit = opened.config.evaluations
    spent = limit is not None and opened.history.evaluated >= limit
    if running and spent:
        raised = f"`vortex search --resume {called(opened.folder)} --evaluations N`"
        message += f", which has spent its budget; raise it with {raised}"
    elif not running:
        why, more = (" and has spent its budget", " --evaluations N") if spent else ("", "")
        message += f", which is not running{why}: this waits for `vortex search --resume {called(opened.folder)}{more}`"
    elif opened.history.paused and request["kind"] == PROPOSE:
        message += f", which is paused; go on with `vortex resume {called(opened.folder)}`"
    return Receipt(opened.name, str(request["kind"]), identifier, running, trial, message)
