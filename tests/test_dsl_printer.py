"""The printer: a program written back is the same program."""

from __future__ import annotations

import random

import pytest
from dsl_programs import program

from vortexlab.dsl import canonical_hash, check, parse, structure_hash, to_source
from vortexlab.dsl.ir import Program
from vortexlab.dsl.limits import MAX_LINE
from vortexlab.dsl.testing import random_program
from vortexlab.search_spaces import seeds

TRICKY = {
    "brackets": "return first(2 * (3 + 1) - (4 - (2 - 1)) // (2 * 3) % 5)",
    "signs": "return first(-(-3) - -2)",
    "logic": "return where(not (ctx.layer < 1 or ctx.layer > 3) and (True or ctx.group == 2), first(1), last(2))",
    "comparisons": "return where((ctx.layer < 1) and not (ctx.layer != 3), first(1), last(2))",
    "set algebra": "return (first(1) | last(2)) & ~(stride(3, offset=1) - (first(9) - last(4)))",
    "difference of a union": "return everything() - (first(1) | last(2)) - stride(2)",
    "random": "return random(3, among=~first(1), salt=9) | random(3, salt=8)",
}


C = "return dict(c=k.mean(token), e=v.mean(token), p=k.split(token, part=4).mean(token))"
RAW = "return dot(q, s.c, channel)"


def scored(expression: str, **more: str) -> str:
    """A program that chooses by an expression over q, s.c, s.e, s.p and what the class body declares."""
    return program(**{"select": "return topk(score, 4)", "summarize": C, "score": f"return {expression}", **more})


def chosen(select: str, **more: str) -> str:
    return program(**{"select": f"return {select}", "summarize": C, "score": RAW, **more})


def attended(attend: str, **more: str) -> str:
    return chosen("topk(score, 4)", attend=f"return {attend}", **more)


KNOBS = "n = knob.int(1, 8, default=2)\nf = knob.float(0.0, 1.0, default=0.5)\nw = knob.choice(1, 3, default=3)"
PARAMS = (
    'gate = param("a.gate", head, channel)\nlow = param(channel, rank=8, per_kv_head=True, per_layer=False)\n'
    'at = param(rank=8, kind="int")\nhot = param(per_layer=False, per_kv_head=True)'
)
MEMORIES = (
    "mass = memory.step(page, head, init=-1.5, every=n)\nkept = memory.step(pages, head, every=4)\n"
    "below = memory.layer(page, channel)\nset = memory.layer(pages)"
)
WRITES = (
    "return dict(mass=0.5 * m.mass + score, kept=topk(m.mass, 4), below=m.below + s.c * q.mean(head), "
    "set=m.set | first(3))"
)
WHOLE = {
    "slices": scored("dot(q.slice(channel, 2), s.c.slice(channel, 2), channel) + s.c.slice(channel, -3).max(channel)"),
    "slices by knobs": scored("dot(q.slice(channel, n), s.c.slice(channel, n), channel)", body=KNOBS),
    "latent": scored("dot(q.slice(channel, 0, ctx.latent), s.c.slice(channel, 0, ctx.latent), channel)"),
    "rotary": scored("dot(q.slice(channel, ctx.latent), s.c.slice(channel, ctx.latent, ctx.head_dim), channel)"),
    "concat": scored("dot(concat(q, q.slice(channel, -2), channel), concat(s.c, s.c.slice(channel, -2), channel), "
                     "channel)"),
    "merge": scored("s.p.merge(part, channel, into=wide).split(wide, part=4).rename(wide, other).max(part, other)"
                    " + s.p.merge(channel, part, into=part).max(part)"),
    "window": scored("dot(q, s.c, channel).window(page, near=w, fill=f).max(near)", body=KNOBS),
    "window of tokens": scored("dot(q, s.p.window(part, near=3, fill=-2.5).mean(near), channel).max(part)"),
    "shift": scored("(s.c.shift(page, -1) - s.c.shift(page, n, fill=f)).sum(channel)", body=KNOBS),
    "take": scored("s.c.take(channel, s.c.argmax(channel)) + s.p.take(part, index(page) % 4, fill=1.0).sum(channel)"),
    "take pages": scored("s.e.sum(channel).take(page, maximum(index(page) - 3, 0))"
                         " + index(page).take(page, 5, fill=2)"),
    "scans": scored("(s.c.cumsum(page) + s.c.cummax(channel) * s.p.cummin(part).sum(part)).sum(channel)"),
    "orders": scored("s.c.sort(channel).slice(channel, 0, 4).sum(channel)"
                     ' + s.e.sort(channel, "up").slice(channel, 0, 4).sum(channel)'),
    "order by knob": scored("s.c.sort(page, how).sum(channel)", body='how = knob.choice("down", "up", default="up")'),
    "positions": scored("where(index(page) < n, 1.0, 0.5) * s.p.index(part).max(part) + index(head)", body=KNOBS),
    "params": scored("dot(dot(q * gate, low, channel), dot(s.c, low, channel), rank) * hot + at.max(rank)",
                     body=PARAMS),
    "positions learned": scored("dot(q.take(channel, at), s.c.take(channel, at), rank)", body=PARAMS),
    "fp8": scored('dot(q, s.c.to("fp8_e4m3"), channel)', options='page=16, kv="fp8_e5m2", summaries="fp8_e4m3"'),
    "members": chosen("topk(where(member(first(2)), 0.0, score), 4) | above(score, score.max(page), max=2)"),
    "reuse": chosen("reuse(topk(score, 4), every=n) | reuse(first(n), layers=ctx.layer % n == 0)", body=KNOBS),
    "reuse nested": chosen("reuse(reuse(topk(score, 4), every=3), layers=ctx.layer < 2 or ctx.prefill)"),
    "memory": chosen("topk(score + m.mass, 4) | m.kept | m.set | topk(m.below.max(channel), 2)", remember=WRITES,
                     body=f"{KNOBS}\n{MEMORIES}"),
    "memory alone": program("return topk(m.a, 4)", body="a = memory.step(page)", remember="return dict(a=m.a + 1)"),
    "attention": attended("attention(pages)"),
    "weights": attended("attention(pages, log_weight=where(member(pages), -score, 0.5))"),
    "entries": attended("attention(keys=s.c, values=s.e, among=~pages, log_weight=score.max(head)) * sigmoid(q"
                        ".mean(channel))"),
    "both": attended("attention(first(2), keys=s.p, values=s.p, among=last(9), log_weight=score, "
                     "entry_log_weight=s.p.sum(channel))"),
    "weight of all": attended("attention(pages, keys=s.c, values=s.e, entry_log_weight=log(float(ctx.page)))"),
    "gated": attended("sigmoid(dot(gate, q, channel)) * attention(pages) + (1 - sigmoid(dot(gate, q, channel)))"
                      " * attention(everything())", body=PARAMS),
    "linear": attended("(s.e * softmax(score, page)).sum(page)"),
    "prefill": chosen("where(ctx.prefill, topk(score, 4), last(ctx.position // 2))", options="page=16, block=64",
                      pool="x = q.slice(query, -8)\nreturn x.mean(query) + (q * index(query)).max(query)"),
    "prefill by knob": chosen("topk(score, 4)", options="page=16, block=knob.choice(16, 32, default=32)",
                              pool="return q.max(query)"),
}  # fmt: skip


def again(found: Program) -> Program:
    text = to_source(found)
    result, findings = check(text)
    assert result is not None, text + "\n".join(map(str, findings))
    assert max(map(len, text.split("\n"))) <= MAX_LINE
    return result


def assert_round_trip(found: Program) -> None:
    result = again(found)
    assert canonical_hash(result) == canonical_hash(found)
    assert structure_hash(result) == structure_hash(found)
    assert result.knobs == found.knobs and result.page == found.page
    assert (result.name, result.doc) == (found.name, found.doc)


@pytest.mark.parametrize("name", list(seeds()))
@pytest.mark.parametrize("bound", [False, True])
def test_seeds_round_trip(name: str, bound: bool) -> None:
    found = parse(seeds()[name])
    found = found.bind() if bound else found
    assert_round_trip(found)
    assert to_source(again(found)) == to_source(found)


@pytest.mark.parametrize("select", TRICKY.values(), ids=list(TRICKY))
def test_tricky_expressions_round_trip(select: str) -> None:
    assert_round_trip(parse(program(select)))


@pytest.mark.parametrize("text", WHOLE.values(), ids=list(WHOLE))
def test_whole_programs_round_trip(text: str) -> None:
    found = parse(text)
    assert_round_trip(found)
    assert_round_trip(found.bind())
    result = again(found)
    assert (result.params, result.memories, result.kv_dtype) == (found.params, found.memories, found.kv_dtype)
    assert (result.block, result.pooled is None, result.result is None) == (
        found.block, found.pooled is None, found.result is None
    )  # fmt: skip
    assert to_source(again(result)) == to_source(result)


def test_whole_programs_use_every_op() -> None:
    used = {node.op for text in WHOLE.values() for node in parse(text).nodes}
    new = "index slice concat merge gather shift window scan sort argmax param memory reuse member attention"
    assert set(new.split()) <= used


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_round_trip(seed: int) -> None:
    found = parse(random_program(random.Random(seed)))
    assert_round_trip(found)
    assert_round_trip(found.bind())


def test_every_kind_of_value_is_printed() -> None:
    text = program(
        "few = topp(score.a, x, scale=ctx.scale, max=n, among=~first(1))\n"
        "return where(flag, few | above(score.a, score.b, max=3), few)",
        summarize="near = k.split(token, part=4).to('bf16').mean(token)\n"
        "return dict(c=near, g=dot(k, k.rename(channel, other), token))",
        score="near = dot(q, s.c, channel).reduce(how, part)\n"
        "y = s.g.sum(channel, other)\n"
        "return dict(a=where(y > 0, silu(near), -abs(near)), b=near.mean(page) + 0.001)",
        body="n = knob.int(2, 10, step=4, default=6)\nx = knob.float(0.25, 1.0, step=0.25, default=0.5)\n"
        'flag = knob.bool(default=False)\nhow = knob.choice("max", "mean", default="mean")',
        options='page=32, summaries="fp16", seed=5',
    )
    found = parse(text)
    assert_round_trip(found)
    again_found = again(found)
    assert (again_found.seed, again_found.summary_dtype, again_found.page) == (5, "fp16", 32)


@pytest.mark.parametrize(
    "doc", ['says "so"', "back\\slash \\n", 'ends in a quote"', "'''", "two\n\nparagraphs\n    indented", "q·k ≤ ½"]
)
def test_docstrings_survive(doc: str) -> None:
    from dataclasses import replace

    found = replace(parse(program()), doc=doc)
    assert again(found).doc == doc


def test_local_names_avoid_the_programs_own() -> None:
    text = program(
        "pages1 = first(n1) | last(2)\nreturn pages1 | random(x1, among=~pages1)",
        body="n1 = knob.int(1, 4, default=2)\nx1 = knob.int(1, 4, default=3)",
    ).replace("pages1", "n2")
    assert_round_trip(parse(text))
    knobs = text.replace("n1", "pages1")
    assert_round_trip(parse(knobs))


def test_a_bound_program_prints_its_numbers() -> None:
    text = to_source(parse(seeds()["quest"]).bind({"budget": 77, "page": 32}))
    assert "knob" not in text and "topk(score, 77" in text and "@program(page=32)" in text


def test_shared_values_are_written_once() -> None:
    text = to_source(parse(seeds()["quest"]))
    assert text.count("first(sink)") == 1 and text.count("last(recent)") == 1
