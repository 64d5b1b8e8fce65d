"""The tuner of the attention kernels: `vortex tune`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, lines, number, print_json, table
from vortexlab.dsl.errors import VortexError


def tune(
    kv_heads: Annotated[int, typer.Option(min=1, help="KV heads.")] = 8,
    group: Annotated[int, typer.Option(min=1, help="Query heads of a KV head.")] = 4,
    head_dim: Annotated[int, typer.Option(min=1, help="Channels of a key, without --latent.")] = 128,
    latent: Annotated[int | None, typer.Option(min=1, help="Latent channels of a key, beside 64 rotary ones.")] = None,
    dtype: Annotated[str, typer.Option(help="Of KV caches: bf16, fp16, fp32, fp8_e4m3 or fp8_e5m2.")] = "bf16",
    phase: Annotated[str, typer.Option(metavar="decode|prefill", help="Decode steps, or whole prompts.")] = "decode",
    batch: Annotated[list[str] | None, typer.Option(help="Batches, repeated or with commas.")] = None,
    context: Annotated[list[str] | None, typer.Option(help="Contexts in tokens, repeated or with commas.")] = None,
    page: Annotated[int, typer.Option(min=1, help="Tokens of a page and of a block of the cache.")] = 16,
    listed: Annotated[int, typer.Option(min=0, help="Tokens of the page lists; 0 tunes dense attention alone.")] = 2048,
    seconds: Annotated[int, typer.Option(min=1, help="Nothing new is begun after so many.")] = 120,
    workers: Annotated[int, typer.Option(min=0, help="Processes that compile ahead; 0 for all processors.")] = 0,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The table; by default the user's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tiles, warps, stages and splits of the attention kernels on this GPU, where they beat the rule's."""
    import torch

    from vortexlab.kernels.gpu import tuning

    problems = _problems(
        (kv_heads, group, head_dim, latent), dtype, phase, options.numbers("--batch", batch) or (1, 8, 32),
        options.numbers("--context", context) or (4096, 32768), page, listed,
    )  # fmt: skip
    if not torch.cuda.is_available():
        raise VortexError(
            "the tuner times kernels on a GPU and torch finds none here; without a table of your own launches use the "
            "shipped tables and rules, and `vortex check F.py --target sm_90` shows what kernels use"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    name = tuning.device_name(device)
    path = Path(out) if out else tuning.user_table(name)
    before = tuning.Table.read(path, name)
    before.write(path)  # a folder that cannot be written is better known now
    found = _run(problems, device, before, path, seconds, workers or os.cpu_count() or 1)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _problems(
    heads: tuple[int, int, int, int | None], dtype: str, phase: str, batches: tuple[int, ...],
    contexts: tuple[int, ...], page: int, listed: int,
) -> list[Any]:  # fmt: skip
    """Dense attention at every batch and context, and lists where the context is longer. Raises `VortexError`."""
    from vortexlab.evaluator.geometries import Geometry
    from vortexlab.evaluator.phases import DECODE, PREFILL
    from vortexlab.kernels.gpu.tune_trial import Problem

    if phase not in (DECODE, PREFILL):
        raise VortexError(f"--phase {phase!r} is not one of {DECODE}, {PREFILL}")
    kv_heads, group, head_dim, latent = heads
    geometry = Geometry("", 1, kv_heads, group, head_dim)
    static = (geometry.with_latent(latent) if latent else geometry).static()
    if phase == PREFILL:
        static = replace(static, prefill=True)
    found = []
    for size, length in product(batches, contexts):
        found.append(Problem(static, dtype, size, length, page))
        if 0 < listed < length:
            found.append(Problem(static, dtype, size, length, page, listed))
    return found


def _run(problems: list[Any], device: Any, before: Any, path: Path, seconds: int, workers: int) -> dict[str, Any]:
    """Tunes, writing the table after every case; what `vortex tune --json` prints."""
    from vortexlab.kernels.gpu.tune import measured, tune
    from vortexlab.kernels.gpu.tune_compile import compile_ahead

    ends = time.monotonic() + seconds

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    failed = compile_ahead(problems, device, seconds / 2, workers, say) if workers > 1 else {}
    outcomes, entries, now = [], [], before
    for outcome, entry in tune(problems, device, ends - time.monotonic(), failed=failed, say=say):
        outcomes.append(outcome)
        entries += [entry] if entry is not None else []
        now = before.with_entries(entries, measured(outcomes))
        now.write(path)
    rows = [outcome.to_json() for outcome in outcomes]
    return {
        "file": str(path), "device": before.device, "seconds": seconds, "cases": len(problems), "rows": rows,
        "kept": len(entries), "entries": len(now.entries),
    }  # fmt: skip


def _print(found: dict[str, Any]) -> None:
    table(
        "microseconds of a call: medians of interleaved repeats",
        ("kernel", "batch", "length", "lists", "rule", "tuned", "faster", "choice", "reason"),
        [
            (case["kernel"], str(case["batch"]), str(case["length"]), str(case["lists"]), number(row["usual_us"], 1),
             number(row["us"], 1), "-" if row["reason"] else f"{100 * row['gain']:.1f} %",
             " ".join(f"{key} {value}" for key, value in row["choice"].items()), row["reason"])
            for row in found["rows"] if (case := row["case"])
        ],
        right=("batch", "length", "lists", "rule", "tuned", "faster"),
    )  # fmt: skip
    print()
    lines({
        "device": found["device"],
        "cases": f"{len(found['rows'])} of {found['cases']} in {found['seconds']} s; {found['kept']} beat the rule",
        "table": f"{found['file']}, {found['entries']} entries",
    })  # fmt: skip
