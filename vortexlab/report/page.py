"""The report: one HTML page that holds everything it shows and asks nobody for anything.

Text from programs and language models is escaped wherever it stands (report/markup.py). The page's own policy names its
scripts by hash and allows no other source, so nothing that slipped through could run or call home.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from vortexlab import __version__
from vortexlab.agent.explain import recorded as explained
from vortexlab.agent.finals import recorded
from vortexlab.cli.output import number
from vortexlab.dsl.errors import VortexError
from vortexlab.kernels import disk
from vortexlab.report import explain, finals
from vortexlab.report.bars import ARMS, arm_rows, funnel_figure, proposers_figure, tasks_figure
from vortexlab.report.growth import growth_figures
from vortexlab.report.lineage import lineage
from vortexlab.report.markup import data, table, text
from vortexlab.report.plot import marks_line, pareto
from vortexlab.report.programs import programs, rejected, texts
from vortexlab.report.selection import Selection
from vortexlab.report.summary import conditions_line, summary_lines

if TYPE_CHECKING:
    from vortexlab.agent.run import Run

_CONTENTS = (
    "frontier", "why", "tasks", "lineage", "growth", "proposers", "finals", "gates", "programs", "knobs", "rejected",
    "texts",
)  # fmt: skip
_BARS = 40  # members of the frontier whose scores by task can be chosen
_EXPLAINED = 24  # members of the frontier that are held against published programs


def write_report(run: Run, path: Path) -> Path:
    """Writes the page; a reader of `path` sees the old page or the new one. Raises `VortexError` when it cannot."""
    page = render(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
            path.write_text(page, encoding="utf-8")
            return path
        disk.replace(path, page.encode())
    except OSError as error:
        raise VortexError(
            f"cannot write the report to {path} ({error.strerror}); free some space or name another file with --out"
        ) from error
    return path


def render(run: Run) -> str:
    """The whole page."""
    from plotly.offline import get_plotlyjs

    chosen = Selection(run)
    figures: dict[str, Any] = {
        "pareto": pareto(chosen), "funnel": funnel_figure(run.progress().funnel), **growth_figures(chosen),
    }  # fmt: skip
    proposers, figures["earned"] = _proposers(chosen)
    tasks, figures["tasks"] = _tasks(chosen)
    scripts = {"PLOTLY": get_plotlyjs(), "SCRIPT": _asset("page.js")}
    return _filled(_asset("page.html"), {
        "POLICY": _policy(scripts.values()),
        "TITLE": text(f"Vortex run {run.name}"),
        "STYLE": _asset("page.css"),
        "SUMMARY": "\n".join(f"<li>{text(line)}</li>" for line in summary_lines(run)),
        "CONTENTS": " ".join(f'<a href="#{name}">{name}</a>' for name in _CONTENTS),
        "CONDITIONS": text(conditions_line(chosen.board)),
        "MARKS": text(marks_line(chosen)),
        "WHY": _why(chosen),
        "TASKS": tasks,
        "LINEAGE": lineage(chosen),
        "PROPOSERS": proposers,
        "FINALS": _finals(run),
        "AUDITS": _audits(run),
        "PROGRAMS": programs(chosen),
        "KNOBS": _knobs(run),
        "REJECTED": rejected(chosen),
        "TEXTS": texts(chosen) or "<p>None.</p>",
        "FOOT": text(f"Written by vortexlab {__version__} from the record of {len(run.trials)} programs."),
        "FIGURES": data({name: figure for name, figure in figures.items() if figure}),
        **scripts,
    })  # fmt: skip


def _asset(name: str) -> str:
    return (resources.files("vortexlab.report") / name).read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """The template with its ``@WORDS@`` replaced, once: what a value holds is never looked at again."""
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], template)


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _proposers(chosen: Selection) -> tuple[str, dict[str, Any] | None]:
    """Bars and a table of what each proposer earned, as markup, and the figure of the bars."""
    arms = chosen.run.arms()
    if not arms:
        return "<p>Nobody has proposed anything yet.</p>", None
    figure = proposers_figure(arms)
    label = "What each proposer was given and earned"
    place = f'<div id="earned" class="figure auto" role="img" aria-label="{label}"></div>' if figure else ""
    unit = "seconds" if any(entry.speed == "measured" for entry in chosen.board.entries) else "whole evaluations"
    note = f'<p class="note">Cost is in {unit}. Gained: the hypervolume that a program added when it came.</p>'
    return place + table(ARMS, arm_rows(arms, chosen)) + note, figure


def _tasks(chosen: Selection) -> tuple[str, dict[str, Any]]:
    """A choice among the frontier's members and a place for their bars, as markup, and the figures by id."""
    figures = {entry.id: figure for entry in chosen.leading[:_BARS] if (figure := tasks_figure(chosen, entry))}
    if not figures:
        return "<p>No scores by task are recorded for the frontier.</p>", {}
    options = "".join(
        f'<option value="{text(name)}">{text(name)} {text(chosen.entries[name].name)}</option>' for name in figures
    )
    return (
        f'<p><label>Program <select id="member">{options}</select></label></p>'
        '<div id="bars" class="figure auto" role="img" aria-label="Scores by task"></div>'
        '<p class="note">Whiskers: the 95 % interval of the paired difference to dense attention, drawn at its end of '
        "the program's bar.</p>"
    ), figures


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
    return table(headings, rows) if rows else "<p>None.</p>"


def _knobs(run: Run) -> str:
    """Which knobs told the best programs from the others."""
    from vortexlab.agent.study import MOST

    headings = ("knob", "meaning", "programs", "share for speed-up", "share for accuracy kept")
    rows = [
        (row.knob, row.meaning, row.trials, f"{row.speedup:.0%}", f"{row.accuracy:.0%}") for row in run.importances()
    ]
    few = f"<p>Of many programs every so many-th counts, {MOST:,} in all at most.</p>"
    many = run.progress().accepted > MOST
    return (table(headings, rows) if rows else "<p>None.</p>") + (few if many else "")


def _finals(run: Run) -> str:
    """What the sealed contexts said of the finalists, beside what the search had said."""
    if not run.history.openings:
        return "<p>None were held: <code>vortex finals</code> measures the best programs once more.</p>"
    rows = recorded(run)
    seen = f"<p>{finals.SEEN_BEFORE}</p>" if any(row.opening > 1 for row in rows) else ""
    return f'<p class="note">{text(finals.title(run))}</p>{table(finals.HEADINGS, finals.cells(rows))}{seen}'


def _why(chosen: Selection) -> str:
    """Members of the frontier, the recommended one and the surest first: what each is nearest to, and what its parts
    buy, as far as that was measured."""
    front = chosen.leading[:_EXPLAINED]
    if not front:
        return "<p>There is no frontier.</p>"
    rows = explained(chosen.run, [chosen.by_id[entry.id] for entry in front])
    shown = "".join(
        f'<h3><a href="#{text(row.trial.id)}">{text(explain.title(row))}</a></h3>'
        f"<p>Nearest published program: {text(row.nearest)}.</p>"
        + (table(explain.HEADINGS, explain.cells(row)) if row.parts else "")
        for row in rows
    )
    left = len(chosen.leading) - len(front)
    name = text(quote(chosen.run.name))
    if any(row.parts for row in rows):
        shown = f'<p class="note">{text(explain.NOTE)}</p><div class="scroll" tabindex="0">{shown}</div>'
    else:
        shown = f'<div class="scroll" tabindex="0">{shown}</div>'
        shown += f"<p>No part was measured: <code>vortex explain {name}</code> does that.</p>"
    if left:
        shown += f"<p>{left} more members of the frontier: <code>vortex explain {name} --evaluations 0</code>.</p>"
    return shown
