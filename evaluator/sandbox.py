"""The controller's hold on a worker process: start it confined, talk to it under limits, end it and all it started.

A worker may crash, hang, eat memory, flood its outputs or answer garbage; each of these raises `WorkerLost` in the
controller after every process of the worker has been killed, and costs one evaluation.
"""

from __future__ import annotations

import fcntl
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
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import frames

_MARK = "VORTEX_WORKER"
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "TZ", "CUDA_HOME", "CUDA_PATH")
_KEPT_PREFIXES = ("CUDA_VISIBLE_", "NVIDIA_", "TRITON_PTXAS")
_SCRATCH = "vortex-scratch-"
_WATCH_SECONDS = 0.1
_TAIL_BYTES = 4096


class WorkerLost(Exception):
    """The worker is gone. `kind`: crash, time, memory, processes or garbage; the text is one line."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Limits:
    """`memory_mb` over all processes of the worker; `seconds` of wall clock for one request; `processes` at once."""

    memory_mb: int = 12288
    seconds: float = 180.0
    processes: int = 64
    files: int = 4096
    cuda: bool = False


class Sandbox:
    """One worker process in a session of its own, with a scratch folder that outlives it.

    `start` may be called again after a loss; the scratch folder is kept until `close`.
    """

    module = "vortexlab.evaluator.worker"

    def __init__(self, limits: Limits, *, threads: int = 0, scratch_root: str | None = None):
        self.limits = limits
        self.threads = threads or len(os.sched_getaffinity(0))
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._tail = b""
        self._cpu_used = 0.0
        try:
            self.scratch, self._held = _scratch_folder(scratch_root or tempfile.gettempdir())
        except OSError as error:
            raise VortexError(f"no scratch folder for the worker: {error}; set TMPDIR to a writable folder") from error

    @property
    def running(self) -> bool:
        return self._process is not None

    def command(self) -> list[str]:
        """The worker's command line, without the number of its reply descriptor."""
        memory = self.limits.memory_mb << 20
        confinement = {
            "files": self.limits.files,
            "file_bytes": memory,
            # A GPU driver reserves far more address space than memory; there only the watch below counts.
            "data_bytes": 0 if self.limits.cuda else 2 * memory,
            "processes": 4096,
        }
        return [sys.executable, "-m", "vortexlab.evaluator.confine", json.dumps(confinement), self.module]

    def environment(self) -> dict[str, str]:
        """What the worker sees: no keys, no proxies, no home; caches in the scratch folder."""
        kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_PREFIXES)}
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
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*self.command(), str(write_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=self.environment(),
                cwd=self.scratch,
                pass_fds=(write_end,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(read_end)
            raise VortexError(f"the evaluation worker does not start: {error}") from error
        finally:
            os.close(write_end)
        self._replies, self._tail, self._cpu_used = read_end, b"", 0.0
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
            if reply.pop("nonce", None) != nonce:
                raise WorkerLost("garbage", "the worker answered another question than the one asked")
            return reply
        except frames.FrameError as error:
            self.stop()
            raise WorkerLost("garbage", f"the worker's answer is unreadable: {error}") from error
        except BaseException:
            self.stop()
            raise

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
                if now >= deadline:
                    raise WorkerLost("time", f"no answer within {allowed:g} s; the worker was ended")
                if now >= next_watch:
                    self._watch()
                    next_watch = now + _WATCH_SECONDS
                for key, _ in selector.select(min(_WATCH_SECONDS, deadline - now)):
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
                        self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
                        if not chunk:
                            selector.unregister(process.stderr)
                    else:
                        chunk = os.read(self._replies, 1 << 20)
                        if not chunk:
                            raise self._ended()
                        received += chunk
                        if expected is None and len(received) >= frames.HEADER.size:
                            header = bytes(received[: frames.HEADER.size])
                            expected = frames.HEADER.size + frames.body_length(header, frames.REPLY_LIMIT)
                        if expected is not None and len(received) >= expected:
                            if len(received) > expected:
                                raise WorkerLost("garbage", "the worker answered more than once")
                            return frames.decode(bytes(received[frames.HEADER.size :]))

    def _ended(self) -> WorkerLost:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.returncode
        said = [line for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        last = "".join(c if c.isprintable() else "?" for c in said[-1])[:200] if said else "nothing on stderr"
        if code is None:
            return WorkerLost("garbage", "the worker closed its answers and went on running")
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return WorkerLost("crash", f"the worker was killed by {name}; last words: {last}")
        kind = "memory" if "MemoryError" in last or "can't allocate memory" in last else "crash"
        return WorkerLost(kind, f"the worker ended with status {code}; last words: {last}")

    def _watch(self) -> None:
        """Raises `WorkerLost` when the worker's processes are too many or hold too much memory."""
        members = self._members(thorough=False)
        if len(members) > self.limits.processes:
            allowed = self.limits.processes
            raise WorkerLost("processes", f"the worker started {len(members)} processes; {allowed} allowed")
        resident = sum(map(_private_bytes, members)) >> 20
        if resident > self.limits.memory_mb:
            raise WorkerLost("memory", f"the worker holds {resident} MB; {self.limits.memory_mb} allowed")

    def _raise_cpu_limit(self, seconds: float) -> None:
        """Grants the next request its share of CPU seconds: a stop for a worker that outlives its controller."""
        assert self._process is not None
        pid = self._process.pid
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            allowed = int(used + seconds * (self.threads + 1)) + 10
            _, hard = resource.prlimit(pid, resource.RLIMIT_CPU)
            resource.prlimit(pid, resource.RLIMIT_CPU, (allowed, hard))

    def _members(self, thorough: bool) -> list[int]:
        """Processes of the worker's session; when `thorough` also those that left it but carry its mark."""
        if self._process is None:
            return []
        session, mark, found = self._process.pid, f"{_MARK}={self.scratch}".encode(), []
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with suppress(OSError, IndexError, ValueError):
                fields = Path(f"/proc/{entry.name}/stat").read_text().rsplit(")", 1)[1].split()
                if fields[0] in "ZX":
                    continue
                inside = int(fields[3]) == session
                if not inside and thorough:
                    inside = mark in Path(f"/proc/{entry.name}/environ").read_bytes().split(b"\0")
                if inside:
                    found.append(int(entry.name))
        return found

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
        self._process, self._replies = None, -1

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _scratch_folder(root: str) -> tuple[Path, int]:
    """A new folder and the descriptor whose lock says that its controller lives.

    Folders that killed controllers left behind, which hold gigabytes of contexts, are removed first. A folder gets the
    name by which it is found only when it is locked, so that nobody removes one that is being made.
    """
    for left in Path(root).glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)
    made = Path(tempfile.mkdtemp(prefix="vortex-new-", dir=root))
    held = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = made.with_name(made.name.replace("vortex-new-", _SCRATCH))
        made.rename(named)
    except OSError:  # a file system without locks: the folder stays under a name that nobody clears away
        os.close(held)
        return made, -1
    return named, held


def _private_bytes(pid: int) -> int:
    """Resident memory of a process that no file backs, shared memory included, in bytes; 0 when it is gone."""
    total = 0
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total
