"""The family tree of the frontier: who descends from whom, by which move, and what each step changed."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from vortexlab.report.markup import knobs, link, text

if TYPE_CHECKING:
    from vortexlab.agent.trials import Trial
    from vortexlab.report.selection import Selection


def lineage(chosen: Selection) -> str:
    """A nested list. A line of only children stays at one depth, so that twenty generations fit a phone."""
    family = chosen.family
    if not family.roots:
        return "<p>There is no frontier.</p>"
    left = (
        f'<p class="note">{family.left} more ancestors had no room: '
        f"<code>vortex show {text(quote(chosen.run.name))} ID</code> has the lineage of any program.</p>"
        if family.left else ""
    )  # fmt: skip
    branches = "".join(_branch(chosen, root, None) for root in family.roots)
    return f'<div class="scroll tall" tabindex="0"><ul class="tree">{branches}</ul></div>{left}'


def _branch(chosen: Selection, trial: Trial, parent: Trial | None) -> str:
    lines = [_line(chosen, trial, parent)]
    children = chosen.family.children.get(trial.id, ())
    while len(children) == 1:
        trial, parent = children[0], trial
        lines.append(_line(chosen, trial, parent))
        children = chosen.family.children.get(trial.id, ())
    inner = "".join(_branch(chosen, child, trial) for child in children)
    return f"<li>{''.join(lines)}" + (f"<ul>{inner}</ul>" if inner else "") + "</li>"


def _line(chosen: Selection, trial: Trial, parent: Trial | None) -> str:
    """One trial: id, name, its point, the move that made it and what that changed."""
    entry = chosen.entries.get(trial.id)
    others = [name for name in trial.proposal.parents if parent is None or name != parent.id]
    made = " ".join(dict.fromkeys((trial.arm.proposer, trial.proposal.operator)))
    also = f", also from {', '.join(link(name, chosen.shown) for name in others)}" if others and parent else ""
    kind = "front" if entry and entry.on_frontier else "step"
    return (
        f'<div class="{kind}">{link(trial.id, chosen.shown)} {text(trial.proposal.name)} '
        f'<span class="soft">{_figures(trial, parent)} · {text(made)}{also}{_knobs(trial, parent)}</span></div>'
    )


def _figures(trial: Trial, parent: Trial | None) -> str:
    if trial.point is None:
        return text(trial.head.status if trial.head else "")
    speed, kept = trial.point
    if parent is None or parent.point is None:
        return text(f"{speed:.2f}x at {kept:.3f}")
    return text(f"{speed:.2f}x ({speed - parent.point[0]:+.2f}) at {kept:.3f} ({kept - parent.point[1]:+.3f})")


def _knobs(trial: Trial, parent: Trial | None) -> str:
    """The knobs that differ from the parent's, where the structure is the same."""
    if parent is None or trial.structure != parent.structure:
        return ""
    moved = {name: value for name, value in trial.knobs.items() if parent.knobs.get(name) != value}
    return f", {text(knobs(moved))}" if moved else ""
