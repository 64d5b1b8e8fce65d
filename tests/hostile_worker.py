"""A worker that misbehaves on request, for tests of the sandbox. Run in place of the evaluator's worker."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time

from vortexlab.evaluator import frames


def misbehave(how: str, descriptor: int, nonce: str) -> dict[str, object]:
    """Does what the test asks for; returns the reply where there is one."""
    if how == "loop":
        while True:
            pass
    if how == "sleep holding the GIL":
        ctypes.PyDLL(None).sleep(600)
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "hard exit":
        os._exit(0)
    if how == "abort":
        os.abort()
    if how == "deaf loop":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)
    if how == "memory":
        held = []
        while True:
            held.append(bytearray(b"x" * (16 << 20)))
    if how == "shared memory":  # counts as nobody's data
        shared = mmap.mmap(-1, 4 << 30)
        while True:
            shared.write(b"x" * (16 << 20))
            time.sleep(0.01)
    if how == "processes":
        for _ in range(200):
            subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        time.sleep(600)
    if how == "orphan":
        code = "import os, time; os.setsid(); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
        return {"child": child.pid}
    if how == "flood":
        for _ in range(200):
            os.write(2, b"\x1b[31m" + b"y" * (1 << 16) + b"\n")
            os.write(1, b"z" * (1 << 16))
        return {"flooded": True}
    if how == "garbage":
        os.write(descriptor, b"\x00\x00\x00\x05hello")
        time.sleep(600)
    if how == "huge":
        os.write(descriptor, frames.HEADER.pack(frames.REPLY_LIMIT + 1))
        time.sleep(600)
    if how == "infinite number":
        body = b'{"nonce": "' + nonce.encode() + b'", "speed": Infinity}'
        os.write(descriptor, frames.HEADER.pack(len(body)) + body)
        time.sleep(600)
    if how == "repeated key":
        body = b'{"nonce": "' + nonce.encode() + b'", "speed": 1, "speed": 9}'
        os.write(descriptor, frames.HEADER.pack(len(body)) + body)
        time.sleep(600)
    if how == "deep":
        body = b'{"a":' * 100_000
        os.write(descriptor, frames.HEADER.pack(len(body)) + body)
        time.sleep(600)
    if how == "twice":
        reply = frames.encode({"nonce": nonce, "value": 1}, frames.REPLY_LIMIT)
        os.write(descriptor, reply + reply)
        time.sleep(600)
    if how == "network":
        return {"refused": _refused()}
    if how == "secrets":
        return {"environment": sorted(os.environ), "folder": os.getcwd()}
    if how == "limits":
        names = ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_DATA")
        mask = os.umask(0)
        return {"umask": mask, **{name: resource.getrlimit(getattr(resource, name)) for name in names}}
    if how == "disk":
        with open("filled", "wb") as file:
            while True:
                file.write(b"0" * (1 << 20))
                file.flush()
    return {"value": how}


def _refused() -> list[str]:
    """Ways to the outside that are closed."""
    closed = []
    for name, family, address in (
        ("internet", socket.AF_INET, ("203.0.113.1", 80)),
        ("metadata", socket.AF_INET, ("169.254.169.254", 80)),
        ("unix", socket.AF_UNIX, "/var/run/docker.sock"),
        ("abstract", socket.AF_UNIX, "\0vortex-test"),
    ):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as line:
                line.settimeout(2)
                line.connect(address)
        except PermissionError:
            closed.append(name)
        except OSError as error:
            closed.append(f"{name}: {error}")
    return closed


def main() -> None:
    descriptor, last = int(sys.argv[1]), ""
    while (message := frames.read(sys.stdin.buffer, frames.REQUEST_LIMIT)) is not None:
        nonce = str(message["nonce"])
        reply = misbehave(str(message["how"]), descriptor, nonce)
        sent = last if message["how"] == "replay" else nonce
        os.write(descriptor, frames.encode({"nonce": sent, **reply}, frames.REPLY_LIMIT))
        last = nonce


if __name__ == "__main__":
    main()
