"""How one decode step of a program is cut into work, whatever device runs it.

Nodes of the query stage fall into four roles. *Exact* scalars depend on constants and facts of the step alone and are
evaluated on the host. *Flat* values have no page axis. *Narrow* values have a page axis and at most the head axis
beside it: they are small and are kept whole. *Wide* values have more axes per page (a channel, a sub-page): they are
never kept, only swept over a few pages at a time, and what a sweep leaves behind is narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

from vortexlab.dsl.ir import PAGE_STAGE, QUERY_STAGE, SET, Node, Program
from vortexlab.dsl.scalars import is_exact

SELECTORS = ("everything", "first", "last", "stride", "random", "topk", "topp", "above")


@dataclass(frozen=True)
class Sweep:
    """One pass over the pages: evaluates `nodes` in order on each run of pages and keeps `outputs`."""

    nodes: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """`page` are the live nodes of the page stage, `exact` the host scalars, `steps` the rest of the query stage in
    an order in which every input precedes its use: a node's index, or a `Sweep`."""

    page: tuple[int, ...]
    exact: frozenset[int]
    steps: tuple[int | Sweep, ...]


def over_pages(node: Node) -> bool:
    """Whether the node needs all pages of its inputs at once."""
    if node.op in ("softmax", "share") or node.op in SELECTORS:
        return True
    return node.op == "reduce" and node.attrs["axis"] == "page"


def is_wide(node: Node) -> bool:
    return "page" in node.type.axes and not set(node.type.axes) <= {"page", "head"}


def make_plan(program: Program) -> Plan:
    """The plan of a bound program."""
    live = program.live()
    exact = frozenset(i for i in live if is_exact(program, i))
    page = tuple(i for i in live if program.nodes[i].stage == PAGE_STAGE)
    query = [i for i in live if program.nodes[i].stage == QUERY_STAGE and i not in exact]
    users: dict[int, list[int]] = {i: [] for i in live}
    for i in query:
        for source in program.nodes[i].inputs:
            users[source].append(i)

    def swept(i: int) -> bool:
        """Whether the node is evaluated inside a sweep rather than whole."""
        node = program.nodes[i]
        if node.type.kind == SET or over_pages(node) or "page" not in node.type.axes:
            return False
        return is_wide(node) or any(is_wide(program.nodes[source]) for source in node.inputs)

    def kept(i: int) -> bool:
        """Whether something outside sweeps needs what a swept node computes."""
        return swept(i) and (not is_wide(program.nodes[i]) or any(over_pages(program.nodes[u]) for u in users[i]))

    done: set[int] = set(exact)
    steps: list[int | Sweep] = []

    def cone(i: int) -> set[int] | None:
        """The swept nodes that `i` needs evaluated with it, or None when something they need is not done yet."""
        found = {i}
        for source in program.nodes[i].inputs:
            if source in done:
                continue
            if not swept(source):
                return None
            more = cone(source)
            if more is None:
                return None
            found |= more
        return found

    for i in query:
        if swept(i):
            continue
        if any(source not in done for source in program.nodes[i].inputs):
            ready = {o: nodes for o in query if kept(o) and o not in done and (nodes := cone(o)) is not None}
            steps.append(Sweep(tuple(sorted(set().union(*ready.values()))), tuple(ready)))
            done.update(ready)
        steps.append(i)
        done.add(i)
    return Plan(page, exact, tuple(steps))
