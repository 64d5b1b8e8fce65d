"""Attacks on the process that evaluates: each costs one request, is told apart, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vortexlab.evaluator import frames
from vortexlab.evaluator.sandbox import Limits, Sandbox, WorkerLost


class HostileSandbox(Sandbox):
    """Runs `hostile_worker` in place of the evaluator's worker."""

    module = "hostile_worker"

    def environment(self) -> dict[str, str]:
        known = super().environment()
        paths = [str(Path(__file__).parent), known.get("PYTHONPATH", "")]
        return known | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("LD_PRELOAD", "")
    box = HostileSandbox(Limits(memory_mb=256, seconds=20.0, processes=16), threads=1, scratch_root=str(tmp_path))
    yield box
    box.close()
    assert _survivors(box) == []
    assert not box.scratch.exists()


def _survivors(box: Sandbox) -> list[int]:
    """Processes anywhere on the machine that carry the worker's mark."""
    mark, found = f"VORTEX_WORKER={box.scratch}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _goes_on(box: Sandbox) -> None:
    """The next request is answered by a new worker."""
    starts = box.starts
    assert box.request({"how": "well"})["value"] == "well"
    assert box.starts == starts + 1


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("exit", "crash"),
        ("interrupt", "crash"),
        ("hard exit", "crash"),
        ("abort", "crash"),
        ("memory", "memory"),
        ("shared memory", "memory"),
        ("processes", "processes"),
        ("garbage", "garbage"),
        ("huge", "garbage"),
        ("infinite number", "garbage"),
        ("repeated key", "garbage"),
        ("deep", "garbage"),
        ("twice", "garbage"),
        ("disk", "crash"),
    ],
)
def test_an_attack_costs_one_request(sandbox: Sandbox, how: str, kind: str) -> None:
    assert sandbox.request({"how": "well"})["value"] == "well"
    with pytest.raises(WorkerLost) as lost:
        sandbox.request({"how": how})
    assert lost.value.kind == kind
    assert "\n" not in str(lost.value)
    assert not sandbox.running and _survivors(sandbox) == []
    _goes_on(sandbox)


@pytest.mark.parametrize("how", ["loop", "deaf loop", "sleep holding the GIL"])
def test_a_worker_that_never_ends_is_ended(sandbox: Sandbox, how: str) -> None:
    sandbox.request({"how": "well"})
    began = time.monotonic()
    with pytest.raises(WorkerLost) as lost:
        sandbox.request({"how": how}, seconds=1.0)
    assert lost.value.kind == "time"
    assert time.monotonic() - began < 15
    _goes_on(sandbox)


def test_a_child_that_leaves_the_session_is_ended_too(sandbox: Sandbox) -> None:
    child = sandbox.request({"how": "orphan"})["child"]
    assert Path(f"/proc/{child}").exists()
    sandbox.stop()
    assert _survivors(sandbox) == []


def test_a_flood_of_output_neither_blocks_nor_fills_memory(sandbox: Sandbox) -> None:
    assert sandbox.request({"how": "flood"})["flooded"] is True
    assert len(sandbox._tail) <= 4096


def test_an_answer_to_an_earlier_question_is_refused(sandbox: Sandbox) -> None:
    sandbox.request({"how": "well"})
    with pytest.raises(WorkerLost, match="another question") as lost:
        sandbox.request({"how": "replay"})
    assert lost.value.kind == "garbage"
    _goes_on(sandbox)


def test_a_worker_that_does_not_read_cannot_block_the_controller(sandbox: Sandbox) -> None:
    sandbox.request({"how": "well"})
    with pytest.raises(WorkerLost) as lost:
        sandbox.request({"how": "sleep holding the GIL", "padding": "x" * (8 << 20)}, seconds=1.0)
    assert lost.value.kind == "time"


def test_the_worker_has_no_network(sandbox: Sandbox) -> None:
    assert sandbox.request({"how": "network"})["refused"] == ["internet", "metadata", "unix", "abstract"]


def test_the_worker_sees_no_secrets(sandbox: Sandbox) -> None:
    seen = sandbox.request({"how": "secrets"})
    assert not [name for name in seen["environment"] if "KEY" in name or "PROXY" in name.upper() or "PRELOAD" in name]
    assert seen["folder"] == str(sandbox.scratch)


def test_last_words_are_one_printable_line(sandbox: Sandbox) -> None:
    sandbox.request({"how": "flood"})
    with pytest.raises(WorkerLost) as lost:
        sandbox.request({"how": "hard exit"})
    assert str(lost.value).isprintable() and len(str(lost.value)) < 400


def test_the_worker_can_write_little_open_little_and_leaves_no_core(sandbox: Sandbox) -> None:
    found = sandbox.request({"how": "limits"})
    size = sandbox.limits.memory_mb << 20
    assert found["RLIMIT_CORE"] == [0, 0] and found["RLIMIT_NOFILE"] == [4096, 4096]
    assert found["RLIMIT_FSIZE"] == [size, size] and found["RLIMIT_DATA"] == [2 * size, 2 * size]
    assert found["umask"] == 0o077


def _gone(pid: int) -> bool:
    """Whether a process ends within seconds; a zombie has ended."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_a_worker_dies_with_its_controller(tmp_path: Path) -> None:
    """In the midst of a request: an idle worker would end by itself when its input does."""
    code = (
        "import os, signal, sys; from test_attacks_process import HostileSandbox, Limits, frames;"
        "box = HostileSandbox(Limits(), threads=1, scratch_root=sys.argv[1]); box.request({'how': 'well'});"
        "print(box._process.pid, flush=True);"
        "loop = frames.encode({'nonce': 'n', 'how': 'deaf loop'}, frames.REQUEST_LIMIT);"
        "os.write(box._process.stdin.fileno(), loop); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert _gone(int(done.stdout))


def test_a_compiling_process_dies_with_its_worker(tmp_path: Path) -> None:
    """It has a session of its own and would go on, for as long as a compiler can."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o700)
    code = (
        "import os, signal, subprocess, sys; from vortexlab.kernels.gpu import report;"
        "subprocess.Popen.communicate = lambda self, *_, **__: (print(self.pid, flush=True),"
        " os.kill(os.getpid(), signal.SIGKILL));"
        "sys.executable = sys.argv[1]; report._run('{}', 60.0, 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sleeper)], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    assert _gone(int(done.stdout))


def test_what_a_killed_controller_left_behind_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from vortexlab.evaluator.sandbox import Limits, Sandbox;"
        "box = Sandbox(Limits(), threads=1, scratch_root=sys.argv[1]); (box.scratch / 'contexts.kv').write_text('x');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    living = HostileSandbox(Limits(), threads=1, scratch_root=str(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert len(list(tmp_path.iterdir())) == 2, "the living one and the latest that was killed"
    HostileSandbox(Limits(), threads=1, scratch_root=str(tmp_path)).close()
    assert list(tmp_path.iterdir()) == [living.scratch]
    living.close()
    assert list(tmp_path.iterdir()) == []


def test_messages_are_bounded_and_finite() -> None:
    with pytest.raises(frames.FrameError):
        frames.encode({"value": float("nan")}, 100)
    with pytest.raises(frames.FrameError, match="exceeds"):
        frames.encode({"value": "x" * 200}, 100)
    with pytest.raises(frames.FrameError, match="announced"):
        frames.body_length(frames.HEADER.pack(101), 100)
    for body in (b"[1]", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"):
        with pytest.raises(frames.FrameError):
            frames.decode(body)
