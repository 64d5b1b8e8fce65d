"""What the kernel tells of a process in /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_ENDED = "ZX"


def stat(pid: int | str) -> list[str]:
    """The fields of a process's state, beginning with the third. The second, its name, it may have given itself."""
    with open(f"/proc/{pid}/stat", errors="replace") as file:
        return file.read().rsplit(")", 1)[1].split()


def _voice(pid: int | str) -> str:
    """The place in /proc that tells of a process: a first thread that ended before the others leaves only a zombie."""
    with suppress(OSError, IndexError):
        if stat(pid)[0] in _ENDED:
            for thread in os.listdir(f"/proc/{pid}/task"):
                if stat(f"{pid}/task/{thread}")[0] not in _ENDED:
                    return f"{pid}/task/{thread}"
    return str(pid)


def runs(pid: int | str) -> bool:
    """Whether any thread of a process still runs."""
    try:
        return stat(_voice(pid))[0] not in _ENDED
    except (OSError, IndexError):
        return False


def environment_of(pid: int | str) -> bytes:
    return _read(pid, "environ")


def command_of(pid: int | str) -> bytes:
    return _read(pid, "cmdline")


def _read(pid: int | str, name: str) -> bytes:
    with open(f"/proc/{_voice(pid)}/{name}", "rb", 0) as file:
        return file.read()


def network_of(pid: int | str) -> str:
    """The network namespace of a process; empty when it is gone or may not be looked at."""
    try:
        return os.readlink(f"/proc/{_voice(pid)}/ns/net")
    except OSError:
        return ""


def hold_network(pid: int) -> tuple[str, int]:
    """The network namespace of a process as `network_of` names it, and a descriptor: as long as that is open no other
    namespace gets the name, which the kernel gives again at once. Raises `OSError` when the process is gone."""
    descriptor = os.open(f"/proc/{_voice(pid)}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    return os.readlink(f"/proc/self/fd/{descriptor}"), descriptor


def threads(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(stat(pid)[17])
    return 0


def private_bytes(pid: int) -> int:
    """Resident memory of a process that no file backs, shared memory included, in bytes; 0 when it is gone."""
    total = 0
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{_voice(pid)}/status").read_text(errors="replace").splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total
