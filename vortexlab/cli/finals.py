"""`vortex finals`: the best programs of a run on sealed contexts and at other lengths, once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, interval, print_json, printable, table
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
        print_json({"run": run.name, "rows": [row.to_json() for row in rows], **_conditions(run)})
        return
    _print(run, rows)


def _conditions(run: Run) -> dict[str, Any]:
    evaluation = run.history.openings[-1].evaluation
    return {key: evaluation[key] for key in ("split", "lengths", "contexts", "margin")}


def _print(run: Run, rows: list[Final]) -> None:
    cells = []
    for row in rows:
        searched, found = row.trial.verdict, row.verdict
        assert searched is not None
        decision = found.non_inferiority.get("decision", "-") if found else "not yet measured"
        cells.append((
            row.trial.id, row.trial.proposal.name, str(row.opening), interval(searched.accuracy),
            interval(found.accuracy if found else None), str(decision), interval(found.speedup if found else None, 2),
            str(found.contexts if found else 0), "; ".join(found.alarms) if found else "",
        ))  # fmt: skip
    terms = _conditions(run)
    title = (
        f"run {run.name}: accuracy kept [95 %] in the search and on the {terms['split']} contexts, at "
        f"{', '.join(map(str, terms['lengths']))} tokens; margin {terms['margin']:g}, declared with the run"
    )
    names = ("id", "name", "opening", "searched", "sealed", "than dense", "speed-up", "contexts", "alarms")
    table(title, names, cells, right=("opening", "contexts"))
    if any(row.opening > 1 for row in rows):
        print("Rows of an opening after the first are about contexts that had been seen before.")
