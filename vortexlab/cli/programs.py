"""One program at a time: `vortex check`, `eval`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import (
    AsJson,
    interval,
    kv_cache,
    lines,
    number,
    print_gates,
    print_json,
    printable,
    settings,
    table,
    where,
)
from vortexlab.dsl.errors import Diagnostic, ProgramError, VortexError

if TYPE_CHECKING:
    from vortexlab.dsl.ir import Program, Static
    from vortexlab.evaluator.geometries import Geometry
    from vortexlab.kernels.cost import Prediction

Targets = Annotated[
    list[str] | None, typer.Option("--target", help="GPU architecture to compile for, repeatable; `none` for none.")
]
Batch = Annotated[int | None, typer.Option(min=1, help="Requests decoded together.")]
Latent = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Latent channels of a key: makes the geometry one of MLA.")
]
CheckDevices = Annotated[list[str] | None, typer.Option("--predict-for", metavar="DEVICE", help="Repeatable.")]


def read_program(file: str) -> tuple[str, Program]:
    """The text and the program of a file. Raises `ProgramError` whose line begins with the file's name."""
    from vortexlab import dsl

    text = _text(file)
    try:
        return text, dsl.parse(text)
    except ProgramError as error:
        raise _Located(file, list(error.diagnostics)) from None


def _text(file: str) -> str:
    """The text of a file, or of a published program where a bare word names no file."""
    from vortexlab.dsl.parser import read_text
    from vortexlab.search_spaces import library

    if file.isidentifier() and not Path(file).exists():
        return library.source(file)
    return read_text(file)


class _Located(ProgramError):
    def __init__(self, file: str, diagnostics: list[Diagnostic]):
        super().__init__(diagnostics)
        self.args = (f"{file}:{self.args[0]}",)


def check(
    file: options.ProgramFile,
    knob: options.Knobs = None,
    parameters: options.Parameters = None,
    target: Targets = None,
    geometry: options.Geometry = None,
    latent: Latent = None,
    lengths: options.Lengths = None,
    batch: Batch = 4,
    dtype: Annotated[
        str, typer.Option(help="Precision of KV caches, the dense one included: bf16, fp16, fp32, fp8_e4m3, fp8_e5m2.")
    ] = "bf16",
    predict_for: CheckDevices = None,
    as_json: AsJson = False,
) -> int:
    """Findings with line, column and hint; what saturates; GPU resources compiled ahead of time; predicted cost."""
    from vortexlab import dsl
    from vortexlab.dsl.bounds import page_bound

    text = _text(file)
    program, findings = dsl.check(text)
    found: dict[str, Any] = {"file": file, "ok": program is not None, "diagnostics": [f.to_json() for f in findings]}
    if program is None:
        if as_json:
            print_json(found)
        else:
            _print_findings(file, text, findings)
        raise _Located(file, [finding for finding in findings if finding.severity == "error"])
    from vortexlab import binding, saturation
    from vortexlab.cli.facts import facts
    from vortexlab.evaluator.geometries import find_geometry
    from vortexlab.kernels.cost import predict
    from vortexlab.kernels.devices import DEVICES
    from vortexlab.kernels.precision import cache_name

    shape = find_geometry(geometry or _default_geometry())
    if latent is not None:
        shape = shape.with_latent(latent)
    values = options.knob_values(program, knob)
    bound = binding.bind(program, values, parameters)
    binding.check_latent(bound, shape)
    static = shape.static()
    if parameters is not None:
        binding.check_fit(bound, shape)
    kv_dtype = cache_name(bound, dtype)
    contexts = options.numbers("--lengths", lengths) or (4096, 16384, 131072)
    costs = [
        predict(bound, static, context, batch or 1, device, dtype=dtype)
        for device in predict_for or DEVICES
        for context in contexts
    ]
    kernels, failure, missing = _compile(bound, static, target, kv_dtype)
    found.update(
        ok=not failure,
        name=program.name,
        hash=dsl.canonical_hash(bound),
        structure=dsl.structure_hash(program),
        published_as=_published(program),
        page=bound.page_size,
        knobs=[{**asdict(item), "choices": list(item.choices), "value": values.get(item.name, item.default)}
               for item in program.knobs.values()],
        geometry=shape.to_json(),
        dtype=dtype,
        kv_dtype=kv_dtype,
        page_bounds={str(context): page_bound(bound, static, context) for context in contexts},
        kernels=kernels,
        compile_failure=failure,
        not_covered=missing,
        **facts(bound, shape),
        saturation=saturation.report(bound, shape, kv_dtype),
        costs=[item.to_json() for item in costs],
    )  # fmt: skip
    if as_json:
        print_json(found)
    else:
        _print_findings(file, text, findings)
        _print_check(found, costs, shape)
    return 1 if failure else 0


def _default_geometry() -> str:
    from vortexlab.evaluator.config import EvaluationConfig

    return str(EvaluationConfig.__dataclass_fields__["geometry"].default)


def _published(program: Program) -> str | None:
    """The published program of the same structure, if there is one."""
    from vortexlab import dsl
    from vortexlab.search_spaces.library import NAMES, load

    mine = dsl.structure_hash(program)
    return next((name for name in NAMES if dsl.structure_hash(load(name)) == mine), None)


def _compile(
    bound: Program, static: Static, targets: list[str] | None, dtype: str
) -> tuple[list[dict[str, Any]], str, list[str]]:
    """Resources of every kernel for every target, why that failed (empty: it did not), and what has no kernels."""
    from vortexlab.kernels.gpu.coverage import uncovered
    from vortexlab.kernels.gpu.report import TARGETS, compile_report

    wanted = TARGETS if targets is None else tuple(item for item in targets if item != "none")
    unknown = [item for item in wanted if item not in TARGETS]
    if unknown:
        raise VortexError(f"unknown target {unknown[0]!r}; choose from {', '.join(TARGETS)}, or none")
    missing = list(uncovered(bound, static))
    if not wanted or missing:
        return [], "", missing
    try:
        reports = compile_report(bound, static, wanted, dtype)
    except VortexError as error:
        return [], str(error), []
    return [{**asdict(item), "uses": list(item.uses)} for item in reports], "", []


def _print_findings(file: str, text: str, findings: list[Diagnostic]) -> None:
    source = text.splitlines()
    for finding in findings:
        print(printable(f"{file}:{finding}"))
        if 0 < finding.line <= len(source):
            shown = source[finding.line - 1].replace("\t", " ")
            print(printable(f"    {shown}\n    {' ' * (finding.column - 1)}^"))


def _print_check(found: dict[str, Any], costs: list[Prediction], geometry: Geometry) -> None:
    from vortexlab.cli.facts import told

    known = f", the published program {found['published_as']}" if found["published_as"] else ""
    lines({
        "program": f"{found['name']} {found['hash'][:12]} (structure {found['structure'][:12]}{known})",
        "page": f"{found['page']} tokens",
        "knobs": settings({item["name"]: item["value"] for item in found["knobs"]}),
        **told(found, geometry),
        "pages read": "at most " + ", ".join(f"{n} at {length}" for length, n in found["page_bounds"].items()),
    })  # fmt: skip
    if found["saturation"]:
        _print_saturation(found["saturation"])
    if found["kernels"]:
        print()
        table(
            f"kernels, compiled ahead of time for {geometry.name} in {found['kv_dtype']}",
            ("target", "kernel", "registers", "spilled B", "shared B", "uses"),
            [
                (k["target"], k["kernel"], str(k["registers"]), str(k["spilled_bytes"]), str(k["shared_bytes"]),
                 ", ".join(k["uses"]) or "-")
                for k in found["kernels"]
            ],
            right=("registers", "spilled B", "shared B"),
        )  # fmt: skip
    if found["not_covered"]:
        print(printable(f"not covered by the Triton kernels, which the CPU runs: {', '.join(found['not_covered'])}"))
    if found["compile_failure"]:
        print(printable(f"does not compile: {found['compile_failure']}"))
    print()
    table(
        f"PREDICTED decode step of one layer: {geometry.name}, batch {costs[0].batch}, KV cache in "
        f"{found['kv_dtype']}, that of dense attention in {found['dtype']}",
        ("device", "rates", "context", "density", "step us", "dense us", "speed-up", "if bytes were time"),
        [
            (item.device.name, item.device.evidence, str(item.context), number(item.density),
             number(item.seconds * 1e6, 1), number(item.dense.seconds * 1e6, 1), f"{item.speedup_over_dense:.2f}x",
             f"{item.ideal:.2f}x")
            for item in costs
        ],
        right=("context", "density", "step us", "dense us", "speed-up", "if bytes were time"),
    )  # fmt: skip


def _print_saturation(found: dict[str, Any]) -> None:
    """Beyond the range a number saturates in fp8 and is infinite in fp16."""
    print()
    right = ("numbers", "beyond the range", "become 0", "not finite")
    table(
        "MEASURED share of stored and cast numbers that their precision cannot hold",
        ("input", "what", "in", *right),
        [
            (row["input"], row["what"] + (f", line {row['line']}" if row["line"] else ""), row["dtype"],
             str(row["numbers"]), *(f"{100 * row[key]:.3g} %" for key in ("over", "under", "not_finite")))
            for row in found["rows"]
        ],
        right=right,
    )  # fmt: skip
    for name, about in found["inputs"].items():
        print(printable(f"{name}: {about}"))
    for text in found["left_out"]:
        print(printable(f"not counted: {text}"))


def evaluate(
    file: options.ProgramFile,
    knob: options.Knobs = None,
    parameters: options.Parameters = None,
    model_dir: options.ModelDir = None,
    tasks: options.Tasks = None,
    data: options.Data = None,
    source: options.Source = None,
    template: options.Template = None,
    dense_floor: options.DenseFloor = None,
    score: options.Score = None,
    lengths: options.Lengths = None,
    contexts: options.Contexts = None,
    speed: options.Speed = None,
    predict_for: options.PredictFor = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    geometry: options.Geometry = None,
    batch_tokens: options.BatchTokens = None,
    threads: options.Threads = None,
    context_cache: options.ContextCache = None,
    memory_mb: options.MemoryMb = None,
    screen: Annotated[bool, typer.Option("--screen", help="Stop after the screen, before speed.")] = False,
    as_json: AsJson = False,
) -> int:
    """One program through the gates of a search; status 1 when one of them says no."""
    from vortexlab import binding
    from vortexlab.evaluator.evaluator import FULL, SCREEN, Evaluator
    from vortexlab.settings import evaluation_config

    text, program = read_program(file)
    values = options.knob_values(program, knob)
    config = evaluation_config(
        model_dir=model_dir,
        tasks=options.words(tasks),
        data=data or (),
        sources=source or (),
        template=template,
        dense_floor=dense_floor,
        score=score,
        lengths=options.numbers("--lengths", lengths),
        contexts=contexts,
        speed=speed,
        predict_for=predict_for,
        device=device,
        dtype=dtype,
        geometry=geometry,
        batch_tokens=batch_tokens,
        threads=threads,
        context_cache=context_cache,
        memory_mb=memory_mb,
    )
    bound = binding.bind(program, values, parameters)
    binding.check_evaluation(bound, config)
    with Evaluator(config) as evaluator:
        if not as_json:
            print("reading the contexts densely, then the gates (up to some minutes)", file=sys.stderr)
        fidelity = SCREEN if screen else FULL
        verdict = evaluator.evaluate(text, values, fidelity=fidelity, parameters=bound.parameters)
    if as_json:
        print_json({"file": file, "verdict": verdict.to_json()})
    else:
        _print_verdict(verdict.to_json())
    return 0 if verdict.accepted else 1


def _print_verdict(verdict: dict[str, Any]) -> None:
    stopped = f" by gate {verdict['gate']}: {verdict['reason']}" if verdict["gate"] else ""
    conditions = verdict["conditions"]
    how = where(str(conditions.get("speed", "")), str(conditions.get("device", "")))
    lines({
        "program": f"{verdict['program']} {verdict['source_hash'][:12]}",
        "knobs": settings(verdict["knobs"]),
        "status": f"{verdict['status']}{stopped}",
        "speed-up": f"{interval(verdict['speedup'])} {how}",
        "accuracy kept": f"{interval(verdict['accuracy'])} on {verdict['answers']} answers "
                         f"from {verdict['contexts']} contexts",
        "density": number(verdict["density"], 4),
        "KV cache": kv_cache(conditions),
        "seconds": number(verdict["seconds"], 1),
    })  # fmt: skip
    print_gates(verdict)
