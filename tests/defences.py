"""The sandbox's defences, each of which a test can take away to see that an attack then succeeds."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vortexlab.evaluator import confine, frames, procfs
from vortexlab.evaluator.attacks.processes import HostileSandbox
from vortexlab.evaluator.sandbox import Sandbox


class StillWaiting(Exception):
    """The controller would wait for ever."""


def _no_deadline(patch: pytest.MonkeyPatch) -> None:
    def check(self: Sandbox, now: float, deadline: float, allowed: float) -> None:
        if now >= deadline + 2.5:
            raise StillWaiting

    patch.setattr(Sandbox, "_check_time", check)


def _without(wall: str) -> Callable[[pytest.MonkeyPatch], None]:
    def remove(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(HostileSandbox, "walls", tuple(name for name in HostileSandbox.walls if name != wall))

    return remove


def _nothing(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(Sandbox, name, lambda *_: None)


def _no_limits(patch: pytest.MonkeyPatch) -> None:
    command = Sandbox.command

    def generous(self: Sandbox) -> list[str]:
        words = command(self)
        at = words.index("vortexlab.evaluator.confine") + 1
        most = {"files": 1 << 14, "file_bytes": 1 << 40, "data_bytes": 0}
        words[at] = json.dumps(json.loads(words[at]) | most)
        return words

    patch.setattr(Sandbox, "command", generous)


def _whole_environment(patch: pytest.MonkeyPatch) -> None:
    scrubbed = Sandbox.environment
    patch.setattr(Sandbox, "environment", lambda self: {**os.environ, **scrubbed(self)})


def _endless_tail(patch: pytest.MonkeyPatch) -> None:
    def heard(self: Sandbox, chunk: bytes) -> None:
        self._tail += chunk

    patch.setattr(Sandbox, "_heard", heard)


def _no_nonce(patch: pytest.MonkeyPatch) -> None:
    def check(self: Sandbox, reply: dict[str, Any], nonce: str) -> None:
        reply.pop("nonce", None)

    patch.setattr(Sandbox, "_check_nonce", check)


def _endless_answers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(frames, "body_length", lambda head, limit: frames.HEADER.unpack(head)[0])


def _careless(body: bytes) -> Any:
    for read in (json.loads, pickle.loads):
        try:
            return read(body)
        except Exception:
            continue
    return {"text": body}


def _names_must_be_text(patch: pytest.MonkeyPatch) -> None:
    counted = procfs.private_bytes

    def count(pid: int) -> int:
        try:
            Path(f"/proc/{pid}/status").read_text()
        except (OSError, UnicodeDecodeError):
            return 0
        return counted(pid)

    patch.setattr(procfs, "private_bytes", count)


#: Name -> what takes it away.
DEFENCES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "deadline": _no_deadline,
    "end of answers": _nothing("_ended"),
    "bubblewrap": lambda patch: patch.setattr(Sandbox, "bubblewrap", False),
    "network namespace": _without(confine.NAMESPACE),
    "Landlock": _without(confine.FILES),
    "seccomp": _without(confine.CALLS),
    "no capabilities": _without(confine.RIGHTS),
    "watch of memory": _nothing("_watch_memory"),
    "any name is read": _names_must_be_text,
    "look behind zombies": lambda patch: patch.setattr(procfs, "_voice", str),
    "watch of processes": _nothing("_watch_processes"),
    "watch of the disk": _nothing("_watch_disk"),
    "resource limits": _no_limits,
    "empty environment": _whole_environment,
    "bounded tail": _endless_tail,
    "nonce": _no_nonce,
    "one answer": _nothing("_check_single"),
    "cleared folder": _nothing("_clear"),
    "plain JSON": lambda patch: patch.setattr(frames, "decode", _careless),
    "finite numbers and distinct keys": lambda patch: patch.setattr(frames, "decode", json.loads),
    "bounded answers": _endless_answers,
}
