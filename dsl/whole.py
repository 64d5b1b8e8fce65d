"""Puts a program together from its traced methods, without what nothing depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vortexlab.dsl.errors import Diagnostic
from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import Program
from vortexlab.dsl.outline import Outline
from vortexlab.dsl.rules import Graph

MAX_PROGRAM_NODES = 400
MAX_PROGRAM_DEPTH = 128


def assemble(
    text: str,
    outline: Outline,
    graph: Graph,
    fields: Mapping[str, Value],
    output: Value,
    pooled: Value | None,
    result: Value | None,
    writes: Mapping[str, Value],
) -> Program | Diagnostic:
    """The program, or the finding that it is too large."""
    whole = Program(
        name=outline.name,
        page=outline.page,
        nodes=tuple(graph.nodes),
        seed=outline.seed,
        fields={name: value.index for name, value in fields.items()},
        output=output.index,
        knobs=outline.knobs,
        summary_dtype=outline.summary_dtype,
        doc=outline.doc,
        source=text,
        kv_dtype=outline.kv_dtype,
        params=outline.params,
        memories=outline.memories,
        writes={name: value.index for name, value in writes.items()},
        block=outline.block,
        pooled=pooled.index if pooled else None,
        result=result.index if result else None,
    )
    program = live_part(whole)
    if len(program.nodes) <= MAX_PROGRAM_NODES and _depth(program) <= MAX_PROGRAM_DEPTH:
        return program
    return outline.place.error(
        "program-too-large",
        "the program computes too much",
        found=f"{len(program.nodes)} operations",
        expected=f"at most {MAX_PROGRAM_NODES}, no chain longer than {MAX_PROGRAM_DEPTH}",
        hint="simplify it; a published program has under thirty operations",
    ).diagnostic


def live_part(program: Program) -> Program:
    """The program without what nothing outside it depends on."""
    live = program.live()
    place = {old: new for new, old in enumerate(live)}
    nodes = tuple(
        replace(program.nodes[old], inputs=tuple(place[i] for i in program.nodes[old].inputs)) for old in live
    )
    writes = program.live_memories()
    params = {str(node.attrs["name"]) for node in nodes if node.op == "param"}
    return replace(
        program,
        nodes=nodes,
        fields={name: place[index] for name, index in program.live_fields().items()},
        output=place[program.output],
        pooled=None if program.pooled is None else place[program.pooled],
        result=None if program.result is None else place[program.result],
        memories={name: memory for name, memory in program.memories.items() if name in writes},
        writes={name: place[index] for name, index in writes.items()},
        params={name: param for name, param in program.params.items() if name in params},
    )


def _depth(program: Program) -> int:
    """The longest chain of operations within one step."""
    depth: list[int] = []
    for node in program.nodes:
        below = [*node.inputs, *([program.fields[str(node.attrs["name"])]] if node.op == "field" else [])]
        depth.append(1 + max((depth[i] for i in below), default=0))
    return max(depth)
