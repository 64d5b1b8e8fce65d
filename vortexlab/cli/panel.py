"""What a terminal shows of a running campaign: as much as fits, at any width and height."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from shlex import quote

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vortexlab.agent.progress import ProgressState
from vortexlab.cli.live import STOPPING, funnel
from vortexlab.cli.output import duration, printable

_WIDE = 120  # columns from which on what was found stands beside what is done
_LABEL = 11  # columns of a row's name
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Row:
    """One line. `need` says how much it is missed: rows of 0 stand on the smallest terminal, those of 4 on a large one
    alone; `found` rows tell of programs, the others of the campaign."""

    name: str
    what: RenderableType
    need: int = 0
    found: bool = False


@dataclass(frozen=True)
class View:
    """`state` as it was `waited` seconds ago. `stopping`: a signal came; `ended`: nobody works on it any more."""

    state: ProgressState
    waited: float = 0.0
    stopping: bool = False
    ended: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.size.height - 1  # the line of the cursor
        wide = options.max_width >= _WIDE
        for need in reversed(range(5)):
            rows = self._rows(need)
            found = sum(row.found for row in rows)
            high = max(found, len(rows) - found) if wide else len(rows)
            last = self._last(need)
            if high + len(last) + 2 <= room:
                above = self._beside(rows) if wide else grid(rows)
                yield Panel(Group(above, *last), title=self._title(), title_align="left", border_style="dim")
                return
        yield self._bare(max(1, room))

    def _bare(self, room: int) -> RenderableType:
        """Without a frame."""
        return Group(*[grid([row]) for row in self._rows(0)[:room]])

    def _beside(self, rows: Sequence[Row]) -> Table:
        both = Table.grid(expand=True, padding=(0, 3, 0, 0))
        both.add_column(ratio=1)
        both.add_column(ratio=1)
        both.add_row(grid([row for row in rows if not row.found]), grid([row for row in rows if row.found]))
        return both

    def _title(self) -> Text:
        phase = "ended" if self.ended and self.state.phase != "finished" else self.state.phase
        return Text(f" {one_line(self.state.run)}: {phase} ", style="bold")

    def _rows(self, need: int) -> list[Row]:
        """Those that are needed as much, in order."""
        rows = [*self._work(), *self._found(bars=need == 4)]
        return [row for row in rows if row.need <= need]

    def _work(self) -> Iterator[Row]:
        state = self.state
        counted = f"{state.evaluations}{'' if state.budget is None else f' of {state.budget}'}, {state.per_hour:.0f}/h"
        if state.budget is None:
            yield Row("evaluated", line(counted))
        else:
            yield Row("evaluated", Beside(bar(state.evaluations, state.budget), counted))
        seconds, left = state.seconds, state.seconds_left
        if state.phase not in ("paused", "bounding", "finished") and not self.ended:
            seconds += self.waited
            left = None if left is None else max(0.0, left - self.waited)
        told = f"{duration(seconds)}{'' if left is None else f', about {duration(left)} left'}"
        if state.hours is None:
            yield Row("time", line(told))
        else:
            yield Row("time", Beside(bar(seconds, state.hours * 3600), told))
        yield Row("now", line(self._now()))
        lost = f", {state.errors} lost" if state.errors else ""
        yield Row(
            "recorded",
            line(f"{state.recorded}: {state.accepted} accepted, {state.rejected} rejected{lost}; "
                 f"{state.new_structures} new structures"),
            3,
        )  # fmt: skip
        if state.calls or state.limits:
            yield Row("models", line(self._models()), 2)

    def _now(self) -> str:
        state = self.state
        if self.ended or state.phase == "finished":
            return f"{state.running} cut off, done again on resume" if state.running else "nothing is under way"
        if state.phase == "paused":
            return f"paused; `vortex resume {quote(state.run)}` lets it go on"
        if state.phase == "bounding":
            return f"measuring what the best choice of pages would keep: {state.current}"
        if not state.running:
            return state.phase
        more = state.running - len(state.under_way)
        names = ", ".join(state.under_way) + (f" and {more} more" if more else "")
        return f"{state.running} running: {names}" if state.running > 1 else f"running: {names}"

    def _models(self) -> str:
        """Calls, tokens, money and waiting, each of its limit."""
        state, limits = self.state, self.state.limits
        parts = [_of(str(state.calls), limits.get("calls"), str) + " calls"]
        parts.append(_of(_short(state.tokens), limits.get("tokens"), _short) + " tokens")
        if state.money or limits.get("money"):
            parts.append(_of(f"{state.money:.2f}", limits.get("money"), lambda value: f"{value:g}") + " money")
        parts.append("waited " + _of(duration(state.model_seconds), limits.get("model_seconds"), duration))
        return ", ".join(parts)

    def _found(self, bars: bool) -> Iterator[Row]:
        state = self.state
        if bars:
            most = max(state.funnel.values(), default=0)
            for gate, count in state.funnel.items():
                yield Row(gate, Beside(bar(count, most), f"{count:>5}"), 4, True)
        else:
            yield Row("gates", line(funnel(state.funnel)), 1, True)
        told = f"{state.frontier} programs, area {state.hypervolume:.3f}"
        yield Row("frontier", Beside(Sparkline(state.growth), told), 1, True)
        for number, item in enumerate(state.best):
            told = f"{item.speedup:6.2f}x  {item.accuracy:.3f} kept  {item.id} {item.name}"
            yield Row("" if number else "best", line(told), 3, True)

    def _last(self, need: int) -> list[RenderableType]:
        rows: list[RenderableType] = []
        if self.state.latest and need >= 2:
            rows.append(grid([Row("last note", line(self.state.latest))]))
        if need >= 1 and not self.ended and self.state.phase != "finished":
            asked = self.stopping or self.state.stopping
            told = STOPPING if asked else "Ctrl-C finishes what is running"
            rows.append(line(told, style="bold yellow" if asked else "dim"))
        return rows


@dataclass(frozen=True)
class Beside:
    """Something that takes the width that is left of a short text at its right; the text alone where that is little."""

    what: RenderableType
    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = line(self.text)
        if options.max_width < text.cell_len + 8:
            yield text
            return
        both = Table.grid(expand=True, padding=(0, 1, 0, 0))
        both.add_column(ratio=1)
        both.add_column(width=text.cell_len, no_wrap=True)
        both.add_row(self.what, text)
        yield both


@dataclass(frozen=True)
class Sparkline:
    """A line of blocks, the lowest value of all at the bottom, never wider than it has values."""

    values: Sequence[float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(spark(self.values, options.max_width), style="cyan", no_wrap=True, overflow="crop")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, min(len(self.values), options.max_width)))


def spark(values: Sequence[float], width: int) -> str:
    """`values` in at most `width` blocks; where several share one, the last of them counts."""
    if not values:
        return ""
    width = max(1, min(width, len(values)))
    chosen = [values[(i + 1) * len(values) // width - 1] for i in range(width)]
    low, high = min(chosen), max(chosen)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in chosen)


def bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=max(total, 1e-9), completed=min(done, total), complete_style="cyan", finished_style="cyan")


def grid(rows: Sequence[Row]) -> Table:
    drawn = Table.grid(expand=True, padding=(0, 1, 0, 0))
    drawn.add_column(width=_LABEL, no_wrap=True, style="dim")
    drawn.add_column(ratio=1, no_wrap=True)
    for row in rows:
        drawn.add_row(line(row.name), row.what)
    return drawn


def line(text: str, style: str = "") -> Text:
    """Text of whatever origin as one line that is cut where it does not fit."""
    return Text(one_line(text), style=style, no_wrap=True, overflow="ellipsis")


def one_line(text: str) -> str:
    return printable(text.translate({ord(c): " " for c in "\n\t"}))


def _of(spent: str, limit: float | None, spelled: Callable[[float], str]) -> str:
    return spent if limit is None else f"{spent}/{spelled(limit)}"


def _short(tokens: float) -> str:
    """`950`, `12k`, `3.4M`, `20M`."""
    if tokens < 10_000:
        return f"{tokens:.0f}"
    return f"{tokens / 1e3:.0f}k" if tokens < 1e6 else f"{tokens / 1e6:.3g}M"
