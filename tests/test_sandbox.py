"""The controller's side of a worker: what it makes of an end, and that nothing of one is left once stopped."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pids import gone

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import procfs, sandbox
from vortexlab.evaluator.attacks.processes import SLEEPER, HostileSandbox
from vortexlab.evaluator.sandbox import Limits, Sandbox, WorkerLost

_LOOP = """
import json, os, struct, subprocess, sys, time
out = int(sys.argv[1])
send = lambda data: os.write(out, data)
while header := sys.stdin.buffer.read(4):
    message = json.loads(sys.stdin.buffer.read(struct.unpack(">I", header)[0]))
    answer = {}
%s
    data = json.dumps({"nonce": message["nonce"], "ok": answer}).encode()
    send(struct.pack(">I", len(data)) + data)
"""


class Scripted(Sandbox):
    """In the place of the worker a few lines that answer every request, and do `work` before each answer."""

    bubblewrap = False
    work = ""

    def command(self) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", _LOOP % textwrap.indent(self.work, "    ")]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Scripted]:
    found = Scripted(Limits(memory_mb=256, seconds=20.0), threads=1, scratch_root=str(tmp_path))
    yield found
    found.close()


def _open() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


# --- beginning -----------------------------------------------------------------------------------------------------


def test_a_sandbox_takes_the_threads_that_it_is_told(box: Scripted, tmp_path: Path) -> None:
    assert box.environment()["OMP_NUM_THREADS"] == box.environment()["MKL_NUM_THREADS"] == "1"
    other = Sandbox(Limits(), scratch_root=str(tmp_path))
    assert other.threads == len(os.sched_getaffinity(0))
    other.close()


def test_a_folder_that_cannot_be_had_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"no scratch folder for the worker: .*; set TMPDIR to a writable folder"):
        Sandbox(Limits(), scratch_root=str(tmp_path / "gone"))


def test_a_worker_that_cannot_start_leaves_nothing_open(box: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box, "command", lambda: [str(box.scratch / "python")])
    before = _open()
    with pytest.raises(VortexError, match=r"the evaluation worker does not start: .*No such file"):
        box.start()
    assert _open() == before and not box.running


def test_a_new_worker_takes_the_place_of_the_one_before(box: Scripted) -> None:
    box.start()
    opened, first = _open(), box._process
    box.start()
    assert first is not None and first.returncode == -signal.SIGKILL and box.running
    assert first.stdin is not None and first.stdin.closed and first.stderr is not None and first.stderr.closed
    assert _open() == opened
    second = box._process
    box.close()
    assert second is not None and second.returncode == -signal.SIGKILL and not box.running
    assert not box.scratch.exists()


@pytest.mark.parametrize(("status", "stands"), [(0, True), (1, False), (None, False)])
def test_bubblewrap_is_used_where_it_does_its_work(
    status: int | None, stands: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if status is not None:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sandbox.has_bubblewrap.__wrapped__() is stands


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("stands", [False, True])
def test_a_worker_runs_in_bubblewrap_where_that_is_wanted_and_stands(
    wanted: bool, stands: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sandbox, "bubblewrap", wanted)
    monkeypatch.setattr(sandbox, "has_bubblewrap", lambda cuda: stands)
    box = Sandbox(Limits(), threads=1, scratch_root=str(tmp_path))
    assert box.command()[0] == ("bwrap" if wanted and stands else sys.executable)
    box.close()


# --- answers -------------------------------------------------------------------------------------------------------


def test_an_answer_may_come_in_pieces(box: Scripted) -> None:
    """Even its length may: a pipe gives what there is."""
    box.work = (
        "def send(data):\n    for at in range(len(data)):\n        os.write(out, data[at : at + 1])\n"
        "        time.sleep(0.01 if at < 6 else 0)\nanswer = {'pieces': True}"
    )
    assert box.request({"op": "any"}) == {"ok": {"pieces": True}}


def test_a_controller_that_waits_sleeps(box: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not woken by an input that takes more, nor by a stderr that was closed."""
    box.work = "os.close(2) if message['op'] == 'close' else time.sleep(600)"
    box.request({"op": "close"})
    rounds = []
    check = box._check_time
    monkeypatch.setattr(box, "_check_time", lambda *times: (rounds.append(times), check(*times)))
    with pytest.raises(WorkerLost, match=r"^no answer within 0.3 s; the worker was ended$"):
        box.request({"op": "wait"}, seconds=0.3)
    assert len(rounds) < 30


def test_every_request_gets_its_share_of_cpu_seconds(box: Scripted) -> None:
    """Twice the seconds, since it has a thread and may start one more, and 10 s for good measure."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    for seconds, allowed in ((20.0, 50), (40.0, 90)):
        box.request({"op": "any"}, seconds=seconds)
        assert box._process is not None
        assert resource.prlimit(box._process.pid, resource.RLIMIT_CPU) == (allowed, hard)


def test_the_network_of_a_worker_is_known_once_it_has_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it answers: by its network alone are those found that it started and that hide."""
    monkeypatch.setattr(Sandbox, "bubblewrap", False)
    monkeypatch.setattr(sandbox, "_WATCH_SECONDS", 60.0)
    before = _open()
    box = HostileSandbox(Limits(memory_mb=256, seconds=20.0), threads=1, scratch_root=str(tmp_path))
    held = _open()
    walls = box.request({"op": "well"})["walls"].split()
    network = box._network
    box.stop()
    assert _open() == held and not box._network
    box.close()
    box.close()
    assert _open() == before, "of closed sandboxes nothing stays open"
    if "namespace" not in walls:
        pytest.skip("this kernel gives no network namespace")
    assert network


@pytest.mark.parametrize(
    ("work", "kind"),
    [("send(struct.pack('>I', 2) + b'no')", "garbage"), ("time.sleep(600)", "time"), ("os._exit(1)", "crash")],
)
def test_a_request_that_fails_ends_the_worker(work: str, kind: str, box: Scripted) -> None:
    before, box.work = _open(), work
    box.start()
    process = box._process
    with pytest.raises(WorkerLost) as lost:
        box.request({"op": "any"}, seconds=0.5 if kind == "time" else 20.0)
    assert lost.value.kind == kind and process is not None and process.returncode is not None
    assert not box.running and _open() == before, "the next request starts a new one"
    box.work = "answer = 1"
    assert box.request({"op": "any"}) == {"ok": 1} and box.starts == 2


# --- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "said", "kind", "text"),
    [
        (sys.executable, 0, b"", "crash", "the worker ended with status 0; last words: nothing on stderr"),
        (sys.executable, 3, b"a\n \nb\x1b\n", "crash", "the worker ended with status 3; last words: b?"),
        (sys.executable, 139, b"", "crash", "the worker ended with status 139; last words: nothing on stderr"),
        (sys.executable, 1, b"MemoryError\n", "memory", "the worker ended with status 1; last words: MemoryError"),
        (sys.executable, 1, b"can't allocate memory", "memory",
         "the worker ended with status 1; last words: can't allocate memory"),
        (sys.executable, -11, b"", "crash", "the worker was killed by SIGSEGV; last words: nothing on stderr"),
        (sys.executable, -99, b"", "crash", "the worker was killed by 99; last words: nothing on stderr"),
        ("bwrap", 139, b"", "crash", "the worker was killed by SIGSEGV; last words: nothing on stderr"),
        ("bwrap", 1, b"", "crash", "the worker ended with status 1; last words: nothing on stderr"),
        (sys.executable, None, b"", "garbage", "the worker closed its answers and went on running"),
        ("bwrap", None, b"", "garbage", "the worker closed its answers and went on running"),
    ],
)  # fmt: skip
def test_how_a_worker_ended_is_told(
    command: str, code: int | None, said: bytes, kind: str, text: str, box: Scripted
) -> None:
    def wait(timeout: float) -> None:
        process.returncode = code

    process = SimpleNamespace(wait=wait, returncode=None, args=[command], stderr=None)
    box._process, box._tail = process, said  # type: ignore[assignment]
    try:
        with pytest.raises(WorkerLost) as lost:
            box._ended()
    finally:
        box._process = None
    assert (lost.value.kind, str(lost.value)) == (kind, text)


def test_those_who_left_a_workers_session_are_looked_for_when_it_is_ended(box: Scripted) -> None:
    """And those who stayed are found by their session, whatever they did to their environment."""
    box.work = (
        f"stayed = subprocess.Popen({[*SLEEPER]!r}, env={{}})\n"
        f"left = subprocess.Popen({[*SLEEPER]!r}, start_new_session=True)\n"
        "answer = {'stayed': stayed.pid, 'left': left.pid}"
    )
    pids: dict[str, Any] = box.request({"op": "any"})["ok"]
    assert box._process is not None
    assert set(box._members(thorough=False)) == {box._process.pid, pids["stayed"]}
    assert set(box._members(thorough=True)) == {box._process.pid, *pids.values()}
    box.stop()
    assert box._members(thorough=True) == []
    assert gone(pids.values())


def test_a_process_whose_first_thread_has_ended_is_seen_by_its_others(box: Scripted) -> None:
    """Its own entry is that of a zombie then: no memory, no environment, no network."""
    code = "import ctypes,threading,time; held = bytearray(64 << 20); "
    code += "threading.Thread(target=time.sleep, args=(600,)).start(); ctypes.CDLL(None).pthread_exit(None)"
    box.work = (
        f"left = subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)\n"
        "while open(f'/proc/{left.pid}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z': time.sleep(0.01)\n"
        "answer = {'left': left.pid}"
    )
    pid = box.request({"op": "any"})["ok"]["left"]
    assert procfs.runs(pid) and procfs.threads(pid) == 2 and procfs.private_bytes(pid) > 64 << 20
    assert procfs.network_of(pid) == procfs.network_of(os.getpid())
    assert pid in box._members(thorough=True)
    box.stop()
    assert gone([pid])


def test_stopping_goes_on_until_a_look_finds_none(box: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may be started while those are killed who were seen."""
    box.start()
    process, late = box._process, subprocess.Popen(SLEEPER)
    assert process is not None
    seen, looks = [[process.pid], [late.pid]], []

    def members(thorough: bool) -> list[int]:
        looks.append(thorough)
        return seen.pop(0) if seen else []

    monkeypatch.setattr(box, "_members", members)
    try:
        box.stop()
        assert seen == [] and len(looks) < 100 and all(looks) and process.returncode == -signal.SIGKILL
        assert late.wait(timeout=20) == -signal.SIGKILL
    finally:
        late.kill()
        late.wait()


def test_who_looks_for_a_wall_to_blame_leaves_no_worker(box: Scripted) -> None:
    assert box.blame({"op": "any"}) == "namespace" and box.starts == 2
    assert not box.running
