"""The typed intermediate representation of a program.

A program is a list of nodes in single-assignment form. Nodes of stage ``page`` compute the summaries of one
complete page from its `k` and `v`; nodes of stage ``pool`` turn a block of prefill queries into one query; nodes of
stage ``query`` run at every decode step (and for every block of prefill) of one request and KV head and end in a set
of pages, in what is remembered, and in the attention output. Every executor and the cost model read this form and
nothing else; the text of a program never reaches them.

Types carry *named axes*. An axis name occurs once per value, and the stored order is `axis_key`'s, so that two
values with the same axes have the same layout. Sizes are not part of a type: ``page`` is the run-time number of
candidate pages, ``head`` the query heads of one KV head, ``query`` the queries of one block of prefill, ``token`` the
page size, ``channel`` the head width; any further axis is made by the program (``split``, ``window``, ``rename``, a
parameter) and its size follows from `axis_sizes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.parameters import Parameters

IR_VERSION = 2
FLOAT, INT, BOOL, SET = "float", "int", "bool", "set"
PAGE_STAGE, POOL_STAGE, QUERY_STAGE = "page", "pool", "query"

_FIXED = {"page": 0, "head": 1, "query": 2, "token": 4, "channel": 5}
_MADE = 3
REDUCTIONS = ("sum", "mean", "max", "min", "norm")
SCANS = ("sum", "max", "min")
FP8 = ("fp8_e4m3", "fp8_e5m2")
#: Precisions of explicit casts and of stored summaries; the fp8 ones saturate.
DTYPES = ("fp32", "bf16", "fp16", *FP8)
#: Precisions that a program may ask its KV cache to have; ``auto`` takes any.
KV_DTYPES = ("auto", *DTYPES)
#: Where a memory passes a value on: to the next step of the same layer, or to the next layer of the same step.
MEMORY_SCOPES = ("step", "layer")

#: Compile-time and run-time facts a program may ask `ctx` for, with their kinds.
STATIC_CTX = {
    "layer": INT, "layers": INT, "kv_heads": INT, "group": INT, "head_dim": INT, "latent": INT, "page": INT,
    "scale": FLOAT, "prefill": BOOL,
}  # fmt: skip
DYNAMIC_CTX = {"length": INT, "pages": INT, "position": INT}

Attr = int | float | str | bool | None


def axis_key(name: str) -> tuple[int, str]:
    """Sort key of the stored axis order: page, head, query, axes made by the program (by name), token, channel."""
    return (_FIXED.get(name, _MADE), name)


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

    `scale` is the model's softmax scale; `group` the query heads of one KV head; `head_dim` the channels of a key.
    `latent` is 0, or in MLA the channels of the latent part: keys are [latent | rotary], values are their latent part.
    `prefill` tells blocks of prefill queries from decode steps.
    """

    kv_heads: int
    group: int
    head_dim: int
    scale: float
    layer: int = 0
    layers: int = 1
    latent: int = 0
    prefill: bool = False

    @property
    def value_dim(self) -> int:
        """The channels of a value, and of the attention output."""
        return self.latent or self.head_dim

    def value(self, name: str, page: int) -> int | float | bool:
        return page if name == "page" else getattr(self, name)


@dataclass(frozen=True)
class Param:
    """A learned constant that a program names and a safetensors file holds under the name `tensor`.

    `kind` is ``float`` or ``int``; `axes` in stored order. `sizes` gives the length of every axis that the program
    makes; ``head``, ``channel`` and ``token`` have the model's. The file's tensor has the axes in the order [layer,
    kv_head, *axes] as far as `per_layer` and `per_kv_head` say.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    sizes: Mapping[str, int]
    tensor: str
    per_layer: bool = True
    per_kv_head: bool = False


@dataclass(frozen=True)
class Memory:
    """What a program carries on (rule 8): a float of the given axes, ``page`` among them, or a set of pages.

    `scope` ``step``: what this layer wrote at the request's previous step; pages that became candidates since then,
    and all of them at the first step, have `init` (a set begins empty). `scope` ``layer``: what the layer below wrote
    in this step; `init` below the first layer. With `every` a step memory takes on what was written only at the first
    step and where the position is a multiple of it; in between it stays as it was.
    """

    name: str
    scope: str
    type: Type
    init: float = 0.0
    every: int | KnobRef = 1


@dataclass(frozen=True)
class Program:
    """A checked, typed program.

    `fields` maps the name of each summary to its node (stage ``page``); `output` is the node of the selected set.
    `summary_dtype` is the precision that summaries are stored in: ``kv`` means that of the cache.
    `page` is the page size in tokens, or a `KnobRef` until `bind`.

    `pooled` is the node (stage ``pool``, [head, channel]) that stands for a block of `block` prefill queries; without
    it prefill is dense. `writes` maps each memory to the node that it takes on. `result` is the attention output
    [head, channel]; None is plain attention over the selected pages. `parameters` are the values of `params`.
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
    kv_dtype: str = "auto"
    params: Mapping[str, Param] = field(default_factory=dict)
    parameters: Parameters | None = None
    memories: Mapping[str, Memory] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    block: int | KnobRef | None = None
    pooled: int | None = None
    result: int | None = None

    @property
    def is_bound(self) -> bool:
        return not self.knobs

    @property
    def has_memory(self) -> bool:
        """Whether a step needs what an earlier step or a lower layer left behind."""
        return any(self.nodes[i].op in ("memory", "reuse") for i in self.live())

    @property
    def reads_latent(self) -> bool:
        """Whether the program speaks of the latent part of a key (MLA)."""

        def speaks(node: Node) -> bool:
            if node.op == "slice":
                return "latent" in (node.attrs["start"], node.attrs["stop"])
            return node.op == "ctx" and node.attrs["name"] == "latent"

        return any(speaks(self.nodes[i]) for i in self.live())

    @property
    def page_size(self) -> int:
        """The page size of a bound program, in tokens."""
        if isinstance(self.page, KnobRef):
            raise VortexError(f"program {self.name}: the page size is a knob; bind the program first")
        return self.page

    @property
    def defaults(self) -> dict[str, Attr]:
        return {name: knob.default for name, knob in self.knobs.items()}

    def bind(self, values: Mapping[str, Attr] | None = None, parameters: Parameters | None = None) -> Program:
        """The program with every knob replaced by its value (the default where none is given).

        `parameters` replace those that the program has. Raises `VortexError` for unknown knobs, values out of range,
        and sizes that do not divide.
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
        block = resolve(self.block) if isinstance(self.block, KnobRef) else self.block
        if block is not None and (not isinstance(block, int) or block < 1 or (block % page and page % block)):
            raise VortexError(
                f"program {self.name}: a block of {block!r} queries; choose a multiple or a divisor of the page, {page}"
            )
        memories = {
            name: replace(item, every=resolve(item.every)) if isinstance(item.every, KnobRef) else item  # type: ignore[arg-type]
            for name, item in self.memories.items()
        }
        bound = replace(
            self, page=page, block=block, nodes=tuple(nodes), knobs={}, memories=memories,
            parameters=parameters or self.parameters,
        )  # fmt: skip
        bound.axis_sizes(Static(1, 1, 1, 1.0))
        return bound

    def axis_sizes(self, static: Static) -> list[dict[str, int]]:
        """For each node of a bound program, the sizes of its axes other than ``page``.

        Raises `VortexError` when a split does not divide, a slice reaches beyond its axis, or two values that meet
        have different lengths.
        """
        sizes: list[dict[str, int]] = []
        for node in self.nodes:
            found = self._axis_sizes(node, sizes, static)
            sizes.append({axis: found[axis] for axis in node.type.axes if axis != "page"})
        return sizes

    def _axis_sizes(self, node: Node, sizes: list[dict[str, int]], static: Static) -> dict[str, int]:
        """Sizes of a node's axes, and perhaps of some that it has lost."""
        attrs = node.attrs
        # Without a model (a width of 1) only what the program itself fixes can be judged.
        judged = static.head_dim > 1

        def fault(what: str) -> VortexError:
            return VortexError(f"program {self.name}, line {node.line}: {what}")

        def met(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            """The sizes of two values that meet; those of an axis that both have are one."""
            for axis in a.keys() & b.keys():
                if judged and a[axis] != b[axis] and (node.op, axis) != ("concat", attrs.get("axis")):
                    hint = "keys may be wider than values: take runs of one length, as x.slice(channel, 0, ctx.latent)"
                    raise fault(f"the axis {axis} has the lengths {a[axis]} and {b[axis]}; {hint}")
            return {**a, **b}

        if node.op == "param":
            width = {"head": static.group, "channel": static.head_dim, "token": self.page_size}
            return {**width, **self.params[str(attrs["name"])].sizes}
        if node.op == "field":
            return dict(sizes[self.fields[str(attrs["name"])]])
        if not node.inputs:
            value = static.value_dim if node.op == "v" else static.head_dim
            return {"token": self.page_size, "head": static.group, "query": int(self.block or 1), "channel": value}  # type: ignore[arg-type]
        if node.op == "gather":
            inner = {axis: size for axis, size in sizes[node.inputs[0]].items() if axis != attrs["axis"]}
            return met(inner, sizes[node.inputs[1]])
        if node.op == "attention":
            return {"head": static.group, "channel": static.value_dim}
        found: dict[str, int] = {}
        for index in node.inputs:
            found = met(found, sizes[index])
        if node.op == "split":
            axis, name, count = str(attrs["axis"]), str(attrs["name"]), int(attrs["size"])  # type: ignore[arg-type]
            if count < 1 or ((judged or axis != "channel") and found[axis] % count):
                what = f"split({axis}, {name}={count}) does not divide {axis} of size {found[axis]}"
                raise fault(f"{what}; choose a divisor")
            found[name], found[axis] = count, max(1, found[axis] // count)
        elif node.op == "merge":
            found[str(attrs["name"])] = found.pop(str(attrs["first"])) * found.pop(str(attrs["second"]))
        elif node.op == "rename":
            found[str(attrs["new"])] = found.pop(str(attrs["old"]))
        elif node.op == "window":
            found[str(attrs["name"])] = int(attrs["size"])  # type: ignore[arg-type]
        elif node.op == "concat":
            axis = str(attrs["axis"])
            found[axis] = sum(sizes[i][axis] for i in node.inputs)
        elif node.op == "slice":
            axis = str(attrs["axis"])
            size = found[axis]
            start, stop = slice_bounds(node, size, static)
            if judged and not 0 <= start < stop <= size:
                raise fault(f"slice({axis}, {start}, {stop}) does not lie inside {axis} of size {size}")
            found[axis] = max(1, stop - start)
        return found

    def live(self) -> list[int]:
        """Indices of the nodes that something outside sees the value of, or that these depend on, in order.

        Seen are the selected set, the attention output and what is remembered, as far as it is ever read.
        """
        seen: set[int] = set()
        stack = [root for root in (self.output, self.result, self.pooled) if root is not None]
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            node = self.nodes[index]
            stack.extend(node.inputs)
            if node.op == "field":
                stack.append(self.fields[str(node.attrs["name"])])
            elif node.op == "memory":
                stack.append(self.writes[str(node.attrs["name"])])
        return sorted(seen)

    def live_fields(self) -> dict[str, int]:
        """The summaries that the output depends on; the others are dead code and are never computed."""
        live = set(self.live())
        used = {str(self.nodes[i].attrs["name"]) for i in live if self.nodes[i].op == "field"}
        return {name: node for name, node in self.fields.items() if name in used}

    def live_memories(self) -> dict[str, int]:
        """The memories that are read, with the nodes that write them."""
        used = {str(self.nodes[i].attrs["name"]) for i in self.live() if self.nodes[i].op == "memory"}
        return {name: self.writes[name] for name in self.memories if name in used}

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
            "kv_dtype": self.kv_dtype,
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
            "result": self.result,
            "pooled": self.pooled,
            "block": attr(self.block),
            "params": [
                {**item.__dict__, "axes": list(item.axes), "sizes": dict(item.sizes)} for item in self.params.values()
            ],
            "parameters": self.parameters.to_json() if self.parameters else None,
            "memories": [
                {
                    **item.__dict__,
                    "type": {**item.type.__dict__, "axes": list(item.type.axes)},
                    "every": attr(item.every),
                }
                for item in self.memories.values()
            ],
            "writes": dict(self.writes),
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
            result=data["result"],
            pooled=data["pooled"],
            block=attr(data["block"]),  # type: ignore[arg-type]
            kv_dtype=data["kv_dtype"],
            params={item["name"]: Param(**{**item, "axes": tuple(item["axes"])}) for item in data["params"]},
            parameters=Parameters.from_json(data["parameters"]) if data["parameters"] else None,
            memories={
                item["name"]: Memory(
                    **{
                        **item,
                        "type": Type(**{**item["type"], "axes": tuple(item["type"]["axes"])}),
                        "every": attr(item["every"]),
                    }
                )
                for item in data["memories"]
            },
            writes=dict(data["writes"]),
            source=data["source"],
        )


def slice_bounds(node: Node, size: int, static: Static) -> tuple[int, int]:
    """Where a slice of an axis of `size` begins and ends.

    A bound is a number (below 0 it counts from the end), a fact about the model, or None for the end. Of the queries
    of a block, which may be fewer than the slice names, it takes those that there are, and one at least.
    """

    def bound(value: Attr | KnobRef) -> int:
        if value is None:
            return size
        if isinstance(value, str):
            return int(static.value(value, 0))
        assert isinstance(value, int)
        return size + value if value < 0 else value

    start, stop = bound(node.attrs["start"]), bound(node.attrs["stop"])
    if node.attrs["axis"] == "query":
        start = min(max(start, 0), size - 1)
        stop = max(start + 1, min(stop, size))
    return start, stop


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in its one canonical spelling, as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
