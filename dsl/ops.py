"""The op table: every operation of the language, once.

The parser's whitelist, the type rules, the language reference and the random-program generator all read this
table. `OpSpec.signature` is how the op is written in a program; `doc` says what it means.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OpSpec:
    """One operation of the IR.

    `group` is one of: leaf, unary, binary, compare, logic, shape, order, reduce, contract, pages, selector,
    set, output.
    `arity` counts node inputs; (low, high) when the last ones are optional. `attrs` are all that a node may have.
    """

    name: str
    group: str
    arity: tuple[int, int]
    attrs: tuple[str, ...]
    signature: str
    doc: str
    commutative: bool = False


def _op(
    name: str, group: str, arity: int | tuple[int, int], attrs: str, signature: str, doc: str, commutative: bool = False
) -> OpSpec:
    bounds = arity if isinstance(arity, tuple) else (arity, arity)
    return OpSpec(name, group, bounds, tuple(attrs.split()), signature, doc, commutative)


_TABLE = [
    # leaves
    _op("const", "leaf", 0, "value", "3, 0.5, True", "a number or truth value"),
    _op("knob", "leaf", 0, "name", "budget", "a knob declared in the class body; a constant once bound"),
    _op("ctx", "leaf", 0, "name", "ctx.length", "a fact about the step or the model"),
    _op("k", "leaf", 0, "", "k", "keys of one complete page, after norm and RoPE: [token, channel]"),
    _op("v", "leaf", 0, "", "v", "values of one complete page: [token, channel]"),
    _op("q", "leaf", 0, "", "q", "query heads of one KV head, after norm and RoPE, unscaled: [head, channel]"),
    _op("field", "leaf", 0, "name", "s.lo", "a summary of every candidate page: [page, ...the summary's axes]"),
    _op("param", "leaf", 0, "name", "gate", "a learned constant"),
    _op("memory", "leaf", 0, "name", "m.mass", "what `remember` handed on"),
    _op("index", "leaf", (0, 1), "axis", "index(page), x.index(axis)",
        "int [axis]: 0, 1, 2, ... along an axis of the model or of x; over page the page number"),
    # elementwise
    _op("neg", "unary", 1, "", "-x", "negation"),
    _op("abs", "unary", 1, "", "abs(x)", "absolute value"),
    _op("exp", "unary", 1, "", "exp(x)", "natural exponential"),
    _op("log", "unary", 1, "", "log(x)", "natural logarithm; -inf at 0, NaN below"),
    _op("sqrt", "unary", 1, "", "sqrt(x)", "square root; NaN below 0"),
    _op("relu", "unary", 1, "", "relu(x)", "maximum of x and 0"),
    _op("sigmoid", "unary", 1, "", "sigmoid(x)", "1 / (1 + exp(-x))"),
    _op("silu", "unary", 1, "", "silu(x)", "x * sigmoid(x)"),
    _op("tanh", "unary", 1, "", "tanh(x)", "hyperbolic tangent"),
    _op("floor", "unary", 1, "", "floor(x)", "largest integer not above a scalar x; an int"),
    _op("ceil", "unary", 1, "", "ceil(x)", "smallest integer not below a scalar x; an int"),
    _op("float", "unary", 1, "", "float(x)", "an int or truth value as a float"),
    _op("cast", "unary", 1, "dtype", 'x.to("bf16")',
        "rounds to fp32, bf16, fp16, fp8_e4m3 or fp8_e5m2 (these saturate); arithmetic afterwards is fp32"),
    _op("add", "binary", 2, "", "a + b", "sum", True),
    _op("sub", "binary", 2, "", "a - b", "difference"),
    _op("mul", "binary", 2, "", "a * b", "product", True),
    _op("div", "binary", 2, "", "a / b", "quotient, always a float"),
    _op("floordiv", "binary", 2, "", "a // b", "integer quotient, rounded down; ints only"),
    _op("mod", "binary", 2, "", "a % b", "integer remainder with the sign of b; ints only"),
    _op("maximum", "binary", 2, "", "maximum(a, b)", "the larger, elementwise", True),
    _op("minimum", "binary", 2, "", "minimum(a, b)", "the smaller, elementwise", True),
    _op("lt", "compare", 2, "", "a < b", "less"),
    _op("le", "compare", 2, "", "a <= b", "less or equal"),
    _op("eq", "compare", 2, "", "a == b", "equal", True),
    _op("ne", "compare", 2, "", "a != b", "not equal", True),
    _op("and", "logic", 2, "", "a and b", "both", True),
    _op("or", "logic", 2, "", "a or b", "either", True),
    _op("not", "logic", 1, "", "not a", "negation"),
    _op("where", "logic", 3, "", "where(c, a, b)", "a where c holds, else b; between sets c must be a scalar"),
    # shape
    _op("split", "shape", 1, "axis name size", "x.split(token, part=4)",
        "cuts an axis into 4 equal runs, in order; a new axis counts them"),
    _op("merge", "shape", 1, "first second name", "x.merge(part, token, into=tokens)",
        "makes one axis of two, the first one slower: what split undoes"),
    _op("rename", "shape", 1, "old new", "x.rename(channel, other)", "gives an axis another name"),
    _op("slice", "shape", 1, "axis start stop", "x.slice(channel, 0, 64), x.slice(channel, -64)",
        "a run of an axis; below 0 counts from the end; bounds: whole numbers, int knobs, ctx.latent, ctx.head_dim"),
    _op("concat", "shape", 2, "axis", "concat(a, b, channel)", "b behind a along one axis"),
    _op("window", "shape", 1, "axis name size fill", "x.window(page, near=3, fill=0.0)",
        "a new axis of neighbours: out[i, j] = x[i + j - 3 // 2]; `fill` beyond the ends"),
    _op("shift", "shape", 1, "axis by fill", "x.shift(page, 1, fill=0.0)", "out[i] = x[i - 1]; `fill` beyond the ends"),
    _op("gather", "shape", 2, "axis fill", "x.take(channel, i, fill=0.0)",
        "x at the int index i, which may have any axes; `fill` where i is outside"),
    # along an axis
    _op("scan", "order", 1, "how axis", "x.cumsum(axis), x.cummax(axis), x.cummin(axis)", "running sum, max, min"),
    _op("sort", "order", 1, "axis how", 'x.sort(axis), x.sort(axis, "up")', "values in order, the largest first"),
    _op("argmax", "order", 1, "axis", "x.argmax(axis)", "int: where the largest is, the first of equals"),
    # reductions and contractions
    _op("reduce", "reduce", 1, "how axis", 'x.sum(channel), x.reduce("max", head)',
        "sum, mean, max, min or norm (square root of the sum of squares) over one axis; over `page` it runs over "
        "the candidate pages"),
    _op("dot", "contract", 2, "axis", "dot(a, b, channel)", "sum of products over one axis", True),
    # over pages
    _op("softmax", "pages", 1, "", "softmax(x, page)", "softmax over the candidate pages"),
    _op("share", "pages", 1, "how", 'share(score, "max")',
        "one score list per request: sum, max or mean of a [page] score over the KV heads"),
    _op("member", "pages", 1, "", "member(pages)", "bool [page], or [page, head]: which candidates a set holds"),
    # selectors
    _op("everything", "selector", 0, "", "everything()", "every page"),
    _op("first", "selector", 1, "", "first(n)", "the first n pages (attention sinks)"),
    _op("last", "selector", 1, "", "last(n)", "the last n pages; last(1) is the page being written"),
    _op("stride", "selector", 2, "", "stride(n, offset=0)", "pages whose index leaves `offset` when divided by n"),
    _op("random", "selector", (1, 2), "salt", "random(n, among=..., salt=0)",
        "n candidate pages, drawn afresh for every layer, KV head and position"),
    _op("topk", "selector", (2, 3), "", "topk(score, n, among=...)", "the n candidates with the highest score"),
    _op("topp", "selector", (4, 5), "", "topp(score, p, scale=1.0, max=..., among=...)",
        "the fewest candidates whose softmax(scale * score) mass reaches p, at least one, at most `max`"),
    _op("above", "selector", (3, 4), "", "above(score, threshold, max=..., among=...)",
        "candidates whose score exceeds the threshold, the best `max` of them"),
    # set algebra
    _op("union", "set", 2, "", "a | b", "pages in either", True),
    _op("intersect", "set", 2, "", "a & b", "pages in both", True),
    _op("difference", "set", 2, "", "a - b", "pages in a and not in b"),
    _op("complement", "set", 1, "", "~a", "pages that are not in a"),
    _op("reuse", "set", (1, 2), "every over", "reuse(a, every=8), reuse(a, layers=c)",
        "the set of the request's last due step (position % every == 0), or of the nearest layer up to this one "
        "where the compile-time c holds"),
    # output
    _op("attention", "output", (1, 6), "parts",
        "attention(pages, log_weight=w), attention(pages, keys=s.k, values=s.v, among=a, entry_log_weight=u)",
        "softmax over the pages' tokens (logit scale * q . k + w[page]) and entries made of summaries, times values"),
]  # fmt: skip

OPS: dict[str, OpSpec] = {spec.name: spec for spec in _TABLE}
