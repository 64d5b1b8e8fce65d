"""The typed intermediate representation of a program.

A program is a list of nodes in single-assignment form. Nodes of stage ``page`` compute the summaries of one
complete page from its `k` and `v`; nodes of stage ``query`` run at every decode step of one request and KV head
and end in a set of pages. Every executor and the cost model read this form and nothing else; the text of a
program never reaches them.

Types carry *named axes*. An axis name occurs once per value, and the stored order is `axis_key`'s, so that two
values with the same axes have the same layout. Sizes are not part of a type: ``page`` is the run-time number of
candidate pages, ``head`` the query heads of one KV head, ``token`` the page size, ``channel`` the head width;
any further axis is made by ``split`` or ``rename`` and its size follows from `axis_sizes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vortexlab.dsl.errors import VortexError

IR_VERSION = 1
FLOAT, INT, BOOL, SET = "float", "int", "bool", "set"
PAGE_STAGE, QUERY_STAGE = "page", "query"

_FIXED = {"page": 0, "head": 1, "token": 3, "channel": 4}
REDUCTIONS = ("sum", "mean", "max", "min", "norm")
DTYPES = ("fp32", "bf16", "fp16")

#: Compile-time and run-time facts a program may ask `ctx` for, with their kinds.
STATIC_CTX = {
    "layer": INT, "layers": INT, "kv_heads": INT, "group": INT, "head_dim": INT, "page": INT, "scale": FLOAT,
}  # fmt: skip
DYNAMIC_CTX = {"length": INT, "pages": INT}

Attr = int | float | str | bool | None


def axis_key(name: str) -> tuple[int, str]:
    """Sort key of the stored axis order: page, head, axes made by the program (by name), token, channel."""
    return (_FIXED.get(name, 2), name)


def ordered(axes: set[str] | frozenset[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(axes, key=axis_key))


@dataclass(frozen=True)
class Type:
    """Kind, named axes in stored order, and the precision of the value.

    A `set` has axes ``()`` (one list per KV head) or ``("head",)`` (one list per query head).
    `dtype` is meaningful for floats only: ``fp32`` unless an explicit cast lowered it.
    """

    kind: str
    axes: tuple[str, ...] = ()
    dtype: str = "fp32"

    def __str__(self) -> str:
        return f"{self.kind}[{', '.join(self.axes)}]" if self.axes else self.kind


@dataclass(frozen=True)
class KnobRef:
    """A place in the program that an attribute takes from a knob, resolved by `Program.bind`."""

    name: str


@dataclass(frozen=True)
class Knob:
    """A number or choice that the search may vary.

    `kind` is ``int``, ``float``, ``choice`` or ``bool``. `low`, `high` are inclusive. A knob without `log` may
    have a `step`.
    """

    name: str
    kind: str
    default: Attr
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Attr, ...] = ()

    def check(self, value: Attr) -> Attr:
        """Returns the value in the knob's own type; raises `VortexError` when it is outside the range."""
        if self.kind in ("choice", "bool"):
            allowed = self.choices if self.kind == "choice" else (False, True)
            if value not in allowed:
                raise VortexError(f"knob {self.name}: {value!r} is not one of {', '.join(map(repr, allowed))}")
            return next(item for item in allowed if item == value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise VortexError(f"knob {self.name}: expected a number, found {value!r}")
        if self.kind == "int":
            if value != int(value):
                raise VortexError(f"knob {self.name}: expected an integer, found {value!r}")
            value = int(value)
        assert self.low is not None and self.high is not None
        if not self.low <= value <= self.high:
            raise VortexError(f"knob {self.name}: {value!r} is outside {self.low}..{self.high}")
        return value if self.kind == "int" else float(value)


@dataclass(frozen=True)
class Node:
    """One operation. `inputs` are indices of earlier nodes; `attrs` are JSON scalars or `KnobRef`s."""

    op: str
    type: Type
    inputs: tuple[int, ...] = ()
    attrs: Mapping[str, Attr | KnobRef] = field(default_factory=dict)
    stage: str = QUERY_STAGE
    line: int = 0
    column: int = 0


@dataclass(frozen=True)
class Static:
    """What is known of one attention layer before anything runs (rule 9 of the language).

    `scale` is the model's softmax scale; `group` the query heads of one KV head; `head_dim` the channels.
    """

    kv_heads: int
    group: int
    head_dim: int
    scale: float
    layer: int = 0
    layers: int = 1

    def value(self, name: str, page: int) -> int | float:
        return page if name == "page" else getattr(self, name)


@dataclass(frozen=True)
class Program:
    """A checked, typed program.

    `fields` maps the name of each summary to its node (stage ``page``); `output` is the node of the selected set.
    `summary_dtype` is the precision that summaries are stored in: ``kv`` means that of the cache.
    `page` is the page size in tokens, or a `KnobRef` until `bind`.
    """

    name: str
    page: int | KnobRef
    nodes: tuple[Node, ...]
    fields: Mapping[str, int]
    output: int
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    seed: int = 0
    summary_dtype: str = "kv"
    doc: str = ""
    source: str = ""

    @property
    def is_bound(self) -> bool:
        return not self.knobs

    @property
    def page_size(self) -> int:
        """The page size of a bound program, in tokens."""
        if isinstance(self.page, KnobRef):
            raise VortexError(f"program {self.name}: the page size is a knob; bind the program first")
        return self.page

    @property
    def defaults(self) -> dict[str, Attr]:
        return {name: knob.default for name, knob in self.knobs.items()}

    def bind(self, values: Mapping[str, Attr] | None = None) -> Program:
        """The program with every knob replaced by its value (the default where none is given).

        Raises `VortexError` for unknown knobs, values out of range, and sizes that do not divide.
        """
        values = dict(values or {})
        unknown = sorted(set(values) - set(self.knobs))
        if unknown:
            known = ", ".join(sorted(self.knobs)) or "none"
            raise VortexError(f"program {self.name} has no knob {unknown[0]!r}; its knobs: {known}")
        chosen = {name: knob.check(values.get(name, knob.default)) for name, knob in self.knobs.items()}

        def resolve(attr: Attr | KnobRef) -> Attr:
            return chosen[attr.name] if isinstance(attr, KnobRef) else attr

        nodes = []
        for node in self.nodes:
            if node.op == "knob":
                name = node.attrs["name"]
                assert isinstance(name, str)
                nodes.append(replace(node, op="const", attrs={"value": chosen[name]}))
            else:
                nodes.append(replace(node, attrs={key: resolve(value) for key, value in node.attrs.items()}))
        page = resolve(self.page)
        if not isinstance(page, int) or isinstance(page, bool) or page < 1:
            raise VortexError(f"program {self.name}: the page size must be a positive integer, found {page!r}")
        bound = replace(self, page=page, nodes=tuple(nodes), knobs={})
        bound.axis_sizes(Static(1, 1, 1, 1.0))
        return bound

    def axis_sizes(self, static: Static) -> list[dict[str, int]]:
        """For each node of a bound program, the sizes of its axes other than ``page``.

        Raises `VortexError` when a split does not divide.
        """
        base = {"token": self.page_size, "head": static.group, "channel": static.head_dim}
        sizes: list[dict[str, int]] = []
        for node in self.nodes:
            if node.op == "field":
                origin = dict(sizes[self.fields[str(node.attrs["name"])]])
            else:
                origin = dict(base) if not node.inputs else {}
                for index in node.inputs:
                    origin.update(sizes[index])
            if node.op == "split":
                axis, name, count = str(node.attrs["axis"]), str(node.attrs["name"]), int(node.attrs["size"])  # type: ignore[arg-type]
                if count < 1 or ((axis != "channel" or static.head_dim > 1) and origin[axis] % count):
                    raise VortexError(
                        f"program {self.name}, line {node.line}: split({axis}, {name}={count}) does not divide "
                        f"{axis} of size {origin[axis]}; choose a divisor"
                    )
                origin[name], origin[axis] = count, max(1, origin[axis] // count)
            elif node.op == "rename":
                origin[str(node.attrs["new"])] = origin.pop(str(node.attrs["old"]))
            sizes.append({axis: origin[axis] for axis in node.type.axes if axis != "page"})
        return sizes

    def live(self) -> list[int]:
        """Indices of the nodes that the output depends on, summaries included, in order."""
        seen: set[int] = set()
        stack = [self.output]
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            node = self.nodes[index]
            stack.extend(node.inputs)
            if node.op == "field":
                stack.append(self.fields[str(node.attrs["name"])])
        return sorted(seen)

    def live_fields(self) -> dict[str, int]:
        """The summaries that the output depends on; the others are dead code and are never computed."""
        live = set(self.live())
        used = {str(self.nodes[i].attrs["name"]) for i in live if self.nodes[i].op == "field"}
        return {name: node for name, node in self.fields.items() if name in used}

    def __iter__(self) -> Iterator[tuple[int, Node]]:
        return iter(enumerate(self.nodes))

    def to_json(self) -> dict[str, Any]:
        """The program as plain JSON, versioned; `from_json` is its inverse."""

        def attr(value: Attr | KnobRef) -> Any:
            return {"knob": value.name} if isinstance(value, KnobRef) else value

        return {
            "version": IR_VERSION,
            "name": self.name,
            "doc": self.doc,
            "page": attr(self.page),
            "seed": self.seed,
            "summary_dtype": self.summary_dtype,
            "knobs": [
                {key: list(v) if isinstance(v, tuple) else v for key, v in knob.__dict__.items()}
                for knob in self.knobs.values()
            ],
            "nodes": [
                {
                    "op": node.op,
                    "kind": node.type.kind,
                    "axes": list(node.type.axes),
                    "dtype": node.type.dtype,
                    "inputs": list(node.inputs),
                    "attrs": {key: attr(value) for key, value in node.attrs.items()},
                    "stage": node.stage,
                    "line": node.line,
                    "column": node.column,
                }
                for node in self.nodes
            ],
            "fields": dict(self.fields),
            "output": self.output,
            "source": self.source,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Program:
        """Raises `VortexError` when the version is not ours."""
        if data.get("version") != IR_VERSION:
            raise VortexError(f"program form of version {data.get('version')!r}; this release reads {IR_VERSION}")

        def attr(value: Any) -> Attr | KnobRef:
            return KnobRef(value["knob"]) if isinstance(value, dict) else value

        return Program(
            name=data["name"],
            doc=data["doc"],
            page=attr(data["page"]),  # type: ignore[arg-type]
            seed=data["seed"],
            summary_dtype=data["summary_dtype"],
            knobs={item["name"]: Knob(**{**item, "choices": tuple(item["choices"])}) for item in data["knobs"]},
            nodes=tuple(
                Node(
                    item["op"],
                    Type(item["kind"], tuple(item["axes"]), item["dtype"]),
                    tuple(item["inputs"]),
                    {key: attr(value) for key, value in item["attrs"].items()},
                    item["stage"],
                    item["line"],
                    item["column"],
                )
                for item in data["nodes"]
            ),
            fields=dict(data["fields"]),
            output=data["output"],
            source=data["source"],
        )


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its one canonical spelling, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
