"""The controller's hold on a worker process: start it confined, talk to it under limits, end it and all it started.

A worker may crash, hang, eat memory, flood its outputs or answer garbage; each of these raises `WorkerLost` in the
controller after every process of the worker has been killed, and costs one evaluation.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import confine, frames, procfs, scratch

_MARK = "VORTEX_WORKER"
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TZ", "CUDA_HOME", "CUDA_PATH", "CC")
_KEPT_PREFIXES = ("CUDA_VISIBLE_", "NVIDIA_", "TRITON_PTXAS", "TRITON_LIBCUDA")
#: Names walls that are not put up, with commas between them: for a machine whose GPU driver needs what one refuses.
LEFT_OUT = "VORTEX_NO_WALLS"
_WATCH_SECONDS, _DISK_SECONDS = 0.1, 1.0
#: Looking at the disk takes this share of the time at most.
_DISK_SHARE = 0.05
_TAIL_BYTES = 4096


class WorkerLost(Exception):
    """The worker is gone. `kind`: crash, time, memory, processes, disk or garbage; the text is one line."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """`memory_mb` over all processes of the worker; `seconds` of wall clock for one request; `processes` at once, and
    `threads` of all of them. `disk_mb`: by how much the scratch folder may grow once it is sealed, besides as much
    again as it holds then: a program may read every context by itself."""

    memory_mb: int = 12288
    seconds: float = 180.0
    processes: int = 64
    threads: int = 2048
    files: int = 4096
    disk_mb: int = 8192
    cuda: bool = False


class Sandbox:
    """One worker process in a session of its own, with a scratch folder that outlives it.

    `start` may be called again after a loss; the scratch folder is kept until `close`. What it holds when `seal` is
    called is what a new worker finds again, unless it was changed since; anything else in it goes with a worker.
    """

    module = "vortexlab.evaluator.worker"
    #: Walls that the worker's first code puts up, and whether bubblewrap does more where it is installed.
    walls: tuple[str, ...] = confine.ALL
    bubblewrap = True

    def __init__(self, limits: Limits, *, threads: int = 0, scratch_root: str | None = None):
        self.limits = limits
        self.threads = threads or len(os.sched_getaffinity(0))
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._tail = b""
        self._sealed: scratch.Seal | None = None
        self._room = 0
        self._network, self._network_held = "", -1
        self._next_disk = 0.0
        try:
            self.scratch, self._held = scratch.new_folder(scratch_root or tempfile.gettempdir())
        except OSError as error:
            raise VortexError(f"no scratch folder for the worker: {error}; set TMPDIR to a writable folder") from error

    @property
    def running(self) -> bool:
        return self._process is not None

    def handed(self, replies: int) -> tuple[int, ...]:
        """The descriptors that the worker is given, in the order of its arguments: where it answers, and no other."""
        return (replies,)

    def command(self) -> list[str]:
        """The worker's command line, without the numbers of its descriptors."""
        memory = self.limits.memory_mb << 20
        confinement = {
            "files": self.limits.files,
            "file_bytes": memory,
            # A GPU driver reserves far more address space than memory; there only the watch below counts.
            "data_bytes": 0 if self.limits.cuda else 2 * memory,
            "processes": 4096,
            "walls": [name for name in self.walls if name not in left_out()],
            "cuda": self.limits.cuda,
        }
        cuda = self.limits.cuda
        around = _bubblewrap(str(self.scratch), cuda) if self.bubblewrap and has_bubblewrap(cuda) else []
        return [*around, sys.executable, "-m", "vortexlab.evaluator.confine", json.dumps(confinement), self.module]

    def environment(self) -> dict[str, str]:
        """What the worker sees: no keys, no proxies, no home; caches in the scratch folder."""
        kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
        if "PYTHONPATH" in kept:  # the worker runs in another folder
            kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, kept["PYTHONPATH"].split(os.pathsep)))
        scratch = str(self.scratch)
        threads = str(self.threads)
        return kept | {
            _MARK: scratch,
            "HOME": scratch,
            "TMPDIR": scratch,
            "TRITON_CACHE_DIR": f"{scratch}/triton",
            "HF_HOME": f"{scratch}/hf",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            # As many threads as said, always: with fewer, sums come out differently in their last bits.
            "MKL_DYNAMIC": "FALSE",
            "OMP_DYNAMIC": "FALSE",
            # Threads that wait for others sleep: spinning would starve whoever shares the cores, and slow us most.
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def start(self) -> None:
        self.stop()
        self._clear()
        command = self.command()
        read_end, write_end = os.pipe()
        handed = self.handed(write_end)
        try:
            self._process = subprocess.Popen(
                [*command, *map(str, handed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self.environment(),
                cwd=self.scratch,
                pass_fds=handed,
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            raise VortexError(f"the evaluation worker does not start: {error}") from error
        finally:
            for descriptor in handed:
                os.close(descriptor)
        self._replies, self._tail = read_end, b""
        self.starts += 1
        assert self._process.stdin is not None and self._process.stderr is not None
        for descriptor in (read_end, self._process.stdin.fileno(), self._process.stderr.fileno()):
            os.set_blocking(descriptor, False)

    def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        """Sends one request and returns its reply. Raises `WorkerLost` after ending the worker."""
        if self._process is None:
            self.start()
        nonce = secrets.token_hex(8)
        allowed = self.limits.seconds if seconds is None else seconds
        try:
            payload = frames.encode({**message, "nonce": nonce}, frames.REQUEST_LIMIT)
            self._raise_cpu_limit(allowed)
            reply = self._exchange(payload, time.monotonic() + allowed, allowed)
            self._check_nonce(reply, nonce)
            return reply
        except frames.FrameError as error:
            self.stop()
            raise WorkerLost("garbage", f"the worker's answer is unreadable: {error}") from error
        except BaseException:
            self.stop()
            raise

    def blame(self, message: dict[str, Any], seconds: float = 300.0) -> str:
        """The wall without which a new worker answers `message` where it fails behind all of them, or the names of all
        when no single one is to blame; empty when it fails without any. For what a worker asks of a machine's driver.
        """
        everyone = self.walls
        try:
            if not self._works(message, (), seconds):
                return ""
            for wall in everyone:
                if self._works(message, tuple(name for name in everyone if name != wall), seconds):
                    return wall
            return ",".join(everyone)
        finally:
            self.walls = everyone

    def _works(self, message: dict[str, Any], walls: tuple[str, ...], seconds: float) -> bool:
        """Whether a new worker behind these walls answers; it is ended."""
        self.walls = walls
        try:
            self.start()
            return "ok" in self.request(message, seconds=seconds)
        except WorkerLost:
            return False
        finally:
            self.stop()

    def _check_nonce(self, reply: dict[str, Any], nonce: str) -> None:
        if reply.pop("nonce", None) != nonce:
            raise WorkerLost("garbage", "the worker answered another question than the one asked")

    def _check_time(self, now: float, deadline: float, allowed: float) -> None:
        if now >= deadline:
            raise WorkerLost("time", f"no answer within {allowed:g} s; the worker was ended")

    def _check_single(self, received: int, expected: int) -> None:
        if received > expected:
            raise WorkerLost("garbage", "the worker answered more than once")

    def _heard(self, chunk: bytes) -> None:
        """Keeps the end of what the worker says on stderr."""
        self._tail = (self._tail + chunk)[-_TAIL_BYTES:]

    def _exchange(self, payload: bytes, deadline: float, allowed: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stderr is not None
        pending, received = memoryview(payload), bytearray()
        expected: int | None = None
        next_watch = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE)
            selector.register(self._replies, selectors.EVENT_READ)
            if not process.stderr.closed:
                selector.register(process.stderr, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                self._check_time(now, deadline, allowed)
                if now >= next_watch:
                    self._watch()
                    next_watch = now + _WATCH_SECONDS
                events = selector.select(max(0.0, min(_WATCH_SECONDS, deadline - now)))
                if not events and process.poll() is not None:
                    self._ended()  # though a child of its may hold its descriptors open
                for key, _ in events:
                    if key.fileobj is process.stdin:
                        try:
                            pending = pending[os.write(process.stdin.fileno(), pending[: 1 << 20]) :]
                        except BlockingIOError:
                            continue
                        except BrokenPipeError:
                            pending = memoryview(b"")
                        if not pending:
                            selector.unregister(process.stdin)
                    elif key.fileobj is process.stderr:
                        chunk = os.read(process.stderr.fileno(), 1 << 16)
                        self._heard(chunk)
                        if not chunk:
                            selector.unregister(process.stderr)
                    else:
                        chunk = os.read(self._replies, 1 << 20)
                        if not chunk:
                            self._ended()
                        received += chunk
                        if expected is None and len(received) >= frames.HEADER.size:
                            header = bytes(received[: frames.HEADER.size])
                            expected = frames.HEADER.size + frames.body_length(header, frames.REPLY_LIMIT)
                        if expected is not None and len(received) >= expected:
                            self._check_single(len(received), expected)
                            if not self._network:
                                self._watch_members()
                            return frames.decode(bytes(received[frames.HEADER.size : expected]))

    def _ended(self) -> None:
        """Raises `WorkerLost` for a worker that closed its answers, which most do by ending."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        with suppress(OSError, ValueError):  # what it said last may come after the end of its answers
            for _ in range(64):
                if self._process.stderr is None or not (chunk := os.read(self._process.stderr.fileno(), 1 << 16)):
                    break
                self._heard(chunk)
        code = self._process.returncode
        if code is not None and code > 128 and self._process.args[0] != sys.executable:  # type: ignore[index]
            code = 128 - code  # as bubblewrap says it
        said = [line for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        last = "".join(c if c.isprintable() else "?" for c in said[-1])[:200] if said else "nothing on stderr"
        if code is None:
            raise WorkerLost("garbage", "the worker closed its answers and went on running")
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            raise WorkerLost("crash", f"the worker was killed by {name}; last words: {last}")
        kind = "memory" if "MemoryError" in last or "can't allocate memory" in last else "crash"
        raise WorkerLost(kind, f"the worker ended with status {code}; last words: {last}")

    def _watch(self) -> None:
        """Raises `WorkerLost` when the worker holds more than it may."""
        members = self._watch_members()
        self._watch_processes(members)
        self._watch_memory(members)
        if (began := time.monotonic()) >= self._next_disk:
            self._watch_disk()
            ended = time.monotonic()
            self._next_disk = ended + max(_DISK_SECONDS, (ended - began) / _DISK_SHARE)

    def _watch_members(self) -> list[int]:
        """The processes of the worker; learns from them which network they share, once it is their own."""
        assert self._process is not None
        members = self._members(thorough=False)
        if not self._network:
            own = procfs.network_of(os.getpid())
            for pid in members:
                with suppress(OSError):
                    if procfs.network_of(pid) not in ("", own):
                        self._network, self._network_held = procfs.hold_network(pid)
                        break
        return members

    def _watch_processes(self, members: list[int]) -> None:
        threads = sum(map(procfs.threads, members))
        for count, allowed, what in (
            (len(members), self.limits.processes, "processes"), (threads, self.limits.threads, "threads")
        ):  # fmt: skip
            if count > allowed:
                raise WorkerLost("processes", f"the worker started {count} {what}; {allowed} allowed")

    def _watch_memory(self, members: list[int]) -> None:
        resident = sum(map(procfs.private_bytes, members)) >> 20
        if resident > self.limits.memory_mb:
            raise WorkerLost("memory", f"the worker holds {resident} MB; {self.limits.memory_mb} allowed")

    def _watch_disk(self) -> None:
        if self._sealed is None:
            return
        held = scratch.bytes_on_disk(self.scratch)
        if held > self._room:
            raise WorkerLost("disk", f"the worker filled its folder beyond {self._room >> 20} MB")

    def _raise_cpu_limit(self, seconds: float) -> None:
        """Grants the next request its share of CPU seconds: a stop for a worker that outlives its controller."""
        for pid in self._members(thorough=False):
            with suppress(OSError, ValueError, IndexError):
                fields = procfs.stat(pid)
                used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                allowed = int(used + seconds * (self.threads + 1)) + 10
                _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
                resource.prlimit(pid, resource.RLIMIT_CPU, (allowed, hard))

    def _members(self, thorough: bool) -> list[int]:
        """Processes of the worker's session; when `thorough` also those that left it but carry its mark or live in its
        network, which nobody can leave."""
        if self._process is None:
            return []
        session, mark, found = self._process.pid, f"{_MARK}={self.scratch}".encode(), []
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with suppress(OSError, IndexError, ValueError):
                inside = os.getsid(int(entry.name)) == session
                if not inside and thorough:
                    inside = bool(self._network) and procfs.network_of(entry.name) == self._network
                    inside = inside or mark in procfs.environment_of(entry.name).split(b"\0")
                if inside and procfs.runs(entry.name):
                    found.append(int(entry.name))
        return found

    # --- the scratch folder ------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Takes what the scratch folder holds for good, compiled code aside: workers to come find it again, as long as
        nobody changes it."""
        self._sealed = scratch.Seal(self.scratch)
        self._room = 2 * scratch.bytes_on_disk(self.scratch) + (self.limits.disk_mb << 20)

    @property
    def intact(self) -> bool:
        """Whether all that was sealed is as it was."""
        return self._sealed is None or self._sealed.holds

    @property
    def sealed(self) -> bool:
        return self._sealed is not None

    def _clear(self) -> None:
        """Removes what a worker left beside what is sealed, and everything where that was changed."""
        if self._sealed is None:
            return
        keep = self._sealed.names if self.intact else set()
        for folder, folders, files in os.walk(self.scratch, topdown=False):
            for name in files + folders:
                path = os.path.join(folder, name)
                with suppress(OSError):
                    if os.path.isdir(path) and not os.path.islink(path):
                        os.rmdir(path)  # stays where something in it does
                    elif os.path.relpath(path, self.scratch) not in keep:
                        os.unlink(path)
        if not keep:
            self._sealed = None

    def stop(self) -> None:
        """Kills the worker and everything it started; returns when none of it is left."""
        if self._process is None:
            return
        process = self._process
        for _ in range(100):
            members = [pid for pid in self._members(thorough=True) if pid != os.getpid()]
            for pid in members:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
            if not members and process.returncode is not None:
                break
        for stream in (process.stdin, process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        os.close(self._replies)
        if self._network_held >= 0:
            os.close(self._network_held)
        self._process, self._replies = None, -1
        self._network, self._network_held = "", -1

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def left_out() -> list[str]:
    """The walls that `LEFT_OUT` names. Raises `VortexError` for one that there is none of."""
    names = [name.strip() for name in os.environ.get(LEFT_OUT, "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in confine.ALL]:
        raise VortexError(f"{LEFT_OUT} names {unknown[0]!r}, which is none of the walls {', '.join(confine.ALL)}")
    return names


@functools.cache
def has_bubblewrap(cuda: bool = False) -> bool:
    """Whether bubblewrap is installed and may do here what the sandbox wants of it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run([*_bubblewrap(folder, cuda), "true"], capture_output=True, timeout=20, check=False)
        except (OSError, subprocess.SubprocessError):
            return False
    return done.returncode == 0


def _bubblewrap(scratch: str, cuda: bool) -> list[str]:
    """A command that runs another among processes of its own, where nothing but `scratch` can be written."""
    devices = ["--dev-bind", "/dev", "/dev"] if cuda else ["--dev", "/dev"]
    return [
        "bwrap", "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--ro-bind", "/", "/", "--proc", "/proc",
        *devices, "--tmpfs", "/dev/shm", "--bind", scratch, scratch, "--chdir", scratch, "--",
    ]  # fmt: skip
