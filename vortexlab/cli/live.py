"""The progress of a running campaign: a panel on a terminal, one line for each verdict and each pause elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vortexlab.cli.output import console, duration, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vortexlab.agent.config import CampaignConfig
    from vortexlab.agent.progress import ProgressState


class Display:
    """Called with every `ProgressState`; writes to standard error, so standard output holds results alone."""

    def __init__(self, config: CampaignConfig):
        self._config = config
        self._state: ProgressState | None = None
        self._live = None
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=console(stderr=True), refresh_per_second=4, get_renderable=self._panel)

    def __enter__(self) -> Self:
        return self

    def _begin(self) -> None:
        """Once the campaign is at work: before that there may be a complaint, which should stand alone."""
        how = f"seed {self._config.seed}, speed {self._config.evaluation.speed}, {self._config.evaluation.device}"
        print(f"Campaign {self._config.name} ({', '.join(self._config.proposers)}; {how})", file=sys.stderr)
        if self._live is not None:
            self._live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, state: ProgressState) -> None:
        if state.phase == "starting":
            return
        if self._state is None:
            self._begin()
        self._state = state
        if self._live is None and state.phase in ("recorded", "paused", "finished"):
            print(line(state), file=sys.stderr, flush=True)

    def _panel(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        state = self._state
        if state is None:
            return Text("starting")
        grid = Table.grid(padding=(0, 2))
        budget = "" if state.budget is None else f" of {state.budget}"
        left = "" if state.seconds_left is None else f", about {duration(state.seconds_left)} left"
        rows = {
            "now": f"{state.phase} {state.current}".strip(),
            "evaluated": f"{state.evaluations}{budget} ({state.per_hour:.0f} an hour), {state.recorded} recorded",
            "time": f"{duration(state.seconds)}{left}",
            "gates": funnel(state),
            "frontier": f"{state.frontier} programs, hypervolume {state.hypervolume:.3f}",
            "structures": f"{state.structures} accepted, {state.new_structures} of them new",
        }
        if state.calls:
            rows["language model"] = f"{state.calls} calls, {state.tokens} tokens"
        for name, value in rows.items():
            grid.add_row(Text(name, style="dim"), Text(printable(value)))
        return grid


def funnel(state: ProgressState) -> str:
    """`proposed 12 > numerics 12 > fidelity 11`: how many programs passed each gate."""
    return " > ".join(f"{gate} {count}" for gate, count in state.funnel.items()) or "-"


def line(state: ProgressState) -> str:
    """The same in one line."""
    budget = "" if state.budget is None else f"/{state.budget}"
    left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
    spent = f", {state.calls} calls {state.tokens} tokens" if state.calls else ""
    return printable(
        f"[{duration(state.seconds)}] {state.evaluations}{budget} evaluated ({state.per_hour:.0f}/h{left}), "
        f"{state.accepted} accepted, {state.rejected} rejected, {state.errors} lost, frontier {state.frontier}{spent}"
        f": {state.phase} {state.current}".rstrip()
    )
