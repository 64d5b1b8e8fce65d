"""Walls that the kernel keeps around a worker: what it may write, whom it may signal, which calls it may make.

Standard library only: they stand before torch or anything else is loaded. Each function returns whether its wall
stands; on a kernel that lacks one the others do.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable
from contextlib import suppress
from glob import glob

#: System calls by machine: what they reach is refused. `clone` only when it asks for new namespaces.
_CALLS = {
    "x86_64": {
        "socket": 41, "connect": 42, "bind": 49, "clone": 56, "ptrace": 101, "shmget": 29, "semget": 64, "msgget": 68,
        "mq_open": 240, "unshare": 272, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311,
        "memfd_create": 319, "io_uring_setup": 425, "clone3": 435, "pidfd_getfd": 438,
    },
    "aarch64": {
        "socket": 198, "connect": 203, "bind": 200, "clone": 220, "ptrace": 117, "shmget": 194, "semget": 190,
        "msgget": 186, "mq_open": 180, "unshare": 97, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
        "memfd_create": 279, "io_uring_setup": 425, "clone3": 435, "pidfd_getfd": 438,
    },
}  # fmt: skip
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: A CUDA driver shares memory between its own processes through these.
_OF_DRIVERS = ("bind", "memfd_create")
#: What a GPU is reached through: NVIDIA's devices and those that tell its partitions, AMD's, that of a virtual machine.
_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/*", "/dev/kfd", "/dev/dxg")
_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag that clone knows
_EPERM, _ENOENT, _EACCES, _ENOSYS = 1, 2, 13, 38
_AF_UNIX = 1

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE = 1 << 1
#: Rights of Landlock that change something: write, remove and make of every kind; later versions add two.
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_REFER, _TRUNCATE = 1 << 13, 1 << 14


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def restrict_files(writable: Iterable[str], cuda: bool) -> bool:
    """Lets the process change files below `writable` only, signal its own kin only, and see into no other process.

    By Landlock (signals and abstract sockets from Linux 6.12 on). Reading stays as file permissions say. Not before
    5.19: there nothing could be moved from folder to folder, as Triton does in its cache.
    """
    with suppress(OSError, AttributeError):
        libc = _libc()
        version = libc.syscall(_CREATE_RULESET, None, 0, 1)
        if version < 2:
            return False
        handled = _CHANGES | _REFER | (_TRUNCATE if version >= 3 else 0)
        network = 3 if version >= 4 else 0
        scoped = 3 if version >= 6 else 0
        attributes = struct.pack("QQQ", handled, network, scoped)
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        ruleset = libc.syscall(_CREATE_RULESET, attributes, size, 0)
        if ruleset < 0:
            return False
        files = ["/dev/null", "/dev/zero", "/dev/full"]
        if cuda:
            files += [path for pattern in _DEVICES for path in glob(pattern)]
            # A driver names the threads that it starts, and gives up where it may not.
            files.append("/proc/self/task")
        rewrite = handled & (_WRITE_FILE | _TRUNCATE)
        rules = [(path, handled) for path in writable] + [(path, rewrite) for path in files]
        for path, access in rules:
            with suppress(OSError):
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
                libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, descriptor), 0)
                os.close(descriptor)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        stands = libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
        os.close(ruleset)
        return bool(stands)
    return False


def restrict_calls(cuda: bool) -> bool:
    """Refuses sockets, tracing, new namespaces, and memory that nobody's account shows; by a seccomp filter.

    An audit hook only stops Python; this stops native code too. With `cuda` local sockets may be made and bound, as
    drivers do, but not connected.
    """
    machine = platform.machine()
    calls = _CALLS.get(machine)
    if calls is None:
        return False
    refused = {name: number for name, number in calls.items() if name not in ("clone", "clone3", "socket")}
    if cuda:
        refused = {name: number for name, number in refused.items() if name not in _OF_DRIVERS}
    code = [(_LD, 0, 0, 4), (_JEQ, 1, 0, _AUDIT_ARCH[machine]), (_RET, 0, 0, _ERRNO | _EPERM), (_LD, 0, 0, 0)]
    if machine == "x86_64":  # the same calls by other numbers
        code += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, _ERRNO | _EPERM)]
    for name, number in refused.items():
        # A driver looks for daemons (MPS, persistence) and takes it well when there are none.
        error = _ENOENT if cuda and name == "connect" else _EACCES
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | error)]
    code += [(_JEQ, 0, 1, calls["clone3"]), (_RET, 0, 0, _ERRNO | _ENOSYS)]  # the C library then uses clone
    code += [(_JEQ, 0, 4, calls["clone"]), (_LD, 0, 0, 16), (_JSET, 0, 1, _NAMESPACES),
             (_RET, 0, 0, _ERRNO | _EACCES), (_RET, 0, 0, _ALLOW)]  # fmt: skip
    code += [(_JEQ, 0, 4, calls["socket"]), (_LD, 0, 0, 16), (_JEQ, 0, 1, _AF_UNIX if cuda else 0xFFFF),
             (_RET, 0, 0, _ALLOW), (_RET, 0, 0, _ERRNO | _EACCES)]  # fmt: skip
    code += [(_RET, 0, 0, _ALLOW)]
    with suppress(OSError, AttributeError):
        libc = _libc()
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(program)))
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, head, 0, 0) == 0)
    return False


def drop_rights() -> bool:
    """Gives up every capability: a worker of root can then raise no limit and mount nothing."""
    with suppress(OSError, AttributeError):
        libc = _libc()
        for capability in range(64):
            libc.prctl(24, capability, 0, 0, 0)  # from the bounding set
        version_3 = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
        return bool(libc.capset(version_3, ctypes.create_string_buffer(24)) == 0)
    return False
