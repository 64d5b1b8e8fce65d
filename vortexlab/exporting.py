"""From a recorded winner to a package that a serving engine runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortexlab import __version__, benching, binding
from vortexlab.benching import load_quietly
from vortexlab.deploy import engines, package, selftest
from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.architectures import read_config
from vortexlab.evaluator.config import (
    CONTEXT_DENSE,
    DTYPE_NAMES,
    PROMPT_DENSE,
    EvaluationConfig,
    model_digest,
    versions,
)
from vortexlab.evaluator.phases import PREFILL
from vortexlab.evaluator.record import record
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.tasks import TASKS
from vortexlab.evaluator.verdict import ACCEPTED

if TYPE_CHECKING:
    from vortexlab.agent.run import Run
    from vortexlab.agent.trials import Trial
    from vortexlab.deploy.package import Package
    from vortexlab.dsl.ir import Program
    from vortexlab.kernels.gate import Gate

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
    protocols: bool = True,
) -> Package:
    """Writes the package of an accepted trial, with a self-test on contexts of the validation split.

    `cases` questions, each of another built-in task, with contexts of `length` tokens (by default the shortest that
    the trial was measured at, or what the tasks need). `parameters`: the file that it was measured with. `gate`:
    whether to measure the dense gate, on this machine. `protocols`: whether to ask the trial's questions once more
    under the other protocol, so that the package says what accuracy an engine with stock prefill gives. Raises
    `VortexError` for an unknown id, a trial that was not accepted or was measured otherwise, what `package.write`
    refuses, and what the gate cannot be measured for.
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
    other = _other_protocol(trial, config, program) if protocols else None
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
            "other_protocol": other,
            "conditions": conditions,
        },
        selftest=tests,
        gate=measured,
    )


def _other_protocol(trial: Trial, config: EvaluationConfig, program: Program) -> dict[str, Any]:
    """The accuracy kept under the protocol that the trial was not measured under, on the same questions.

    Raises `VortexError` when the program has none under it.
    """
    from vortexlab.evaluator.evaluator import Evaluator

    protocol = CONTEXT_DENSE if config.protocol == PROMPT_DENSE else PROMPT_DENSE
    asked = replace(config, protocol=protocol, speed="predicted", compile_for=(), stop_below=0.0, promoted=1.0)
    with Evaluator(asked) as evaluator:
        found = evaluator.evaluate(trial.proposal.source, dict(trial.knobs), parameters=program.parameters)
    if found.accuracy is None:
        raise VortexError(
            f"{trial.id} has no accuracy under the protocol {protocol}: {found.reason or found.status}; export with "
            "--one-protocol to do without it"
        )
    return {
        "protocol": protocol, "accuracy": found.accuracy.to_json(), "density": found.density,
        "answers": found.answers, "contexts": found.contexts,
    }  # fmt: skip


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


def record_cases(program: Program, config: EvaluationConfig, cases: int, length: int | None = None) -> dict[str, Any]:
    """The self-test of a bound program: questions of the validation split and what the evaluator gets for them.

    `cases` read the question sparsely; `served` read the whole prompt densely, as an engine with stock prefill does.
    """
    # A user's own data stays out of a package; the built-in contexts are token ids to any model.
    tasks = _built_in(config)
    length = length or max(min(config.lengths), *(TASKS[name].shortest for name in tasks))
    contexts = -(-cases // len(tasks))
    few = replace(config.with_split("validation"), contexts=contexts, turns=1, lengths=(length,), tasks=tasks, data=())
    samples = make_suite(few).samples
    step = max(1, len(samples) // cases)
    chosen = samples[::step][:cases]
    model = load_quietly(config.model, config.device, config.resolved_dtype)
    asked = {"cases": (CONTEXT_DENSE, 1), "served": (PROMPT_DENSE, 2)}  # the first token after a dense prompt is dense
    found = {}
    for name, (protocol, least) in asked.items():
        questions = [
            {
                "context": item.context,
                "question": item.turns[0].question,
                "length": max(least, len(item.turns[0].answer)),
            }
            for item in chosen
        ]
        rows = record(program, model, questions, selftest.sketch, protocol)
        found[name] = [{"task": item.task, **case} for item, case in zip(chosen, rows, strict=True)]
    return {
        "model_digest": model_digest(config.model),
        "device": config.device,
        "dtype": config.resolved_dtype,
        "versions": versions(),
        **found,
    }
