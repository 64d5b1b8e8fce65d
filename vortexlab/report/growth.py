"""How the hypervolume grew, over programs and over time of work."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vortexlab.agent.trials import SEED
from vortexlab.report.markup import hover

if TYPE_CHECKING:
    from vortexlab.agent.run import Run
    from vortexlab.agent.trials import Trial
    from vortexlab.report.selection import Selection

_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def growth_figures(chosen: Selection) -> dict[str, dict[str, Any]]:
    """A figure over recorded programs and one over time of work; only steps are points, and the last program."""
    trials = chosen.run.trials
    gains = chosen.run.history.gains()
    areas = list(accumulate(gains))
    steps = [n for n, gain in enumerate(gains) if gain > 0 or n == len(gains) - 1]
    seconds = _seconds(chosen.run)
    longest = max(seconds, default=0.0)
    unit, length = next((item for item in _UNITS if longest >= 2 * item[1]), _UNITS[-1])
    axes = {
        "steps": ("programs recorded", [float(n + 1) for n in range(len(trials))]),
        "hours": (f"{unit} of work", [value / length for value in seconds]),
    }
    return {name: _figure(chosen, title, x, areas, steps) for name, (title, x) in axes.items()}


def _figure(chosen: Selection, title: str, x: list[float], areas: list[float], steps: list[int]) -> dict[str, Any]:
    trials = chosen.run.trials
    seeds = [n for n in steps if trials[n].arm.proposer == SEED]
    later = [n for n in steps if trials[n].arm.proposer != SEED]
    traces = [{
        "type": "scatter", "mode": "lines", "name": "hypervolume", "showlegend": False, "meta": {"role": "new"},
        "line": {"shape": "hv", "width": 2}, "x": [x[n] for n in steps], "y": [areas[n] for n in steps],
        "hoverinfo": "skip",
    }]  # fmt: skip
    for name, role, symbol, found in (("seeds", "published", "square", seeds), ("search", "new", "circle", later)):
        if found:
            traces.append({
                "type": "scatter", "mode": "markers", "name": name, "meta": {"role": role},
                "marker": {"symbol": symbol, "size": 7 if len(steps) <= 60 else 4},
                "x": [x[n] for n in found], "y": [areas[n] for n in found],
                "hovertext": [_hover(trials[n], areas[n], areas[n - 1] if n else 0.0) for n in found],
                "hoverinfo": "text",
                "customdata": [trials[n].id if trials[n].id in chosen.shown else "" for n in found],
            })  # fmt: skip
    shapes = []
    if seeds and later:
        level = areas[max(n for n, trial in enumerate(trials) if trial.arm.proposer == SEED)]
        shapes = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level,
                   "line": {"width": 1, "dash": "dot"}}]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": title}, "rangemode": "tozero", "zeroline": False},
        "yaxis": {"title": {"text": "hypervolume"}, "rangemode": "tozero", "zeroline": False},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 56, "r": 12, "t": 36, "b": 48},
        "hovermode": "closest",
        "shapes": shapes,
    }
    return {"data": traces, "layout": layout}


def _hover(trial: Trial, area: float, before: float) -> str:
    return hover((
        f"{trial.id} {trial.proposal.name}", f"{trial.arm.proposer} {trial.proposal.operator}",
        f"hypervolume {area:.3f} ({area - before:+.3f})",
    ))  # fmt: skip


def _seconds(run: Run) -> list[float]:
    """By trial, seconds of work up to its end: the time between two sessions is taken out, pauses are not."""
    found = []
    sessions = iter(run.history.sessions)
    begin, end = next(sessions, (0.0, 0.0))
    before = 0.0
    for trial in run.trials:
        while trial.finished > end:
            following = next(sessions, None)
            if following is None:
                break
            before += end - begin
            begin, end = following
        found.append(before + trial.finished - begin)
    return found
