"""The Pareto plot as a Plotly figure in JSON. Colours are set in the page, light or dark (report/page.js)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vortexlab.agent.pareto import frontier
from vortexlab.cli.output import interval, number
from vortexlab.evaluator.verdict import ACCEPTED
from vortexlab.report.markup import hover, knobs, text

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry
    from vortexlab.evaluator.verdict import Estimate
    from vortexlab.report.selection import Selection

#: Entries that are points of their own, with their text; of more, those off the frontier are gathered in cells.
POINTS = 300
#: Entries off the frontier that have whiskers; more of them hide each other.
WHISKERS = 60
_CELLS = (48, 32)
#: Share of the plot's width and height within which one label stands, on a wide page and on a narrow one.
_WIDE, _NARROW = (0.09, 0.06), (0.26, 0.1)
_RIGHT = (0.93, 0.75)  # of the width: labels of points beyond stand to their left

#: Class of a point -> role of its colour and marker.
_CLASSES = {
    "published": ("published", "square"),
    "new": ("new", "circle"),
    "dense": ("dense", "star"),
}


def pareto(chosen: Selection) -> dict[str, Any]:
    """Accuracy kept over speed-up, with 95 % intervals both ways. Joined: the frontier by point estimate, and that of
    the published programs alone."""
    board = chosen.board
    dense = chosen.dense
    own = [entry for entry in board.entries if dense is None or entry.id != dense.id]
    leading = [entry for entry in own if entry.on_frontier]
    rest = [entry for entry in own if not entry.on_frontier]
    published = _front([entry for entry in board.entries if not entry.new])
    marked = {entry.id for entry in published}
    aside = [entry for entry in rest if entry.id in marked]
    rest = [entry for entry in rest if entry.id not in marked]
    labels = _Labels.of(chosen, (*leading, *aside))
    traces = []
    if len(own) > POINTS:
        traces.append(_cells(rest))
    else:
        traces += [_points([e for e in rest if e.new == (kind == "new")], kind, labels, chosen, faint=True)
                   for kind in ("published", "new")]  # fmt: skip
    traces.append(_line("published programs' frontier", "published", "dash", published))
    traces.append(_line("frontier", "new", "dot", _front(board.entries)))
    for kind in ("published", "new"):
        found = [entry for entry in (*aside, *leading) if entry.new == (kind == "new")]
        traces.append(_points(found, kind, labels, chosen))
    traces.append(_oracles(chosen))
    traces.append(_dense(chosen, labels))
    how = sorted({entry.speed for entry in board.entries})
    title = f"speed-up over dense attention, {' and '.join(how)}" if how else "speed-up over dense attention"
    layout = {
        "xaxis": {"title": {"text": text(title)}, "zeroline": False},
        "yaxis": {"title": {"text": "accuracy kept"}, "zeroline": False},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 56, "r": 12, "t": 12, "b": 52},
        "hovermode": "closest",
        "shapes": [
            {"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dot"}}
        ],
    }
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def marks_line(chosen: Selection) -> str:
    """What stands for dense attention and for the oracle, in words."""
    dense = chosen.dense
    if dense is not None:
        said = f"The star is dense attention as a program, {dense.id}, as it was measured; 1 and 1 by definition"
    else:
        said = "The star is dense attention, 1 and 1 by definition: it was not measured as a program"
    if not _bounded(chosen):
        return f"{said}. There is no mark of an oracle, which would always read the best pages: {_without(chosen)}."
    return (
        f"{said}. A diamond is an oracle: it reads as many pages as the program below it, always those that truly hold "
        "the most attention. It stands at that program's speed-up, since it has none of its own: to choose it reads "
        "every key. What lies between the two is lost by the choice of pages."
    )


def _without(chosen: Selection) -> str:
    refused = [found.head.reason for found in chosen.run.history.oracles.values() if found.head.status != ACCEPTED]
    return refused[-1] if refused else "none was measured of a leading program"


def _bounded(chosen: Selection) -> list[tuple[Entry, Estimate]]:
    """Entries of which it is known what the best choice of pages would keep, and that."""
    found = []
    for mark, measured in chosen.run.history.oracles.items():
        entry, kept = chosen.by_hash.get(mark), measured.head.accuracy
        if entry is not None and measured.head.status == ACCEPTED and kept is not None:
            found.append((entry, kept))
    return found


def _oracles(chosen: Selection) -> dict[str, Any]:
    found = _bounded(chosen)
    return {
        "type": "scatter", "mode": "markers", "name": "oracle", "meta": {"role": "oracle"},
        "x": [entry.speedup.value for entry, _ in found],
        "y": [kept.value for _, kept in found],
        "marker": {"symbol": "diamond-open", "size": 11},
        "error_y": _whiskers([(kept.value, kept.low, kept.high) for _, kept in found], False),
        "hovertext": [
            hover((
                f"an oracle that reads as many pages as {entry.id} {entry.name}", f"accuracy kept {interval(kept)}",
                f"the program keeps {interval(entry.accuracy)}",
            ))
            for entry, kept in found
        ],
        "hoverinfo": "text",
        "customdata": [entry.id if entry.id in chosen.shown else "" for entry, _ in found],
    }  # fmt: skip


def _front(entries: Sequence[Entry]) -> list[Entry]:
    """Those that no other of them dominates, slowest first."""
    found = frontier([(entry.speedup.value, entry.accuracy.value) for entry in entries])
    return [entries[index] for index in reversed(found)]


def _line(name: str, role: str, dash: str, entries: Sequence[Entry]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "name": name, "hoverinfo": "skip", "meta": {"role": role},
        "line": {"shape": "vh", "dash": dash, "width": 1.5},
        "x": [entry.speedup.value for entry in entries],
        "y": [entry.accuracy.value for entry in entries],
    }  # fmt: skip


def _points(
    entries: Sequence[Entry], kind: str, labels: _Labels, chosen: Selection, *, faint: bool = False
) -> dict[str, Any]:
    role, symbol = _CLASSES[kind]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "name": kind,
        "legendgroup": kind,
        "showlegend": not faint,
        "x": [entry.speedup.value for entry in entries],
        "y": [entry.accuracy.value for entry in entries],
        "marker": {"symbol": symbol, "size": 6 if faint else 10, "opacity": 0.5 if faint else 1},
        "text": [labels.wide.get(entry.id, "") for entry in entries],
        "textposition": labels.places(entries, 0),
        "meta": {
            "role": role, "text": [labels.narrow.get(entry.id, "") for entry in entries],
            "textposition": labels.places(entries, 1),
        },
        "textfont": {"size": 11},
        "hovertext": [_hover(entry) for entry in entries],
        "hoverinfo": "text",
        "customdata": [entry.id if entry.id in chosen.shown else "" for entry in entries],
    }  # fmt: skip
    if not faint or len(entries) <= WHISKERS:
        trace["error_x"] = _whiskers([(e.speedup.value, e.speedup.low, e.speedup.high) for e in entries], faint)
        trace["error_y"] = _whiskers([(e.accuracy.value, e.accuracy.low, e.accuracy.high) for e in entries], faint)
    return trace


def _whiskers(estimates: Sequence[tuple[float, float, float]], faint: bool) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in estimates],
        "arrayminus": [value - low for value, low, _ in estimates],
        "thickness": 0.5 if faint else 1,
        "width": 0 if faint else 3,
    }


def _dense(chosen: Selection, labels: _Labels) -> dict[str, Any]:
    if chosen.dense is not None:
        trace = _points([chosen.dense], "dense", labels, chosen)
    else:
        trace = {
            "type": "scatter", "mode": "markers+text", "name": "dense", "x": [1.0], "y": [1.0],
            "hovertext": ["dense attention, by definition"], "hoverinfo": "text", "customdata": [""],
            "marker": {"symbol": "star"},
        }  # fmt: skip
    return {
        **trace, "marker": {**trace["marker"], "size": 15}, "text": ["dense"], "textposition": "bottom right",
        "meta": {"role": "dense"},
    }  # fmt: skip


def _cells(entries: Sequence[Entry]) -> dict[str, Any]:
    """Many entries, counted in the cells of a grid: a point stands at the mean of each, its area is their number."""
    speeds = [entry.speedup.value for entry in entries]
    kept = [entry.accuracy.value for entry in entries]
    cells: dict[tuple[int, ...], list[Entry]] = {}
    spans = [(min(values), max(values) - min(values) or 1.0) for values in (speeds, kept)]
    for entry, point in zip(entries, zip(speeds, kept, strict=True), strict=True):
        cell = tuple(
            min(int((value - low) / span * number_of), number_of - 1)
            for value, (low, span), number_of in zip(point, spans, _CELLS, strict=True)
        )
        cells.setdefault(cell, []).append(entry)
    groups = list(cells.values())
    most = max(len(group) for group in groups)
    x = [sum(entry.speedup.value for entry in group) / len(group) for group in groups]
    y = [sum(entry.accuracy.value for entry in group) / len(group) for group in groups]
    return {
        "type": "scatter", "mode": "markers", "name": "other programs, gathered", "meta": {"role": "muted"},
        "x": x, "y": y,
        "marker": {"symbol": "circle", "opacity": 0.45, "size": [3 + 11 * (len(g) / most) ** 0.5 for g in groups]},
        "hovertext": [_gathered(*point) for point in zip(groups, x, y, strict=True)],
        "hoverinfo": "text", "customdata": ["" for _ in groups],
    }  # fmt: skip


def _gathered(group: list[Entry], x: float, y: float) -> str:
    new = sum(entry.new for entry in group)
    best = min(group, key=lambda entry: (entry.rank, entry.id))
    return hover((
        f"{len(group)} programs here, {new} of them new", f"mean speed-up {x:.2f}, accuracy kept {y:.3f}",
        f"best by rank: {best.id} {best.name}",
    ))  # fmt: skip


def _hover(entry: Entry) -> str:
    return hover((
        f"{entry.id} {entry.name}" + (f" ({entry.label})" if entry.label else ""),
        f"speed-up {interval(entry.speedup, 2)}",
        f"accuracy kept {interval(entry.accuracy)}",
        f"density {number(entry.density)}",
        f"on the frontier in {entry.frontier_probability:.0%} of draws",
        knobs(entry.knobs),
    ))  # fmt: skip


@dataclass(frozen=True)
class _Labels:
    """What stands beside points, by id: names of published programs, ids of new ones, as many as do not overlap."""

    wide: Mapping[str, str]
    narrow: Mapping[str, str]
    right: tuple[float, float]

    @staticmethod
    def of(chosen: Selection, entries: Sequence[Entry]) -> _Labels:
        points = [(entry.speedup.value, entry.accuracy.value) for entry in chosen.board.entries]
        if not points:
            return _Labels({}, {}, (0.0, 0.0))
        lows, highs = zip(*((min(values), max(values)) for values in zip(*points, strict=True)), strict=True)
        spans = [high - low or 1.0 for low, high in zip(lows, highs, strict=True)]
        place = {entry.id: n for n, entry in enumerate(chosen.leading)}
        order = sorted(entries, key=lambda entry: (place.get(entry.id, len(place)), -entry.speedup.value, entry.id))
        wide, narrow = (_placed(order, spans, apart) for apart in (_WIDE, _NARROW))
        return _Labels(wide, narrow, (lows[0] + _RIGHT[0] * spans[0], lows[0] + _RIGHT[1] * spans[0]))

    def places(self, entries: Iterable[Entry], narrow: int) -> list[str]:
        return [f"top {'left' if entry.speedup.value > self.right[narrow] else 'right'}" for entry in entries]


def _placed(entries: Iterable[Entry], spans: Sequence[float], apart: Sequence[float]) -> dict[str, str]:
    """Labels in the order of `entries`, without those that would stand on an earlier one, or on dense attention's."""
    placed = [(1.0, 1.0)]
    labels: dict[str, str] = {}
    for entry in entries:
        spot = (entry.speedup.value, entry.accuracy.value)
        if all(any(abs(a - b) / span > far for a, b, span, far in zip(spot, other, spans, apart, strict=True))
               for other in placed):  # fmt: skip
            placed.append(spot)
            labels[entry.id] = text(entry.id if entry.new else entry.name)
    return labels
