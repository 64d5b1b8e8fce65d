"""The progress of a running campaign: a view on a terminal, lines elsewhere, and a log in JSON for programs."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from vortexlab.cli.output import duration, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vortexlab.agent.config import CampaignConfig
    from vortexlab.agent.progress import ProgressState

STANDARD_ERROR = "-"
STOPPING = "finishing what is running; Ctrl-C again stops now"


class Display:
    """Called with every `ProgressState`; writes to standard error, so standard output holds results alone.

    `log` is a file that gets every change as a line of JSON; `-` puts these lines in the place of all others. Nobody
    needs to look: a terminal that closes, a reader that leaves or a log that cannot be written end no campaign.
    """

    def __init__(self, config: CampaignConfig, log: str | None = None):
        self._config = config
        self._state: ProgressState | None = None
        self._came, self._stopping, self._ended = 0.0, False, False
        self._stream = Unheard(sys.stderr)
        self._plain = log != STANDARD_ERROR
        self._log: Log | None = None if log is None else Log(log, self._stream)
        self._live = None
        if self._plain and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            shown = Console(file=self._stream, highlight=False, markup=False)  # type: ignore[arg-type]
            if shown.is_terminal and not shown.is_dumb_terminal and not shown.options.ascii_only:
                self._live = Live(console=shown, refresh_per_second=4, get_renderable=self._view)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self._live is not None:
            self._live.stop()
        if self._log is not None:
            self._log.close()

    def __call__(self, state: ProgressState) -> None:
        if self._log is not None:
            self._log.write(state)
        if state.phase == "starting":  # there may be a complaint, which should stand alone
            return
        first = self._state is None
        self._state, self._came = state, time.monotonic()
        if first and self._plain:
            self._begin()
        if self._plain and self._live is None and state.phase in ("recorded", "paused", "bounding", "finished"):
            self._say(line(state))

    def stopping(self) -> None:
        """A signal came. This is called in its handler, which may have interrupted a write to the stream."""
        self._stopping = True
        if self._plain and self._live is None:
            with suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), f"{STOPPING}\n".encode())

    def _begin(self) -> None:
        how = f"seed {self._config.seed}, speed {self._config.evaluation.speed}, {self._config.evaluation.device}"
        self._say(f"Campaign {self._config.name} ({', '.join(self._config.proposers)}; {how})")
        if self._live is not None:
            self._live.start()

    def _say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _view(self) -> RenderableType:
        from vortexlab.cli.panel import View

        if self._state is None:
            return ""
        return View(self._state, time.monotonic() - self._came, self._stopping, self._ended)


class Unheard:
    """A stream that may be gone: a terminal that was closed, a pipe that nobody reads."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Log:
    """One line of JSON for every change of progress, added to a file and there as soon as it is written.

    A file that cannot be written is one line on `stream`, keeps the lines that it has, and gets no more.
    """

    def __init__(self, path: str, stream: Unheard):
        self._path, self._stream = path, stream
        self._file: int | None = None
        self._opened = False

    def write(self, state: ProgressState) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        text = json.dumps({"time": now, **state.to_json()}, allow_nan=False) + "\n"
        if self._path == STANDARD_ERROR:
            self._stream.write(text)
            self._stream.flush()
            return
        try:
            if not self._opened:
                self._opened = True
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if self._file is not None:
                _add(self._file, text.encode())
        except OSError as error:
            self.close()
            self._stream.write(f"the log {self._path} is not written any longer: {error.strerror}\n")
            self._stream.flush()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)


def _add(file: int, data: bytes) -> None:
    """The whole line or nothing of it, where the file can be cut."""
    found = os.fstat(file)
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        if stat.S_ISREG(found.st_mode):
            with suppress(OSError):
                os.ftruncate(file, found.st_size)
        raise


def funnel(passed: Mapping[str, int]) -> str:
    """`proposed 12 > numerics 12 > fidelity 11`: how many programs passed each gate."""
    return " > ".join(f"{gate} {count}" for gate, count in passed.items()) or "-"


def line(state: ProgressState) -> str:
    """How it stands, in one line."""
    budget = "" if state.budget is None else f"/{state.budget}"
    left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
    running = f", {state.running} running" if state.running else ""
    spent = f", {state.calls} calls {state.tokens} tokens" if state.calls else ""
    return printable(
        f"[{duration(state.seconds)}] {state.evaluations}{budget} evaluated ({state.per_hour:.0f}/h{left}), "
        f"{state.accepted} accepted, {state.rejected} rejected, {state.errors} lost{running}, "
        f"frontier {state.frontier}{spent}: {state.phase} {state.current}".rstrip()
    )
