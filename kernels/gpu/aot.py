"""Compiles a program's kernels for architectures that need not be present, and reads what they use.

Runs as a process of its own (``python -m vortexlab.kernels.gpu.aot``): requests and answers are lines of JSON on
standard input and output. `report.compile_report` is its caller and limits time and memory.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import FP8, SET, Node, Program, Static, Type
from vortexlab.kernels.gpu import attention_kernels, latent_hopper, latent_kernels, launch, prefill_kernels
from vortexlab.kernels.gpu.attention import AttentionShape
from vortexlab.kernels.gpu.codegen import Kernels, generate_phases, query_dtype
from vortexlab.kernels.gpu.forks import in_forks, serve
from vortexlab.kernels.gpu.graph import Listing
from vortexlab.kernels.gpu.latent import PART, LatentShape
from vortexlab.kernels.gpu.modules import load_source
from vortexlab.kernels.gpu.prefill import PrefillShape, tile_queries
from vortexlab.kernels.precision import BYTES

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_INTEGERS = ("table", "lengths", "work", "pages", "counts", "wanted", "entries", "tokens")
_FLOATS = ("partial", "summit", "mass", "weights", "k_scales", "v_scales")
_POINTERS = dict.fromkeys(_INTEGERS, "*i32") | dict.fromkeys(_FLOATS, "*fp32")
#: fp8 as bytes and as the machine's own.
_FP8 = {"fp8_e4m3": ("*u8", "*fp8e4nv"), "fp8_e5m2": ("*i8", "*fp8e5")}
#: What an instruction must look like to count, in PTX and in AMD's assembly.
_INSTRUCTIONS = {
    "tensor core": r"\b(wgmma|mma\.sync|tcgen05\.mma|v_mfma)",
    "asynchronous copy": r"\bcp\.async\b|\bglobal_load_lds",
}


@dataclass(frozen=True)
class Job:
    """One kernel to compile, with the constants and options that the executor launches it with, and the precisions of
    tensors where they are not those of query and cache."""

    name: str
    function: Any
    constants: dict[str, Any]
    options: dict[str, int]
    held: dict[str, str] = field(default_factory=dict)


def jobs(kernels: Kernels, dtype: str, target: str) -> Iterator[Job]:
    """Every kernel of a step, or of blocks of prefill queries (``prefill_...``), for rows of the most pages that the
    selection kernel keeps in registers.

    `dtype`: of the cache.
    """
    static, page = kernels.graph.static, kernels.graph.program.page_size
    module, prefix = load_source(kernels.text), "prefill_" if static.prefill else ""
    for kernel in kernels.kernels.values():
        constants, options = launch.shape(kernel, launch.WHOLE_ROW)
        more = {"BLOCK": page, "CHAINED": False, "NEWEST": False, "FILTER": False}
        constants |= {name: value for name, value in more.items() if f"{name}: tl.constexpr" in kernel.params}
        yield Job(prefix + kernel.name, getattr(module, kernel.name), constants, options)
    if static.latent:
        yield from _latent_jobs(kernels, dtype, target)
    else:
        yield from _attend_blocks(kernels, dtype, target) if static.prefill else _attend_step(kernels, dtype)


def _attend_step(kernels: Kernels, dtype: str) -> Iterator[Job]:
    """Attention of a decode step; where a program attends by itself, a kernel for each way in which it does."""
    graph, page = kernels.graph, kernels.graph.program.page_size
    static, lists, stored = graph.static, graph.lists, _summary_dtype(kernels, dtype)
    heads, asked = static.group // lists, query_dtype(dtype)

    def split(name: str, listing: Listing | None = None, joined: bool = False) -> Job:
        entries = listing.entries if listing else 0
        # As in a step, a query meets entries of another precision in fp32.
        query = asked if not entries or stored == asked else "fp32"
        shape = AttentionShape.of(heads, static.head_dim, BYTES[query])
        weights = graph.weights(listing) if listing and listing.weight is not None else 0
        constants = {
            "KV_HEADS": static.kv_heads, "LISTS": lists, "HEADS": heads, "CHANNELS": static.head_dim,
            "ATOM": entries or page, "BLOCK": entries or page, "IDENTITY": False, "DIRECT": False, "ROWS": shape.rows,
            "WIDTH": shape.width, "TILE": shape.tile, "PRECISE": shape.precise, "CHAINED": False, "WEIGHTS": weights,
            "PAGE": (entries or page) if weights else 1, "SCALED": bool(entries) and stored in FP8, "JOINED": joined,
        }  # fmt: skip
        options = {"num_warps": shape.warps, "num_stages": shape.stages}
        held = {"q": query, "k": stored, "v": stored} if entries else {}
        return Job(name, attention_kernels.attend_split, constants, options, held)

    found: dict[str, Job] = {} if graph.attentions else {"attend_split": split("attend_split")}
    for attention in graph.attentions.values():
        parts = [graph.listings[part] for part in (attention.tokens, attention.entries) if part is not None]
        for listing in parts:
            name = "attend_entries" if listing.entries else "attend_split"
            job = split(name, listing, len(parts) > 1)
            if all(job.constants != other.constants for other in found.values()):
                name += f"_{len(found)}" if name in found else ""
                found[name] = replace(job, name=name)
    yield from found.values()
    combine = {
        "KV_HEADS": static.kv_heads, "LISTS": lists, "HEADS": heads, "CHANNELS": static.head_dim,
        "WIDTH": AttentionShape.of(heads, static.head_dim, BYTES[asked]).width, "SPLITS": 64, "CHAINED": False,
    }  # fmt: skip
    yield Job("attend_combine", attention_kernels.attend_combine, combine, {"num_warps": 4})


def _attend_blocks(kernels: Kernels, dtype: str, target: str) -> Iterator[Job]:
    program, static, lists = kernels.graph.program, kernels.graph.static, kernels.graph.lists
    assert isinstance(program.block, int)
    block, page, heads = program.block, program.page_size, static.group // lists
    shape = PrefillShape.of(block, heads, static.head_dim, BYTES[dtype], launch.SHARED_BYTES[target])
    constants = {
        "KV_HEADS": static.kv_heads, "LISTS": lists, "HEADS": heads, "CHANNELS": static.head_dim, "PAGE": page,
        "BLOCK": page, "IDENTITY": False, "QUERIES": tile_queries(block, heads, shape), "ROWS": shape.rows,
        "WIDTH": shape.width, "TILE": shape.tile, "PRECISE": shape.precise,
    }  # fmt: skip
    yield Job("attend_prompt", prefill_kernels.attend_prompt, constants, shape.options())


def _latent_jobs(kernels: Kernels, dtype: str, target: str) -> Iterator[Job]:
    """Attention over latent keys."""
    static, page, lists = kernels.graph.static, kernels.graph.program.page_size, kernels.graph.lists
    rotary = static.head_dim - static.latent
    shape = LatentShape.of(
        static.latent, rotary, BYTES[query_dtype(dtype)], BYTES[dtype], launch.SHARED_BYTES[target], target == "sm_90"
    )
    common = {"KV_HEADS": static.kv_heads, "LISTS": lists, "HEADS": static.group // lists, "CHAINED": False}
    split = {
        "LATENT": static.latent, "ROTARY": rotary, "K_TOKEN": static.head_dim, "ATOM": page, "BLOCK": page,
        "IDENTITY": False, "DIRECT": False,
    }  # fmt: skip
    options = shape.options()
    sizes = {name: options.pop(name) for name in list(options) if name.isupper()}
    function = latent_hopper.latent_split_hopper if shape.hopper else latent_kernels.latent_split
    yield Job(function.__name__, function, common | split | sizes, options)
    combine = common | {"CHANNELS": static.latent, "WIDTH": PART, "SPLITS": 128}
    yield Job("attend_combine", attention_kernels.attend_combine, combine, {"num_warps": 4})


def compile_job(job: Job, kernels: Kernels, dtype: str, target: GPUTarget) -> Any:
    """Triton's compiled kernel."""
    names = job.function.arg_names
    types = {name: _type(name, dtype, kernels, job.name, target) for name in names}
    types |= {name: _stored(held, target) for name, held in job.held.items()}
    signature = {name: "constexpr" if name in job.constants else kind for name, kind in types.items()}
    # Tensors and their strides are multiples of 16 wherever the executor runs fast; assume it here too.
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or _is_stride(name)]
    attrs = {(i,): [["tt.divisibility", 16]] for i in aligned}
    kind = GluonASTSource if job.function.is_gluon() else ASTSource
    source = kind(fn=job.function, signature=signature, constexprs=job.constants, attrs=attrs)
    return triton.compile(source, target=target, options=job.options)


def _is_stride(name: str) -> bool:
    return name.endswith(("_row", "_head", "_block", "_token")) and name != "list_row"


def _stored(dtype: str, target: GPUTarget) -> str:
    """Type of a pointer to numbers as they are handed to kernels; see `vortexlab.kernels.gpu.fp8`."""
    if dtype not in FP8:
        return "*" + dtype
    native = target.backend == "cuda" and int(target.arch) >= 89
    return _FP8[dtype][native]


def _summary_dtype(kernels: Kernels, dtype: str) -> str:
    stored = kernels.graph.program.summary_dtype
    return dtype if stored == "kv" else stored


def _type(name: str, dtype: str, kernels: Kernels, kernel: str, target: GPUTarget) -> str:
    """Type of a parameter in Triton's notation."""
    listed = name.rstrip("0123456789")  # selection kernels may write several lists
    if listed in _POINTERS:
        return _POINTERS[listed]
    if name == "q" and kernel.startswith("prefill_"):
        return "*fp32"  # blocks select with a query of their own
    if name in ("k", "v"):
        return _stored(dtype, target)
    if name in ("q", "out"):
        return "*" + query_dtype(dtype)
    match = re.fullmatch(r"([abfprstw])(\d+)", name)
    if match is None:
        return "fp32" if name == "scale" else "i32"
    if match[1] == "f":
        stored = _summary_dtype(kernels, dtype)
        return "*u8" if stored in FP8 and kernel.endswith("summarize") else _stored(stored, target)
    whole = match[1] in "tw" and kernels.graph.ops[int(match[2])].kind != "float"
    return {"t": "*i64", "w": "*i32"}[match[1]] if whole else "*fp32"


def resources(compiled: Any, target: GPUTarget) -> dict[str, int]:
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
    phases = generate_phases(program, static, dtype)
    wanted = [(phase, job, name) for name in targets for phase in phases for job in jobs(phase, dtype, name)]
    found = []
    for answer in in_forks(lambda item: _report(*item, program, dtype), wanted, len(os.sched_getaffinity(0))):
        if "error" in answer:
            raise VortexError(answer["error"])
        found.append(answer)
    return found


def _report(kernels: Kernels, job: Job, name: str, program: Program, dtype: str) -> dict[str, Any]:
    """One kernel's report for a target, or what kept it from being compiled."""
    target = TARGETS[name]
    try:
        compiled = compile_job(job, kernels, dtype, target)
        text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
        uses = [kind for kind, pattern in _INSTRUCTIONS.items() if re.search(pattern, text)]
        return {"kernel": job.name, "target": name, **resources(compiled, target), "uses": uses}
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[-1][:300]
        kind = f"kernel {job.name} does not compile for {name}: {type(error).__name__}"
        return {"error": f"program {program.name}: {kind}: {reason}"}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Of one request; an error of the program's is an answer too."""
    try:
        program, static = Program.from_json(request["program"]), Static(**request["static"])
        return {"reports": reports(program, static, request["targets"], request["dtype"])}
    except VortexError as error:
        return {"error": str(error)}


def warm() -> None:
    """Compiles the smallest kernel that there is, so that forks need not begin with what every first one does."""
    everything = Program(name="everything", page=16, nodes=(Node("everything", Type(SET)),), fields={}, output=0)
    kernels = generate_phases(everything, Static(1, 1, 16, 1.0), "bf16")[0]
    smallest = list(jobs(kernels, "bf16", "sm_90"))[-1]
    with suppress(Exception):  # whoever asks is told what is wrong here
        compile_job(smallest, kernels, "bf16", TARGETS["sm_90"])


def main() -> int:
    warnings.simplefilter("ignore")
    warm()
    serve(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
