"""From a recorded winner to a package that a serving engine runs, and the proof that it computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab import __version__, benching, binding
from vortexlab.benching import load_quietly
from vortexlab.deploy import engines, package, selftest
from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.architectures import read_config
from vortexlab.evaluator.config import DTYPE_NAMES, REFERENCE_MODEL, EvaluationConfig, model_digest, versions
from vortexlab.evaluator.phases import PREFILL
from vortexlab.evaluator.record import record
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.tasks import TASKS
from vortexlab.evaluator.verdict import ACCEPTED

if TYPE_CHECKING:
    from vortexlab.agent.run import Run
    from vortexlab.deploy.package import Package
    from vortexlab.dsl.ir import Program
    from vortexlab.kernels.gate import Gate

_SECONDS = 1800.0
#: What of a verdict's conditions goes into a package; paths stay out.
_CONDITIONS = (
    "device", "evaluated_on", "phase", "speed", "geometry", "lengths", "data", "batch", "batch_tokens", "dtype",
    "kv_dtype", "protocol",
    "baseline", "tables", "split", "seed", "threads", "versions", "model_digest", "environment", "dense_scores",
    "tasks", "template", "score", "inputs",
)  # fmt: skip


def export_member(
    run: Run,
    identifier: str,
    engine: str,
    out: Path,
    *,
    cases: int = 4,
    length: int | None = None,
    parameters: str | Path | None = None,
    gate: bool = False,
) -> Package:
    """Writes the package of an accepted trial, with a self-test on contexts of the validation split.

    `cases` questions, each of another built-in task, with contexts of `length` tokens (by default the shortest that
    the trial was measured at, or what the tasks need). `parameters`: the file that it was measured with. `gate`:
    whether to measure the dense gate, on this machine. Raises `VortexError` for an unknown id, a trial that was not
    accepted or was measured otherwise, what `package.write` refuses, and what the gate cannot be measured for.
    """
    package.check_target(out, engine)
    if run.config.evaluation.phase == PREFILL:
        raise VortexError(
            f"run {run.name} measured sparse prefill, and {engine} reads prompts densely; export from a run of decode"
        )
    if read_config(run.config.evaluation.model).get("kv_lora_rank"):
        raise VortexError(
            f"run {run.name} is about a model with latent attention, whose cache {engine} keeps latent: programs are "
            "not exported to it; export from a run of a model with grouped heads, such as Qwen3 or Llama"
        )
    trial = run.history.find(identifier)
    verdict = trial.verdict
    assert verdict is not None
    if verdict.status != ACCEPTED or verdict.speedup is None or verdict.accuracy is None:
        why = f"{verdict.status} by gate {verdict.gate}: {verdict.reason}" if verdict.gate else verdict.status
        raise VortexError(f"{trial.id} cannot be exported, it was {why}; choose one from `vortex leaderboard`")
    source, knobs = parse(trial.proposal.source), dict(trial.knobs)
    program = binding.bind(source, knobs, parameters)
    engines.check_program(program, engines.find(engine))
    digest = canonical_hash(program)
    if not program.params and digest != trial.hash:
        raise VortexError(f"the record of {trial.id} is inconsistent: its text does not have the recorded hash")
    if program.params and digest != verdict.source_hash:
        raise VortexError(f"{trial.id} was measured with other parameters; give the file that it was measured with")
    config = run.config.evaluation
    kept = DTYPE_NAMES[config.resolved_dtype]
    if program.kv_dtype not in ("auto", kept):
        raise VortexError(
            f"{trial.id} was measured with a KV cache in {program.kv_dtype} under a model in {kept}, and {engine} "
            "keeps the model's precision; choose a program that leaves kv open"
        )
    tests = record_cases(program, config, cases, length)
    measured = _measure_gate(program, config) if gate else None
    conditions = {key: verdict.conditions[key] for key in _CONDITIONS if key in verdict.conditions}
    return package.write(
        program,
        out,
        engine=engine,
        version=__version__,
        knobs=dict(trial.knobs),
        source=trial.proposal.source,
        measurements={
            "speedup": verdict.speedup.to_json(),
            "accuracy": verdict.accuracy.to_json(),
            "density": verdict.density,
            "answers": verdict.answers,
            "contexts": verdict.contexts,
            "conditions": conditions,
        },
        selftest=tests,
        gate=measured,
    )


def _measure_gate(program: Program, config: EvaluationConfig) -> Gate:
    """The dense gate of a program on this machine, at the geometry of its run.

    Raises `VortexError` when it cannot be timed, or computes something wrong.
    """
    found, timed = benching.measure_gate(program, replace(config, tasks=_built_in(config)))
    if found is None:
        row = next(row for row in timed["rows"] if row["failure"])
        raise VortexError(
            f"no gate was measured: at batch {row['batch']}, context {row['context']}, {row['failure']}; export "
            "without --gate"
        )
    return found


def _built_in(config: EvaluationConfig) -> tuple[str, ...]:
    return tuple(name for name in config.tasks if name in TASKS) or tuple(TASKS)


def record_cases(
    program: Program, config: EvaluationConfig, cases: int, length: int | None = None
) -> dict[str, Any]:
    """The self-test of a bound program: questions of the validation split and what the evaluator gets for them."""
    # A user's own data stays out of a package; the built-in contexts are token ids to any model.
    tasks = _built_in(config)
    length = length or max(min(config.lengths), *(TASKS[name].shortest for name in tasks))
    few = replace(config.with_split("validation"), contexts=1, turns=1, lengths=(length,), tasks=tasks, data=())
    samples = make_suite(few).samples
    step = max(1, len(samples) // cases)
    chosen = samples[::step][:cases]
    model = load_quietly(config.model, config.device, config.resolved_dtype)
    questions = [
        {"context": item.context, "question": item.turns[0].question, "length": len(item.turns[0].answer)}
        for item in chosen
    ]
    found = record(program, model, questions, selftest.sketch)
    return {
        "model_digest": model_digest(config.model),
        "device": config.device,
        "dtype": config.resolved_dtype,
        "versions": versions(),
        "cases": [{"task": item.task, **case} for item, case in zip(chosen, found, strict=True)],
    }


def verify_package(directory: Path, *, model: str | Path | None = None, device: str | None = None) -> dict[str, Any]:
    """Runs the self-test of a package in a fresh process and through the evaluator, and compares both.

    Three `comparisons`: `engine` (the deployed package against the evaluator, both now), `recorded` (the package
    against what was recorded at export) and `evaluator` (the evaluator now against then). The last two are None for
    another model than the recorded one. `ok` when none fails. Raises `VortexError` when the folder is no package, its
    program was changed, or there is no model.
    """
    exported = package.read(directory)
    tests = exported.selftest
    try:
        cases, digest, dtype = list(tests["cases"]), str(tests["model_digest"]), str(tests["dtype"])
        device = device or str(tests["device"])
        selftest.judge(cases, cases, dtype)  # finds cases that are damaged
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise VortexError(f"the self-test of {directory} is damaged ({error!r}); export it again") from error
    folder = _model_folder(model, digest)
    same = model_digest(folder) == digest
    now = record(exported.program, load_quietly(folder, device, dtype), cases, selftest.sketch)
    answer = _run_package(exported, folder, now, device, dtype)
    outcomes = answer["outcomes"]
    comparisons = {
        "engine": selftest.judge(now, outcomes, dtype),
        "recorded": selftest.judge(cases, outcomes, dtype) if same else None,
        "evaluator": selftest.judge(cases, now, dtype) if same else None,
    }
    return {
        "package": exported.module,
        "program_hash": exported.manifest["program_hash"],
        "engine": exported.manifest["engine"],
        "imported_from": answer["module"],
        "model": folder,
        "device": device,
        "dtype": dtype,
        "versions": versions(),
        "density": sum(case["density"] for case in outcomes) / len(outcomes),
        "comparisons": comparisons,
        "ok": all(found["ok"] for found in comparisons.values() if found is not None),
    }


def _model_folder(model: str | Path | None, digest: str) -> str:
    """The model to verify on: the given one, or the shipped one where the package was recorded on that."""
    if model is not None:
        model_digest(str(model))
        return str(Path(model).absolute())
    if model_digest(str(REFERENCE_MODEL)) == digest:
        return str(REFERENCE_MODEL)
    raise VortexError("this package was measured on another model than the shipped one; name its folder with --model")


def _run_package(
    exported: Package, model: str, cases: list[dict[str, Any]], device: str, dtype: str
) -> dict[str, Any]:
    """The cases through the package in a new process. Raises `VortexError` when that does not end with outcomes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory(prefix="vortex-verify-") as scratch:
        file = Path(scratch) / "cases.json"
        file.write_text(json.dumps(cases))
        command = [
            sys.executable, "-m", "vortexlab.deploy.selftest", str(exported.root.absolute()), model, str(file),
            "--module", exported.module, "--device", device, "--dtype", dtype,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, env=environment, cwd=scratch
            )
        except subprocess.TimeoutExpired:
            raise VortexError(f"the package did not end its self-test in {_SECONDS:g} s") from None
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VortexError(f"the package does not run (status {done.returncode}): {last[:300]}") from None
    if "refused" in answer:
        raise VortexError(answer["refused"])
    return dict(answer)
