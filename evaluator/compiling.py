"""The compile gate: a program's GPU kernels, for targets that need not be present, in a process with limits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vortexlab.dsl.canonical import canonical_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static, digest
from vortexlab.kernels.gpu.coverage import NotCovered
from vortexlab.kernels.gpu.launch import SHARED_BYTES
from vortexlab.kernels.gpu.report import compile_report

SECONDS, MEMORY_MB = 60.0, 6144
#: A kernel that spills more than this per thread moves its scores through memory: no sane resource use.
_SPILL_BYTES = 2048


def report(program: Program, static: Static, targets: list[str], dtype: str, folder: Path) -> dict[str, Any]:
    """What the program's kernels use on each target, and why that fails (empty: it does not).

    Results are kept in `folder` by the program's content, geometry and targets.
    """
    key = digest([canonical_hash(program), asdict(static), sorted(targets), dtype])
    kept = folder / f"{key}.json"
    if kept.exists():
        return {**json.loads(kept.read_text()), "cached": True}
    try:
        found = compile_report(program, static, targets, dtype, seconds=SECONDS, memory_mb=MEMORY_MB)
        kernels = [{**asdict(item), "uses": list(item.uses)} for item in found]
        answer = {"failure": _excess(kernels), "kernels": kernels}
    except NotCovered as error:
        # Such a program runs on the torch executor, on a GPU too; there are no kernels of its own to judge.
        answer = {"failure": "", "not_covered": list(error.what), "kernels": []}
    except VortexError as error:
        answer = {"failure": str(error), "kernels": []}
    folder.mkdir(exist_ok=True)
    kept.write_text(json.dumps(answer))
    return {**answer, "cached": False}


def _excess(kernels: list[dict[str, Any]]) -> str:
    for kernel in kernels:
        name = f"kernel {kernel['kernel']} for {kernel['target']}"
        there = SHARED_BYTES[kernel["target"]]
        if kernel["shared_bytes"] > there:
            return f"{name} needs {kernel['shared_bytes']} bytes of shared memory; {there} are there"
        if kernel["spilled_bytes"] > _SPILL_BYTES:
            return f"{name} spills {kernel['spilled_bytes']} bytes a thread; summarise or score with smaller axes"
    return ""
