"""The clock on one program: `vortex bench`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, interval, kv_cache, lines, number, print_json, printable, settings, table
from vortexlab.cli.programs import Batch, read_program
from vortexlab.dsl.errors import VortexError


def bench(
    file: options.ProgramFile,
    knob: options.Knobs = None,
    parameters: options.Parameters = None,
    lengths: options.Lengths = None,
    batch: Batch = None,
    gate: Annotated[bool, typer.Option("--gate", help="Measure from which context on a step beats dense.")] = False,
    batches: Annotated[list[str] | None, typer.Option(help="Batches of --gate, repeated or with commas.")] = None,
    geometry: options.Geometry = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of keys, values and queries.")] = 0,
    as_json: AsJson = False,
) -> int:
    """The speed gate alone: one decode step of attention against the fastest dense path, interleaved, in one run."""
    from vortexlab import benching, binding
    from vortexlab.settings import evaluation_config

    _, program = read_program(file)
    values = options.knob_values(program, knob)
    config = evaluation_config(device=device, dtype=dtype, geometry=geometry, threads=threads,
                               lengths=options.numbers("--lengths", lengths))  # fmt: skip
    config = replace(config, seed=seed)
    bound = binding.bind(program, values, parameters)
    if gate:
        if batch is not None:
            raise VortexError("--gate is measured at several batches: give --batches instead of --batch")
        sizes = options.numbers("--batches", batches) or benching.GATE_BATCHES
        measured, found = benching.measure_gate(bound, config, sizes, config.lengths if lengths else None)
    else:
        if batches:
            raise VortexError("--batches are those of --gate; add --gate, or give one --batch")
        measured, found = None, benching.bench_program(bound, config, batch=batch)
    found = {"file": file, "program": program.name, "knobs": {**program.defaults, **values}, **found,
             "gate": measured and measured.to_json()}  # fmt: skip
    if as_json:
        print_json(json.loads(json.dumps(found)))
    else:
        _print_bench(found)
    return 1 if any(row["failure"] for row in found["rows"]) else 0


def _print_bench(found: dict[str, Any]) -> None:
    conditions = found["conditions"]
    lines({
        "program": f"{found['program']} {settings(found['knobs'])}",
        "device": f"{conditions['device']}, {conditions['threads']} threads, {conditions['dtype']}",
        "KV cache": kv_cache(conditions),
        "geometry": json.dumps(conditions["geometry"]),
        "versions": settings(conditions["versions"]),
    })  # fmt: skip
    print()
    right = ("context", "batch", "density", "step", "summary", "select", "attend", "dense")
    table(
        "MEASURED decode step of attention of one layer, in ms (medians); speed-up with its 95 % interval",
        ("context", "batch", "density", "step", "summary", "select", "attend", "dense", "dense path", "speed-up"),
        [
            (str(row["context"]), str(row["batch"]), number(row["density"]), number(row["sparse_ms"]),
             number(row["summary_ms"]), number(row["select_ms"]), number(row["attend_ms"]), number(row["dense_ms"]),
             row["baseline"], interval(row["speedup"], 2))
            for row in found["rows"] if not row["failure"]
        ],
        right=right,
    )  # fmt: skip
    for row in found["rows"]:
        if row["failure"]:
            print(printable(f"batch {row['batch']}, context {row['context']}: {row['failure']}"))
    if found["gate"]:
        print()
        table(
            "DENSE GATE: from which context on no step is slower than dense, by the lower ends of the intervals",
            ("batch", "sparse from"),
            [(str(row["batch"]), "never" if row["context"] is None else str(row["context"]))
             for row in found["gate"]["opens"]],
            right=("batch", "sparse from"),
        )  # fmt: skip
    print()
    table(
        "PREDICTED by the cost model for the same, in ms",
        ("context", "batch", "device", "step", "dense", "speed-up", "if bytes were time"),
        [
            (str(row["context"]), str(row["batch"]), item["device"], number(item["seconds"] * 1e3),
             number(item["dense"]["seconds"] * 1e3), f"{item['speedup_over_dense']:.2f}x", f"{item['ideal']:.2f}x")
            for row in found["rows"] if (item := row["predicted"])
        ],
        right=("context", "batch", "step", "dense"),
    )  # fmt: skip
