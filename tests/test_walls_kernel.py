"""Each wall by itself, in a process of its own: what it refuses, by which error, and that it says whether it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vortexlab.evaluator import confine

_HEAD = """
import ctypes, errno, json, os, platform, socket, sys
from pathlib import Path
from vortexlab.evaluator import walls
libc = ctypes.CDLL(None, use_errno=True)

def error_of(number, *arguments):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(number, *arguments) < 0 else ""

def refusal(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return ""
"""
_NO_NEW = '"no new privileges": "NoNewPrivs:\\t1" in Path("/proc/self/status").read_text()'
_X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of x86_64")


def _alone(code: str, *arguments: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", _HEAD + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_files_outside_can_neither_be_written_nor_cut_and_nothing_stays_open(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.write_text("as it was")
    found = _alone(
        """
inside, outside = sys.argv[1:]
before = len(os.listdir("/proc/self/fd"))
stands = walls.restrict_files([inside], False)
found = {
    "stands": stands, "opened": len(os.listdir("/proc/self/fd")) - before,
    "version": libc.syscall(444, None, 0, 1),
    "cut": refusal(lambda: os.truncate(outside, 0)), "write": refusal(lambda: open(outside, "r+")),
    "make": refusal(lambda: open(outside + "2", "w")), "read": refusal(lambda: open(outside).read()),
    "own": refusal(lambda: Path(inside, "file").write_text("x")),
    "own cut": refusal(lambda: os.truncate(inside + "/file", 0)),
    "null": refusal(lambda: open("/dev/null", "w").write("x")),
    "signal": refusal(lambda: os.kill(os.getppid(), 0)), "own signal": refusal(lambda: os.kill(os.getpid(), 0)), NO_NEW,
}
with socket.socket() as one:
    found["connect"] = refusal(lambda: one.connect(("127.0.0.1", 9)))
    found["bind"] = refusal(lambda: one.bind(("127.0.0.1", 0)))
print(json.dumps(found))
""".replace("NO_NEW", _NO_NEW),
        str(inside), str(outside),
    )  # fmt: skip
    if found["version"] < 2:
        assert not found["stands"]
        pytest.skip("this kernel has no Landlock that can move files")
    assert found["stands"] is True and found["opened"] == 0 and found["no new privileges"]
    assert found["write"] == found["make"] == "EACCES"
    assert found["read"] == found["own"] == found["own cut"] == found["null"] == ""
    if found["version"] >= 3:
        assert found["cut"] == "EACCES"
    if found["version"] >= 4:
        assert found["connect"] == found["bind"] == "EACCES"
    if found["version"] >= 6:
        assert found["signal"] == "EPERM"
    assert found["own signal"] == "" and outside.read_text() == "as it was"


@_X86
@pytest.mark.parametrize("cuda", [False, True])
def test_calls_are_refused_by_the_error_that_each_deserves(cuda: bool) -> None:
    found = _alone(
        """
cuda = sys.argv[1] == "True"
stands = walls.restrict_calls(cuda)
print(json.dumps({
    "stands": stands, "connect": error_of(42, -1, None, 0), "ptrace": error_of(101, 16, 1, 0, 0),
    "bind": error_of(49, -1, None, 0), "inet": error_of(41, 2, 1, 0), "unix": error_of(41, 1, 1, 0),
    "namespace": error_of(56, 0x10000000, 0, 0, 0, 0), "clone3": error_of(435, None, 0),
    "other numbers": error_of(0x40000000 | 39), "unshare": error_of(272, 0x10000000), "pid": error_of(39),
    NO_NEW,
}))
""".replace("NO_NEW", _NO_NEW),
        str(cuda),
    )
    assert found["stands"] is True and found["no new privileges"]
    assert found["connect"] == ("ENOENT" if cuda else "EACCES")
    assert found["bind"] == ("EBADF" if cuda else "EACCES")
    assert found["unix"] == ("" if cuda else "EACCES")
    assert found["ptrace"] == found["unshare"] == found["inet"] == found["namespace"] == "EACCES"
    assert found["clone3"] == "ENOSYS" and found["other numbers"] == "EPERM" and found["pid"] == ""


def test_no_right_is_left() -> None:
    found = _alone(
        """
stands = walls.drop_rights()
status = dict(line.split(":\\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
print(json.dumps({"stands": stands, **{key: int(status[key], 16) for key in ("CapEff", "CapPrm", "CapInh")}}))
"""
    )
    assert found == {"stands": True, "CapEff": 0, "CapPrm": 0, "CapInh": 0}


_WORKER = """
import json, os, resource, socket, sys
names = ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_NPROC")
limits = {name: resource.getrlimit(getattr(resource, name)) for name in names}
try:
    lookup = str(socket.getaddrinfo("127.0.0.1", 80))
except OSError as error:
    lookup = str(error)
print(json.dumps({
    "lookup": lookup, "limits": limits, "walls": os.environ["VORTEX_WALLS"].split(),
    "privileges": "NoNewPrivs:\\t1" not in open("/proc/self/status").read(),
    "network": os.environ.get("VORTEX_NETWORK"), "umask": os.umask(0), "arguments": sys.argv, "name": __name__,
}))
"""


@pytest.mark.parametrize("asked", [[], list(confine.ALL)])
@pytest.mark.parametrize("data", [0, 1 << 33])
def test_a_worker_has_the_limits_and_the_walls_that_were_asked_for(asked: list[str], data: int, tmp_path: Path) -> None:
    (tmp_path / "told_worker.py").write_text(_WORKER)
    limits = {
        "files": 256, "file_bytes": 1 << 30, "data_bytes": data, "processes": 2048, "walls": asked, "cuda": False,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment.pop("VORTEX_NETWORK", None)
    command = [sys.executable, "-m", "vortexlab.evaluator.confine", json.dumps(limits), "told_worker", "argument"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {"CORE": 0, "NOFILE": 256, "FSIZE": 1 << 30, "NPROC": 2048} | ({"DATA": data} if data else {})
    assert {name: found["limits"][f"RLIMIT_{name}"] for name in expected} == {
        name: [value, value] for name, value in expected.items()
    }
    if not data:
        assert found["limits"]["RLIMIT_DATA"] != [0, 0]
    assert not found["privileges"] and found["umask"] == 0o077
    assert found["arguments"][1:] == ["argument"] and found["name"] == "__main__"
    assert set(found["walls"]) <= set(asked) and ("calls" in found["walls"]) == ("calls" in asked)
    assert ("namespace" in found["walls"]) == (found["network"] == "namespace")
    assert (found["network"] is not None) == bool(asked)
    assert (found["lookup"] == "the worker has no network (socket.getaddrinfo)") == bool(asked)
