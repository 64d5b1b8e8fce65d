"""`vortex finals`: the best programs of a run on sealed contexts and at other lengths, once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, print_json, printable, table
from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.finals import Final
    from vortexlab.agent.run import Run


def finals(
    values: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [ID...]", help="A run, and trials; by default its frontier.")
    ] = None,
    runs: Runs = "runs",
    lengths: Annotated[
        list[str] | None, typer.Option(help="Context lengths; by default half and one and a half times the run's.")
    ] = None,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts per task and length.")] = 24,
    again: Annotated[bool, typer.Option("--again", help="Look once more; every row says so.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the best programs again on sealed contexts and at other lengths, once.

    A second call prints what was found and opens nothing.
    """
    from vortexlab.agent.finals import final_config, hold, recorded
    from vortexlab.agent.run import Run
    from vortexlab.report.finals import conditions

    name, ids = options.run_and_rest(values or [], 0, None, "[RUN] [ID...]")
    run = Run.open(name, runs)
    done = run.history.openings and run.history.openings[-1].is_complete
    if done and not (ids or again):
        if lengths is not None:
            raise VortexError("the sealed contexts were opened before; --lengths goes with a look, so give --again too")
        rows = recorded(run)
    else:
        config = final_config(run.config.evaluation, contexts, options.numbers("--lengths", lengths))
        hold(run, ids, config=config, again=again, on_progress=lambda text: print(printable(text), file=sys.stderr))
        rows = recorded(run)
    if as_json:
        print_json({"run": run.name, "rows": [row.to_json() for row in rows], **conditions(run)})
        return
    _print(run, rows)


def _print(run: Run, rows: list[Final]) -> None:
    from vortexlab.report import finals as shown

    table(f"run {run.name}: {shown.title(run)}", shown.HEADINGS, shown.cells(rows), right=("opening", "contexts"))
    if any(row.opening > 1 for row in rows):
        print(shown.SEEN_BEFORE)
