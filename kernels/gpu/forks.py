"""Work in forks of a process that has loaded everything: loading torch and Triton takes longer than most kernels do.

Standard library only. A server forks for every request, so that none can leave anything to the next.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1


class ForkLost(Exception):
    """A fork, or the server, ended without an answer. `status`: how, by `os.waitstatus_to_exitcode`; None: it ran out
    of time. `words`: the last line that it wrote to its standard error."""

    def __init__(self, status: int | None, words: str):
        self.status, self.words = status, words
        super().__init__(f"ended with status {status}: {words}")


def die_with_parent() -> None:
    """Has the kernel end this process when the thread that started it ends."""
    if (prctl := getattr(ctypes.CDLL(None), "prctl", None)) is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _in_fork(work: Callable[[], Any], answers: int) -> NoReturn:
    """What a fork does: writes what `work` gives as JSON, and ends."""
    status = 1
    try:
        die_with_parent()
        payload = memoryview(json.dumps(work()).encode())
        while payload:
            payload = payload[os.write(answers, payload) :]
        status = 0
    except BaseException as error:
        with suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _start(work: Callable[[], Any]) -> tuple[int, int]:
    """A fork that is at work: its number, and where its answer is read."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        _in_fork(work, writable)
    os.close(writable)
    return pid, readable


def _finish(pid: int, readable: int, words: str = "no message") -> Any:
    with open(readable, "rb") as file:
        payload = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status or not payload:
        raise ForkLost(status, words)
    return json.loads(payload)


def in_forks(work: Callable[[T], Any], items: Sequence[T], at_once: int) -> list[Any]:
    """What `work` gives for each item, as JSON can hold it; each in a fork of this process, which must have one thread.

    Raises `ForkLost` for the first that ends without an answer.
    """
    under_way: list[tuple[int, int]] = []
    found: list[Any] = []
    try:
        for item in items:
            if len(under_way) == at_once:
                found.append(_finish(*under_way.pop(0)))
            under_way.append(_start(partial(work, item)))
        while under_way:
            found.append(_finish(*under_way.pop(0)))
    finally:
        for pid, readable in under_way:
            os.close(readable)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return found


def serve(work: Callable[[dict[str, Any]], Any]) -> None:
    """Answers requests, a line of JSON each, until standard input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever compilers print is no answer
    for line in sys.stdin:
        message = json.loads(line)

        def limited(message: dict[str, Any] = message) -> Any:
            space = message["memory_mb"] << 20
            resource.setrlimit(resource.RLIMIT_AS, (space, space))
            return work(message["request"])

        with tempfile.TemporaryFile() as errors:
            before = os.dup(2)
            os.dup2(errors.fileno(), 2)
            try:
                reply = {"answer": _finish(*_start(limited))}
            except ForkLost as lost:
                errors.seek(0)
                reply = {"status": lost.status, "words": _last_line(errors.read())}
            finally:
                os.dup2(before, 2)
                os.close(before)
        os.write(answers, json.dumps(reply).encode() + b"\n")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no message"


class Server:
    """A process that runs `module`, which calls `serve`; started when first asked, and again after it was lost.

    It ends with this process, and belongs to its session.
    """

    def __init__(self, module: str):
        self._module, self._lock = module, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_in: dict[str, str] = {}
        self._errors: Any = None

    def ask(self, request: dict[str, Any], environment: dict[str, str], seconds: float, memory_mb: int) -> Any:
        """The answer to one request, for which the fork may take `seconds` and `memory_mb` of address space.

        Raises `ForkLost`.
        """
        with self._lock:
            if self._process is not None and (self._process.poll() is not None or self._started_in != environment):
                self.stop()
            if self._process is None:
                self._start(environment)
            try:
                reply = json.loads(self._exchange({"request": request, "memory_mb": memory_mb}, seconds))
            except BaseException:
                self.stop()
                raise
        if "answer" in reply:
            return reply["answer"]
        raise ForkLost(reply["status"], reply["words"])

    def _start(self, environment: dict[str, str]) -> None:
        def alone() -> None:
            die_with_parent()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env=environment, process_group=0, preexec_fn=alone,
        )  # fmt: skip
        self._started_in = environment

    def _exchange(self, message: dict[str, Any], seconds: float) -> bytes:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        ends, reply = time.monotonic() + seconds, b""
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(0.0, ends - time.monotonic())):
                    raise ForkLost(None, "it ran out of time")
                if not (part := os.read(process.stdout.fileno(), 1 << 16)):
                    self._errors.seek(0)
                    raise ForkLost(process.wait(), _last_line(self._errors.read()))
                reply += part
        return reply

    def stop(self) -> None:
        """Ends the process and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self._errors.close()
