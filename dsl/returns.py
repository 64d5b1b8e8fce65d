"""What each method must give back."""

from __future__ import annotations

from collections.abc import Mapping

from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import FLOAT, INT, SET, Memory, Type
from vortexlab.dsl.items import Returned
from vortexlab.dsl.places import Findings, Place
from vortexlab.dsl.rules import Graph
from vortexlab.dsl.set_rules import set_hint
from vortexlab.dsl.words import suggestion


def check_summary(graph: Graph, made: Returned, end: Place, findings: Findings) -> dict[str, Value]:
    """Summaries by name: floats made of k or v."""
    if not isinstance(made, dict):
        raise end.error(
            "summary-mapping",
            "summarize returns summaries by name",
            found=str(made),
            expected="return dict(name=value)",
            hint="each summary has a name: s.name in score",
        )
    for name, value in made.items():
        node = graph.nodes[value.index]
        if value.type.kind != FLOAT or not _reads_page(graph, value.index):
            findings.append(
                Place(node.line, node.column)
                .error(
                    "summary-kind",
                    f"summary {name} must be a float made of k or v",
                    found=str(value),
                    expected="float",
                    hint="use float(x) on a truth value; numbers need no summary",
                )
                .diagnostic
            )
    return made


def _reads_page(graph: Graph, index: int) -> bool:
    seen: set[int] = set()
    stack = [index]
    while stack:
        i = stack.pop()
        if graph.nodes[i].op in ("k", "v"):
            return True
        stack.extend(j for j in graph.nodes[i].inputs if j not in seen)
        seen.update(graph.nodes[i].inputs)
    return False


def _is_per_head(graph: Graph, value: Value, width: str) -> bool:
    """Whether a value is a vector of the given width for every query head."""
    shape = (value.type.kind, value.type.axes)
    return shape == (FLOAT, ("head", "channel")) and graph.sizes[value.index]["channel"] == graph.lengths[width]


def check_pool(graph: Graph, made: Returned, end: Place) -> Value:
    """One query in place of those of a block."""
    if isinstance(made, Value) and _is_per_head(graph, made, "channel"):
        return made
    axes = made.type.axes if isinstance(made, Value) else ()
    if "query" in axes:
        hint = "reduce query, for example with q.mean(query), or q.slice(query, -8).mean(query) for its last queries"
    elif isinstance(made, Value) and axes == ("head", "channel"):
        hint = f"its width is {graph.sizes[made.index]['channel']}; score expects that of a key"
    else:
        hint = "reduce query alone, for example with q.mean(query): score takes queries of one shape"
    raise end.error(
        "pool-shape",
        "pool returns one query for the block",
        found="a mapping" if isinstance(made, dict) else str(made),
        expected="float[head, channel]",
        hint=hint,
    )


def check_selection(made: Returned, end: Place) -> Value:
    if not isinstance(made, Value) or made.type.kind != SET:
        raise end.error(
            "not-a-set",
            "select returns a set of pages",
            found="a mapping" if isinstance(made, dict) else str(made),
            expected="set",
            hint=set_hint(made.type) if isinstance(made, Value) else "return one set: a | b holds the pages of both",
        )
    return made


def check_output(graph: Graph, made: Returned, end: Place) -> Value:
    """The attention output."""
    if isinstance(made, Value) and _is_per_head(graph, made, "value"):
        return made
    axes = made.type.axes if isinstance(made, Value) else ()
    extra = [axis for axis in axes if axis not in ("head", "channel")]
    if isinstance(made, Value) and made.type.kind == SET:
        hint = "write attention(pages) to attend to a set"
    elif extra:
        hint = "weigh pages inside: attention(pages, log_weight=w)" if extra[0] == "page" else f"reduce {extra[0]}"
    elif isinstance(made, Value) and axes == ("head", "channel"):
        hint = f"its width is {graph.sizes[made.index]['channel']}; attention(...) has the width of a value"
    else:
        hint = "return attention(pages), or a sum of attention(...) with gates [head]"
    raise end.error(
        "attend-shape",
        "attend returns the output of every query head",
        found="a mapping" if isinstance(made, dict) else str(made),
        expected="float[head, channel], the channels those of a value",
        hint=hint,
    )


def check_memory(
    graph: Graph,
    memories: Mapping[str, Memory],
    made: Returned,
    places: Mapping[str, Place],
    end: Place,
    findings: Findings,
) -> dict[str, Value] | None:
    """What every declared memory takes on, each once."""
    shape = f"return dict({', '.join(f'{name}=...' for name in memories) or 'name=...'})"
    if not isinstance(made, dict):
        findings.append(
            end.error(
                "memory-mapping",
                "remember returns what it writes by name",
                found=str(made),
                expected=shape,
                hint="each value goes to the memory of its name",
            ).diagnostic
        )
        return None
    written: dict[str, Value] = {}
    for name, value in made.items():
        step = _unknown if name not in memories else _taken_on
        found = findings.guard(lambda: step(graph, memories, name, value, places[name]))  # noqa: B023
        if found is not None:
            written[name] = found
    for name in memories:
        if name not in made:
            findings.append(
                end.error(
                    "memory-not-written",
                    f"remember does not write the memory {name}",
                    found=", ".join(made),
                    expected=shape,
                    hint=f"add {name}=m.{name} to keep what it holds",
                ).diagnostic
            )
    return written


def _unknown(graph: Graph, memories: Mapping[str, Memory], name: str, value: Value, place: Place) -> Value:
    raise place.error(
        "unknown-memory",
        f"there is no memory {name}",
        found=f"{name}=",
        expected=", ".join(memories) or "a memory declared in the class body",
        hint=suggestion(name, memories) if memories else f"declare {name} = memory.step(page) in the class body",
    )


def _taken_on(graph: Graph, memories: Mapping[str, Memory], name: str, value: Value, place: Place) -> Value:
    type_ = memories[name].type
    if value.type.kind == INT and type_.kind == FLOAT:
        value = graph.unary("float", value, place)
    if Type(value.type.kind, value.type.axes) == type_:
        wrong = [a for a in type_.axes if a != "page" and graph.sizes[value.index][a] != graph.lengths[a]]
        if type_.kind == SET or not wrong:
            return value
        raise place.error(
            "memory-type",
            f"the memory {name} keeps another number of values",
            found=f"{wrong[0]} of length {graph.sizes[value.index][wrong[0]]}",
            expected=f"{wrong[0]} of length {graph.lengths[wrong[0]]}",
            hint="a memory has the model's axes at full length",
        )
    extra = [axis for axis in value.type.axes if axis not in type_.axes]
    lacks = [axis for axis in type_.axes if axis not in value.type.axes]
    if value.type.kind != type_.kind:
        hint = "numbers go to memory.step(page), sets to memory.step(pages)"
        if value.type.kind == SET:
            hint += "; float(member(pages)) is 1 for the pages of a set"
    elif extra and type_.kind == SET:
        hint = f"declare {name} = memory.{memories[name].scope}(pages, head) for one set per query head"
    elif extra:
        axes = ", ".join((*type_.axes, extra[0]))
        hint = f"reduce {extra[0]}, or declare it: {name} = memory.{memories[name].scope}({axes})"
    else:
        hint = f"it lacks {lacks[0]}: a value that is the same along {lacks[0]} is written x + 0.0 * m.{name}"
    raise place.error(
        "memory-type",
        f"the memory {name} holds {type_} and is given something else",
        found=str(value),
        expected=str(type_),
        hint=hint,
    )
