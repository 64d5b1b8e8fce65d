"""optuna-dashboard on the copy of a campaign that Optuna reads. Nothing of the campaign is written."""

from __future__ import annotations

import errno
import importlib.util
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.run import Run


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Requests are of no interest to whoever started it."""


def require() -> None:
    """Raises `VortexError` where optuna-dashboard is not installed."""
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise VortexError(
            "optuna-dashboard is not installed; `pip install 'vortexlab[dashboard]'` (or `pip install "
            "optuna-dashboard`) adds it"
        )


@contextmanager
def mirror(run: Run) -> Iterator[tuple[Path, bool]]:
    """The run's mirror and whether it follows the run; where it is absent or behind the record, one that is made
    anew in a temporary place and goes when the context ends."""
    from vortexlab.agent.study import MIRROR, Mirror, mirrored

    running = run.state in ("running", "paused")
    own = run.folder / MIRROR
    # A campaign records a verdict before it mirrors it, so it may be one behind at any moment.
    if mirrored(own) >= len(run.trials) - running:
        yield own, running
        return
    with tempfile.TemporaryDirectory(prefix="vortex-dashboard-") as folder:
        made = Mirror(Path(folder), run.name)
        made.bring_up(run.trials)
        yield made.file, False


@contextmanager
def server(file: Path, host: str, port: int) -> Iterator[WSGIServer]:
    """A server that listens, and answers once `serve_forever` is called. Raises `VortexError` where it may not listen
    there; port 0 takes a free one."""
    from optuna_dashboard import wsgi

    from vortexlab.agent.study import read_only

    shown = wsgi(read_only(file))

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The dashboard, without what its buttons would change."""
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            answer: Iterable[bytes] = shown(environ, start_response)
            return answer
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "this copy of a campaign is for reading"}']

    try:
        made = make_server(host, port, application, server_class=_Server, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise VortexError(
                f"port {port} of {host} is in use; name another with --port (0 takes a free one)"
            ) from None
        reason = getattr(error, "strerror", None) or error
        raise VortexError(f"cannot listen at {host}, port {port} ({reason}); see --host and --port") from None
    with made:
        yield made


def serve(made: WSGIServer, tell: Callable[[], None]) -> None:
    """Answers until SIGINT or SIGTERM. `tell` says so, once either ends it."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell ignores the first for what it starts with `&`
            signal.signal(number, signal.default_int_handler)
    try:
        tell()
        made.serve_forever()
    except KeyboardInterrupt:
        return
