"""Bars: the funnel of the gates, what each proposer earned, and scores by task."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vortexlab.agent.arms import ArmRecord
from vortexlab.agent.trials import GIVEN
from vortexlab.cli.output import interval, number
from vortexlab.report.markup import hover, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vortexlab.agent.leaderboard import Entry
    from vortexlab.report.selection import Selection

ARMS = (
    "proposer", "operator", "slots", "accepted", "on the frontier", "hypervolume gained", "cost", "gained per cost",
)  # fmt: skip
_ROW, _BAR, _MARGINS = 30, 18, 110  # pixels of a row, of one of several bars in it, and of legend and axis
_ARMS = 60  # rows of the table of arms; those that earned least are one row


def funnel_figure(funnel: Mapping[str, int]) -> dict[str, Any]:
    """How many programs passed each gate."""
    return {
        "data": [{
            "type": "bar", "orientation": "h", "meta": {"role": "new"}, "y": list(funnel), "x": list(funnel.values()),
            "text": [str(count) for count in funnel.values()], "textposition": "auto", "hoverinfo": "skip",
        }],
        "layout": {
            "xaxis": {"title": {"text": "programs that passed"}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed"},
            "margin": {"l": 84, "r": 12, "t": 10, "b": 45},
            "height": 60 + (_ROW + 4) * max(1, len(funnel)),
        },
    }  # fmt: skip


def proposers_figure(arms: Iterable[ArmRecord]) -> dict[str, Any] | None:
    """Each proposer's share of slots, of cost and of what the search added to the hypervolume; None before it began."""
    sums: dict[str, list[float]] = {}
    for row in arms:
        if row.arm.proposer not in GIVEN:
            old = sums.setdefault(row.arm.proposer, [0.0, 0.0, 0.0])
            sums[row.arm.proposer] = [a + b for a, b in zip(old, (row.slots, row.cost, row.gain), strict=True)]
    if not sums:
        return None
    names = sorted(sums, key=lambda name: -sums[name][2])
    totals = [sum(values) or 1.0 for values in zip(*sums.values(), strict=True)]
    traces: list[dict[str, Any]] = []
    for n, (what, role) in enumerate((("slots", "muted"), ("cost", "published"), ("hypervolume gained", "new"))):
        shares = [sums[name][n] / totals[n] for name in names]
        traces.append({
            "type": "bar", "orientation": "h", "name": what, "meta": {"role": role},
            "y": [text(name) for name in names], "x": shares,
            "text": [f"{share:.0%}" for share in shares], "textposition": "outside", "cliponaxis": False,
            "hovertext": [hover((name, f"{share:.1%} of {what}")) for name, share in zip(names, shares, strict=True)],
            "hoverinfo": "text",
        })  # fmt: skip
    layout = _layout(len(names), len(traces))
    most = max(share for trace in traces for share in trace["x"])
    layout["xaxis"] |= {"tickformat": ".0%", "range": [0, 1.12 * most], "title": {"text": "share, seeds aside"}}
    return {"data": traces, "layout": layout}


def arm_rows(arms: Iterable[ArmRecord], chosen: Selection) -> list[tuple[Any, ...]]:
    """A row for each arm, in the order of `ARMS`, what earned the most first."""
    front = [chosen.by_id[entry.id] for entry in chosen.board.frontier]
    leading = Counter((trial.arm.proposer, trial.proposal.operator) for trial in front)
    order = sorted(arms, key=lambda row: (-row.gain, row.arm.proposer, row.arm.operator))
    rows = [
        (row.arm.proposer, row.arm.operator, row.slots, row.accepted, leading[row.arm.proposer, row.arm.operator],
         row.gain, row.cost)
        for row in order
    ]  # fmt: skip
    rest = rows[_ARMS:]
    if rest:
        slots, accepted, front, gain, cost = (sum(column) for column in list(zip(*rest, strict=True))[2:])
        rows = [*rows[:_ARMS], ("others", f"{len(rest)} operators", slots, accepted, front, gain, cost)]
    return [
        (*row[:5], number(row[5], 4), number(row[6], 1), number(row[5] / row[6] if row[6] else None, 5)) for row in rows
    ]


def tasks_figure(chosen: Selection, entry: Entry) -> dict[str, Any] | None:
    """One program's score on every task beside that of dense attention; None where tasks were not recorded."""
    verdict = chosen.by_id[entry.id].verdict
    assert verdict is not None
    rows = verdict.per_task
    if not rows:
        return None
    names = [text(name) for name in rows]
    dense = [row["dense"] for row in rows.values()]
    sparse = [row["sparse"] for row in rows.values()]
    gaps = [row["difference"] for row in rows.values()]
    traces = [
        {"type": "bar", "orientation": "h", "name": "dense", "meta": {"role": "muted"}, "y": names, "x": dense,
         "hovertext": [hover((name, f"dense {number(value)}")) for name, value in zip(rows, dense, strict=True)],
         "hoverinfo": "text"},
        {"type": "bar", "orientation": "h", "name": "this program", "meta": {"role": "new"}, "y": names, "x": sparse,
         "error_x": {
             "type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "ink": True,
             "array": [gap["high"] - gap["value"] for gap in gaps],
             "arrayminus": [gap["value"] - gap["low"] for gap in gaps],
         },
         "hovertext": [
             hover((name, f"sparse {number(row['sparse'])}", f"less dense {interval(row['difference'])}",
                    f"{row.get('n', '-')} answers"))
             for name, row in rows.items()
         ],
         "hoverinfo": "text"},
    ]  # fmt: skip
    layout = _layout(len(names), len(traces))
    layout["xaxis"] |= {"title": {"text": "score"}, "rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def _layout(rows: int, bars: int) -> dict[str, Any]:
    """Of horizontal bars, `bars` or more of them in a row; names of rows take the room they need."""
    return {
        "barmode": "group",
        "xaxis": {},
        "yaxis": {"autorange": "reversed", "automargin": True},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "margin": {"l": 10, "r": 12, "t": 40, "b": 45},
        "height": _MARGINS + (_ROW + _BAR * bars) * rows,
    }
