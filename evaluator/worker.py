"""The worker: everything that touches a model, a cache or a timer runs here, confined, one request at a time.

Reads requests on its standard input and answers on the descriptor named on its command line, both in the form of
`vortexlab.evaluator.frames`. It is told contexts, questions and the lengths of answers, never the answers.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator import compiling, divergence, fidelity, frames, numerics, prefill, speed
from vortexlab.evaluator.confine import NETWORK, WALLS
from vortexlab.evaluator.contexts import SHORT_QUESTION, Context, ContextStore, Fork, Turn
from vortexlab.evaluator.executors import (
    EVERYTHING,
    ReversedTies,
    check_device,
    everything_of,
    executor_for,
    try_device,
)
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.models import LoadedModel, load_model
from vortexlab.evaluator.oracle import OracleExecutor
from vortexlab.evaluator.phases import DECODE, PREFILL
from vortexlab.evaluator.replay import Session, Tally, Watcher, replay
from vortexlab.evaluator.timing import RecordedWorkload, Workload
from vortexlab.kernels.precision import cache_name
from vortexlab.kernels.torch_executor import TorchExecutor

_ANSWERS, _RECORDING, _OWN = "dense.json", "recording.safetensors", "own"


class Worker:
    """State between requests: the model, its recorded contexts, the workloads of the speed gate, one program."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.device = "cpu"
        self._model: LoadedModel | None = None
        self._store: ContextStore | None = None
        self._recording: fidelity.Recording | None = None
        self._answers: list[list[int]] = []
        self._logs: torch.Tensor | None = None
        self._workloads: dict[str, Workload] = {}
        self._program: Program | None = None
        self._sessions: dict[str, Session] = {}
        self._own: ContextStore | None = None

    @property
    def model(self) -> LoadedModel:
        if self._model is None:
            raise VortexError("the worker has no model yet")
        return self._model

    @property
    def store(self) -> ContextStore:
        if self._store is None:
            raise VortexError("the worker has no contexts yet")
        return self._store

    def hello(self, device: str, threads: int) -> dict[str, Any]:
        """Sets threads and device, and tries a GPU. `gpu`: its name, empty on the CPU; `walls`: those that stand."""
        check_device(device)
        torch.set_num_threads(threads)
        self.device = device
        if device != "cpu":
            try_device(device)
        return {
            "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
            "network": os.environ.get(NETWORK, "open"),
            "walls": os.environ.get(WALLS, "").split(),
            "threads": torch.get_num_threads(),
        }

    def open(self, model: str, dtype: str, contexts: list[dict[str, Any]]) -> dict[str, Any]:
        """Loads the model and computes, or finds in the scratch folder, keys and values of all contexts."""
        self._model = load_model(model, self.device, dtype)
        parsed = [
            Context(
                tuple(item["tokens"]), tuple(Turn(tuple(turn["question"]), turn["answer"]) for turn in item["turns"])
            )
            for item in contexts
        ]
        self._store = ContextStore(self._model, parsed, self.scratch)
        return {"model": self._model.describe(), "prefilled": self._store.prefilled, "note": self._store.note}

    def dense(self, forks: list[list[int]], watch: list[int]) -> dict[str, Any]:
        """The answers of dense attention, along the very path that programs take; computed once per scratch folder.

        `watch`: the forks whose last question step is recorded for the fidelity gate.
        """
        answers, recording = self.scratch / _ANSWERS, self.scratch / _RECORDING
        if not (answers.exists() and recording.exists()):
            chosen = [Fork(*pair) for pair in forks]
            turns = [self.store.contexts[fork.context].turns[fork.turn] for fork in chosen]
            watcher = Watcher({row: len(turns[row].question) - 1 for row in watch}, self.model.layers)
            everything = Session(EVERYTHING, self.model, self.store, executor_for(self.device))
            found = replay(everything, chosen, Tally(), watch=watcher)
            fidelity.Recording.from_watcher(chosen, watcher).save(recording)
            answers.write_text(json.dumps(found))
        self._recording = fidelity.Recording.load(recording, self.model.device)
        found = json.loads(answers.read_text())
        self._answers = [found[row] for row in sorted(watch)]
        return {"answers": found}

    def program(self, program: dict[str, Any]) -> dict[str, Any]:
        """The bound program that the gates after this are about."""
        self._sessions.clear()
        self._program, self._own = None, None
        shutil.rmtree(self.scratch / _OWN, ignore_errors=True)
        found = Program.from_json(program)
        if not found.is_bound:
            raise VortexError(f"program {found.name} still has knobs")
        self._program = found
        return {}

    def read(self) -> dict[str, Any]:
        """Lets the program read every context by itself; its answers are about those from then on."""
        if self._own is None:
            program, folder = self._current(), self.scratch / _OWN
            folder.mkdir(exist_ok=True)
            executors = [executor_for(self.device)(program, self.model.static(i)) for i in range(self.model.layers)]
            read = prefill.reader(self.model, executors, program.page_size)
            self._own = ContextStore(self.model, self.store.contexts, folder, read)
            self._sessions.clear()
        return {}

    def _current(self) -> Program:
        if self._program is None:
            raise VortexError("the worker has no program yet")
        return self._program

    def _session(self, order: str) -> Session:
        """The program on the model; `order` ``reversed`` breaks ties between scores the other way, ``oracle`` reads as
        many pages, the best ones."""
        if order not in self._sessions:
            kind = {"reversed": ReversedTies, "oracle": OracleExecutor}.get(order) or executor_for(self.device)
            session = Session(self._current(), self.model, self._own or self.store, kind)
            if order == "reversed" and self.device == "cpu":  # an executor of the same kind writes the same summaries
                session.states = self._session("forward").states
            self._sessions[order] = session
        return self._sessions[order]

    def numerics(self, seed: int) -> dict[str, Any]:
        return numerics.check(self._current(), self.model.static(0), self.device, seed)

    def compile(self, targets: list[str], geometry: dict[str, Any]) -> dict[str, Any]:
        """Compiles for the geometry that speed is measured at, in bf16 unless the program wants another cache."""
        program, target = self._current(), Geometry(**geometry)
        dtype = cache_name(program, "bf16")
        static = Static(target.kv_heads, target.group, target.head_dim, target.scale, 0, self.model.layers)
        return compiling.report(program, static, targets, dtype, self.scratch / "compiled")

    def fidelity(self) -> dict[str, Any]:
        if self._recording is None:
            raise VortexError("the worker has no recorded steps yet")
        session = self._session("forward")
        found = fidelity.measure(session, self._recording, self._session("reversed"))
        return {**found, "divergence": self._divergence(session)}

    def _divergence(self, session: Session) -> float:
        """On the recorded forks but those with long questions, which cost as many steps as they have tokens."""
        assert self._recording is not None
        turns = [self.store.contexts[fork.context].turns[fork.turn] for fork in self._recording.forks]
        rows = [row for row, turn in enumerate(turns) if len(turn.question) <= SHORT_QUESTION]
        rows = rows or list(range(len(turns)))
        forks, answers = [self._recording.forks[row] for row in rows], [self._answers[row] for row in rows]
        if self._logs is None:
            everything = Session(EVERYTHING, self.model, self.store, executor_for(self.device))
            self._logs = divergence.answer_logs(everything, forks, answers)
        return divergence.divergence(self._logs, divergence.answer_logs(session, forks, answers))

    def answers(self, forks: list[list[int]], order: str, protocol: str) -> dict[str, Any]:
        """The program's answers to some questions, the density of what it read, and its live page counts by length."""
        dense = None
        if protocol == "prompt-dense":
            everything = everything_of(self._current())
            dense = Session(everything, self.model, self.store, executor_for(self.device))
        tally = Tally()
        found = replay(self._session(order), [Fork(*pair) for pair in forks], tally, dense=dense)
        counts = {str(length): values for length, values in tally.counts.items()}
        return {"answers": found, "density": tally.density, "reads": tally.reads, "counts": counts}

    def _prefill_speed(self, geometry: Geometry, length: int, dtype: str, seed: int) -> dict[str, Any]:
        try:
            timing = prefill.measure(
                self._current(), executor_for(self.device), geometry, length, layers=self.model.layers,
                device=self.device, dtype=getattr(torch, dtype), seed=seed,
            )  # fmt: skip
        except speed.SpeedError as error:
            return {"failure": str(error)}
        return {"timing": vars(timing)}

    def speed(self, **asked: Any) -> dict[str, Any]:
        """Times a program; nothing else may work on the device meanwhile."""
        if asked.get("phase") == PREFILL:
            return self._prefill_speed(Geometry(**asked["geometry"]), asked["length"], asked["dtype"], asked["seed"])
        return self._decode_speed(**asked)

    def rehearse(self, **asked: Any) -> dict[str, Any]:
        """The shortest run of `speed`, for what happens once alone: kernels are compiled, inputs made. It may be
        disturbed, so what it finds counts for nothing. Nothing is compiled for the torch executor."""
        executor = executor_for(self.device)(self._current(), self.model.static(0))
        if asked.get("phase") != PREFILL and not isinstance(executor, TorchExecutor):
            self._decode_speed(**asked, short=True)
        return {}

    def _decode_speed(
        self,
        geometry: dict[str, Any],
        length: int,
        batch_tokens: int,
        dtype: str,
        counts: list[int],
        seed: int,
        phase: str = DECODE,
        short: bool = False,
    ) -> dict[str, Any]:
        key = json.dumps([geometry, length, batch_tokens, dtype])
        if key not in self._workloads:
            self._workloads[key] = Workload.make(
                Geometry(**geometry), length, batch_tokens, self.device, getattr(torch, dtype), seed
            )
        found: dict[str, speed.Timing] = {}
        try:
            for name, workload in self._inputs(key).items():
                found[name] = speed.measure(
                    self._current(),
                    executor_for(self.device),
                    workload,
                    layers=self.model.layers,
                    counts=counts,
                    seed=seed,
                    pairs=1 if short else speed.PAIRS,
                    most_pairs=1 if short else speed.MOST_PAIRS,
                    baseline=found["synthetic"].baseline if found else "",
                )
        except speed.SpeedError as error:
            return {"failure": str(error)}
        return {"timing": vars(speed.worse(found))}

    def _inputs(self, key: str) -> dict[str, Workload]:
        """The workload of random contexts, and one of the model's own where it has contexts as long."""
        plain, recorded = self._workloads[key], f"recorded {key}"
        if recorded not in self._workloads and self._recording is not None and not plain.geometry.latent:
            contexts = self.store.recorded(plain.length)
            if contexts:
                self._workloads[recorded] = RecordedWorkload.like(plain, contexts, self._recording.q[-1])
        found = {"synthetic": plain}
        return found | ({"recorded": self._workloads[recorded]} if recorded in self._workloads else {})


def serve(worker: Worker, requests: Any, send: Callable[[bytes], None]) -> None:
    """Answers requests until the input ends."""
    while (message := frames.read(requests, frames.REQUEST_LIMIT)) is not None:
        nonce, operation = message.pop("nonce", None), str(message.pop("op", ""))
        handler = getattr(worker, operation, None)
        try:
            if operation.startswith("_") or not callable(handler):
                raise VortexError(f"the worker knows no operation {operation!r}")
            with torch.inference_mode():
                reply = {"ok": handler(**message)}
        except VortexError as error:
            reply = {"refused": str(error)}
        except MemoryError:
            raise
        except Exception as error:
            if "can't allocate memory" in str(error) or isinstance(error, torch.OutOfMemoryError):
                raise MemoryError(str(error).splitlines()[0]) from error
            if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
                raise  # nothing that this process computes on the GPU after such an error is worth anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = (str(error).strip().splitlines() or [""])[0][:200]
            reply = {"failed": f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {line}"}
        try:
            payload = frames.encode({"nonce": nonce, **reply}, frames.REPLY_LIMIT)
        except frames.FrameError as error:
            payload = frames.encode({"nonce": nonce, "failed": str(error)}, frames.REPLY_LIMIT)
        send(payload)


def main() -> None:
    descriptor = int(sys.argv[1])

    def send(payload: bytes) -> None:
        view = memoryview(payload)
        while view:
            view = view[os.write(descriptor, view) :]

    serve(Worker(Path.cwd()), sys.stdin.buffer, send)


if __name__ == "__main__":
    main()
