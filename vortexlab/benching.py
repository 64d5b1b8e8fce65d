"""The speed gate on its own, in this process, and the dense gate that follows from it: `vortex bench`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vortexlab.binding import check_fit
from vortexlab.dsl import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.evaluator import speed, statistics
from vortexlab.evaluator.config import DTYPE_NAMES, EvaluationConfig, device_name, tuned_tables, versions
from vortexlab.evaluator.contexts import Context, ContextStore, Fork, Turn
from vortexlab.evaluator.executors import check_device, executor_for
from vortexlab.evaluator.geometries import Geometry, find_geometry
from vortexlab.evaluator.models import LoadedModel, load_model
from vortexlab.evaluator.replay import Session, Tally, replay
from vortexlab.evaluator.tasks import TASKS, make_samples
from vortexlab.evaluator.timing import Workload
from vortexlab.evaluator.traits import depends_on_data
from vortexlab.kernels.cost import predict
from vortexlab.kernels.devices import nearest_device
from vortexlab.kernels.gate import Gate
from vortexlab.kernels.precision import cache_name

#: Where a dense gate is measured unless something else is asked for.
GATE_BATCHES, GATE_CONTEXTS = (1, 4), (1024, 4096, 16384)


def bench_program(program: Program, config: EvaluationConfig, *, batch: int | None = None) -> dict[str, Any]:
    """Times a bound program at every length of `config`, as the speed gate does, and predicts the same.

    `batch` requests are decoded together; by default as many as fill `config.resolved_batch_tokens`. A program whose
    reads depend on data is timed with the page counts that it had on one sample of every task, on the configured model.
    Returns JSON: `conditions`, and one row for each length with ``failure`` set where a timed output was wrong.
    Raises `VortexError` when the program or its parameters do not fit the geometry.
    """
    return _bench(program, config, (batch,))


def measure_gate(
    program: Program,
    config: EvaluationConfig,
    batches: Sequence[int] = GATE_BATCHES,
    contexts: Sequence[int] | None = None,
) -> tuple[Gate | None, dict[str, Any]]:
    """Times a bound program at every pair of `batches` and `contexts` (by default `gate_contexts`).

    Returns its dense gate, and JSON as of `bench_program`. The gate is None when a timed output was wrong. Its
    conditions name the program by its hash, and a geometry that was read from a file without the folder. Raises
    `VortexError` for batches that are none or repeated, and for what `bench_program` refuses.
    """
    if not batches or min(batches) < 1 or len(set(batches)) < len(batches):
        raise VortexError(f"the batches of a gate are different whole numbers from 1, found {tuple(batches)}")
    if contexts is None:
        contexts = gate_contexts(program, config, batches)
    found = _bench(program, replace(config, lengths=tuple(contexts)), batches)
    if any(row["failure"] for row in found["rows"]):
        return None, found
    conditions = {**found["conditions"], "program_hash": canonical_hash(program)}
    conditions["geometry"] = {**conditions["geometry"], "name": Path(conditions["geometry"]["name"]).name}
    return Gate.of(found["rows"], conditions), found


def gate_contexts(program: Program, config: EvaluationConfig, batches: Sequence[int]) -> tuple[int, ...]:
    """Those of `GATE_CONTEXTS` that can be timed under `config`: the largest batch within its batch x context, and,
    for a program whose reads depend on data, within what the model reads.

    Raises `VortexError` when there are none.
    """
    most = config.resolved_batch_tokens // max(batches)
    chosen = [length for length in GATE_CONTEXTS if length <= most]
    if chosen and depends_on_data(program):
        model = _model(program, config)
        chosen = [length for length in chosen if _needed(_questions(config, length)) <= model.max_length]
    if not chosen:
        raise VortexError(
            f"none of {', '.join(map(str, GATE_CONTEXTS))} tokens can be timed in batches of {max(batches)}: "
            f"{config.resolved_batch_tokens} tokens are allowed in all, and the model must read them"
        )
    return tuple(chosen)


def _bench(program: Program, config: EvaluationConfig, batches: Sequence[int | None]) -> dict[str, Any]:
    check_device(config.device)
    geometry = find_geometry(config.geometry)
    check_fit(program, geometry)
    threads = config.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    live = {
        length: live_counts(program, config, length) if depends_on_data(program) else [] for length in config.lengths
    }
    rows = [
        _row(program, config, geometry, length, batch, live[length]) for batch in batches for length in config.lengths
    ]
    conditions = {
        "speed": "measured",
        "device": device_name(config.device),
        "dtype": config.resolved_dtype,
        "kv_dtype": cache_name(program, DTYPE_NAMES[config.resolved_dtype]),
        "geometry": geometry.to_json(),
        "threads": threads,
        "seed": config.seed,
        "versions": versions(),
        "tables": tuned_tables(config.device),
    }
    return {"conditions": conditions, "rows": rows}


def _row(
    program: Program, config: EvaluationConfig, geometry: Geometry, length: int, batch: int | None, counts: list[int]
) -> dict[str, Any]:
    tokens = config.resolved_batch_tokens if batch is None else batch * length
    try:
        return _timed(program, config, geometry, length, tokens, counts)
    except torch.OutOfMemoryError:
        requests = max(1, tokens // length)
        less = f"--batch {requests // 2}" if requests > 1 else "shorter --lengths"
        raise VortexError(
            f"{requests} requests of {length} tokens do not fit the memory of {device_name(config.device)}; try {less}"
        ) from None


def _timed(
    program: Program, config: EvaluationConfig, geometry: Geometry, length: int, tokens: int, counts: list[int]
) -> dict[str, Any]:
    dtype = config.resolved_dtype
    workload = Workload.make(geometry, length, tokens, config.device, getattr(torch, dtype), config.seed)
    live = sum(counts) / len(counts) if counts else None
    static, device = geometry.static(), nearest_device()
    predicted = predict(program, static, length, workload.batch, device, live, dtype=DTYPE_NAMES[dtype])
    row: dict[str, Any] = {"context": length, "batch": workload.batch, "failure": "", "speedup": None}
    try:
        timing = speed.measure(
            program, executor_for(config.device), workload, layers=geometry.layers, counts=counts, seed=config.seed
        )
    except speed.SpeedError as error:
        timing, row["failure"] = speed.Timing(), str(error)
    else:
        row["speedup"] = statistics.ratio({str(length): timing.ratios}, seed=config.seed).to_json()
    return {**vars(timing), **row, "recorded_counts": len(counts), "predicted": predicted.to_json()}


def live_counts(program: Program, config: EvaluationConfig, length: int) -> list[int]:
    """Pages of every list that the program read at the last step of one answer for every task at this length.

    Raises `VortexError` when the program does not fit the model, or the model is too short.
    """
    model = _model(program, config)
    contexts = _questions(config, length)
    if _needed(contexts) > model.max_length:
        raise VortexError(
            f"what {program.name} reads depends on data, and the model that would show it reads {model.max_length} "
            f"tokens, not {length}; give --lengths within that"
        )
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="vortex-bench-") as folder, torch.inference_mode():
        store = ContextStore(model, contexts, Path(folder))
        session = Session(program, model, store, executor_for(config.device))
        replay(session, [Fork(i, 0) for i in range(len(contexts))], tally)
    return [count for counts in tally.counts.values() for count in counts]


def _model(program: Program, config: EvaluationConfig) -> LoadedModel:
    """The model that shows what a program reads. Raises `VortexError` when the program does not fit it."""
    try:
        check_fit(program, find_geometry(config.model))
    except VortexError as error:
        raise VortexError(
            f"what {program.name} reads depends on data, and it does not fit the model that would show it: {error}"
        ) from error
    return load_quietly(config.model, config.device, config.resolved_dtype)


def load_quietly(folder: str, device: str, dtype: str) -> LoadedModel:
    """The model in a folder, without transformers' progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return load_model(folder, device, dtype)


def _questions(config: EvaluationConfig, length: int) -> list[Context]:
    """One question of every built-in task."""
    found = []
    for name in config.tasks or tuple(TASKS):
        for sample in make_samples(name, length, 1, seed=config.seed, split=config.split):
            turn = sample.turns[0]
            found.append(Context(tuple(sample.context), (Turn(tuple(turn.question), len(turn.answer)),)))
    return found


def _needed(contexts: Sequence[Context]) -> int:
    """Tokens that a model must be able to read to answer all of them."""
    return max(len(item.tokens) + item.turns[0].steps for item in contexts)
