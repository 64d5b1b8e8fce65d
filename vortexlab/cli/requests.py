"""A person in the loop of a campaign, running or not: `vortex propose`, `pin`, `pause`, `resume`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, print_json, printable
from vortexlab.cli.results import RunAndId, RunName

if TYPE_CHECKING:
    from vortexlab.agent.requests import Receipt

RunAndProgram = Annotated[
    list[str], typer.Argument(metavar="[RUN] F.py", help="A program file, or the name of a published program.")
]


def propose(
    values: RunAndProgram,
    knob: options.Knobs = None,
    label: Annotated[str, typer.Option(help="Shown beside the program, e.g. `by hand`.")] = "",
    runs: Runs = "runs",
    as_json: AsJson = False,
) -> None:
    """Give the next slot of a campaign to a program of yours; it counts against the budget like any other."""
    from vortexlab.agent import requests
    from vortexlab.cli.programs import read_program

    run, (file,) = options.run_and_rest(values, 1, 1, "[RUN] F.py")
    text, program = read_program(file)
    _tell(requests.propose(text, run, runs, knobs=options.knob_values(program, knob), label=label), as_json)


def pin(
    values: RunAndId,
    remove: Annotated[bool, typer.Option("--remove", help="Take the pin off again.")] = False,
    runs: Runs = "runs",
    as_json: AsJson = False,
) -> None:
    """Make an accepted program a parent of choice: proposers and the tuning of knobs come back to it."""
    from vortexlab.agent import requests

    run, (identifier,) = options.run_and_rest(values, 1, 1, "[RUN] ID")
    _tell(requests.pin(identifier, run, runs, remove=remove), as_json)


def pause(run: RunName = "latest", runs: Runs = "runs", as_json: AsJson = False) -> None:
    """Let a running campaign finish its evaluation and then wait; waiting takes nothing from its hours."""
    from vortexlab.agent import requests

    _tell(requests.pause(run, runs), as_json)


def resume(run: RunName = "latest", runs: Runs = "runs", as_json: AsJson = False) -> None:
    """Let a paused campaign go on. One that is not running is started again by `vortex search --resume RUN`."""
    from vortexlab.agent import requests

    _tell(requests.resume(run, runs), as_json)


def _tell(receipt: Receipt, as_json: bool) -> None:
    if as_json:
        print_json(receipt.to_json())
    else:
        print(printable(receipt.message))
