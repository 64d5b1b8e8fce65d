"""The report: one HTML page that holds everything it shows and asks nobody for anything.

Text from programs and language models is escaped wherever it stands. The page's own policy names its scripts by
hash and allows no other source, so nothing that slipped through could run or call home.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import tempfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab import __version__
from vortexlab.agent.explain import recorded as explained
from vortexlab.agent.finals import recorded
from vortexlab.agent.reflection import in_words, limits
from vortexlab.cli.output import duration, interval, number, settings
from vortexlab.dsl.errors import VortexError
from vortexlab.report import explain, finals
from vortexlab.report.plot import funnel_figure, pareto
from vortexlab.report.summary import conditions_line, summary_lines

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry
    from vortexlab.agent.run import Run
    from vortexlab.agent.trials import Trial

_HEADINGS = (
    "id", "name", "speed-up [95 %]", "accuracy kept [95 %]", "shrunk [95 %]", "rank", "density", "state, bytes a token",
    "batch that fits", "KV cache", "P(frontier)", "kind",
    "beats seed by", "made by", "answers", "knobs",
)  # fmt: skip


def write_report(run: Run, path: Path) -> Path:
    """Writes the page; a reader of `path` sees the old page or the new one. Raises `VortexError` when it cannot."""
    text = render(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
            path.write_text(text, encoding="utf-8")
            return path
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            try:
                file.write(text)
                file.flush()
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise VortexError(
            f"cannot write the report to {path} ({error.strerror}); free some space or name another file with --out"
        ) from error
    return path


def render(run: Run) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    board = run.leaderboard()
    figures = {"pareto": pareto(board), "funnel": funnel_figure(dict(run.progress().funnel))}
    scripts = {"PLOTLY": get_plotlyjs(), "SCRIPT": _asset("page.js")}
    return _filled(_asset("page.html"), {
        "POLICY": _policy(scripts.values()),
        "TITLE": _text(f"Vortex run {run.name}"),
        "STYLE": _asset("page.css"),
        "SUMMARY": "\n".join(f"<li>{_text(line)}</li>" for line in summary_lines(run)),
        "CONDITIONS": _text(conditions_line(board)),
        "HEADINGS": "".join(f"<th>{_text(name)}</th>" for name in _HEADINGS),
        "ROWS": "\n".join(_row(entry) for entry in board.entries),
        "AUDITS": _audits(run),
        "REJECTED": _rejected(run),
        "KNOBS": _knobs(run),
        "FINALS": _finals(run),
        "WHY": _why(run),
        "TEXTS": "\n".join(_program(run, trial) for trial in _shown(run)),
        "FOOT": _text(f"Written by vortexlab {__version__} from the record of {len(run.trials)} programs."),
        "FIGURES": _data(figures),
        **scripts,
    })  # fmt: skip


def _asset(name: str) -> str:
    return (resources.files("vortexlab.report") / name).read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """The template with its ``@WORDS@`` replaced, once: what a value holds is never looked at again."""
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], template)


def _text(value: Any) -> str:
    """A value as text of the page."""
    return html.escape(" ".join(str(value).split()))


def _data(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    plain = json.dumps(value, allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _row(entry: Entry) -> str:
    rival = entry.beats_seed
    cells = [
        f'<a href="#{_text(entry.id)}">{_text(entry.id)}</a>',
        _text(entry.name + (f" ({entry.label})" if entry.label else "")),
        _text(interval(entry.speedup, 2)),
        _text(interval(entry.accuracy)),
        _text(interval(entry.shrunk)),
        _text(f"{entry.rank}{', separated' if entry.separated else ''}"),
        _text(number(entry.density)),
        _text(number(entry.state_bytes, 0)),
        _text(settings({length: fits for length, fits in entry.batch_fits.items() if fits is not None})),
        _text(entry.kv_dtype or "-"),
        _text(number(entry.frontier_probability, 2)),
        "new" if entry.new else "published",
        _text(f"{interval(rival.difference, 2)} ({rival.seed})" if rival else ""),
        _text(f"{entry.proposer} {entry.operator}"),
        _text(f"{entry.answers} / {entry.contexts}"),
    ]
    front = ' class="front"' if entry.on_frontier else ""
    joined = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{front}>{joined}<td class="wrap">{_text(settings(entry.knobs))}</td></tr>'


def _audits(run: Run) -> str:
    """What each gate rejected, and what it lost by that."""
    rows = [
        (
            row.gate, row.reached, row.rejected, row.audited, row.found,
            "not known" if row.lost is None else f"{row.lost:.1f}, at most {row.lost_high:.1f}",
            number(row.agreement, 2),
        )
        for row in run.audits()
    ]  # fmt: skip
    headings = (
        "gate", "reached", "rejected", "of these measured in full", "of these on the frontier",
        "frontier members lost (95 % bound)", "rank correlation with full accuracy",
    )  # fmt: skip
    return _table(headings, rows) if rows else "<p>None.</p>"


def _knobs(run: Run) -> str:
    """Which knobs told the best programs from the others."""
    headings = ("knob", "meaning", "programs", "share for speed-up", "share for accuracy kept")
    rows = [
        (row.knob, row.meaning, row.trials, f"{row.speedup:.0%}", f"{row.accuracy:.0%}") for row in run.importances()
    ]
    return _table(headings, rows) if rows else "<p>None.</p>"


def _finals(run: Run) -> str:
    """What the sealed contexts said of the finalists, beside what the search had said."""
    if not run.history.openings:
        return "<p>None were held: <code>vortex finals</code> measures the best programs once more.</p>"
    rows = recorded(run)
    seen = f"<p>{finals.SEEN_BEFORE}</p>" if any(row.opening > 1 for row in rows) else ""
    return f'<p class="note">{_text(finals.title(run))}</p>{_table(finals.HEADINGS, finals.cells(rows))}{seen}'


def _why(run: Run) -> str:
    """Every member of the frontier: what it is nearest to, and what its parts buy, as far as that was measured."""
    rows = explained(run)
    shown = "".join(
        f'<h3><a href="#{_text(row.trial.id)}">{_text(explain.title(row))}</a></h3>'
        f"<p>Nearest published program: {_text(row.nearest)}.</p>"
        + (_table(explain.HEADINGS, explain.cells(row)) if row.parts else "")
        for row in rows
    )
    if not rows:
        return "<p>There is no frontier.</p>"
    if not any(row.parts for row in rows):
        return f"{shown}<p>No part was measured: <code>vortex explain</code> does that.</p>"
    return f'<p class="note">{_text(explain.NOTE)}</p>{shown}'


def _table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    heading = "".join(f"<th>{_text(name)}</th>" for name in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heading}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _rejected(run: Run) -> str:
    rows = []
    for trial in run.trials:
        if trial.head is not None and trial.head.gate is not None:
            cells = (trial.id, trial.proposal.name, trial.head.status, trial.head.gate)
            joined = "".join(f"<td>{_text(cell)}</td>" for cell in cells)
            rows.append(f'<tr>{joined}<td class="wrap">{_text(trial.head.reason)}</td></tr>')
    if not rows:
        return "<p>None.</p>"
    heading = "".join(f"<th>{name}</th>" for name in ("id", "name", "status", "gate", "reason"))
    body = "\n".join(rows)
    return f'<div class="scroll"><table><thead><tr>{heading}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _shown(run: Run) -> list[Trial]:
    """The trials whose text the page holds: accepted ones in the order of the table."""
    by_id = {trial.id: trial for trial in run.trials}
    return [by_id[entry.id] for entry in run.leaderboard().entries]


def _program(run: Run, trial: Trial) -> str:
    proposal, verdict = trial.proposal, trial.verdict
    assert verdict is not None
    facts = {
        "knobs": settings(trial.knobs),
        "lineage": " < ".join(f"{item['id']} {item['name']}" for item in run.lineage(trial.id)) or "-",
        "hypothesis": proposal.hypothesis or "-",
        "predicted effect": settings(proposal.predicted_effect),
        "limited by": in_words(limits(verdict)),
        "time": duration(verdict.seconds),
        "alarms": "; ".join(verdict.alarms) or "-",
        "hash": trial.hash,
    }
    items = "".join(f"<li>{_text(name)}: {_text(value)}</li>" for name, value in facts.items())
    tasks = "".join(
        f"<li>{_text(task)}: dense {_text(number(row.get('dense')))}, sparse {_text(number(row.get('sparse')))}, "
        f"difference {_text(interval(row.get('difference')))}, {_text(row.get('n', '-'))} answers</li>"
        for task, row in verdict.per_task.items()
    )
    return (
        f'<details id="{_text(trial.id)}"><summary>{_text(trial.id)} {_text(proposal.name)}</summary>'
        f"<ul>{items}</ul><ul>{tasks}</ul><pre>{html.escape(proposal.source.strip())}</pre></details>"
    )
