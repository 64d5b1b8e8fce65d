"""A winner into a serving engine: `vortex export`, `vortex verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, interval, lines, print_json, table
from vortexlab.cli.results import RunAndId

if TYPE_CHECKING:
    from vortexlab.kernels.gate import Gate


def export(
    values: RunAndId,
    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help="transformers, vllm or sglang.")] = "transformers",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="By default exports/ID in the run's folder.")] = None,
    cases: Annotated[int, typer.Option(min=1, max=64, help="Questions of the self-test.")] = 4,
    length: Annotated[int | None, typer.Option(min=64, help="Tokens of their contexts.")] = None,
    parameters: options.Parameters = None,
    gate: Annotated[bool, typer.Option("--gate", help="Measure here where dense is faster; use dense there.")] = False,
    one_protocol: Annotated[
        bool, typer.Option("--one-protocol", help="Do not measure accuracy under the other protocol too.")
    ] = False,
    runs: Runs = "runs",
    as_json: AsJson = False,
) -> None:
    """Write a pip-installable package that runs a winner in a serving engine, with a self-test."""
    from vortexlab.agent.run import Run

    run, (identifier,) = options.run_and_rest(values, 1, 1, "[RUN] ID")
    opened = Run.open(run, runs)
    trial = opened.history.find(identifier)
    from vortexlab.exporting import export_member  # loads torch, which a wrong word should not wait for

    target = out or opened.folder / "exports" / f"{trial.id}-{to}"
    written = export_member(
        opened, trial.id, to, target, cases=cases, length=length, parameters=parameters, gate=gate,
        protocols=not one_protocol,
    )  # fmt: skip
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
        "install": f"pip install --no-deps {quote(str(target))}",
        "check": f"vortex verify {quote(str(target))}",
        "dense gate": _gated(written.gate),
    })  # fmt: skip


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported package, or where pip installed it.")],
    model: Annotated[str | None, typer.Option("--model", metavar="DIR", help="Model to verify on.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="By default where it was recorded.")] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="transformers or vllm; by default the package's own.")
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The interpreter that the engine is installed in; by default this one."),
    ] = None,
    accuracy: Annotated[
        int, typer.Option(min=0, help="Ask sealed questions through the engine: so many contexts a task.")
    ] = 0,
    speed: Annotated[bool, typer.Option("--speed", help="Time it against the engine's own attention.")] = False,
    lengths: Annotated[list[int] | None, typer.Option("--length", min=64, help="Of timed prompts; repeatable.")] = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Of timed requests; repeatable.")] = None,
    allow_slow: Annotated[
        bool, typer.Option("--allow-slow", help="Status 0 also where the engine's own attention is faster.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Prove that a package computes what the evaluator measured; status 1 when it does not."""
    from vortexlab.settings import pick_device
    from vortexlab.verifying import verify_package

    found = verify_package(
        folder, model=model, device=None if device is None else pick_device(device), engine=engine,
        python=python or sys.executable, accuracy=accuracy, speed=speed, lengths=tuple(lengths or ()),
        batches=tuple(batches or ()),
    )  # fmt: skip
    parts = {**found["comparisons"], **{name: found.get(name) for name in ("selections", "served", "accuracy")}}
    if allow_slow:
        found["ok"] = all(part["ok"] for part in parts.values() if part)
    ok = found["ok"]
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
        _print_more(found)
        print("verified" if ok else "NOT VERIFIED")
    return 0 if ok else 1


def _print_more(found: dict[str, Any]) -> None:
    """What was looked at in the engine beside the self-test."""
    if whole := found.get("served"):
        lines({"whole prompt dense, too": _judged(whole)})
    if picked := found.get("selections"):
        print(
            f"selections: {picked['lists']} lists of {picked['steps']} steps, {picked['wrong']} that the reference "
            "does not allow"
        )
    if kept := found.get("accuracy"):
        for side in ("engine", "evaluator"):
            print(
                f"accuracy kept, {side}: {interval(kept[side]['kept'])} on {kept['answers']} sealed answers (dense "
                f"{kept[side]['dense']:.3f})"
            )
    if timed := found.get("speed"):
        table(
            "",
            ["tokens", "batch", "first token, dense", "sparse", "between, dense", "p95", "gate off", "p95", "gate on",
             "p95", "sparse steps", "dense / deployed"],
            [_timed(row) for row in timed["rows"]],
        )  # fmt: skip


def _timed(row: dict[str, Any]) -> list[str]:
    dense, off, on = row["dense"], row["gate off"], row.get("gate on")
    deployed = on or off

    def ms(side: dict[str, Any] | None, name: str) -> str:
        return "-" if side is None else f"{1e3 * side[name]:.1f} ms"

    share = deployed["sparse_share"]
    return [
        str(row["length"]), str(row["batch"]), ms(dense, "first_p50"), ms(deployed, "first_p50"),
        ms(dense, "between_p50"), ms(dense, "between_p95"), ms(off, "between_p50"), ms(off, "between_p95"),
        ms(on, "between_p50"), ms(on, "between_p95"), "-" if share is None else f"{share:.0%}", f"{row['ratio']:.2f}",
    ]  # fmt: skip


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
