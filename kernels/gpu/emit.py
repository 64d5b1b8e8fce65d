"""Source text for values: from lowered operations to Triton expressions over power-of-two tiles.

A value is asked for at *coordinates*: for each of its named axes, an affine index over the dimensions of the tile at
hand (or a run-time scalar such as the number of a query head). `split` and `rename` only change coordinates, so they
cost nothing, and no size needs to be a power of two: dimensions are padded and reductions mask the padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import FP8, slice_bounds
from vortexlab.kernels.gpu.graph import Graph

#: Most elements of one tile of one value, per page: more would not fit the registers and compile for minutes.
MAX_TILE = 1 << 15
#: Length from which an axis is worked through in runs.
LONG = 256
#: Elements from which a product that is no matrix product is worked through in runs.
LARGE = 1 << 13
_RANK = {"page": 0, "head": 1, "token": 3, "channel": 4}


@dataclass(frozen=True)
class Dim:
    """A dimension of a tile. The page dimension has size 0: its tile is the kernel's TILE and its mask `live`."""

    name: str
    size: int

    @property
    def pad(self) -> int:
        return 1 << max(0, self.size - 1).bit_length()

    @property
    def extent(self) -> str:
        return "TILE" if self.name == "page" else str(self.pad)

    @property
    def key(self) -> tuple[int, str]:
        return (_RANK.get(self.name.split("_")[0], 2), self.name)


PAGE_DIM = Dim("page", 0)

#: Index of an axis: terms (dimension or name of a scalar, stride).
Affine = tuple[tuple["Dim | str", int], ...]
Coords = tuple[tuple[str, Affine], ...]


@dataclass(frozen=True)
class Value:
    """`text` is a name or a literal; `dims` the tile's dimensions in order. `stored` is a narrower type that holds the
    value exactly, and `raw` its name in that type where it was loaded so. The padding is zero when `clean`."""

    text: str
    dims: tuple[Dim, ...] = ()
    kind: str = "float"
    raw: str = ""
    stored: str = ""
    clean: bool = False

    @property
    def literal(self) -> bool:
        return not self.dims and not self.text.isidentifier()


def literal(value: int | float | bool) -> str:
    if isinstance(value, (bool, int)):
        return repr(value)
    if math.isfinite(value):
        return repr(float(value))
    return f'float("{value}")'


def expand(value: Value, dims: tuple[Dim, ...]) -> str:
    """The value's text, shaped to broadcast over `dims` (a superset of its own)."""
    if not value.dims or value.dims == dims:
        return value.text
    at = ", ".join(":" if dim in value.dims else "None" for dim in dims)
    return f"{value.text}[{at}]"


def runs(size: int, most: int = LONG) -> list[range]:
    """An axis in runs whose lengths are powers of two, where it is so long that its padding would cost; runs of at most
    `most` where that is less."""
    if size <= most:
        return [range(size)]
    found, start = [], 0
    while start < size:
        length = 1 << ((size - start).bit_length() - 1)
        length = length if most == LONG else min(length, 1 << (most.bit_length() - 1))
        found.append(range(start, start + length))
        start += length
    return found


def union(values: Iterable[Value]) -> tuple[Dim, ...]:
    return tuple(sorted({dim for value in values for dim in value.dims}, key=lambda dim: dim.key))


def coords(**axes: Affine) -> Coords:
    return tuple(sorted(axes.items()))


class Writer:
    """Lines of one kernel, with scopes. Values that depend on the page tile go to the innermost scope, are seen only
    there and are forgotten with it; all others go to the outermost scope and stay."""

    def __init__(self) -> None:
        self.scopes: list[tuple[list[str], dict[object, Value]]] = [([], {})]
        self.count = 0

    def fresh(self, prefix: str = "n") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def line(self, text: str, inner: bool = True) -> None:
        self.scopes[-1 if inner else 0][0].append(text)

    def recall(self, key: object) -> Value | None:
        for _, memo in (self.scopes[-1], self.scopes[0]):
            if key in memo:
                return memo[key]
        return None

    def remember(self, key: object, value: Value, inner: bool) -> Value:
        self.scopes[-1 if inner else 0][1][key] = value
        return value

    def open(self) -> None:
        self.scopes.append(([], {}))

    def close(self) -> list[str]:
        return self.scopes.pop()[0]


class Emitter:
    """Writes the values of one kernel. `load` yields values that this kernel finds in memory (leaves, buffers,
    finished reductions) or None when they must be computed."""

    def __init__(self, graph: Graph, writer: Writer, load: Callable[[int, Coords], Value | None], axes: dict[str, str]):
        self.graph, self.writer, self.load, self.axes = graph, writer, load, axes
        self.paged = self.once = 1
        self.has_products = False

    def assign(
        self, text: str, dims: tuple[Dim, ...], kind: str = "float", note: str = "", **more: str | bool
    ) -> Value:
        """A named value. Tiles over a size limit raise `VortexError`."""
        inner = PAGE_DIM in dims
        elements = math.prod(dim.pad for dim in dims if dim is not PAGE_DIM)
        if elements > MAX_TILE:
            raise VortexError(
                f"program {self.graph.program.name}: a value of {elements} elements a page "
                f"({', '.join(f'{dim.name} {dim.size}' for dim in dims if dim is not PAGE_DIM)}) is over the limit of "
                f"{MAX_TILE} for generated kernels; reduce an axis earlier"
            )
        if inner:
            self.paged = max(self.paged, elements)
        else:
            self.once = max(self.once, elements)
        name = self.writer.fresh()
        self.writer.line(f"{name} = {text}" + (f"  # {note}" if note else ""), inner)
        return Value(name, dims, kind, **more)  # type: ignore[arg-type]

    def index(self, dim: Dim) -> Value:
        """The numbers 0.. along a dimension; for pages, those of the tile."""
        if dim is PAGE_DIM:
            return Value("page", (dim,), "int")
        key = ("index", dim)
        known = self.writer.recall(key)
        if known is None:
            name = f"{dim.name}_{dim.pad}" if dim.pad == dim.size else f"{dim.name}_{dim.size}"
            self.writer.line(f"{name} = tl.arange(0, {dim.pad})", False)
            known = self.writer.remember(key, Value(name, (dim,), "int"), False)
        return known

    def mask(self, dims: tuple[Dim, ...]) -> str:
        """Condition that an element of a tile over `dims` is no padding; empty when there is none."""
        parts = []
        for dim in dims:
            if dim is PAGE_DIM:
                parts.append(expand(Value("live", (dim,)), dims))
            elif dim.pad != dim.size:
                at = expand(self.index(dim), dims)
                parts.append(f"({at} < {dim.size})")
        return " & ".join(parts)

    def offset(self, steps: Iterable[tuple[Affine, int]], dims: tuple[Dim, ...]) -> str:
        """Sum of the affine indices, each times the stride that stands beside it."""
        parts = []
        for affine, stride in steps:
            for symbol, factor in affine:
                at = symbol if isinstance(symbol, str) else expand(self.index(symbol), dims)
                step = stride * factor
                parts.append(at if step == 1 else f"{at} * {step}")
        return " + ".join(parts) or "0"

    @staticmethod
    def dims_of(at: Coords) -> tuple[Dim, ...]:
        found = {symbol for _, affine in at for symbol, _ in affine if isinstance(symbol, Dim)}
        return tuple(sorted(found, key=lambda dim: dim.key))

    def eval(self, index: int, at: Coords) -> Value:
        """The value of an operation at the given coordinates (those of its own axes are used)."""
        op = self.graph.ops[index]
        at = tuple(item for item in at if item[0] in op.axes)
        key = (index, at)
        value = self.writer.recall(key)
        if value is None:
            value = self.load(index, at)
            if value is None:
                value = getattr(self, "_" + _HANDLERS.get(op.op, op.op))(index, dict(at))
            self.writer.remember(key, value, PAGE_DIM in value.dims)
        return value

    def inputs(self, index: int, at: dict[str, Affine]) -> list[Value]:
        return [self.eval(i, coords(**at)) for i in self.graph.ops[index].inputs]

    def scalar(self, value: Value) -> Value:
        """A literal as a scalar of the kernel, for functions that take no plain numbers."""
        if not value.literal:
            return value
        dtype = {"float": "tl.float32", "int": "tl.int64", "bool": "tl.int1"}[value.kind]
        return self.assign(f"tl.full((), {value.text}, {dtype})", (), value.kind)

    def broadcast(self, value: Value, dims: tuple[Dim, ...]) -> Value:
        """The value over its own dimensions and `dims`."""
        if set(dims) <= set(value.dims):
            return value
        full = union((value, Value("", dims)))
        if value.literal or not value.dims:
            shape = ", ".join(dim.extent for dim in full)
            return self.assign(f"tl.full(({shape},), {self.as_float(value).text}, tl.float32)", full)
        shape = ", ".join(dim.extent for dim in full)
        return self.assign(f"tl.broadcast_to({expand(value, full)}, ({shape},))", full, value.kind)

    def as_float(self, value: Value) -> Value:
        """Ints and truth values as fp32."""
        if value.kind == "float":
            return value
        if value.literal:
            number = float(value.text == "True") if value.kind == "bool" else float(value.text)
            return Value(literal(number))
        return self.assign(f"{value.text}.to(tl.float32)", value.dims)

    # elementwise

    def _unary(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        x = self.scalar(self.inputs(index, at)[0])
        if op.op in ("floor", "ceil"):
            return x if x.kind == "int" else self.assign(f"to_int(tl.{op.op}({x.text}))", x.dims, "int", op.op)
        if op.op == "float" or (op.kind == "float" and x.kind != "float"):
            x = self.as_float(x)
            if op.op == "float":
                return x
        text = _UNARY[op.op].format(x.text)
        if op.op == "cast":
            if op.attrs["dtype"] == "fp32":
                return x
            low = str(op.attrs["dtype"])
            if low in FP8:
                text = f'round_fp8({x.text}, "{low}")'
            else:
                text = f"round_bf16({x.text})" if low == "bf16" else f"{x.text}.to(tl.float16)"
                text += ".to(tl.float32)"
        if op.op in ("neg", "abs", "relu"):
            return self.assign(text, x.dims, op.kind, op.op, stored=x.stored, clean=x.clean)
        return self.assign(text, x.dims, op.kind, op.op)

    def _binary(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        a, b = self.inputs(index, at)
        if op.op == "div" or "float" in (a.kind, b.kind):
            a, b = self.as_float(a), self.as_float(b)
        dims = union((a, b))
        if a.literal and b.literal:
            a = self.scalar(a)
        left, right = expand(a, dims), expand(b, dims)
        text = _BINARY[op.op].format(left, right)
        if op.op in ("maximum", "minimum") and a.stored == b.stored:
            return self.assign(text, dims, op.kind, op.op, stored=a.stored, clean=a.clean and b.clean)
        return self.assign(text, dims, op.kind, op.op)

    def _not(self, index: int, at: dict[str, Affine]) -> Value:
        (x,) = self.inputs(index, at)
        return self.assign(f"{x.text} == 0", x.dims, "bool", "not")

    def _where(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        c, a, b = self.inputs(index, at)
        if op.kind == "float":
            a, b = self.as_float(a), self.as_float(b)
        if c.literal:
            return a if c.text == "True" else b
        dims = union((c, a, b))
        return self.assign(f"tl.where({expand(c, dims)}, {expand(a, dims)}, {expand(b, dims)})", dims, op.kind, "where")

    def _index(self, index: int, at: dict[str, Affine]) -> Value:
        ((_, along),) = at.items()
        dims = self.dims_of(coords(axis=along))
        return self.assign(self.offset([(along, 1)], dims), dims, "int", "positions")

    # shape

    def _split(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        axis, name = str(op.attrs["axis"]), str(op.attrs["name"])
        inner = op.sizes[axis]
        run = at.pop(name)
        at[axis] = tuple((symbol, factor * inner) for symbol, factor in run) + at[axis]
        return self.inputs(index, at)[0]

    def _rename(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        at[str(op.attrs["old"])] = at.pop(str(op.attrs["new"]))
        return self.inputs(index, at)[0]

    def _slice(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        axis = str(op.attrs["axis"])
        source = self.graph.ops[op.inputs[0]]
        start, _ = slice_bounds(self.graph.program.nodes[op.origin], source.sizes[axis], self.graph.static)
        if start:
            at[axis] = (*at[axis], (str(start), 1))
        return self.inputs(index, at)[0]

    # reductions

    @staticmethod
    def along_run(name: str, run: range) -> tuple[Dim, Affine]:
        """A dimension for one run of an axis, and the axis's index along it."""
        dim = Dim(name, len(run))
        return dim, ((dim, 1), (str(run.start), 1)) if run.start else ((dim, 1),)

    def fresh_dim(self, axis: str, size: int, at: dict[str, Affine]) -> Dim:
        """A dimension to reduce `axis` over, none of those in use."""
        taken = {symbol.name for affine in at.values() for symbol, _ in affine if isinstance(symbol, Dim)}
        base = self.axes.get(axis, axis)
        name, count = base, 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        return Dim(name, size)

    def _reduce(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        axis, how = str(op.attrs["axis"]), str(op.attrs["how"])
        size = self.graph.ops[op.inputs[0]].sizes[axis]
        parts, whole = runs(size), how
        if len(parts) > 1:
            whole = {"mean": "sum", "norm": "squares"}.get(how, how)
        found: list[Value] = []
        for run in parts:
            dim, along = self.along_run(self.fresh_dim(axis, len(run), at).name, run)
            (x,) = self.inputs(index, {**at, axis: along})
            found.append(self.reduce(self.as_float(x), dim, whole, f"{how} over {dim.name}"))
        if len(parts) == 1:
            return found[0]
        total = self.joined(found, "{0} + {1}" if whole in ("sum", "squares") else f"tl.{how}imum({{0}}, {{1}})")
        if how in ("sum", "max", "min"):
            return total
        text = f"tl.sqrt_rn({total.text})" if how == "norm" else f"tl.div_rn({total.text}, {float(size)})"
        return self.assign(text, total.dims)

    def joined(self, parts: list[Value], how: str) -> Value:
        """What the runs of an axis make together."""
        total = parts[0]
        for part in parts[1:]:
            dims = union((total, part))
            total = self.assign(how.format(expand(total, dims), expand(part, dims)), dims, note="of another run")
        return total

    def reduce(self, x: Value, dim: Dim, how: str, note: str) -> Value:
        """Reduction of a tile over one of its dimensions."""
        x = self.broadcast(x, (dim,))
        text, dims = x.text, tuple(d for d in x.dims if d != dim)
        identity = {"max": 'float("-inf")', "min": 'float("inf")'}.get(how, "0.0")
        if dim.pad != dim.size and not (x.clean and identity == "0.0"):
            text = self.assign(f"tl.where({self.mask_of(dim, x.dims)}, {text}, {identity})", x.dims).text
        place = x.dims.index(dim)
        if how in ("max", "min"):
            return self.assign(f"tl.{how}({text}, {place})", dims, note=note)
        if how == "squares":
            return self.assign(f"tl.sum({text} * {text}, {place})", dims, note=note)
        if how == "norm":
            return self.assign(f"tl.sqrt_rn(tl.sum({text} * {text}, {place}))", dims, note=note)
        if how == "mean":
            return self.assign(f"tl.div_rn(tl.sum({text}, {place}), {float(dim.size)})", dims, note=note)
        return self.assign(f"tl.sum({text}, {place})", dims, note=note)

    def mask_of(self, dim: Dim, dims: tuple[Dim, ...]) -> str:
        """Condition, shaped for a tile over `dims`, that an element is no padding of one of them."""
        if dim is PAGE_DIM:
            return expand(Value("live", (dim,)), dims)
        return f"({expand(self.index(dim), dims)} < {dim.size})"

    def _dot(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        axis = str(op.attrs["axis"])
        a, b = (self.graph.ops[i] for i in op.inputs)
        free_a, free_b = (x.sizes.keys() - {axis} for x in (a, b))
        most, plain = LONG, False
        if "page" not in op.axes:
            rows = [math.prod(1 << (op.sizes[name] - 1).bit_length() for name in free) for free in (free_a, free_b)]
            learned = "param" in (a.op, b.op)
            # A few rows times learned constants, in fp32, are no work for a matrix product.
            plain = bool(free_a & free_b) or not free_a or not free_b or (learned and min(rows) < 16)
            whole = math.prod(1 << (op.sizes[name] - 1).bit_length() for name in free_a | free_b)
            if plain and whole * a.sizes[axis] > LARGE:
                most = max(1, LARGE // 4 // whole)
            elif learned:
                most = 32
        parts = [self._product(index, axis, run, at, plain) for run in runs(a.sizes[axis], most)]
        return self.joined(parts, "{0} + {1}")

    def _product(self, index: int, axis: str, run: range, at: dict[str, Affine], plain: bool) -> Value:
        """A contraction over one run of an axis; a `plain` one is no matrix product."""
        dim, along = self.along_run(self.fresh_dim(axis, len(run), at).name, run)
        a, b = (self.broadcast(x, (dim,)) for x in self.inputs(index, {**at, axis: along}))
        free_a, free_b = (tuple(d for d in x.dims if d != dim) for x in (a, b))
        if plain or set(free_a) & set(free_b) or not free_a or not free_b or dim.pad < 16:
            dims = union((a, b))
            product = self.assign(f"{expand(a, dims)} * {expand(b, dims)}", dims)
            return self.reduce(product, dim, "sum", f"contraction over {dim.name}")
        if PAGE_DIM in free_b:
            a, b, free_a, free_b = b, a, free_b, free_a
        self.has_products = True
        native = a.stored == b.stored and a.stored in ("bf16", "fp16")
        left = self._operand(a, dim, free_a, native, last=True)
        right = self._operand(b, dim, free_b, native, last=False)
        matrix = f'tl.dot({left}, {right}, input_precision="ieee")'
        if len(free_a) > 1 or len(free_b) > 1:
            shape = ", ".join(d.extent for d in free_a + free_b)
            matrix = f"tl.reshape({matrix}, ({shape}))"
        order = sorted(free_a + free_b, key=lambda d: d.key)
        if tuple(order) != free_a + free_b:
            places = ", ".join(str((free_a + free_b).index(d)) for d in order)
            matrix = f"tl.permute({matrix}, ({places}))"
        return self.assign(matrix, tuple(order), note=f"contraction over {dim.name}, on tensor cores")

    def _operand(self, x: Value, dim: Dim, free: tuple[Dim, ...], native: bool, last: bool) -> str:
        """An operand of a matrix product: [free, dim] when the contracted dimension comes last, else [dim, free]."""
        text = x.raw if native and x.raw else x.text
        if dim.pad != dim.size and not x.clean:
            text = f"tl.where({self.mask_of(dim, x.dims)}, {text}, 0.0)"
        if native:
            text = f"product_operand({text}, {_NARROW[x.stored]})"
        order = (*free, dim) if last else (dim, *free)
        if order != x.dims:
            text = f"tl.permute({text}, ({', '.join(str(x.dims.index(d)) for d in order)}))"
        if len(free) > 1:
            rows = " * ".join(d.extent for d in free)
            text = f"tl.reshape({text}, ({rows}, {dim.pad}))" if last else f"tl.reshape({text}, ({dim.pad}, {rows}))"
        return text

    def _per_page(self, index: int, at: dict[str, Affine]) -> Value:
        (x,) = self.inputs(index, at)
        return self.assign(f"tl.div_rn({x.text}, tl.maximum(own, 1).to(tl.float32))", x.dims, note="mean over pages")


_NARROW = {"bf16": "tl.bfloat16", "fp16": "tl.float16"}
_NAN = ", propagate_nan=tl.PropagateNan.ALL"
_UNARY = {
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt_rn({0})",
    "relu": "tl.maximum({0}, 0.0" + _NAN + ")",
    "sigmoid": "sigmoid({0})",
    "silu": "{0} * sigmoid({0})",
    "tanh": "tanh({0})",
    "cast": "{0}",
}
_BINARY = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "tl.div_rn({0}, {1})",
    "floordiv": "floor_divide({0}, {1})",
    "mod": "floor_mod({0}, {1})",
    "maximum": "tl.maximum({0}, {1}" + _NAN + ")",
    "minimum": "tl.minimum({0}, {1}" + _NAN + ")",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
}
_HANDLERS = {name: "unary" for name in (*_UNARY, "float", "floor", "ceil")} | {name: "binary" for name in _BINARY}
