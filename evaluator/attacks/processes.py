"""Attacks 11 to 31: hostile code that already runs in the place of the worker, against the sandbox around it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vortexlab.evaluator import procfs
from vortexlab.evaluator.attacks.attack import LIMITED, Attack, lost
from vortexlab.evaluator.attacks.hostile import PASSWORD
from vortexlab.evaluator.sandbox import Limits, Sandbox, WorkerLost

#: How long the range waits for code that never answers, and for any other.
SECONDS, PATIENCE = 1.5, 20.0
SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
_KEY = "VORTEX_ATTACK_API_KEY"


class HostileSandbox(Sandbox):
    """Runs `hostile` in place of the evaluator's worker, and hands it the password without which it does nothing."""

    module = "vortexlab.evaluator.attacks.hostile"

    def handed(self, replies: int) -> tuple[int, ...]:
        readable, writable = os.pipe()
        os.write(writable, PASSWORD)
        os.close(writable)
        return (*super().handed(replies), readable)


class Range:
    """A place to attack from: a sandbox, and around it what hostile code would like to reach.

    `victim`: a process of the same user. A folder `outside` with a file, a socket that listens, a word in the
    environment and memory of the controller. Nothing of it is left afterwards. `cuda`: the walls are those of a worker
    on a GPU.
    """

    def __init__(self, memory_mb: int = 256, root: str | None = None, cuda: bool = False):
        self.token = f"vortex-attack-{secrets.token_hex(8)}"
        self.place = Path(tempfile.mkdtemp(prefix="vortex-range-", dir=root))
        self.outside = self.place / "outside"
        self.outside.mkdir()
        (self.outside / "old").write_text("as it was")
        self._before = os.environ.get(_KEY)
        os.environ[_KEY] = self.token[::-1]
        self.listening = [self._listen(str(self.place / "socket")), self._listen(f"\0{self.token}")]
        self.victim = subprocess.Popen(SLEEPER, start_new_session=True, env=self.victim_environment())
        limits = Limits(
            memory_mb=memory_mb, seconds=20.0, processes=16, threads=200, files=512, disk_mb=32, cuda=cuda
        )
        self.patience = PATIENCE
        self.box = HostileSandbox(limits, threads=1, scratch_root=str(self.place))

    def victim_environment(self) -> dict[str, str]:
        return {_KEY: self.token[::-1]}

    @staticmethod
    def _listen(address: str) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.bind(address)
        found.listen()
        return found

    def __enter__(self) -> Range:
        return self

    def __exit__(self, *_: object) -> None:
        self.box.close()
        self.victim.kill()
        self.victim.wait()
        for item in self.listening:
            item.close()
        if self._before is None:
            os.environ.pop(_KEY, None)
        else:
            os.environ[_KEY] = self._before
        shutil.rmtree(self.place, ignore_errors=True)
        for pid in self.bearing(self.token):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run"):
            with suppress(OSError):
                os.unlink(os.path.join(folder, self.token))

    def ask(self, action: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Lets the hostile code act; returns its answer, or raises as the sandbox does."""
        return self.box.request(
            {"op": action, "token": self.token, "victim": self.victim.pid, "controller": os.getpid(),
             "outside": str(self.outside), "socket": str(self.place / "socket"), "seconds": seconds,
             "most": {"descriptors": 600, "big file": (self.box.limits.memory_mb << 20) + 1,
                      "many files": 96 << 20}.get(action, 0)},
            seconds=seconds,
        )  # fmt: skip

    def bearing(self, word: str) -> list[int]:
        """Processes anywhere on the machine that carry a word on their command line."""
        found = []
        for entry in os.scandir("/proc"):
            with suppress(OSError):
                if entry.name.isdigit() and word.encode() in procfs.command_of(entry.name):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def survivors(self) -> list[int]:
        """Processes that carry the mark of the worker, or the token of this range."""
        mark, found = f"VORTEX_WORKER={self.box.scratch}".encode(), set(self.bearing(self.token))
        for entry in os.scandir("/proc"):
            with suppress(OSError):
                if entry.name.isdigit() and mark in procfs.environment_of(entry.name).split(b"\0"):
                    found.add(int(entry.name))
        return sorted(found)

    def attack(self, action: str) -> str:
        """One way of an attack, from a worker that answers to the next one that does; what became of it."""
        self.ask("well")
        self.box.seal()
        found, began = "", self.box.starts
        timed = action in ("loop", "hold the lock", "deaf", "late")
        try:
            answer = self.ask(action, SECONDS if timed else self.patience)
            allowed = answer.get("allowed")
            found = f"accepted: {', '.join(allowed)}" if allowed else LIMITED
            if action == "later again":
                found = self._second(found)
        except WorkerLost as error:
            found = lost(error.kind)
            if "\n" in str(error) or not str(error).isprintable():
                found = "accepted: text that steers a terminal"
        except Exception as error:  # nothing that a worker does may raise anything else
            found = f"accepted: the controller failed with {type(error).__name__}"
        return self._damage(action, began) or found

    def _second(self, found: str) -> str:
        """What becomes of a second report to an answered question."""
        try:
            for _ in range(40):
                time.sleep(0.02)
                if self.ask("well").get("allowed"):
                    return "accepted: second report"
        except WorkerLost as error:
            return lost(error.kind)
        return found

    def _damage(self, action: str, began: int) -> str:
        """What is left of an attack once its worker is ended; empty when nothing is."""
        self.box.stop()
        if left := self.survivors():
            return f"accepted: {len(left)} processes live on"
        if self.victim.poll() is not None:
            return "accepted: another process was killed"
        if {path.name: path.is_file() and path.read_text() for path in self.outside.iterdir()} != {"old": "as it was"}:
            return "accepted: files outside were changed"
        if len(self.box._tail) > 4096:
            return "accepted: output fills memory"
        self.box._tail = b""
        if any(os.path.exists(os.path.join(folder, self.token)) for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run")):
            return "accepted: files were left behind"
        answer = self.ask("well")  # a new worker, which finds nothing of the old one
        if self.box.starts != began + 1 or answer["allowed"] or answer["folder"] != str(self.box.scratch):
            return "accepted: the next worker is not as before"
        if planted := sorted(os.listdir(self.box.scratch)):
            return f"accepted: {planted[0]} was left in the folder"
        return ""


_Checked = Callable[["Range"], str]


def _ways(*actions: str) -> Callable[[], Iterable[tuple[str, str]]]:
    def run() -> Iterator[tuple[str, str]]:
        with current() as place:
            for action in actions:
                yield action, place.attack(action)

    return run


_shared: list[Range] = []


@contextmanager
def current() -> Iterator[Range]:
    """The range that is set up (`shared`), or one for this attack alone."""
    if _shared:
        yield _shared[-1]
        return
    with Range() as place:
        yield place


@contextmanager
def shared(place: Range) -> Iterator[Range]:
    """Lets all attacks inside the block use one range."""
    with place:
        _shared.append(place)
        try:
            yield place
        finally:
            _shared.remove(place)


def _attack(number: int, tries: str, expected: str, wall: str, *actions: str) -> Attack:
    return Attack(f"A{number}", "process", tries, expected, wall, _ways(*actions))


ATTACKS = (
    _attack(11, "an endless loop", lost("time"), "deadline", "loop"),
    _attack(12, "native code that never gives the interpreter's lock back", lost("time"), "deadline", "hold the lock"),
    _attack(13, "sys.exit and KeyboardInterrupt instead of an answer", lost("crash"), "end of answers", "exit",
            "interrupt"),
    _attack(14, "os._exit with status 0", lost("crash"), "end of answers", "hard exit"),
    _attack(15, "abort and a segmentation fault", lost("crash"), "end of answers", "abort", "segfault"),
    _attack(16, "signals to the controller and to other processes and groups of the user", LIMITED, "Landlock, "
            "process namespace", "kill"),
    _attack(17, "deaf to every signal that can be ignored", lost("time"), "deadline and SIGKILL", "deaf"),
    _attack(18, "memory without end, private and shared", lost("memory"), "watch", "memory", "shared memory"),
    _attack(18, "memory of a process whose first thread has ended, or whose name is no text", lost("memory"), "watch",
            "headless memory", "misnamed memory"),
    _attack(18, "memory that no account shows: memfd, System V segments", LIMITED, "seccomp", "hidden memory"),
    _attack(19, "processes without end", lost("processes"), "watch", "processes", "fork bomb"),
    _attack(20, "threads without end", lost("processes"), "watch", "threads"),
    _attack(21, "every file descriptor; limits raised again", LIMITED, "resource limits, no capabilities",
            "descriptors", "raises limits"),
    _attack(22, "a file larger than memory; files in /dev/shm and /tmp", LIMITED, "resource limits, Landlock",
            "big file", "files elsewhere"),
    _attack(22, "a disk full of small files", lost("disk"), "watch", "many files"),
    _attack(23, "a grandchild in a session of its own, its environment empty", LIMITED,
            "process namespace, network namespace", "orphan", "headless orphan"),
    _attack(24, "sockets to the internet, the metadata address, socket files and abstract names, natively too",
            LIMITED, "seccomp, network namespace, audit hook", "network"),
    _attack(25, "keys in its own environment, in those of other processes, in the controller's memory", LIMITED,
            "empty environment, Landlock", "secrets"),
    _attack(26, "files outside its folder: new, changed, removed, by hard and symbolic links", LIMITED,
            "Landlock, read-only mounts", "writes outside"),
    _attack(27, "the evaluator's source, site-packages, .pth and sitecustomize", LIMITED,
            "Landlock, read-only mounts, cleared folder", "modifies"),
    _attack(28, "gigabytes on stdout and stderr, with escape sequences", LIMITED, "bounded tail", "flood"),
    _attack(29, "answers that are pickled, tagged, deep, endless or no numbers", lost("garbage"), "frames",
            "pickled", "tagged", "no JSON", "a list", "not finite", "a key twice", "deep", "too long"),
    _attack(30, "a metrics file in place of an answer", lost("crash"), "end of answers", "metrics file"),
    _attack(30, "a second answer, and the answer to an earlier question", lost("garbage"), "one answer, nonce",
            "twice", "replay"),
    _attack(31, "a report for another candidate, and a second one later on", lost("garbage"), "nonce", "for another",
            "later again"),
    _attack(31, "a report after its time", lost("time"), "deadline", "late"),
)  # fmt: skip
