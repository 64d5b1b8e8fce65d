"""Compiles a program's kernels for architectures that need not be present, and reads what they use.

Runs as a process of its own (``python -m vortexlab.kernels.gpu.aot``): a request as JSON on standard input, the
answer as JSON on standard output. `report.compile_report` is its caller and limits its time and memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import FP8, Program, Static
from vortexlab.kernels.gpu import attention_kernels, latent_kernels, launch
from vortexlab.kernels.gpu.attention import AttentionShape
from vortexlab.kernels.gpu.codegen import Kernels, generate
from vortexlab.kernels.gpu.latent import PART, LatentShape
from vortexlab.kernels.gpu.modules import load_source
from vortexlab.kernels.precision import BYTES

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_POINTERS = {name: "*i32" for name in ("table", "lengths", "pages", "counts", "wanted")} | {
    name: "*fp32" for name in ("partial", "summit", "mass")
}
#: fp8 as bytes and as the machine's own.
_FP8 = {"fp8_e4m3": ("*u8", "*fp8e4nv"), "fp8_e5m2": ("*i8", "*fp8e5")}
#: What an instruction must look like to count, in PTX and in AMD's assembly.
_INSTRUCTIONS = {
    "tensor core": r"\b(wgmma|mma\.sync|tcgen05\.mma|v_mfma)",
    "asynchronous copy": r"\bcp\.async\b|\bglobal_load_lds",
}


@dataclass(frozen=True)
class Job:
    """One kernel to compile, with the constants and options that the executor launches it with."""

    name: str
    function: Any
    constants: dict[str, Any]
    options: dict[str, int]


def jobs(kernels: Kernels, dtype: str, target: str) -> Iterator[Job]:
    """Every kernel of a step, for rows of the most pages that the selection kernel keeps in registers.

    `dtype`: of the cache.
    """
    program, static = kernels.graph.program, kernels.graph.static
    module, page = load_source(kernels.text), program.page_size
    for kernel in kernels.kernels.values():
        constants, warps = launch.shape(kernel, launch.WHOLE_ROW)
        constants["BLOCK"] = page
        if kernel.name == "summarize":
            constants |= {"NEWEST": False, "FILTER": False}
        yield Job(kernel.name, getattr(module, kernel.name), constants, {"num_warps": warps})
    if static.latent:
        yield from _latent_jobs(kernels, dtype, TARGETS[target].backend == "hip")
        return
    lists = kernels.graph.lists
    shape = AttentionShape.of(static.group // lists, static.head_dim, BYTES[query_dtype(dtype)])
    common = {
        "KV_HEADS": static.kv_heads, "LISTS": lists, "HEADS": static.group // lists, "CHANNELS": static.head_dim,
        "WIDTH": shape.width,
    }  # fmt: skip
    split = {
        "PAGE": page, "BLOCK": page, "IDENTITY": False, "DIRECT": False, "ROWS": shape.rows, "TILE": shape.tile,
        "PRECISE": shape.precise,
    }  # fmt: skip
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    yield Job("attend_split", attention_kernels.attend_split, common | split, options)
    yield Job("attend_combine", attention_kernels.attend_combine, common | {"SPLITS": 16}, {"num_warps": 4})


def _latent_jobs(kernels: Kernels, dtype: str, amd: bool) -> Iterator[Job]:
    """Attention over latent keys."""
    program, static, lists = kernels.graph.program, kernels.graph.static, kernels.graph.lists
    heads, rotary = static.group // lists, static.head_dim - static.latent
    shape = LatentShape.of(heads, static.latent, rotary, BYTES[query_dtype(dtype)], BYTES[dtype], amd)
    common = {"KV_HEADS": static.kv_heads, "LISTS": lists, "HEADS": heads, "LATENT": static.latent}
    split = {
        "ROTARY": rotary, "K_TOKEN": static.head_dim, "PAGE": program.page_size, "BLOCK": program.page_size,
        "IDENTITY": False, "DIRECT": False, "COLUMNS": shape.columns, "QUARTER": shape.quarter, "TURNED": shape.turned,
        "TILE": shape.tile, "PRECISE": shape.precise,
    }  # fmt: skip
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    yield Job("latent_split", latent_kernels.latent_split, common | split, options)
    combine = common | {"PART": PART, "SPLITS": 128}
    yield Job("latent_combine", latent_kernels.latent_combine, combine, {"num_warps": 4})


def query_dtype(dtype: str) -> str:
    """The precision of queries over a cache of this one."""
    return "bf16" if dtype in FP8 else dtype


def compile_job(job: Job, kernels: Kernels, dtype: str, target: GPUTarget) -> Any:
    """Triton's compiled kernel."""
    names = job.function.arg_names
    signature = {
        name: "constexpr" if name in job.constants else _type(name, dtype, kernels, job.name, target) for name in names
    }
    # Tensors and their strides are multiples of 16 wherever the executor runs fast; assume it here too.
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or _is_stride(name)]
    attrs = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=job.function, signature=signature, constexprs=job.constants, attrs=attrs)
    return triton.compile(source, target=target, options=job.options)


def _is_stride(name: str) -> bool:
    return name.endswith(("_row", "_head", "_block", "_token")) and name != "list_row"


def _stored(dtype: str, target: GPUTarget) -> str:
    """Type of a pointer to numbers as they are handed to kernels; see `vortexlab.kernels.gpu.fp8`."""
    if dtype not in FP8:
        return "*" + dtype
    native = target.backend == "cuda" and int(target.arch) >= 89
    return _FP8[dtype][native]


def _type(name: str, dtype: str, kernels: Kernels, kernel: str, target: GPUTarget) -> str:
    """Type of a parameter in Triton's notation."""
    if name in _POINTERS:
        return _POINTERS[name]
    if name in ("k", "v"):
        return _stored(dtype, target)
    if name in ("q", "out"):
        return "*" + query_dtype(dtype)
    match = re.fullmatch(r"([fbprst])(\d+)", name)
    if match is None:
        return "fp32" if name == "scale" else "i32"
    if match[1] == "f":
        stored = kernels.graph.program.summary_dtype
        stored = dtype if stored == "kv" else stored
        return "*u8" if stored in FP8 and kernel == "summarize" else _stored(stored, target)
    exact_int = match[1] == "t" and kernels.graph.ops[int(match[2])].kind != "float"
    return "*i64" if exact_int else "*fp32"


def _resources(compiled: Any, target: GPUTarget) -> dict[str, int]:
    """Registers a thread, bytes spilled a thread, bytes of shared memory a program."""
    shared = int(compiled.metadata.shared)
    if target.backend == "hip":
        found = re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", compiled.asm["amdgcn"])
        counts = {key: int(value) for key, value in found}
        spilled = 4 * counts["vgpr_spill_count"]
        return {"registers": counts["vgpr_count"], "spilled_bytes": spilled, "shared_bytes": shared}
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+).*? LOCAL:(\d+)", usage)
    if match is None:
        raise VortexError(f"cuobjdump did not report the resources of a kernel: {usage.strip()[:200]!r}")
    return {"registers": int(match[1]), "spilled_bytes": int(match[2]) + int(match[3]), "shared_bytes": shared}


def reports(program: Program, static: Static, targets: list[str], dtype: str) -> list[dict[str, Any]]:
    """One report per kernel and target, with the fields of `report.KernelReport`."""
    kernels = generate(program, static, dtype, query_dtype(dtype))
    found = []
    for target in targets:
        for job in jobs(kernels, dtype, target):
            try:
                compiled = compile_job(job, kernels, dtype, TARGETS[target])
            except Exception as error:
                reason = str(error).strip().splitlines()
                raise VortexError(
                    f"program {program.name}: kernel {job.name} does not compile for {target}: "
                    f"{type(error).__name__}: {reason[-1][:300] if reason else ''}"
                ) from error
            text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
            uses = [kind for kind, pattern in _INSTRUCTIONS.items() if re.search(pattern, text)]
            found.append({"kernel": job.name, "target": target, **_resources(compiled, TARGETS[target]), "uses": uses})
    return found


def main() -> int:
    """Answers one request; an error of the program's is an answer too."""
    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.read())
    answer: dict[str, Any]
    try:
        program, static = Program.from_json(request["program"]), Static(**request["static"])
        answer = {"reports": reports(program, static, request["targets"], request["dtype"])}
    except VortexError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
