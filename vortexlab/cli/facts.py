"""What a program has beyond summaries, scores and a selection, as `vortex check` tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vortexlab.dsl.ir import SET, Node, Program
from vortexlab.dsl.parameters import expected_shape

if TYPE_CHECKING:
    from vortexlab.evaluator.geometries import Geometry


def facts(program: Program, geometry: Geometry) -> dict[str, Any]:
    """The parts of a bound program as JSON, with the shapes that they have in a geometry."""
    live = [program.nodes[index] for index in program.live()]
    static = geometry.static()
    return {
        "kv": program.kv_dtype,
        "summaries": program.summary_dtype,
        "parameters": [
            {"name": item.name, "tensor": item.tensor, "kind": item.kind,
             "shape": expected_shape(item, static, program.page_size)}
            for item in program.params.values()
        ],
        "parameters_digest": program.parameters.digest if program.parameters else None,
        "memories": [
            {"name": item.name, "scope": item.scope, "kind": "set" if item.type.kind == SET else "float",
             "axes": list(item.type.axes), "init": None if item.type.kind == SET else item.init, "every": item.every}
            for name, item in program.memories.items() if name in program.live_memories()
        ],
        "reuse": [_reuse(node) for node in live if node.op == "reuse"],
        "block": program.block if program.pooled is not None else None,
        "attention": [str(node.attrs["parts"]).split() for node in live if node.op == "attention"],
        "reads_latent": program.reads_latent,
    }  # fmt: skip


def _reuse(node: Node) -> dict[str, Any]:
    over = node.attrs["over"]
    return {"over": over, "every": node.attrs["every"] if over == "steps" else None, "line": node.line}


def told(found: dict[str, Any], geometry: Geometry) -> dict[str, str]:
    """The same in words, what the program does not have left out."""
    words = {
        "KV cache": "" if found["kv"] == "auto" else f"{found['kv']}, by the program's wish",
        "summaries": "" if found["summaries"] == "kv" else f"stored in {found['summaries']}",
        "parameters": "; ".join(map(_parameter, found["parameters"])),
        "memory": "; ".join(map(_memory, found["memories"])),
        "reuse": "; ".join(_reused(item) for item in found["reuse"]),
        "prefill": "" if found["block"] is None else f"one choice for each block of {found['block']} queries",
        "output": "; ".join(f"attention({', '.join(parts)})" for parts in found["attention"]),
        "latent keys": "" if not geometry.latent else (
            f"{geometry.latent} of {geometry.head_dim} channels, which are the values; {geometry.group} query heads "
            f"share one KV head{'; the program tells them from the rotary ones' if found['reads_latent'] else ''}"
        ),
    }  # fmt: skip
    if found["parameters"]:
        given = found["parameters_digest"]
        words["parameters"] += f" (file {given[:12]})" if given else " (no file given: --parameters)"
    return {name: text for name, text in words.items() if text}


def _parameter(item: dict[str, Any]) -> str:
    shape = ", ".join(f"{axis} {size}" for axis, size in item["shape"].items())
    return f"{item['tensor']} [{shape}]{' of whole numbers' if item['kind'] == 'int' else ''}"


def _memory(item: dict[str, Any]) -> str:
    what = "a set of pages" if item["kind"] == "set" else f"[{', '.join(item['axes'])}] from {item['init']:g}"
    if item["scope"] == "layer":
        return f"{item['name']} {what}, from layer to layer"
    return f"{item['name']} {what}, from step to step" + (f", every {item['every']}" if item["every"] != 1 else "")


def _reused(item: dict[str, Any]) -> str:
    if item["over"] == "layers":
        return f"a set between layers (line {item['line']})"
    return f"a set for {item['every']} steps (line {item['line']})"
