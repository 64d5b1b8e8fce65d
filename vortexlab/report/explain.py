"""What the parts of a program buy, as the terminal and the page show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortexlab.cli.output import interval

if TYPE_CHECKING:
    from vortexlab.agent.explain import Explanation

HEADINGS = (
    "ablation", "the part", "speed-up", "accuracy kept", "part buys speed-up", "part buys accuracy", "trial",
)  # fmt: skip
NOTE = (
    "What a part buys is the program's figure less that without the part, with its 95 % interval, paired over the "
    "contexts that both were asked; a negative one is a cost."
)


def title(row: Explanation) -> str:
    """The member and its figures in one line."""
    verdict = row.trial.verdict
    assert verdict is not None
    return (
        f"{row.trial.id} {row.trial.proposal.name}: speed-up {interval(verdict.speedup)}, accuracy kept "
        f"{interval(verdict.accuracy)}"
    )


def cells(row: Explanation) -> list[tuple[str, ...]]:
    """A line of text for every part, in the order of `HEADINGS`."""
    return [
        (
            part.ablation.change,
            part.effect,
            interval(part.verdict.speedup if part.verdict else None),
            interval(part.verdict.accuracy if part.verdict else None),
            interval(part.speedup),
            interval(part.accuracy),
            part.trial,
        )
        for part in row.parts
    ]
