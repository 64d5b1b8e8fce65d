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

from vortexlab import dsl, search_spaces
from vortexlab.dsl.ir import Static
from vortexlab.evaluator import frames, speed, timing, worker
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.contexts import SHORT_QUESTION, Fork
from vortexlab.evaluator.executors import ReversedTies
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.timing import RecordedWorkload
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
    where, line = first["failed"].rsplit(":", 1)
    assert where.startswith("IndexError in test_evaluator_worker.py:") and line == " list index"
    assert answers(IndexError())[0]["failed"].startswith("IndexError in test_evaluator_worker.py:")
    assert "no operation '_work'" in second["refused"]


@pytest.mark.parametrize("op", ["_current", "scratch", "nothing"])
def test_nothing_but_its_operations_can_be_asked_of_a_worker(op: str) -> None:
    """Neither its own methods, nor what is no method."""
    assert f"no operation '{op}'" in _asked(worker.Worker(Path()), op=op)["refused"]


def _asked(subject: worker.Worker, **message: Any) -> dict[str, Any]:
    """What a worker says to one message."""
    said: list[bytes] = []
    worker.serve(subject, io.BytesIO(frames.encode({"nonce": "n", **message}, frames.REQUEST_LIMIT)), said.append)
    return frames.decode(said[0][frames.HEADER.size :])


@pytest.mark.parametrize(
    ("message", "lacks"),
    [
        ({"op": "dense", "forks": [[0, 0]], "watch": [0]}, "no contexts yet"),
        ({"op": "numerics", "seed": 0}, "no program yet"),
        ({"op": "fidelity"}, "no recorded steps yet"),
        ({"op": "read"}, "no program yet"),
        ({"op": "program", "program": search_spaces.load("quest").to_json()}, "still has knobs"),
    ],
)
def test_what_is_asked_too_early_is_refused_in_words(message: dict[str, Any], lacks: str, tmp_path: Path) -> None:
    subject = worker.Worker(tmp_path)
    assert lacks in _asked(subject, **message)["refused"]
    subject.program(search_spaces.load("quest").bind().to_json())
    assert "no model yet" in _asked(subject, op="numerics", seed=0)["refused"]


# --- the device ----------------------------------------------------------------------------------------------------


def test_a_device_is_looked_for_and_a_gpu_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    monkeypatch.setattr(worker, "check_device", lambda device: done.append(("check", device)))
    monkeypatch.setattr(worker, "try_device", lambda device: done.append(("try", device)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Example")
    before = torch.get_num_threads()
    try:
        first = worker.Worker(Path()).hello("cpu", before + 1)
        second = worker.Worker(Path()).hello("cuda", before)
    finally:
        torch.set_num_threads(before)
    assert (first["gpu"], first["threads"]) == ("", before + 1)
    assert (second["gpu"], second["threads"]) == ("NVIDIA Example", before)
    assert done == [("check", "cpu"), ("check", "cuda"), ("try", "cuda")]


# --- recorded contexts ---------------------------------------------------------------------------------------------

SHORT, LONG = tuple(range(3, 11)), tuple(range(3, 3 + SHORT_QUESTION + 1))
ALL, LAST = (
    "@program(page=16, block=16)\nclass Own:\n    def pool(q):\n        return q.mean(query)\n"
    f"    def select(ctx):\n        return {what}\n"
    for what in ("everything()", "where(ctx.prefill, last(1), everything())")
)


def _opened(scratch: Path) -> worker.Worker:
    """A worker with one context of 72 tokens, and three questions of which the last is long."""
    found = worker.Worker(scratch)
    turns = [{"question": question, "answer": 2} for question in (SHORT, SHORT[::-1], LONG)]
    assert found.open(str(REFERENCE_MODEL), "float32", [{"tokens": list(SHORT) * 9, "turns": turns}])["prefilled"] == 1
    return found


def _bound(text: str) -> dict[str, Any]:
    return dsl.parse(text).bind().to_json()


@torch.inference_mode()
def test_what_a_program_reads_by_itself_is_its_own_and_goes_with_it(tmp_path: Path) -> None:
    subject = _opened(tmp_path)
    file = tmp_path / "own" / "contexts.kv"
    subject.program(_bound(ALL))
    dense = subject._session("forward")
    subject.read()
    own, session = subject._own, subject._session("forward")
    assert own is not None and own.prefilled == 1 and own.note == "" and file.exists()
    assert dense.store is subject.store and session.store is own, "answers are about what was read since"
    subject.read()
    assert subject._own is own and subject._session("forward") is session, "it reads once"
    subject.program(_bound(LAST))
    assert not file.exists() and subject._session("forward").store is subject.store
    subject.read()
    other = subject._own
    assert other is not None and other.prefilled == 1, "what another program read is not taken for its own"
    assert torch.equal(own._pool[0], other._pool[0]) and not torch.equal(own._pool[-1], other._pool[-1])


@torch.inference_mode()
def test_dense_answers_are_found_again_only_where_both_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, runs = _opened(tmp_path), []
    replay = worker.replay

    def counted(*words: Any, **named: Any) -> list[list[int]]:
        runs.append(words)
        return replay(*words, **named)

    monkeypatch.setattr(worker, "replay", counted)
    asked: dict[str, Any] = {"forks": [[0, 0], [0, 1], [0, 2]], "watch": [0, 1]}
    first = subject.dense(**asked)
    assert len(first["answers"]) == 3 and subject._recording is not None and subject._recording.forks[1] == Fork(0, 1)
    assert subject.dense(**asked) == first and len(runs) == 1
    for name in ("dense.json", "recording.safetensors"):
        (tmp_path / name).unlink()
        assert subject.dense(**asked) == first, "a worker may be lost between the two"
    assert len(runs) == 3 and subject._answers == first["answers"][:2]


@torch.inference_mode()
@pytest.mark.parametrize(("watch", "rows"), [([0, 1, 2], [0, 1]), ([2], [0])])
def test_divergence_is_that_on_short_questions_where_there_are_any(
    watch: list[int], rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, asked = _opened(tmp_path), []
    found = subject.dense([[0, 0], [0, 1], [0, 2]], watch)["answers"]

    def answer_logs(session: Any, forks: list[Fork], answers: list[list[int]]) -> Tensor:
        asked.append((session.program.name, forks, answers))
        return torch.zeros(len(forks), 2, 4)

    monkeypatch.setattr(worker.divergence, "answer_logs", answer_logs)
    monkeypatch.setattr(worker.divergence, "divergence", lambda dense, sparse: len(dense) + len(sparse))
    for _ in range(2):
        subject.program(_bound(ALL))
        assert subject._divergence(subject._session("forward")) == 2 * len(rows)
    expected = [Fork(0, watch[row]) for row in rows], [found[watch[row]] for row in rows]
    assert asked == [(name, *expected) for name in ("everything", "Own", "Own")], "dense attention is asked once"


def test_a_program_is_timed_on_recorded_contexts_where_they_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, Any]] = []

    def measure(program: Any, executor: Any, workload: Any, *, baseline: str, **_: Any) -> speed.Timing:
        runs.append((baseline, workload))
        return speed.Timing(ratios=[3.0 - len(runs)], baseline="sdpa")

    monkeypatch.setattr(worker.speed, "measure", measure)
    subject = worker.Worker(Path())
    subject._program, subject._model = object(), SimpleNamespace(layers=2)  # type: ignore[assignment]
    plain = Geometry("tiny", 2, 2, 2, 16)
    contexts = [(torch.ones(2, 64, 16), torch.ones(2, 64, 16))]

    def timed(geometry: Geometry = plain, length: int = 64) -> list[tuple[str, bool]]:
        """Baseline and whether the context is a recorded one, of every run."""
        runs.clear()
        asked = {"geometry": geometry.to_json(), "length": length, "batch_tokens": 64, "dtype": "float32"}
        timing = subject.speed(**asked, counts=[], seed=1)["timing"]
        assert timing["inputs"] == ("recorded" if len(runs) > 1 else "synthetic"), "the worse of both"
        return [(baseline, isinstance(workload, RecordedWorkload)) for baseline, workload in runs]

    subject._store = SimpleNamespace(recorded=lambda length: contexts if length <= 64 else [])  # type: ignore[assignment]
    assert timed() == [("", False)], "nothing is recorded yet"
    subject._recording = SimpleNamespace(q=[torch.zeros(1, 4, 16), torch.ones(1, 4, 16)])  # type: ignore[assignment]
    assert timed() == [("", False), ("sdpa", True)]
    made = [workload for _, workload in runs]
    assert timed() == [("", False), ("sdpa", True)] and [workload for _, workload in runs] == made, "made once"
    assert bool((made[1].queries == 1).all()), "as the last layer asks"
    assert timed(length=65) == [("", False)], "no context is as long"
    assert timed(plain.with_latent(8)) == [("", False)], "the model's are not latent"


def test_prefill_that_goes_wrong_is_no_answer_but_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any, **asked: Any) -> speed.Timing:
        if asked["seed"]:
            raise speed.SpeedError("off by much")
        return speed.Timing(density=0.5)

    monkeypatch.setattr(worker.prefill, "measure", measure)
    subject = worker.Worker(Path())
    subject._program, subject._model = object(), SimpleNamespace(layers=2)  # type: ignore[assignment]
    asked = {"geometry": Geometry("tiny", 2, 2, 2, 16).to_json(), "length": 64, "dtype": "float32", "phase": "prefill"}
    assert subject.speed(**asked, seed=0)["timing"]["density"] == 0.5
    assert subject.speed(**asked, seed=1) == {"failure": "off by much"}


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
