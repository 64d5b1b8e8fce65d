"""The table of programs, their texts, and what the gates stopped."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from vortexlab.agent.reflection import in_words, limits
from vortexlab.cli.output import duration, interval, number, settings
from vortexlab.report.highlight import highlighted
from vortexlab.report.markup import knobs, link, raw_table, table, text

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry
    from vortexlab.agent.trials import Trial
    from vortexlab.report.selection import Selection

_HEADINGS = (
    "id", "name", "speed-up [95 %]", "accuracy kept [95 %]", "shrunk [95 %]", "rank", "density", "state, bytes a token",
    "batch that fits", "KV cache", "P(frontier)", "kind", "beats seed by", "made by", "answers", "knobs",
)  # fmt: skip
_TASKS = ("task", "dense", "sparse", "difference [95 %]", "answers")


def programs(chosen: Selection) -> str:
    """The table, and a line on what it leaves out."""
    left = len(chosen.board.entries) - len(chosen.rows)
    name = text(quote(chosen.run.name))
    note = (
        f'<p class="note">The frontier and the best of the others by rank. {left:,} more accepted programs are in the '
        f"plot alone: <code>vortex leaderboard {name} --csv</code> has them all, <code>vortex show {name} ID</code> "
        "the text of any.</p>"
        if left else ""
    )  # fmt: skip
    return note + raw_table(_HEADINGS, (_row(entry) for entry in chosen.rows))


def texts(chosen: Selection) -> str:
    """One box for each program that the page holds, closed until it is wanted."""
    return "\n".join(_program(chosen, trial) for trial in chosen.texts)


def rejected(chosen: Selection) -> str:
    """The latest programs that a gate stopped, and why."""
    if not chosen.rejected:
        return "<p>None.</p>"
    stopped = sum(trial.head is not None and trial.head.gate is not None for trial in chosen.run.trials)
    left = stopped - len(chosen.rejected)
    note = (
        f'<p class="note">The latest {len(chosen.rejected)} of {stopped:,}; <code>vortex show '
        f"{text(quote(chosen.run.name))} ID</code> tells of any other, and <code>Run.to_pandas()</code> of all.</p>"
        if left else ""
    )  # fmt: skip
    rows = []
    for trial in chosen.rejected:
        verdict = trial.head
        assert verdict is not None
        cells = (trial.id, trial.proposal.name, verdict.status, verdict.gate)
        joined = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        rows.append(f'{joined}<td class="wrap">{text(verdict.reason)}</td>')
    return note + raw_table(("id", "name", "status", "gate", "reason"), rows)


def _row(entry: Entry) -> str:
    rival = entry.beats_seed
    cells = [
        f'<a href="#{text(entry.id)}">{text(entry.id)}</a>',
        text(entry.name + (f" ({entry.label})" if entry.label else "")),
        text(interval(entry.speedup, 2)),
        text(interval(entry.accuracy)),
        text(interval(entry.shrunk)),
        text(f"{entry.rank}{', separated' if entry.separated else ''}"),
        text(number(entry.density)),
        text(number(entry.state_bytes, 0)),
        text(settings({length: fits for length, fits in entry.batch_fits.items() if fits is not None})),
        text(entry.kv_dtype or "-"),
        text(number(entry.frontier_probability, 2)),
        "new" if entry.new else "published",
        text(f"{interval(rival.difference, 2)} ({rival.seed})" if rival else ""),
        text(f"{entry.proposer} {entry.operator}"),
        text(f"{entry.answers} / {entry.contexts}"),
    ]
    front = ' class="front"' if entry.on_frontier else ""
    joined = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{front}>{joined}<td class="wrap">{text(knobs(entry.knobs))}</td></tr>'


def _program(chosen: Selection, trial: Trial) -> str:
    proposal, verdict = trial.proposal, trial.verdict
    assert verdict is not None
    stopped = f" by gate {verdict.gate}: {verdict.reason}" if verdict.gate else ""
    facts = {
        "status": f"{verdict.status}{stopped}",
        "speed-up": interval(verdict.speedup, 2),
        "accuracy kept": interval(verdict.accuracy),
        "knobs": settings(trial.knobs),
        "hypothesis": proposal.hypothesis or "-",
        "predicted effect": settings(proposal.predicted_effect),
        "limited by": in_words(limits(verdict)),
        "time": duration(verdict.seconds),
        "alarms": "; ".join(verdict.alarms) or "-",
        "hash": trial.hash,
    }
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    parents = ", ".join(link(name, chosen.shown) for name in proposal.parents) or "-"
    items += f"<dt>parents</dt><dd>{parents}</dd>"
    tasks = table(_TASKS, (
        (task, number(row.get("dense")), number(row.get("sparse")), interval(row.get("difference")), row.get("n", "-"))
        for task, row in verdict.per_task.items()
    )) if verdict.per_task else ""  # fmt: skip
    return (
        f'<details id="{text(trial.id)}"><summary>{text(trial.id)} {text(proposal.name)}</summary>'
        f'<dl>{items}</dl>{tasks}<pre tabindex="0"><code>{highlighted(proposal.source.strip())}</code></pre></details>'
    )
