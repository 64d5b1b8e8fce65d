"""The Pareto plot and the gate funnel as Plotly figures in JSON. Colours are set in the page, light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vortexlab.cli.output import interval, number, settings

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry, Leaderboard

#: Class of a point -> role of its colour (report/page.js) and marker.
_CLASSES = {
    "published": ("muted", "circle"),
    "new": ("accent", "diamond"),
}


def pareto(board: Leaderboard) -> dict[str, Any]:
    """Accuracy kept over speed-up, with 95 % intervals both ways; the frontier by point estimate is joined.

    Text that Plotly shows is escaped, since it reads a little HTML in it.
    """
    traces = []
    for kind, (role, symbol) in _CLASSES.items():
        entries = [entry for entry in board.entries if entry.new == (kind == "new")]
        traces.append(_points(entries, kind, role, symbol))
    front = sorted(board.frontier, key=lambda entry: entry.speedup.value)
    traces.append({
        "type": "scatter", "mode": "lines", "name": "frontier", "hoverinfo": "skip", "meta": "line",
        "line": {"shape": "vh", "dash": "dot", "width": 1.5},
        "x": [entry.speedup.value for entry in front],
        "y": [entry.accuracy.value for entry in front],
    })  # fmt: skip
    how = sorted({entry.speed for entry in board.entries})
    title = f"speed-up over dense attention, {' and '.join(how)}" if how else "speed-up over dense attention"
    layout = {
        "xaxis": {"title": {"text": html.escape(title)}, "zeroline": False},
        "yaxis": {"title": {"text": "accuracy kept"}, "zeroline": False},
        "legend": {"orientation": "h", "y": 1.12},
        "margin": {"l": 60, "r": 20, "t": 30, "b": 55},
        "hovermode": "closest",
        "shapes": [
            {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dash"}}
        ],
    }
    return {"data": traces, "layout": layout}


def _points(entries: Sequence[Entry], kind: str, role: str, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": kind,
        "meta": role,
        "x": [entry.speedup.value for entry in entries],
        "y": [entry.accuracy.value for entry in entries],
        "error_x": _whiskers([(e.speedup.value, e.speedup.low, e.speedup.high) for e in entries]),
        "error_y": _whiskers([(e.accuracy.value, e.accuracy.low, e.accuracy.high) for e in entries]),
        "marker": {"symbol": symbol, "size": [11 if entry.on_frontier else 7 for entry in entries],
                   "opacity": [1.0 if entry.on_frontier else 0.55 for entry in entries]},
        "text": [html.escape(entry.id) if entry.on_frontier else "" for entry in entries],
        "textposition": "top center",
        "hovertext": [_hover(entry) for entry in entries],
        "hoverinfo": "text",
    }  # fmt: skip


def _whiskers(estimates: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in estimates],
        "arrayminus": [value - low for value, low, _ in estimates],
        "thickness": 1,
        "width": 2,
    }


def _hover(entry: Entry) -> str:
    rows = (
        f"{entry.id} {entry.name}" + (f" ({entry.label})" if entry.label else ""),
        f"speed-up {interval(entry.speedup, 2)}",
        f"accuracy kept {interval(entry.accuracy)}",
        f"density {number(entry.density)}",
        f"on the frontier in {entry.frontier_probability:.0%} of draws",
        settings(entry.knobs),
    )
    return "<br>".join(html.escape(row) for row in rows)


def funnel_figure(funnel: dict[str, int]) -> dict[str, Any]:
    """How many programs passed each gate, as bars."""
    return {
        "data": [{
            "type": "bar", "orientation": "h", "meta": "accent", "y": list(funnel), "x": list(funnel.values()),
            "text": [str(count) for count in funnel.values()], "hoverinfo": "skip",
        }],
        "layout": {
            "xaxis": {"title": {"text": "programs that passed"}, "rangemode": "tozero"},
            "yaxis": {"autorange": "reversed"},
            "margin": {"l": 90, "r": 20, "t": 10, "b": 45},
            "height": 60 + 34 * max(1, len(funnel)),
        },
    }  # fmt: skip
