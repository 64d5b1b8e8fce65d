"""The table of a campaign's finals, as the terminal and the page show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vortexlab.cli.output import interval

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vortexlab.agent.finals import Final
    from vortexlab.agent.run import Run

HEADINGS = ("id", "name", "opening", "searched", "sealed", "than dense", "speed-up", "contexts", "alarms")
SEEN_BEFORE = "Rows of an opening after the first are about contexts that had been seen before."


def conditions(run: Run) -> dict[str, Any]:
    """What the latest opening was about."""
    evaluation = run.history.openings[-1].evaluation
    return {key: evaluation[key] for key in ("split", "lengths", "contexts", "margin")}


def title(run: Run) -> str:
    terms = conditions(run)
    return (
        f"accuracy kept [95 %] in the search and on the {terms['split']} contexts, at "
        f"{', '.join(map(str, terms['lengths']))} tokens; margin {terms['margin']:g}, declared with the run"
    )


def cells(rows: Iterable[Final]) -> list[tuple[str, ...]]:
    """A line of text for every row, in the order of `HEADINGS`."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        searched, found = row.trial.verdict, row.verdict
        assert searched is not None
        decision = found.non_inferiority.get("decision", "-") if found else "not yet measured"
        lines.append((
            row.trial.id, row.trial.proposal.name, str(row.opening), interval(searched.accuracy),
            interval(found.accuracy if found else None), str(decision), interval(found.speedup if found else None, 2),
            str(found.contexts if found else 0), "; ".join(found.alarms) if found else "",
        ))  # fmt: skip
    return lines
