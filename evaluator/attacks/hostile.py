"""Hostile code in the place of a worker: what attacks on the process do once they are inside.

Nobody gets here by accident: the evaluator's worker is another module, and this one begins only when it is handed a
descriptor that holds `PASSWORD`, which no sandbox but `processes.HostileSandbox` passes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vortexlab.evaluator import frames
from vortexlab.evaluator.confine import NETWORK, WALLS

PASSWORD = b"vortex-attack"
_SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
#: The call that ends a thread and nothing else.
_EXIT = 60 if platform.machine() == "x86_64" else 93
Message = dict[str, Any]


class Line:
    """The descriptor that answers go through, and the number that the present one must carry."""

    def __init__(self, descriptor: int):
        self.descriptor, self.nonce, self.last = descriptor, "", ""

    def raw(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]

    def framed(self, body: bytes) -> None:
        self.raw(frames.HEADER.pack(len(body)) + body)

    def reply(self, answer: dict[str, Any], nonce: str | None = None) -> None:
        self.raw(frames.encode({"nonce": self.nonce if nonce is None else nonce, **answer}, frames.REPLY_LIMIT))


def _loop(line: Line, message: Message) -> None:
    while True:
        pass


def _hold_the_lock(line: Line, message: Message) -> None:
    ctypes.PyDLL(None).sleep(600)


def _deaf(line: Line, message: Message) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    while True:
        with suppress(BaseException):
            time.sleep(1)


def _exit(line: Line, message: Message) -> None:
    sys.exit(0)


def _interrupt(line: Line, message: Message) -> None:
    raise KeyboardInterrupt


def _hard_exit(line: Line, message: Message) -> None:
    os._exit(0)


def _abort(line: Line, message: Message) -> None:
    os.abort()


def _segfault(line: Line, message: Message) -> None:
    ctypes.string_at(0)


def _kill(line: Line, message: Message) -> Message:
    """Signals a process outside, its group, and whoever watches; which of it was allowed."""
    outside, allowed = int(message["victim"]), []
    libc = ctypes.CDLL(None)
    for name, pid, number in (
        ("parent", os.getppid(), 0), ("controller", int(message["controller"]), 0),
        ("group", -outside, signal.SIGKILL), ("process", outside, signal.SIGKILL),
    ):  # fmt: skip
        # In a process namespace of its own a number from outside may be its own.
        if pid not in (0, 1, os.getpid()) and libc.kill(pid, int(number)) == 0:
            allowed.append(name)
    return {"allowed": allowed}


def _memory(line: Line, message: Message) -> None:
    held = []
    for _ in range(64):  # a GiB, four times what is allowed; enough where there is no wall
        held.append(bytearray(b"x" * (16 << 20)))
        time.sleep(0.005)
    time.sleep(600)


def _shared_memory(line: Line, message: Message) -> None:
    """Counts as nobody's data."""
    shared = mmap.mmap(-1, 1 << 30)
    for _ in range(64):
        shared.write(b"x" * (16 << 20))
        time.sleep(0.01)
    time.sleep(600)


def _headless_memory(line: Line, message: Message) -> None:
    """The process itself is a zombie then, as whoever asks for it is told, and its threads go on."""
    threading.Thread(target=_shared_memory, args=(line, message)).start()
    ctypes.CDLL(None).syscall(_EXIT)


def _misnamed_memory(line: Line, message: Message) -> None:
    """Of a process whose name is no text, for whoever reads about it."""
    ctypes.CDLL(None).prctl(15, b"\xff\xfe) R", 0, 0, 0)  # PR_SET_NAME
    _shared_memory(line, message)


def _hidden_memory(line: Line, message: Message) -> Message:
    """Files without a name and segments without a process, which no process's account shows."""
    allowed = []
    with suppress(OSError):
        os.close(os.memfd_create("hidden"))
        allowed.append("memfd")
    if (segment := ctypes.CDLL(None).shmget(0, 4096, 0o1600)) >= 0:
        ctypes.CDLL(None).shmctl(segment, 0, None)
        allowed.append("segment")
    return {"allowed": allowed}


def _processes(line: Line, message: Message) -> None:
    for _ in range(40):
        subprocess.Popen(_SLEEP)
    time.sleep(600)


def _fork_bomb(line: Line, message: Message) -> None:
    for _ in range(8):  # at most 256 of them, whatever becomes of the wall
        os.fork()
    time.sleep(600)


def _threads(line: Line, message: Message) -> None:
    threading.stack_size(65536)
    with suppress(RuntimeError):
        for _ in range(400):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    time.sleep(600)


def _descriptors(line: Line, message: Message) -> Message:
    held: list[int] = []
    with suppress(OSError):
        while len(held) < int(message["most"]):
            held.append(os.open("/dev/null", os.O_RDONLY))
    for descriptor in held:
        os.close(descriptor)
    return {"allowed": ["descriptors"] if len(held) >= int(message["most"]) else []}


def _big_file(line: Line, message: Message) -> Message:
    most = int(message["most"])
    with suppress(OSError), open("filled", "wb") as file:
        os.truncate(file.fileno(), most)
        return {"allowed": ["file"]}
    return {"allowed": []}


def _many_files(line: Line, message: Message) -> None:
    for number in range(int(message["most"]) >> 20):
        Path(f"filled-{number}").write_bytes(b"0" * (1 << 20))
    time.sleep(600)


def _files_elsewhere(line: Line, message: Message) -> Message:
    """Places that others share. What bubblewrap gives a worker there is its own and goes with it."""
    allowed = []
    for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run"):
        path = Path(folder) / str(message["token"])
        with suppress(OSError):
            path.write_text("left behind")
            allowed.append(folder)
    return {"allowed": allowed}


def _orphan(line: Line, message: Message) -> Message:
    """A grandchild in a session of its own, without a parent and without a word in its environment.

    Waits until it has got there: before, it would be found as a member of the worker's session.
    """
    return _left(message, "os.write(1, b'x')\ntime.sleep(600)")


def _headless_orphan(line: Line, message: Message) -> Message:
    """And of which only a second thread is left."""
    return _left(
        message,
        "import ctypes,threading\n"
        "def stay():\n"
        "  while open('/proc/self/stat').read().rsplit(')', 1)[1].split()[0] != 'Z': time.sleep(0.01)\n"
        "  os.write(1, b'x')\n  time.sleep(600)\n"
        f"threading.Thread(target=stay).start()\nctypes.CDLL(None).syscall({_EXIT})",
    )


def _left(message: Message, then: str) -> Message:
    """Leaves a grandchild to do something, which says on its stdout when it has begun."""
    code = f"import os,time\nos.fork() and os._exit(0)\nos.setsid()\nos.fork() and os._exit(0)\n{then}"
    words = [sys.executable, "-S", "-c", code, str(message["token"])]
    with subprocess.Popen(words, env={}, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        child.stdout.read(1)
    return {"allowed": []}


def _network(line: Line, message: Message) -> Message:
    """Ways out: through Python, and past its audit hook through the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    targets = (
        ("internet", socket.AF_INET, ("203.0.113.1", 80), b"\x02\0\0\x50\xcb\0\x71\x01" + b"\0" * 8),
        ("metadata", socket.AF_INET, ("169.254.169.254", 80), b"\x02\0\0\x50\xa9\xfe\xa9\xfe" + b"\0" * 8),
        ("socket file", socket.AF_UNIX, str(message["socket"]), b"\x01\0" + str(message["socket"]).encode() + b"\0"),
        ("abstract", socket.AF_UNIX, "\0" + str(message["token"]), b"\x01\0\0" + str(message["token"]).encode()),
    )
    allowed = []
    for name, family, address, raw in targets:
        with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(1)
            client.connect(address)
            allowed.append(name)
        descriptor = libc.socket(int(family), int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK), 0)
        if descriptor >= 0:
            # Under way (EINPROGRESS) is on its way out.
            if libc.connect(descriptor, raw, len(raw)) == 0 or ctypes.get_errno() == 115:
                allowed.append(f"{name}, natively")
            os.close(descriptor)
    return {"allowed": allowed}


def _secrets(line: Line, message: Message) -> Message:
    """Looks for a word that only the controller's environment and memory hold."""
    word, allowed = str(message["token"]).encode()[::-1], []
    if word in "\0".join(f"{k}={v}" for k, v in os.environ.items()).encode():
        allowed.append("own environment")
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                if word in Path(f"/proc/{entry}/environ").read_bytes():
                    allowed.append("environment of another process")
    with suppress(OSError):
        os.close(os.open(f"/proc/{int(message['controller'])}/mem", os.O_RDONLY))
        if os.path.realpath(f"/proc/{int(message['controller'])}") != os.path.realpath("/proc/self"):
            allowed.append("memory of the controller")
    return {"allowed": sorted(set(allowed))}


def _writes_outside(line: Line, message: Message) -> Message:
    folder, allowed = Path(str(message["outside"])), []

    def through_a_link() -> None:
        os.symlink(folder / "old", "link")
        Path("link").write_text("changed")

    ways: tuple[tuple[str, Callable[[], object]], ...] = (
        ("new file", lambda: (folder / "new").write_text("x")),
        ("old file", lambda: (folder / "old").write_text("changed")),
        ("hard link", lambda: os.link(folder / "old", "linked")),
        ("through a symbolic link", through_a_link),
        ("removal", lambda: (folder / "old").unlink()),
        ("folder", lambda: (folder / "made").mkdir()),
    )
    for name, act in ways:
        with suppress(OSError):
            act()
            allowed.append(name)
    return {"allowed": allowed}


def _modifies(line: Line, message: Message) -> Message:
    """Opens for writing what later workers run, without writing, and makes files that Python would run."""
    import json as standard

    name, allowed = str(message["token"]), []
    for path in (frames.__file__, standard.__file__):
        with suppress(OSError):
            open(os.path.realpath(path), "r+b").close()
            allowed.append(path)
    for folder in {os.path.dirname(os.path.realpath(frames.__file__)), *filter(os.path.isdir, sys.path)}:
        if os.path.realpath(folder) != os.getcwd():
            with suppress(OSError):
                Path(folder, f"{name}.pth").write_text("")
                os.unlink(Path(folder, f"{name}.pth"))
                allowed.append(folder)
    for planted in ("sitecustomize.py", "usercustomize.py", "json.py", "torch.py"):  # in its own folder
        Path(planted).write_text("import os; os._exit(3)")
    return {"allowed": allowed}


def _flood(line: Line, message: Message) -> Message:
    for _ in range(400):
        os.write(2, b"\x1b[31m\x07" + b"\xff" * (1 << 16) + b"\n<script>alert(1)</script>\n")
        os.write(1, b"z" * (1 << 16))
    return {"allowed": []}


def _pickled(line: Line, message: Message) -> None:
    line.framed(pickle.dumps({"nonce": line.nonce, "ok": {}}))
    time.sleep(600)


def _body(text: str) -> Callable[[Line, Message], None]:
    def send(line: Line, message: Message) -> None:
        line.framed(text.replace("NONCE", line.nonce).encode())
        time.sleep(600)

    return send


def _too_long(line: Line, message: Message) -> None:
    line.raw(frames.HEADER.pack(frames.REPLY_LIMIT + 1))
    time.sleep(600)


def _metrics_file(line: Line, message: Message) -> None:
    for name in ("metrics.json", "result.json", "dense.json"):
        Path(name).write_text('{"speedup": 99, "accuracy": 1}')
    os._exit(0)


def _twice(line: Line, message: Message) -> None:
    line.raw(frames.encode({"nonce": line.nonce, "allowed": []}, frames.REPLY_LIMIT) * 2)
    time.sleep(600)


def _replay(line: Line, message: Message) -> None:
    line.reply({"allowed": []}, line.last)
    time.sleep(600)


def _for_another(line: Line, message: Message) -> None:
    line.reply({"allowed": []}, "0" * 16)
    time.sleep(600)


def _later_again(line: Line, message: Message) -> Message:
    """Answers, and once more when the next question may have come."""
    answer = frames.encode({"nonce": line.nonce, "allowed": ["second report"]}, frames.REPLY_LIMIT)
    threading.Timer(0.3, line.raw, (answer,)).start()
    return {"allowed": []}


def _late(line: Line, message: Message) -> Message:
    time.sleep(float(message["seconds"]) + 1.0)
    return {"allowed": ["late report"]}


def _raises_limits(line: Line, message: Message) -> Message:
    """With the rights of root there are no limits; which of them it has."""
    allowed = []
    for name in ("RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_DATA"):
        number = getattr(resource, name)
        with suppress(ValueError, OSError):
            resource.setrlimit(number, (resource.RLIM_INFINITY if name != "RLIMIT_NOFILE" else 1 << 16,) * 2)
            allowed.append(name)
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return {"allowed": allowed + (["capabilities"] if int(status["CapEff"], 16) else [])}


def _well(line: Line, message: Message) -> Message:
    return {"allowed": [], "walls": os.environ.get(WALLS, ""), "network": os.environ.get(NETWORK, "open"),
            "limits": {name: resource.getrlimit(getattr(resource, name)) for name in
                       ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_DATA")},
            "environment": sorted(os.environ), "folder": os.getcwd()}  # fmt: skip


ACTIONS: dict[str, Callable[[Line, Message], Message | None]] = {
    "well": _well, "loop": _loop, "hold the lock": _hold_the_lock, "deaf": _deaf, "exit": _exit,
    "interrupt": _interrupt, "hard exit": _hard_exit, "abort": _abort, "segfault": _segfault, "kill": _kill,
    "memory": _memory, "shared memory": _shared_memory, "hidden memory": _hidden_memory,
    "headless memory": _headless_memory, "misnamed memory": _misnamed_memory, "headless orphan": _headless_orphan,
    "processes": _processes,
    "fork bomb": _fork_bomb, "threads": _threads, "descriptors": _descriptors, "big file": _big_file,
    "many files": _many_files, "files elsewhere": _files_elsewhere, "orphan": _orphan, "network": _network,
    "secrets": _secrets, "writes outside": _writes_outside, "modifies": _modifies, "flood": _flood,
    "pickled": _pickled, "too long": _too_long, "metrics file": _metrics_file, "twice": _twice, "replay": _replay,
    "for another": _for_another, "later again": _later_again, "late": _late, "raises limits": _raises_limits,
    "no JSON": _body("hello"), "not finite": _body('{"nonce": "NONCE", "speed": Infinity}'),
    "a key twice": _body('{"nonce": "NONCE", "speed": 1, "speed": 9}'), "deep": _body('{"a":' * 100_000),
    "a list": _body('[{"nonce": "NONCE"}]'), "tagged": _body("!!python/object/apply:os.system [true]"),
}  # fmt: skip


def serve(line: Line, requests: Any) -> None:
    """Does what each request names and answers it, in the protocol of the evaluator's worker."""
    while (message := frames.read(requests, frames.REQUEST_LIMIT)) is not None:
        line.nonce = str(message["nonce"])
        answer = ACTIONS[str(message["op"])](line, message)
        if answer is not None:
            line.reply(answer)
        line.last = line.nonce


def admitted(arguments: list[str]) -> bool:
    """Whether the last argument names a descriptor that holds the password."""
    try:
        return os.read(int(arguments[2]), len(PASSWORD) + 1) == PASSWORD
    except (OSError, ValueError, IndexError):
        return False


def main() -> None:
    if not admitted(sys.argv):
        sys.exit("this module attacks the evaluator and is run by `vortex attack` alone")
    os.close(int(sys.argv[2]))
    if "real" in sys.argv[3:]:
        from vortexlab.evaluator import worker  # all that the evaluator's worker has loaded

        worker.Worker(Path.cwd()).hello("cpu", 1)
    serve(Line(int(sys.argv[1])), sys.stdin.buffer)


if __name__ == "__main__":
    main()
