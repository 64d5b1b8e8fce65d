"""A winner into a serving engine: `vortex export`, `vortex verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, lines, print_json
from vortexlab.cli.results import RunAndId

if TYPE_CHECKING:
    from vortexlab.kernels.gate import Gate


def export(
    values: RunAndId,
    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help="transformers.")] = "transformers",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default exports/ID in the run's folder.")] = None,
    cases: Annotated[int, typer.Option(min=1, max=64, help="Questions of the self-test.")] = 4,
    length: Annotated[int | None, typer.Option(min=64, help="Tokens of their contexts.")] = None,
    parameters: options.Parameters = None,
    gate: Annotated[bool, typer.Option("--gate", help="Measure here where dense is faster; use dense there.")] = False,
    runs: Runs = "runs",
    as_json: AsJson = False,
) -> None:
    """Write a pip-installable package that runs a winner in a serving engine, with a self-test."""
    from vortexlab.agent.run import Run

    run, (identifier,) = options.run_and_rest(values, 1, 1, "[RUN] ID")
    opened = Run.open(run, runs)
    trial = opened.history.find(identifier)
    from vortexlab.deployment import export_member  # loads torch, which a wrong word should not wait for

    target = out or opened.folder / "exports" / f"{trial.id}-{to}"
    written = export_member(opened, trial.id, to, target, cases=cases, length=length, parameters=parameters, gate=gate)
    if as_json:
        print_json({
            "run": opened.name, "id": trial.id, "engine": to, "folder": str(target), "module": written.module,
            "program_hash": written.manifest["program_hash"], "cases": len(written.selftest["cases"]),
            "gate": written.gate and written.gate.to_json(),
        })  # fmt: skip
        return
    lines({
        "package": str(target),
        "module": written.module,
        "install": f"pip install --no-deps {target}",
        "check": f"vortex verify {target}",
        "dense gate": _gated(written.gate),
    })  # fmt: skip


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported package, or where pip installed it.")],
    model: Annotated[str | None, typer.Option("--model", metavar="DIR", help="Model to verify on.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="By default where it was recorded.")] = None,
    as_json: AsJson = False,
) -> int:
    """Prove that a package computes what the evaluator measured; status 1 when it does not."""
    from vortexlab.deployment import verify_package
    from vortexlab.settings import pick_device

    found = verify_package(folder, model=model, device=None if device is None else pick_device(device))
    if as_json:
        print_json(found)
    else:
        lines({
            "package": f"{found['package']} for {found['engine']}",
            "model": f"{found['model']} ({found['dtype']} on {found['device']})",
            "density": f"{found['density']:.4f}",
            "package = evaluator now": _judged(found["comparisons"]["engine"]),
            "package = recorded": _judged(found["comparisons"]["recorded"]),
            "evaluator now = recorded": _judged(found["comparisons"]["evaluator"]),
        })  # fmt: skip
        print("verified" if found["ok"] else "NOT VERIFIED")
    return 0 if found["ok"] else 1


def _gated(gate: Gate | None) -> str:
    if gate is None:
        return "none, every step is sparse"
    return "; ".join(
        f"batch {batch}: {'never sparse' if least is None else f'sparse from {least} tokens'}"
        for batch, least in gate.opens.items()
    )


def _judged(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not compared: recorded on another model"
    return (
        f"{'yes' if found['ok'] else 'NO'}: {found['cases']} questions, {found['steps']} answer tokens, "
        f"{found['answers_that_differ']} differ; logits within {found['worst_logit_difference']:.2g} of their spread "
        f"(allowed {found['tolerance']:g}); density within {found['density_difference']:.2g}"
    )
