"""How one step of a program is cut into work, whatever device runs it.

Nodes of the query stage fall into four roles. *Exact* scalars depend on constants and facts of the step alone and are
evaluated on the host. *Flat* values have no page axis. *Narrow* values have a page axis and at most the head axis
beside it: they are small and are kept whole. *Wide* values have more axes per page (a channel, a sub-page): they are
only swept over a few pages at a time, and what a sweep leaves behind is narrow, unless something needs all pages of a
wide value at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vortexlab.dsl.ir import PAGE_STAGE, POOL_STAGE, QUERY_STAGE, SET, Node, Program, Static
from vortexlab.dsl.scalars import is_exact, scalar_value

SELECTORS = ("everything", "first", "last", "stride", "random", "topk", "topp", "above")
#: Ops that run along an axis, and over all pages when that axis is `page`.
ALONG_PAGES = ("reduce", "index", "gather", "shift", "window", "scan", "sort", "argmax")
_WHOLE = ("softmax", "share", "member", "memory", "reuse", "attention", *SELECTORS)


@dataclass(frozen=True)
class Sweep:
    """One pass over the pages: evaluates `nodes` in order on each run of pages and keeps `outputs`."""

    nodes: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """`page` and `pool` are the live nodes of these stages, `exact` the host scalars, `steps` the rest of the query
    stage in an order in which every input precedes its use: a node's index, or a `Sweep`."""

    page: tuple[int, ...]
    pool: tuple[int, ...]
    exact: frozenset[int]
    steps: tuple[int | Sweep, ...]


def over_pages(node: Node) -> bool:
    """Whether the node needs all pages of its inputs at once."""
    return node.op in _WHOLE or (node.op in ALONG_PAGES and node.attrs["axis"] == "page")


def is_wide(node: Node) -> bool:
    return "page" in node.type.axes and not set(node.type.axes) <= {"page", "head"}


def reads(node: Node) -> tuple[int, ...]:
    """The inputs whose values the node needs; numbering an axis needs its size alone."""
    return () if node.op == "index" else node.inputs


def needed(program: Program, roots: Iterable[int], given: frozenset[int] = frozenset()) -> list[int]:
    """The nodes that `roots` depend on, in order; those in `given` are known already and depend on nothing."""
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        index = stack.pop()
        if index not in seen:
            seen.add(index)
            stack.extend(() if index in given else reads(program.nodes[index]))
    return sorted(seen)


def make_plan(program: Program, roots: Iterable[int] | None = None, given: frozenset[int] = frozenset()) -> Plan:
    """The plan of a bound program.

    `roots` are the query-stage nodes to compute, by default all that anything outside sees; `given` are nodes that the
    step finds out without their inputs (sets that are reused, values that were computed before).
    """
    live = program.live()
    exact = frozenset(i for i in live if is_exact(program, i))
    page = tuple(i for i in live if program.nodes[i].stage == PAGE_STAGE)
    pool = tuple(i for i in live if program.nodes[i].stage == POOL_STAGE)
    wanted = list(roots_of(program) if roots is None else roots)
    query = [i for i in needed(program, wanted, given) if program.nodes[i].stage == QUERY_STAGE and i not in exact]
    users: dict[int, list[int]] = {i: [] for i in live}
    for i in query:
        for source in () if i in given else reads(program.nodes[i]):
            users[source].append(i)

    def swept(i: int) -> bool:
        """Whether the node is evaluated inside a sweep rather than whole."""
        node = program.nodes[i]
        if i in given or node.type.kind == SET or over_pages(node) or "page" not in node.type.axes:
            return False
        return is_wide(node) or any(is_wide(program.nodes[source]) for source in reads(node))

    def kept(i: int) -> bool:
        """Whether something outside sweeps needs what a swept node computes."""
        if not swept(i):
            return False
        return not is_wide(program.nodes[i]) or i in wanted or any(over_pages(program.nodes[u]) for u in users[i])

    done: set[int] = set(exact)
    steps: list[int | Sweep] = []

    def cone(i: int) -> set[int] | None:
        """The swept nodes that `i` needs evaluated with it, or None when something they need is not done yet."""
        found = {i}
        for source in reads(program.nodes[i]):
            if source in done:
                continue
            if not swept(source):
                return None
            more = cone(source)
            if more is None:
                return None
            found |= more
        return found

    def sweep() -> None:
        ready = {o: nodes for o in query if kept(o) and o not in done and (nodes := cone(o)) is not None}
        if ready:
            steps.append(Sweep(tuple(sorted(set().union(*ready.values()))), tuple(ready)))
            done.update(ready)

    for i in query:
        if swept(i):
            continue
        if any(source not in done for source in (() if i in given else reads(program.nodes[i]))):
            sweep()
        steps.append(i)
        done.add(i)
    if any(i not in done for i in wanted):
        sweep()
    return Plan(page, pool, exact, tuple(steps))


def roots_of(program: Program) -> list[int]:
    """The query-stage nodes that something outside a step sees: the set, the output, what is remembered, sets kept."""
    ends = [program.output, *program.live_memories().values()]
    ends += [] if program.result is None else [program.result]
    return [*ends, *(i for i in program.live() if program.nodes[i].op == "reuse")]


def node_weights(program: Program, static: Static) -> list[float]:
    """The share of steps at which each node is computed: 1 / n for what only a set kept over n steps needs, 0 for what
    only a set from the layers below needs."""
    weight = [0.0] * len(program.nodes)
    ends = [end for end in (program.output, program.result, program.pooled) if end is not None]
    for end in ends:
        weight[end] = 1.0
    memories = program.live_memories()
    for name, end in memories.items():
        item = program.memories[name]
        every = int(item.every) if item.scope == "step" and not static.prefill else 1  # type: ignore[arg-type]
        weight[end] = max(weight[end], 1.0 / every)
    for name, end in program.live_fields().items():
        weight[end] = 1.0 if name else 0.0
    for index in reversed(range(len(program.nodes))):
        node = program.nodes[index]
        share = weight[index]
        if node.op == "reuse":
            if node.attrs["over"] == "layers":
                share = float(bool(scalar_value(program, node.inputs[1], static, None)))
            elif not static.prefill:
                share = 1.0 / int(node.attrs["every"])  # type: ignore[arg-type]
        for i in reads(node):
            weight[i] = max(weight[i], share if node.op == "reuse" else weight[index])
    return weight
