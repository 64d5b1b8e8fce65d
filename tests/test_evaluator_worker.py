"""The worker between its gates, and what only a GPU does, with fakes in its place."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from vortexlab import search_spaces
from vortexlab.dsl.ir import Static
from vortexlab.evaluator import frames, timing, worker
from vortexlab.evaluator.executors import ReversedTies
from vortexlab.evaluator.geometries import Geometry
from vortexlab.kernels.torch_executor import TorchExecutor


class Faulty(worker.Worker):
    """Its one operation fails as it is told to."""

    def __init__(self, error: BaseException):
        super().__init__(Path())
        self.error = error

    def work(self) -> dict[str, Any]:
        raise self.error


def answers(error: BaseException) -> list[dict[str, Any]]:
    """What the worker says to an operation that fails and to the question after it."""
    requests = b"".join(
        frames.encode({"nonce": nonce, "op": op}, frames.REQUEST_LIMIT) for nonce, op in (("a", "work"), ("b", "_work"))
    )
    said: list[bytes] = []
    worker.serve(Faulty(error), io.BytesIO(requests), said.append)
    return [frames.decode(reply[frames.HEADER.size :]) for reply in said]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore"),
        torch.AcceleratorError("device-side assert triggered"),
        RuntimeError("CUDA error: misaligned address"),
    ],
)
def test_a_worker_ends_after_an_error_of_the_gpu(error: Exception) -> None:
    """Nothing that its process computes afterwards is worth anything, so the error is not an answer."""
    with pytest.raises(type(error)):
        answers(error)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), MemoryError("9 GiB"),
     RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")],
)  # fmt: skip
def test_a_worker_ends_when_memory_runs_out(error: Exception) -> None:
    with pytest.raises(MemoryError):
        answers(error)


def test_other_errors_are_answers_and_the_worker_goes_on() -> None:
    first, second = answers(IndexError("list index\nout of range"))
    assert first["nonce"] == "a" and second["nonce"] == "b"
    assert first["failed"].startswith("IndexError in test_evaluator_worker.py:") and "\n" not in first["failed"]
    assert "no operation '_work'" in second["refused"]


# --- CUDA graphs ---------------------------------------------------------------------------------------------------


class Graph:
    """Records the calls made while it captures; a replay makes them again."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class Stream:
    """Writes down who waited for whom."""

    waited: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, name: str):
        self.name = name

    def wait_stream(self, other: Stream) -> None:
        self.waited.append((self.name, other.name))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    made: list[Graph] = []
    Stream.waited.clear()

    def graph() -> Graph:
        made.append(Graph())
        return made[-1]

    @contextmanager
    def entered(_: object) -> Iterator[None]:
        yield

    for name, fake in {
        "Stream": lambda: Stream("side"), "current_stream": lambda: Stream("current"), "stream": entered,
        "graph": entered, "CUDAGraph": graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    return made


class Example:
    """A query that says it lies on a GPU."""

    device = SimpleNamespace(type="cuda")

    def clone(self) -> Tensor:
        return torch.zeros(2)


class Step:
    """A step with tensors of its own, as an executor's workspaces are."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.workspace = torch.zeros(2)

    def __call__(self, q: Tensor) -> Tensor:
        self.seen.append(q)
        return self.workspace


def test_a_captured_call_is_kept_as_long_as_its_graph(graphs: list[Graph]) -> None:
    """The graph reads and writes tensors that the call holds; freed, their memory would be somebody else's."""
    step = Step()
    alive, workspace = weakref.ref(step), step.workspace
    served: Callable[[Tensor], Tensor] | None = timing.as_served(step, Example())  # type: ignore[arg-type]
    del step
    gc.collect()
    assert alive() is not None
    found = alive()
    assert found is not None
    captured = found.seen[-1]
    assert len(found.seen) == 4 and all(q is captured for q in found.seen), "three calls to warm up, one captured"
    assert served is not None
    assert served(torch.tensor([3.0, 4.0])) is workspace
    assert captured.tolist() == [3.0, 4.0] and graphs[0].replays == 1
    assert len(found.seen) == 4, "a replay runs no Python"
    assert Stream.waited == [("side", "current"), ("current", "side")], "before and after the calls to warm up"
    del found, served
    gc.collect()
    assert alive() is None


def test_on_the_cpu_a_step_is_the_call_itself() -> None:
    step = Step()
    assert timing.as_served(step, torch.zeros(2)) is step


# --- both orders of ties -------------------------------------------------------------------------------------------


class Gpu(TorchExecutor):
    """Stands for an executor whose summaries are its own."""


@pytest.mark.parametrize(("device", "shared"), [("cpu", True), ("cuda", False)])
def test_summaries_are_shared_only_between_executors_of_one_kind(
    device: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "executor_for", lambda device: TorchExecutor if device == "cpu" else Gpu)
    found = worker.Worker(Path())
    found.device = device
    static = Static(2, 2, 16, 0.25, 0, 2)
    found._model = SimpleNamespace(layers=2, static=lambda layer: replace(static, layer=layer))  # type: ignore[assignment]
    found._store = SimpleNamespace()  # type: ignore[assignment]
    found.program(search_spaces.load("quest").bind().to_json())
    forward = found._session("forward")
    forward.states.append("a summary")
    assert all(isinstance(item, ReversedTies) for item in found._session("reversed").executors)
    assert (found._session("reversed").states == ["a summary"]) is shared
    assert type(forward.executors[0]) is (TorchExecutor if device == "cpu" else Gpu)


def test_a_rehearsal_is_the_shortest_run_of_the_same_and_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, Any]] = []

    def measure(program: Any, executor: Any, workload: Any, **asked: Any) -> Any:
        runs.append({"workload": workload, **asked})
        raise worker.speed.SpeedError("events and the wall clock disagree")

    monkeypatch.setattr(worker.speed, "measure", measure)
    made: list[Any] = [object()]
    monkeypatch.setattr(worker, "executor_for", lambda device: lambda program, static: made[-1])
    subject = worker.Worker(Path())
    subject._program, subject._model = object(), SimpleNamespace(layers=2, static=lambda layer: None)  # type: ignore[assignment]
    asked = {
        "geometry": Geometry("tiny", 2, 2, 2, 16).to_json(), "length": 64, "batch_tokens": 64, "dtype": "float32",
        "counts": [3], "seed": 1, "phase": "decode",
    }  # fmt: skip
    assert subject.rehearse(**asked) == {}
    assert subject.speed(**asked) == {"failure": "events and the wall clock disagree"}
    short, whole = runs
    assert (short.pop("pairs"), short.pop("most_pairs")) == (1, 1)
    assert (whole.pop("pairs"), whole.pop("most_pairs")) == (worker.speed.PAIRS, worker.speed.MOST_PAIRS)
    assert short == whole, "inputs that are made once are timed afterwards"
    assert subject.rehearse(**{**asked, "phase": "prefill"}) == {} and len(runs) == 2
    made.append(object.__new__(TorchExecutor))
    assert subject.rehearse(**asked) == {} and len(runs) == 2, "nothing to compile"
