"""What a program's generated kernels use on an architecture, found without having it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels import disk
from vortexlab.kernels.disk import kernel_folder
from vortexlab.kernels.gpu import (
    attention,
    attention_kernels,
    device,
    fp8,
    latent,
    latent_hopper,
    latent_kernels,
    launch,
    prefill,
    prefill_kernels,
)
from vortexlab.kernels.gpu.codegen import Kernels, generate_phases
from vortexlab.kernels.gpu.forks import ForkLost, Server
from vortexlab.kernels.gpu.modules import replace_text, source_key

#: Shared by all who ask in this process.
_SERVER = Server("vortexlab.kernels.gpu.aot")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class KernelReport:
    """One kernel on one architecture.

    `registers`: per thread; `spilled_bytes`: of local memory per thread; `shared_bytes`: per program (thread block);
    `uses`: of ``tensor core`` and ``asynchronous copy``, those whose instructions occur.
    """

    kernel: str
    target: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    uses: tuple[str, ...] = ()


def compile_report(
    program: Program,
    static: Static,
    targets: Sequence[str] = TARGETS,
    dtype: str = "bf16",
    *,
    seconds: float = 120.0,
    memory_mb: int = 8192,
) -> list[KernelReport]:
    """Compiles every kernel of a bound program for each target, in processes of their own.

    `dtype` is that of the cache, and of the query but over a cache in fp8, whose queries are bf16. They may take
    `seconds` in all and `memory_mb` of address space each. Raises `VortexError`, in one line, for an unknown target,
    for a program whose tiles are too large, that does not compile, or that goes over a limit.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise VortexError(f"unknown target {unknown[0]!r}; choose from {', '.join(TARGETS)}")
    # Programs that cannot be written at all are refused before a process starts; known source is not compiled again.
    kept = _kept(program, generate_phases(program, static, dtype), dtype, targets)
    if kept.is_file():
        disk.touch(kept)
        return _reports(json.loads(kept.read_text()))
    request = {
        "program": program.to_json(), "static": asdict(static), "targets": list(targets), "dtype": dtype,
    }  # fmt: skip
    try:
        answer = _SERVER.ask(request, _environment(), seconds, memory_mb)
    except ForkLost as lost:
        if lost.status is None:
            why = f"compiling its kernels took over {seconds:g} s; make it smaller"
        else:
            why = f"the compiler ended with status {lost.status} (limit {memory_mb} MB): {lost.words}"
        raise VortexError(f"program {program.name}: {why}") from None
    if "error" in answer:
        raise VortexError(answer["error"])
    replace_text(kept, json.dumps(answer["reports"]))
    return _reports(answer["reports"])


def _kept(program: Program, phases: Sequence[Kernels], dtype: str, targets: Sequence[str]) -> Path:
    """Where the reports of a generated source are kept: by its content and all else that decides them."""
    modules = (
        attention, attention_kernels, device, fp8, latent, latent_hopper, latent_kernels, launch, prefill,
        prefill_kernels,
    )  # fmt: skip
    own = [Path(str(module.__file__)).read_text() for module in modules]
    own.append(Path(__file__).with_name("aot.py").read_text())
    texts = [(kernels.text, [asdict(kernel) for kernel in kernels.kernels.values()]) for kernels in phases]
    key = source_key(json.dumps([texts, program.block, dtype, list(targets), own]))
    return kernel_folder() / "reports" / f"{key}.json"


def _reports(items: list[dict[str, Any]]) -> list[KernelReport]:
    return [KernelReport(**{**item, "uses": tuple(item["uses"])}) for item in items]


def _environment() -> dict[str, str]:
    """That of the compiling process."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton's default; it warns when nothing is said
    return environment
