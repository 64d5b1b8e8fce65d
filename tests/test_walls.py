"""The sandbox's walls around a worker on a GPU: what a driver and a compiler need is open, all else is as shut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import confine, executors
from vortexlab.evaluator.attacks.attack import LIMITED
from vortexlab.evaluator.attacks.processes import HostileSandbox, Range
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.sandbox import LEFT_OUT, Limits, Sandbox, WorkerLost


class Needy(Sandbox):
    """Runs `driver_needs` in the place of the worker."""

    module = "driver_needs"
    bubblewrap = False

    def tried(self) -> dict[str, Any]:
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = self.environment() | {"PYTHONPATH": path}
        done = subprocess.run(self.command(), cwd=self.scratch, env=environment, capture_output=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.mark.parametrize("cuda", [True, False])
def test_what_a_driver_needs_is_open_to_a_worker_on_a_gpu_alone(cuda: bool, tmp_path: Path) -> None:
    box = Needy(Limits(cuda=cuda), threads=1, scratch_root=str(tmp_path))
    found = box.tried()
    box.close()
    if cuda:
        assert found["refused"] == {}
    elif "calls" in found["walls"]:
        drivers = {"memory_of_drivers", "abstract_socket", "looks_for_a_daemon"}
        assert drivers | ({"names_threads"} if "files" in found["walls"] else set()) <= set(found["refused"])
        assert not {"device_file", "driver_cache", "kernel_cache", "compiler", "facts"} & set(found["refused"])


@pytest.mark.parametrize(
    "way", ["kill", "network", "secrets", "writes outside", "files elsewhere", "modifies", "orphan"]
)
def test_walls_of_a_worker_on_a_gpu_stop_hostile_code(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "bubblewrap", False)
    with Range(cuda=True) as place:
        if len(place.ask("well")["walls"].split()) < 4:
            pytest.skip("this kernel lacks a wall")
        assert place.attack(way) == LIMITED


def test_a_worker_runs_the_code_that_its_controller_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "build/linked")
    box = HostileSandbox(Limits(memory_mb=256), threads=1, scratch_root=str(tmp_path))
    assert box.environment()["PYTHONPATH"] == str(Path.cwd() / "build" / "linked")
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in box.environment()
    box.close()


def test_a_wall_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = HostileSandbox(Limits(memory_mb=256), threads=1, scratch_root=str(tmp_path))
    monkeypatch.setenv(LEFT_OUT, "calls, files")
    assert not {"calls", "files"} & set(box.request({"op": "well"})["walls"].split())
    monkeypatch.setenv(LEFT_OUT, "roof")
    with pytest.raises(VortexError, match="namespace, files, calls, rights"):
        box.start()
    box.close()


class Walled(Sandbox):
    """A worker that works when none of the walls `needs` stands in the way."""

    needs: tuple[str, ...] = ()

    def start(self) -> None:
        self.starts += 1

    def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        if message["op"] == "hello" and set(self.needs) & set(self.walls):
            raise WorkerLost("crash", "the worker was killed by SIGSYS")
        return {"ok": {"gpu": "", "network": "", "walls": [], "threads": 1}}


@pytest.mark.parametrize(
    ("needs", "blamed"), [(("calls",), "calls"), (("files", "rights"), "namespace,files,calls,rights")]
)
def test_a_wall_that_keeps_a_gpu_from_working_is_named(needs: tuple[str, ...], blamed: str, tmp_path: Path) -> None:
    box = Walled(Limits(cuda=True), threads=1, scratch_root=str(tmp_path))
    box.needs = needs
    evaluator = Evaluator(EvaluationConfig(tasks=("keys",), lengths=(320,), contexts=1, device="cpu"), sandbox=box)
    object.__setattr__(evaluator.config, "device", "cuda")  # a machine without one refuses to be asked for it
    with pytest.raises(VortexError) as error:
        evaluator._place._greet()
    assert f"{LEFT_OUT}={blamed} " in str(error.value) and "SIGSYS" in str(error.value)
    assert "\n" not in str(error.value) and box.walls == confine.ALL
    evaluator.close()


def test_what_fails_without_walls_too_is_blamed_on_none(tmp_path: Path) -> None:
    class Broken(Walled):
        def request(self, message: dict[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
            return {"refused": "torch finds no GPU"}

    box = Broken(Limits(cuda=True), threads=1, scratch_root=str(tmp_path))
    assert box.blame({"op": "hello"}) == "" and box.starts == 1
    box.close()


def test_a_device_is_tried_before_anything_is_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    executors.try_device("cpu")
    broken = executors.TorchExecutor.decode
    monkeypatch.setattr(executors.TorchExecutor, "decode", lambda *a: (broken(*a)[0] * 2, broken(*a)[1]))
    with pytest.raises(VortexError, match="wrong numbers"):
        executors.try_device("cpu")


def test_a_sandbox_takes_no_other_worker_for_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives the name of a network namespace again when it has cleared away the old one, in a moment."""
    monkeypatch.setattr(Sandbox, "bubblewrap", False)
    boxes = [HostileSandbox(Limits(memory_mb=256), threads=1, scratch_root=str(tmp_path)) for _ in range(2)]
    first, second = boxes
    if "namespace" not in first.request({"op": "well"})["walls"].split():
        pytest.skip("this kernel gives no network namespace")
    assert first._network and first._process is not None
    first._process.kill()  # while nothing is asked of it
    first._process.wait()
    for _ in range(4):
        time.sleep(0.3)
        second.request({"op": "well"})
        assert second._network != first._network
        second.stop()
    second.request({"op": "well"})
    first.stop()
    assert second.request({"op": "well"})["allowed"] == [] and second.starts == 5, "the other one lives"
    for box in boxes:
        box.close()


def test_compiled_code_goes_with_a_worker_and_may_change(tmp_path: Path) -> None:
    box = HostileSandbox(Limits(memory_mb=256), threads=1, scratch_root=str(tmp_path))
    (box.scratch / "contexts.kv").write_text("read")
    for folder in (".nv", "triton"):
        (box.scratch / folder).mkdir()
        (box.scratch / folder / "index").write_text("x")
    box.seal()
    (box.scratch / ".nv" / "index").write_text("another kernel")
    assert box.intact, "a driver keeps an index there"
    box.start()
    assert [path.name for path in box.scratch.rglob("*")] == ["contexts.kv"]
    box.close()


def test_last_words_are_heard_though_answers_ended_first(tmp_path: Path) -> None:
    box = HostileSandbox(Limits(memory_mb=256), threads=1, scratch_root=str(tmp_path))
    box._process = subprocess.Popen(
        [sys.executable, "-S", "-c", "import os; os.write(2, b'x' * 9000 + b'\\nMemoryError\\n'); os._exit(1)"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with pytest.raises(WorkerLost) as lost:
        box._ended()
    assert lost.value.kind == "memory"
    box._replies = os.open(os.devnull, os.O_RDONLY)
    box.close()


def test_there_is_room_for_contexts_read_twice(tmp_path: Path) -> None:
    """A program in the prefill phase reads every context by itself."""
    box = HostileSandbox(Limits(memory_mb=256, disk_mb=1), threads=1, scratch_root=str(tmp_path))
    (box.scratch / "contexts.kv").write_bytes(b"x" * (4 << 20))
    box.seal()
    (box.scratch / "own").write_bytes(b"x" * (4 << 20))
    box._watch_disk()
    (box.scratch / "more").write_bytes(b"x" * (2 << 20))
    with pytest.raises(WorkerLost, match="filled its folder"):
        box._watch_disk()
    box.close()
