"""`vortex explain`: what each part of a frontier's programs buys, measured, and what they are nearest to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, print_json, printable, table

if TYPE_CHECKING:
    from vortexlab.agent.explain import Explanation


def explain(
    values: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [ID...]", help="A run, and trials; by default its frontier.")
    ] = None,
    runs: Runs = "runs",
    evaluations: Annotated[
        int | None, typer.Option(min=0, help="Programs to measure at most; 0 prints what is recorded.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What each part of a program buys, measured without it, and the nearest published program in words.

    A second call measures only what is missing. Ctrl-C loses the evaluation that is running, no other.
    """
    from vortexlab.agent.explain import explain as measure
    from vortexlab.agent.run import Run

    name, ids = options.run_and_rest(values or [], 0, None, "[RUN] [ID...]")
    run = Run.open(name, runs)
    rows = measure(
        run, ids, evaluations=evaluations, on_progress=lambda text: print(printable(text), file=sys.stderr)
    )
    if as_json:
        left = sum(row.left for row in rows)
        print_json({"run": run.name, "members": [row.to_json() for row in rows], "left": left})
        return
    _print(run.folder, rows)


def _print(folder: Path, rows: list[Explanation]) -> None:
    from vortexlab.agent.naming import called
    from vortexlab.report import explain as shown

    for row in rows:
        print(printable(shown.title(row)))
        print(printable(f"nearest published: {row.nearest}"))
        if row.parts:
            table("", shown.HEADINGS, shown.cells(row))
        else:
            print("no part can be taken out")
        print()
    print(shown.NOTE)
    left = sum(row.left for row in rows)
    if left:
        print(f"{left} parts are not measured yet: vortex explain {called(folder)}")
