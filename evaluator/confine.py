"""The first code of a worker process: gives up what the worker does not need, then runs the worker's module.

``python -m vortexlab.evaluator.confine LIMITS MODULE`` with LIMITS as JSON, in the scratch folder. Standard library
only, so that the limits hold before torch or anything else is loaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import runpy
import signal
import sys
from contextlib import suppress
from typing import Any

from vortexlab.evaluator import walls

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_NETWORK_EVENTS = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")
NETWORK, WALLS = "VORTEX_NETWORK", "VORTEX_WALLS"
#: What `main` puts up, in this order; the controller asks for all of them.
NAMESPACE, FILES, CALLS, RIGHTS = "namespace", "files", "calls", "rights"
ALL = (NAMESPACE, FILES, CALLS, RIGHTS)


def limit(name: str, value: int) -> None:
    """Lowers one resource limit, soft and hard; a platform or hard limit that forbids it leaves it as it is."""
    number = getattr(resource, name, None)
    if number is None:
        return
    _, hard = resource.getrlimit(number)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(number, (value, value))


def leave_network() -> str:
    """Moves the process into a network namespace of its own, which has no way out.

    Returns how: ``namespace``, or ``audit hook`` where the kernel refuses. The audit hook is set in both cases: it
    also stops connections through sockets in the file system, which no namespace does.
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK_EVENTS:
            raise PermissionError(f"the worker has no network ({event})")

    how = "audit hook"
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        if libc.unshare(_CLONE_NEWNET) == 0:
            how = "namespace"
        elif libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
            how = "namespace"
            for path, text in (
                ("/proc/self/setgroups", "deny"),
                ("/proc/self/uid_map", f"{user} {user} 1"),
                ("/proc/self/gid_map", f"{group} {group} 1"),
            ):
                with suppress(OSError), open(path, "w") as file:
                    file.write(text)
    sys.addaudithook(refuse)
    return how


def put_up(asked: list[str], cuda: bool) -> list[str]:
    """Puts up the walls that are asked for; returns those that stand on this machine."""
    stand = []
    if NAMESPACE in asked:
        os.environ[NETWORK] = leave_network()
        stand += [NAMESPACE] if os.environ[NETWORK] == "namespace" else []
    if FILES in asked and walls.restrict_files([os.getcwd()], cuda):
        stand.append(FILES)
    if RIGHTS in asked and walls.drop_rights():
        stand.append(RIGHTS)
    if CALLS in asked and walls.restrict_calls(cuda):
        stand.append(CALLS)
    return stand


def main() -> None:
    limits, module = json.loads(sys.argv[1]), sys.argv[2]
    os.umask(0o077)
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_NOFILE", limits["files"])
    limit("RLIMIT_FSIZE", limits["file_bytes"])
    if limits["data_bytes"]:
        limit("RLIMIT_DATA", limits["data_bytes"])
    limit("RLIMIT_NPROC", limits["processes"])
    os.environ[WALLS] = " ".join(put_up(limits["walls"], limits["cuda"]))
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # After the walls: a process that enters a user namespace forgets it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
