"""Where a kernel finds its values: keys, values and queries, summaries, buffers of earlier kernels, exact scalars."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vortexlab.dsl.ir import FP8
from vortexlab.kernels.gpu.emit import PAGE_DIM, Affine, Coords, Dim, Emitter, Value, Writer, coords, expand, literal
from vortexlab.kernels.gpu.graph import Graph, Op

_FIXED_AXES = ("page", "head", "token", "channel")
_FOLD = {"sum": "{0} + {1}", "max": "tl.maximum({0}, {1})", "min": "tl.minimum({0}, {1})"}


@dataclass(frozen=True)
class Dtypes:
    """Storage types of the cache, the summaries and the query: bf16, fp16, fp32 or, of the first two, an fp8 one."""

    kv: str
    summary: str
    query: str


class KernelText:
    """One kernel under construction. `available` are the values that earlier kernels left in buffers.

    Every value is computed for the program's own `request`, `kv_head` (their `row`) and its tile `page` with its mask
    `live`; kernels with a list per query head also have `head`.
    """

    def __init__(self, name: str, graph: Graph, available: set[int], dtypes: Dtypes):
        self.name, self.graph, self.available, self.dtypes = name, graph, available, dtypes
        self.params: list[str] = []
        self.writer = Writer()
        made = sorted({axis for op in graph.ops for axis in op.axes} - set(_FIXED_AXES))
        self.axes = {axis: f"x{number}" for number, axis in enumerate(made)}
        self.emitter = Emitter(graph, self.writer, self.load, self.axes)

    def param(self, text: str) -> str:
        """Declares a parameter (once); returns its name."""
        if text not in self.params:
            self.params.append(text)
        return text

    def source(self) -> str:
        lines, _ = self.writer.scopes[0]
        body = "\n".join("    " + line for line in lines)
        params = "".join(f"    {name},\n" for name in self.params)
        return f"\n\n@triton.jit\ndef {self.name}(\n{params}):\n{body}\n"

    def request_head(self, row: str, request: str, kv_head: str, *, waits: bool = True) -> None:
        """Opening lines of a kernel of the query stage. One that does not wait here waits later, and comes directly
        after another kernel of the stage: what that one waited for, lengths among it, is there already."""
        for name in ("table", "table_row", "lengths", "CHAINED: tl.constexpr"):
            self.param(name)
        for line in (
            *(["start_after_previous(CHAINED)"] if waits else []),
            f"row = {row}",
            f"request = {request}",
            f"kv_head = {kv_head}",
            "length = tl.load(lengths + request)",
            "own = tl.maximum(length - 1, 0) // PAGE  # the page of the query's token; the candidates precede it",
        ):
            self.writer.line(line)

    # shapes of buffers

    def dims(self, op: Op) -> tuple[Dim, ...]:
        """Tile dimensions of a value's own axes, in order."""
        return tuple(PAGE_DIM if axis == "page" else Dim(self.axes.get(axis, axis), op.sizes[axis]) for axis in op.axes)

    @staticmethod
    def rest(op: Op) -> int:
        """Elements of a value without its page axis."""
        return math.prod(op.sizes[axis] for axis in op.axes if axis != "page")

    @staticmethod
    def strides(op: Op) -> list[int]:
        """Strides of the axes other than page, stored contiguously."""
        sizes = [op.sizes[axis] for axis in op.axes if axis != "page"]
        return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]

    def buffer_offset(self, op: Op, at: dict[str, Affine], dims: tuple[Dim, ...], row: str = "row") -> str:
        """Where a value lies in its buffer: [row, head, capacity] with a page axis, else [row, axes...]."""
        rest = [axis for axis in op.axes if axis != "page"]
        if "page" not in op.axes:
            steps = [(at[axis], stride) for axis, stride in zip(rest, self.strides(op), strict=True)]
            return f"{row} * {self.rest(op)} + {self.emitter.offset(steps, dims)}"
        page = self.emitter.offset([(at["page"], 1)], dims)
        if not rest:
            return f"{row} * capacity + {page}"
        head = self.emitter.offset([(at["head"], 1)], dims)
        return f"({row} * {op.sizes['head']} + {head}) * capacity + {page}"

    # reductions over pages

    @staticmethod
    def identity(op: Op) -> str:
        return {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}[str(op.attrs["how"])]

    def reduce_tile(self, op: Op, value: Value, dims: tuple[Dim, ...]) -> str:
        """The reduction of a value over the pages of one tile."""
        e = self.emitter
        value = e.broadcast(e.as_float(value), (PAGE_DIM, *dims))
        masked = e.assign(f"tl.where({e.mask_of(PAGE_DIM, value.dims)}, {value.text}, {self.identity(op)})", value.dims)
        return f"tl.{op.attrs['how']}({masked.text}, 0)"

    def accumulate(self, op: Op, total: str, tile: str) -> str:
        return f"{total} = " + _FOLD[str(op.attrs["how"])].format(total, tile)

    # leaves and buffers

    def load(self, index: int, at: Coords) -> Value | None:
        op = self.graph.ops[index]
        if index in self.graph.exact:
            return self._exact(index, op)
        if index in self.available:
            return self._buffer(index, op, dict(at))
        if op.op in ("k", "v"):
            return self._token(op.op, dict(at))
        if op.op == "q":
            return self._query(dict(at))
        if op.op == "field":
            return self._field(op, dict(at))
        if op.op == "share":
            return self._share(op, dict(at))
        if op.op == "attention":
            return self._attended(index, op, dict(at))
        if op.op == "param":
            return self._learned(index, op, dict(at))
        return None

    def _exact(self, index: int, op: Op) -> Value:
        number = self.graph.exact[index]
        if not isinstance(number, str):
            return Value(literal(number), (), op.kind)
        if op.op == "ctx" and op.attrs["name"] == "length":
            return Value("length", (), "int")
        name = self.param(f"t{index}")
        at = "length" if number == "length" else "(own + 1)"
        value = self.emitter.assign(f"tl.load({name} + {at})", (), op.kind, f"by {number}")
        return self.emitter.assign(f"{value.text} != 0", (), "bool") if op.kind == "bool" else value

    def _fetch(self, pointer: str, dims: tuple[Dim, ...], stored: str, note: str) -> Value:
        """A load of stored numbers, padded with zeros, and its fp32 form."""
        mask = self.emitter.mask(dims)
        text = f"tl.load({pointer}" + (f", mask={mask}, other=0.0)" if mask else ")")
        raw = self.emitter.assign(text, dims, note=note)
        if stored in FP8:
            return Value(self.emitter.assign(f"widened({raw.text})", dims).text, dims, clean=True)
        value = raw if stored == "fp32" else self.emitter.assign(f"{raw.text}.to(tl.float32)", dims)
        return Value(value.text, dims, "float", raw.text, stored, clean=True)

    def _buffer(self, index: int, op: Op, at: dict[str, Affine]) -> Value:
        dims = self.emitter.dims_of(coords(**at))
        name = self.param(f"b{index}" if "page" in op.axes else f"r{index}")
        if "page" in op.axes:
            self.param("capacity")
        value = self._fetch(f"{name} + {self.buffer_offset(op, at, dims)}", dims, "fp32", "from an earlier kernel")
        if op.kind == "int":
            return self.emitter.assign(f"{value.text}.to(tl.int32)", dims, "int")
        return self.emitter.assign(f"{value.text} != 0", dims, "bool") if op.kind == "bool" else value

    def _query(self, at: dict[str, Affine]) -> Value:
        e = self.emitter
        for name in ("q", "q_row", "q_head"):
            self.param(name)
        dims = e.dims_of(coords(**at))
        head, channel = e.offset([(at["head"], 1)], dims), e.offset([(at["channel"], 1)], dims)
        pointer = f"q + request * q_row + (kv_head * GROUP + {head}) * q_head + {channel}"
        return self._fetch(pointer, dims, self.dtypes.query, "query heads of this KV head")

    def _attended(self, index: int, op: Op, at: dict[str, Affine]) -> Value:
        dims = self.emitter.dims_of(coords(**at))
        name = self.param(f"a{index}")
        return self._fetch(f"{name} + {self.buffer_offset(op, at, dims)}", dims, "fp32", "attention")

    def _learned(self, index: int, op: Op, at: dict[str, Affine]) -> Value:
        """A learned constant: [KV head, ...], or one for all KV heads."""
        e, dims = self.emitter, self.emitter.dims_of(coords(**at))
        steps = [(at[axis], stride) for axis, stride in zip(op.axes, self.strides(op), strict=True)]
        own = self.graph.program.params[str(op.attrs["name"])].per_kv_head
        place = (f"kv_head * {self.rest(op)} + " if own else "") + e.offset(steps, dims)
        value = self._fetch(f"{self.param(f'w{index}')} + {place}", dims, "fp32", "learned")
        return Value(value.text, dims, op.kind) if op.kind == "int" else value

    def _token(self, name: str, at: dict[str, Affine]) -> Value:
        e = self.emitter
        dims = e.dims_of(coords(**at))
        row_dims = e.dims_of(coords(token=at["token"]))
        token = e.offset([(at["token"], 1)], row_dims)
        mask = e.mask(row_dims) or "True"
        place = e.assign(
            f"token_offset(blocks, logical * PAGE + {token}, {mask}, {name}_block, {name}_token, BLOCK)",
            row_dims,
            "int",
        )
        channel = e.offset([(at["channel"], 1)], dims)
        pointer = f"{name} + kv_head.to(tl.int64) * {name}_head + {expand(place, dims)} + {channel}"
        note = {"k": "keys of the page", "v": "values of the page"}[name]
        return self._fetch(pointer, dims, self.dtypes.kv, note)

    def _field(self, op: Op, at: dict[str, Affine]) -> Value:
        e, name = self.emitter, str(op.attrs["name"])
        origin = self.graph.ops[self.graph.fields[name]]
        param = self.param(f"f{list(self.graph.fields).index(name)}")
        dims = e.dims_of(coords(**at))
        unit = self.writer.recall("unit")
        if unit is None:
            for extra in ("table", "table_row"):
                self.param(extra)
            unit = e.assign("page_unit(table + request * table_row, page, live, PAGE, BLOCK)", (PAGE_DIM,), "int")
            self.writer.remember("unit", unit, True)
        steps = [(at[axis], stride) for axis, stride in zip(origin.axes, self.strides(origin), strict=True)]
        base = f"({expand(unit, dims)} * KV_HEADS + kv_head) * {self.rest(origin)}"
        value = self._fetch(f"{param} + {base} + {e.offset(steps, dims)}", dims, self.dtypes.summary, "summary")
        if self.dtypes.summary not in FP8:
            return value
        scale = self.param("s" + param[1:])
        factor = e.assign(f"tl.load({scale} + {unit.text} * KV_HEADS + kv_head, mask=live, other=1.0)", (PAGE_DIM,))
        return Value(e.assign(f"{value.text} * {expand(factor, dims)}", dims).text, dims, clean=True)

    def _share(self, op: Op, at: dict[str, Affine]) -> Value | None:
        (source,) = op.inputs
        if source not in self.available:
            raise AssertionError("the schedule keeps the input of a share in a buffer")
        e, how = self.emitter, str(op.attrs["how"])
        kept = self.graph.ops[source]
        dims = e.dims_of(coords(**at))
        name = self.param(f"b{source}")
        self.param("capacity")
        fold = "sum" if how == "mean" else how
        shape = ", ".join(dim.extent for dim in dims)
        start = 'float("-inf")' if how == "max" else "0.0"
        total = e.assign(f"tl.full(({shape},), {start}, tl.float32)", dims)
        place = self.buffer_offset(kept, at, dims, row="(request.to(tl.int64) * KV_HEADS + other)")
        self.writer.line("for other in range(KV_HEADS):")
        tile = f"tl.load({name} + {place}, mask={e.mask(dims)}, other=0.0)"
        self.writer.line(f"    {total.text} = " + _FOLD[fold].format(total.text, tile))
        if how == "mean":
            return e.assign(f"tl.div_rn({total.text}, KV_HEADS)", dims, note="mean over KV heads")
        return total
