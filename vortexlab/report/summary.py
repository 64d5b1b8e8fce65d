"""A campaign in ten lines: what was tried, what won, by how much and how surely, what it cost, what to export."""

from __future__ import annotations

from collections import Counter
from shlex import quote
from textwrap import shorten
from typing import TYPE_CHECKING

from vortexlab.agent.explain import recorded
from vortexlab.agent.finals import recorded as finals
from vortexlab.cli.live import funnel
from vortexlab.cli.output import duration, interval, where

if TYPE_CHECKING:
    from vortexlab.agent.leaderboard import Entry, Leaderboard
    from vortexlab.agent.run import Run

#: Accuracy kept, shrunk, that a program should have to be recommended for speed.
WORTHY = 0.95
_WHY = 300  # characters of how a program differs from the nearest one


def recommended(board: Leaderboard) -> Entry | None:
    """The fastest frontier member that keeps `WORTHY` of dense accuracy, or the most accurate one; None of none."""
    front = board.frontier
    worthy = [entry for entry in front if entry.shrunk.value >= WORTHY]
    if worthy:
        return max(worthy, key=lambda entry: entry.speedup.value)
    return max(front, key=lambda entry: entry.shrunk.value, default=None)


def summary_lines(run: Run) -> list[str]:
    """At most ten lines of plain text."""
    state, board, config = run.progress(), run.leaderboard(), run.config
    money = f", {state.money:.2f} of money" if state.money else ""
    spent = f", {state.calls:,} calls and {state.tokens:,} tokens of language models{money}" if state.calls else ""
    reason = f" ({run.history.finished})" if run.history.finished else ""
    lines = [
        f"Run {run.name}, {run.state}{reason}: seed {config.seed}, proposers {', '.join(config.proposers)}.",
        f"Tried: {state.recorded:,} programs, {state.evaluations:,} of them measured in full; {state.accepted:,} "
        f"accepted with {state.structures:,} structures, {state.new_structures:,} of which no published program has. "
        f"Cost: {duration(state.seconds)} of work, {state.per_hour:,.0f} evaluations an hour{spent}.",
        conditions_line(board) or "Nothing was measured in full.",
        f"Gates: {funnel(state.funnel)}.{_reasons(run)}",
        _frontier_line(board, state.hypervolume),
    ]
    best = recommended(board)
    if best is not None:
        bar = f"fastest that keeps {WORTHY:g}" if best.shrunk.value >= WORTHY else "most accurate"
        lines.append(
            f"Best ({bar}): {best.id} {best.name}{_kind(best)}: speed-up {interval(best.speedup, 2)}, accuracy kept "
            f"{interval(best.accuracy)}."
        )
        lines.append(surely_line(run, best))
        lines.append(why_line(run, best))
    warnings = _warnings(run)
    if warnings:
        lines.append(f"Look at: {warnings}.")
    if best is not None:
        lines.append(f"Export it: vortex export {quote(run.name)} {best.id} --to transformers")
    return lines


def surely_line(run: Run, entry: Entry) -> str:
    """How sure the figures of a member are: the noise of the search, and the sealed contexts where they were opened."""
    apart = "above" if entry.separated else "not separated from"
    line = (
        f"How surely: on the frontier in {entry.frontier_probability:.0%} of bootstrap draws; accuracy kept, shrunk "
        f"for having been chosen, {interval(entry.shrunk)}; {apart} all others that may be as fast."
    )
    if not run.history.openings:
        return f"{line} Sealed contexts were not opened: vortex finals {quote(run.name)}"
    found = [row for row in finals(run) if row.trial.id == entry.id and row.verdict is not None]
    if not found or found[-1].verdict is None or found[-1].verdict.accuracy is None:
        return f"{line} It was not measured on sealed contexts."
    sealed = found[-1].verdict
    decision = sealed.non_inferiority.get("decision")
    return f"{line} On sealed contexts it keeps {interval(sealed.accuracy)}" + (f" ({decision})." if decision else ".")


def why_line(run: Run, entry: Entry) -> str:
    """What a member is nearest to, and which of its parts buy something, as far as that was measured."""
    (row,) = recorded(run, [run.history.find(entry.id)])
    line = shorten(f"Why {entry.id}: it is {row.nearest}.", _WHY, placeholder=" ...")
    oracle = run.history.oracles.get(row.trial.hash)
    if oracle is not None and oracle.head.accuracy is not None:
        line += f" The best choice of as many pages would keep {interval(oracle.head.accuracy)}."
    measured = [part for part in row.parts if part.verdict is not None]
    if not measured:
        return f"{line} What its parts buy was not measured: vortex explain {quote(run.name)} {entry.id}"
    idle = [part.ablation.change for part in measured if part.is_idle]
    return f"{line} Of {len(measured)} parts, {len(idle)} buy nothing that can be seen" + (
        f" ({'; '.join(idle)})." if idle else "."
    )


def conditions_line(board: Leaderboard) -> str:
    """How the numbers of the leaderboard were found; empty without entries."""
    if not board.entries:
        return ""
    entry = board.entries[0]
    conditions = entry.conditions
    geometry = conditions.get("geometry") or {}
    lengths = ", ".join(map(str, conditions.get("lengths", [])))
    parts = [
        f"Speed is {where(entry.speed, entry.device)}",
        f"geometry {geometry.get('name', '?')}" if geometry else "",
        f"contexts of {lengths} tokens" if lengths else "",
        f"{conditions['dtype']}" if conditions.get("dtype") else "",
        f"accuracy from {entry.answers} paired answers on {entry.contexts} contexts, {conditions.get('protocol', '')}",
    ]
    return "; ".join(part for part in parts if part).rstrip(" ,;") + "."


def _frontier_line(board: Leaderboard, hypervolume: float) -> str:
    front = board.frontier
    line = (
        f"Frontier: {len(front)} programs, {sum(entry.new for entry in front)} of them new, hypervolume "
        f"{hypervolume:.3f} (speed-up x accuracy kept)."
    )
    winners = [entry for entry in front if entry.new and entry.beats_seed and entry.beats_seed.beaten]
    if not winners:
        return f"{line} No new frontier member beats its best seed with a lower bound above zero." if front else line
    top = max(winners, key=lambda entry: entry.beats_seed.difference.value if entry.beats_seed else 0.0)
    assert top.beats_seed is not None
    return (
        f"{line} New programs that beat their best seed at matched accuracy, lower bound above zero: {len(winners)}; "
        f"most by {top.id} {top.name}, {interval(top.beats_seed.difference, 2)}x over {top.beats_seed.name}."
    )


def _kind(entry: Entry) -> str:
    return " (new)" if entry.new else " (a published program)"


def _reasons(run: Run) -> str:
    """The gates that said no, most often first."""
    stopped = Counter(str(t.head.gate) for t in run.trials if t.head and t.head.gate)
    if not stopped:
        return ""
    return " Stopped at " + ", ".join(f"{gate} {count}" for gate, count in stopped.most_common()) + "."


def _warnings(run: Run) -> str:
    alarms = [trial.id for trial in run.trials if trial.head and trial.head.alarms]
    lost = run.progress().errors
    parts = [
        f"alarms at {', '.join(alarms[:5])}" + (" and others" if len(alarms) > 5 else "") if alarms else "",
        f"workers lost in {lost} evaluations" if lost else "",
        f"{len(run.history.failures)} failures of proposers" if run.history.failures else "",
        *(f"{name} is not asked any more: {reason}" for name, reason in run.history.stopped().items()),
        f"{len(run.history.notes)} notes" if run.history.notes else "",
    ]
    return "; ".join(part for part in parts if part)
