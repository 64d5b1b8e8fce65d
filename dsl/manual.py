"""The language reference, written from the tables that the language itself is built on.

``python -m vortexlab.dsl.manual > docs/language.md`` writes the full form; prompts take the compact one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from vortexlab.dsl import limits
from vortexlab.dsl.codes import CODES
from vortexlab.dsl.ir import DYNAMIC_CTX, STATIC_CTX
from vortexlab.dsl.methods import MAX_PARTS
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.outline import MAX_BLOCK, MAX_PAGE, SUMMARY_DTYPES
from vortexlab.dsl.whole import MAX_PROGRAM_NODES

_GROUPS = {
    "leaf": "Values",
    "unary": "Elementwise, one value",
    "binary": "Elementwise, two values",
    "compare": "Comparisons",
    "logic": "Truth values",
    "shape": "Axes",
    "order": "Along an axis",
    "reduce": "Reductions",
    "contract": "Contractions",
    "pages": "Over pages",
    "selector": "Selectors: sets of pages",
    "set": "Set algebra",
    "output": "Attention output",
}

_CTX = {
    "length": "tokens of the request, the query's own token included",
    "pages": "pages of the request, the own page included",
    "layer": "number of this layer, from 0",
    "layers": "number of layers",
    "kv_heads": "KV heads of the layer",
    "group": "query heads of one KV head",
    "head_dim": "channels of one head",
    "page": "tokens of a page",
    "latent": "channels of the latent part of an MLA key, else 0",
    "prefill": "whether this is a block of prefill, not a step of decode",
    "position": "the query's position, length - 1",
    "scale": "the model's softmax scale, usually 1 / sqrt(head_dim)",
}

_EXAMPLES = {
    "Scores from two summaries, knobs, forced pages": '''
from vortexlab.dsl import *

@program(page=knob.choice(8, 16, 32, 64, default=16))
class Envelope:
    """Upper bound of q . k from the smallest and largest key of a page in every channel."""
    budget = knob.int(4, 512, log=True, default=64)  # pages
    sink = knob.int(0, 8, default=1)
    recent = knob.int(1, 512, log=True, default=2)

    def summarize(k):                                     # k: [token, channel]
        return dict(lo=k.min(token), hi=k.max(token))     # each [channel]

    def score(q, s):                                      # q: [head, channel], s.lo: [page, channel]
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)  # [page]

    def select(score):
        forced = first(sink) | last(recent)
        return forced | topk(score, budget, among=~forced)
''',
    "Sub-pages, two scores, two levels, budgets that follow context, layer and scores": '''
from vortexlab.dsl import *

@program(page=32, summaries="bf16")
class TwoLevels:
    """A cheap score picks a shortlist, a finer one chooses from it by attention mass; the first layers are dense."""
    fraction = knob.float(0.01, 0.5, log=True, default=0.1)
    mass = knob.float(0.3, 0.99, default=0.9)
    reduce = knob.choice("max", "mean", "sum", default="max")
    dense_layers = knob.int(0, 4, default=1)

    def summarize(k, v):
        return dict(centre=k.mean(token), parts=k.split(token, part=4).mean(token), energy=v.norm(channel).mean(token))

    def score(q, s, ctx):
        coarse = dot(q, s.centre, channel).max(head)                         # [page]
        fine = dot(q, s.parts, channel).max(part).reduce(reduce, head)       # parts: [page, part, channel]
        return dict(coarse=coarse, fine=ctx.scale * fine + 0.1 * log(s.energy + 0.001))

    def select(score, ctx):
        forced = first(1) | last(2)
        budget = maximum(4, floor(fraction * ctx.pages))
        shortlist = topk(score.coarse, 4 * budget, among=~forced)
        chosen = topp(score.fine, mass, max=budget, among=shortlist)
        return where(ctx.layer < dense_layers, everything(), forced | chosen)
''',
}


@dataclass(frozen=True)
class Mistake:
    """`place` is the method, or ``class``, that both stand in; `code` is the finding that `wrong` gives."""

    place: str
    wrong: str
    code: str
    right: str


MISTAKES = (
    Mistake("score", "return q @ s.c", "not-in-language", "return dot(q, s.c, channel).max(head)"),
    Mistake("score", "return dot(q, s.c, -1).max(head)", "axis-expected", "return dot(q, s.c, channel).max(head)"),
    Mistake("score", "return q * s.c", "score-axes", "return (q * s.c).sum(channel)"),
    Mistake("select", "return topk(score.page, 0.1 * ctx.pages)", "count-not-int",
            "return topk(score.page, floor(0.1 * ctx.pages))"),
    Mistake("select", "return first(1) or last(2)", "not-a-truth-value", "return first(1) | last(2)"),
    Mistake("select", "return topk(score.page, 64) if ctx.layer > 0 else everything()", "not-in-language",
            "return where(ctx.layer > 0, topk(score.page, 64), everything())"),
    Mistake("select", "return score.page > 0", "not-a-set", "return above(score.page, 0, max=64)"),
    Mistake("select", "return topk(score.page, 64) | first(1)", "budget-on-forced",
            "return topk(score.page, 64, among=~first(1)) | first(1)"),
    Mistake("summarize", "return k.mean(token)", "summary-mapping", "return dict(c=k.mean(token))"),
    Mistake("summarize", "return dict(c=k.mean(token) / ctx.length)", "summary-not-pure",
            "return dict(c=k.mean(token) / ctx.page)"),
    Mistake("score", "return (s.c * (s.c > 0)).sum(channel)", "truth-and-number",
            "return where(s.c > 0, s.c, 0.0).sum(channel)"),
    Mistake("score", "return (s.c ** 2).sum(channel)", "not-in-language", "return (s.c * s.c).sum(channel)"),
    Mistake("score", "return s.c[0]", "not-in-language", "return s.c.take(channel, 0)"),
    Mistake("score", "return s.c.take(channel, 0.5)", "index-not-int", "return s.c.take(channel, 5)"),
    Mistake("select", "return reuse(topk(score.page, 64), layers=ctx.layer > 0)", "reuse-before-write",
            "return reuse(topk(score.page, 64), layers=ctx.layer % 2 == 0)"),
    Mistake("select", "return attention(topk(score.page, 64))", "attention-place", "return topk(score.page, 64)"),
    Mistake("class", "budget = knob.int(0, 512, log=True, default=64)", "knob-range",
            "budget = knob.int(1, 512, log=True, default=64)"),
)  # fmt: skip

_SHAPE = f"""\
A file holds one class under `@program(page=16, kv="auto", summaries="kv", seed=0)`, which are the defaults.
`page` is the tokens of a page (1 to {MAX_PAGE}), a number or `knob.choice(...)`. `summaries` is the precision
that summaries are stored in: {", ".join(f'`"{name}"`' for name in SUMMARY_DTYPES)}
(`kv`: that of the cache); `kv` that of the KV cache (`auto`: the model's). `seed` feeds `random`. The class holds a
docstring, knobs, constants (`sink = 1`), learned constants, memories and methods without `self`, whose parameters are
known by name:

- `summarize(k, v, ctx)` runs once when a page is complete and returns `dict(name=value, ...)`: what to keep of it.
- `score(q, s, m, ctx)` runs at every decode step and returns a value or `dict(name=value, ...)`. `s.name` is a
  summary of every candidate page.
- `select(score, m, ctx)` returns the set of pages to read. A dict of scores is read as `score.name`.
- `attend`, `remember`, `pool`: see Beyond selection.

Only `select` must be there; any parameter may be left out. A body is `name = expression` lines and one `return`
at the end. There are no loops, `if`s, lambdas, comprehensions, subscripts, lists, tuples, attributes or imports
beyond these."""

_AXES = """\
Axes have names: `page` (candidates), `head` (query heads of one KV head), `token`, `channel`, in `pool` `query`, and
those that a program makes (`split`, `merge`, `window`, `rename`, `param`). Operands are matched by name: the result
has every axis of either. Nothing is positional; positions are read by `slice` and `take`. `x.sum(axis)`, `.mean`,
`.max`, `.min`, `.norm` remove an axis (several in turn: `x.sum(token, channel)`). Scalars have no axis. Kinds are
float, int, bool and set; `/` gives floats, counts must be ints (`floor`, `ceil`), truth values come from comparisons
and combine with `and`, `or`, `not`, sets with `|`, `&`, `-`, `~`."""

_RULES = """\
1. *Axes.* `q` is [head, channel], `k` and `v` are [token, channel], after norm and RoPE and unscaled;
   `ctx.scale` is the model's softmax scale. An axis occurs once in a value; `rename` makes a second.
   `split(token, part=4)` cuts a page into 4 equal runs in token order. A summary keeps the axes that its
   expression leaves. Scores are fp32.
2. *Lists.* A score [page] gives one list per KV head; [page, head] gives one per query head, each head attends
   its own list, and the pages of all are counted. `share(score, how)` makes one list per request out of the
   scores of all KV heads.
3. *The own page*, which holds the query's token, is always read, is never a candidate, and is what `last(1)`
   names. A page becomes a candidate at the first step after its last token. So no selection is empty.
4. *Selectors* choose among the candidates, or among those in `among=`. Choose among `~forced`, or the budget is
   partly spent on pages that are read anyway. `topp` takes the fewest pages whose softmax(scale * score) mass
   reaches p, at least one, at most `max`; `above` takes scores strictly over the threshold, the best `max` of
   them. Negative counts are 0.
5. *Order* is by score, then the smaller page; -0 equals 0; -inf is never chosen; NaN fails the program.
6. *Random* pages depend on seed, salt, layer, KV head and position alone.
7. *One at a time.* Every token of a question and an answer selects for itself.
8. *State.* A summary is a function of its page's tokens alone; only `memory` and `reuse` carry anything on.
9. *Specialisation.* Layer, phase, precision and page size are fixed when a program is compiled; length and scores
   are not.
10. *fp8* casts saturate at 448 (e4m3) and 57344 (e5m2); fp8 summaries have one scale per page, KV head and summary.

Over an empty page axis (a short context) sum, mean and norm give 0, max gives -inf, min gives inf and argmax 0.
Arithmetic on numbers, knobs and `ctx` is exact. Pages read are paid for, and so are the bytes of summaries: a
summary [channel] costs 1/page of the keys, one that keeps [token, channel] as much as the keys."""

_WHOLE = '''
@program(page=16, block=64, kv="fp8_e4m3")
class Whole:
    """Remembered mass, a selection kept for some steps, a gated branch over summaries, sparse prefill."""
    gate = param(head, channel)
    mass = memory.step(page)
    budget = knob.int(8, 256, log=True, default=64)

    def summarize(k, v):
        return dict(key=k.mean(token), value=v.mean(token))

    def pool(q):                                            # q: [head, query, channel]
        return q.slice(query, -16).mean(query)              # [head, channel]: the block's last 16 queries

    def score(q, s, m, ctx):
        logit = ctx.scale * dot(q, s.key, channel).max(head)
        return softmax(logit.window(page, near=3, fill=-30.0).max(near), page) + m.mass

    def select(score):
        forced = first(1) | last(4)
        return forced | reuse(topk(score, budget, among=~forced), every=4)

    def attend(q, s, pages):
        g = sigmoid(dot(q, gate, channel))                  # [head]
        return g * attention(pages) + (1 - g) * attention(keys=s.key, values=s.value)

    def remember(score):
        return dict(mass=0.5 * score)
'''

_BEYOND = f"""\
- *Learned constants.* `gate = param("name", head, channel, rank=64)` is a tensor of a safetensors file (named like
  the attribute where no name is given) with axes of the model (`head`, `token`, `channel`) and of its own, with
  sizes. It is a value in every method. In the file the axes stand in the order layer (unless `per_layer=False`), KV
  head (with `per_kv_head=True`), head, own axes by name, token, channel. `kind="int"` holds positions for `take`.
- *Memory.* `mass = memory.step(page, init=0.0)` ([page], or with head or channel too) and `kept =
  memory.step(pages)` (a set) are read as `m.mass` and hold what `remember(q, s, score, pages, m, ctx)` returned
  at the same layer's last step: `dict(mass=..., kept=...)`, every memory once. Pages that are new since have
  `init`, a set begins empty. With `every=n` it is rewritten only where position % n == 0. `memory.layer(...)`
  holds what the layer below wrote in this step. `pages` is the selected set.
- *Reuse.* `reuse(a, every=n)` keeps a set for n steps, `reuse(a, layers=ctx.layer % 4 == 0)` takes it from the
  nearest layer where the condition holds; it must hold in layer 0. Both keep candidates; add last(n) outside.
- *Output.* `attend(q, s, score, pages, m, ctx)` returns [head, channel], without it `attention(pages)`. `log_weight`
  [page], [page, head] is added to the logits of a page's tokens (0 on the own page). `keys=`, `values=` make each
  page, or each position of their axes, one entry of the softmax with weight `entry_log_weight` (`log_weight` without
  pages), among the candidates in `among=`. Gates [head] weigh outputs.
- *Prefill* is dense unless `block=` (to {MAX_BLOCK}; a multiple or a divisor of the page) and `pool(q, ctx)` are
  there. `pool` makes one query of a block's; score and select run with it once per block, candidates are pages complete
  before the block, and every query attends the chosen pages and, causally, the block's own. `ctx.prefill` tells.
- *MLA.* Keys are [latent | rotary], values their latent part: `x.slice(channel, 0, ctx.latent)` of q and k leaves the
  rotary part out; `ctx.latent` is 0 elsewhere."""

_KNOBS = """\
A knob is a number or a choice that a search may vary; a program always has its defaults.

- `knob.int(low, high, default=n)`, `knob.float(low, high, default=x)`; with `log=True` the range is logarithmic
  (low above 0), with `step=s` it has steps.
- `knob.choice("max", "mean", default="max")` of texts names a reduction: `x.reduce(how, axis)`, `share(score,
  how)`, or an order. Of numbers it is a scalar.
- `knob.bool(default=True)` is a truth value: `where(flag, a, b)`.

Knobs are scalars in all methods, may be the number of `split`, `window`, `shift`, `slice`, `fill=` and `every=`, and
do not change while a model runs."""


_NOTES = (
    "`maximum` and `minimum` may be written `max` and `min`; `clamp(x, low, high)` is "
    f"`minimum(maximum(x, low), high)`. `max` of "
    "`topp` and `above` is all pages where it is left out. `salt` is a number written out. A split or window has at "
    f"most {MAX_PARTS} parts. Over `page` the neighbours of a page are candidates, never the own page."
)


def manual(compact: bool = False, examples: Mapping[str, str] | None = None) -> str:
    """The language reference as Markdown.

    `compact` leaves out the table of findings and the limits, for prompts. `examples` are programs by title; by
    default two that show most of the language.
    """
    parts = [
        "# The language",
        "A program says, for one sequence and one KV head: what to remember of each page of the KV cache, how to score "
        "pages for a query, and which pages attention reads. It is Python's syntax, checked and compiled, never run.",
        *_sections(_EXAMPLES if examples is None else examples),
        "## The file",
        _SHAPE,
        "## Axes and kinds",
        _AXES,
        "## Rules of meaning",
        _RULES,
        "## Beyond selection",
        f"```python\n{_WHOLE.strip()}\n```",
        _BEYOND,
        "## Knobs",
        _KNOBS,
        "## Context",
        "Known when a program is compiled for a layer, and in every method: "
        + "; ".join(f"`ctx.{name}` ({_CTX[name]})" for name in STATIC_CTX)
        + ". Known at run time, not in `summarize`: "
        + "; ".join(f"`ctx.{name}` ({_CTX[name]})" for name in DYNAMIC_CTX)
        + ".",
        "## Operations",
        *_operations(),
        _NOTES,
        "## Common mistakes",
        *_mistakes(),
    ]
    if not compact:
        parts += ["## Limits", _limits(), "## Findings", _findings()]
    return "\n\n".join(parts) + "\n"


def _sections(examples: Mapping[str, str]) -> list[str]:
    return [f"{title}:\n\n```python\n{text.strip()}\n```" for title, text in examples.items()]


def _operations() -> list[str]:
    parts = []
    for group, title in _GROUPS.items():
        rows = [f"- `{spec.signature}`: {spec.doc}" for spec in OPS.values() if spec.group == group]
        parts.append(f"**{title}**\n\n" + "\n".join(rows))
    return parts


def _mistakes() -> list[str]:
    rows = ["| wrong | finding | right |", "|---|---|---|"]
    rows += [f"| `{_cell(m.wrong)}` | {m.code} | `{_cell(m.right)}` |" for m in MISTAKES]
    return ["\n".join(rows)]


def _cell(code: str) -> str:
    return code.removeprefix("return ").replace("|", "\\|")


def _limits() -> str:
    return (
        f"At most {limits.MAX_BYTES} bytes, {limits.MAX_LINE} characters a line, {limits.MAX_TOKENS} tokens, "
        f"{limits.MAX_STATEMENT} tokens a statement, {limits.MAX_BRACKETS} levels of brackets, "
        f"{limits.MAX_DEPTH} levels of syntax, {limits.MAX_NUMBER} characters a number, {limits.MAX_NAME} a name, "
        f"{MAX_PROGRAM_NODES} operations. "
        "Names are ASCII; docstrings and comments are in Unicode normal form C without invisible "
        "characters; there is no encoding declaration. All of this is checked before the text meets Python's parser."
    )


def _findings() -> str:
    rows = ["| code | says that |", "|---|---|"]
    rows += [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    return (
        "Each finding has a line and a column, what was found, what was expected, a hint, and a code that keeps its "
        "meaning between versions. Warnings do not refuse a program. [Diagnostics](diagnostics.md) shows a wrong "
        "program for each code, and its mending.\n\n" + "\n".join(rows)
    )


if __name__ == "__main__":
    sys.stdout.write(manual())
