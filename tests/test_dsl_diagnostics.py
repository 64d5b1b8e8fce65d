"""Every finding: its code, and the line and column it points at (the mark ‹ in the text)."""

from __future__ import annotations

import pytest
from dsl_programs import MARK, program, unmarked

from vortexlab.dsl import check, limits, parse
from vortexlab.dsl.codes import CODES, WARNING_CODES
from vortexlab.dsl.errors import ProgramError
from vortexlab.dsl.whole import MAX_PROGRAM_DEPTH

C = "return dict(c=k.mean(token))"
RAW = "return dot(q, s.c, channel)"
MASS, KEPT = "mass = memory.step(page)", "kept = memory.step(pages)"
BLOCK = "page=16, block=64"
KV = "return dict(c=k.mean(token), e=v.mean(token))"


def summary(expression: str, **more: str) -> str:
    return program(summarize=f"return dict(c={expression})", **more)


def pooled(expression: str, **more: str) -> str:
    return program(pool=f"return {expression}", options=BLOCK, **more)


def remembered(expression: str, declared: str = MASS, **more: str) -> str:
    """A program that chooses by what it remembers."""
    select = "return m.kept | first(1)" if declared == KEPT else "return topk(m.mass, 4)"
    return program(**{"select": select, "body": declared, "remember": f"return {expression}", **more})


def attended(expression: str, summarize: str = "", **more: str) -> str:
    return program(attend=f"return {expression}", summarize=summarize, **more)


CASES = [
    # the text
    ("line-too-long", "x = 1\n" + " " * limits.MAX_LINE + "‹#\n"),
    ("too-many-tokens", "a\n" * (limits.MAX_TOKENS) + "‹a"),
    ("statement-too-long", "x = " + "-" * (limits.MAX_STATEMENT - 2) + "‹1"),
    ("statement-too-long", "x = (\n" + "1 +\n" * (limits.MAX_STATEMENT // 2 - 2) + "1 ‹+\n1)"),
    ("nesting-too-deep", "x = " + "(" * limits.MAX_BRACKETS + "‹(1"),
    ("number-too-long", "x = ‹" + "1" * (limits.MAX_NUMBER + 1)),
    ("name-too-long", "x = ‹" + "a" * (limits.MAX_NAME + 1)),
    ("hidden-character", "x = 1 # a‹\u200bb"),
    ("not-normalised", '"""e‹\u0301"""'),
    ("name-not-ascii", "x = p‹\u0430ge"),
    ("stray-character", "x = ‹?"),
    ("coding-cookie", "#!x\n‹# -*- coding: latin-1 -*-\n"),
    ("open-string", "x = ‹'abc"),
    ("string-prefix", "x = ‹f'{k}'"),
    ("syntax", "class P‹\n"),
    ("expression-too-deep", "x = " + "-" * (limits.MAX_DEPTH - 2) + "‹-1"),
    ("too-many-nodes", "‹" + ("a;" * 190 + "a\n") * 13),
    # the shape
    ("no-class", "‹'''nothing'''\n"),
    ("two-classes", program() + "‹class Q:\n    '''x'''\n"),
    ("class-bases", program().replace("class P:", "‹class P(object):")),
    ("top-level", "‹x = 1\n" + program()),
    ("import", "‹import os\n" + program()),
    ("import", "‹from vortexlab.dsl import topk\n" + program()),
    ("decorator", program().replace("@program(page=16)", "@‹register")),
    ("decorator", program().replace("@program(page=16)\nclass", "‹class")),
    ("decorator", program().replace("@program(page=16)", "@‹register(page=16)")),
    ("decorator", program().replace("@program(page=16)", "@‹dsl.program(page=16)")),
    ("decorator", program().replace("@program(page=16)", "@‹program(16)")),
    ("unknown-argument", program(options="pages=‹16")),
    ("page-size", program(options="page=‹knob.int(0, 16, default=8)")),
    ("whole-number", program(options="page=‹16.0")),
    ("whole-number", program(options="seed=‹-1")),
    ("unknown-dtype", program(options='summaries=‹"fp8"')),
    ("unknown-method", program(body="‹def selekt(): return first(1)")),
    ("method-twice", program() + "    ‹def select(ctx):\n        return last(1)\n"),
    ("method-shape", program().replace("def select(ctx)", "‹def select(ctx=1)")),
    ("method-shape", program().replace("def select(ctx)", "‹def select(ctx: int)")),
    ("method-shape", program().replace("def select(ctx)", "‹def select(*ctx)")),
    ("unknown-parameter", program().replace("def select(ctx)", "def select(‹self, ctx)")),
    ("select-missing", "@program(page=16)\n‹class P:\n    '''x'''\n"),
    ("score-missing", program(heads="‹score, ctx")),
    ("class-constant", program(body="a = ‹first(1)", select="return first(a)")),
    ("name-taken", program(body="‹topk = 3")),
    ("name-taken", program(body="a = 1\n‹a = 2")),
    ("name-taken", program("‹token = 3\nreturn first(token)")),
    ("name-taken", program("‹a = 3\nreturn first(a)", body="a = knob.int(1, 4, default=2)")),
    ("name-taken", program("‹part = 1\nreturn first(part)",
                           summarize="return dict(c=k.split(token, part=2).sum(channel))")),
    ("literal", program(body="a = knob.int(1, ‹2 * 4, default=2)")),
    ("literal", program(body="a = knob.bool(default=‹-True)")),
    ("unknown-dtype", program(options="summaries=‹kv")),
    ("unknown-name", program(body="a = ‹my.knob.int(1, 4, default=2)")),
    ("knob-values", program(body="a = ‹knob.int(1, 4, log=1, default=2)")),
    ("number-range", program(body="a = ‹1e400")),
    ("number-range", program("return first(‹2147483648)")),
    ("number-range", program("return first(floor(‹1e-40))")),
    ("knob-kind", program(body="a = ‹knob.log(1, 4, default=2)")),
    ("knob-kind", program(body="a = ‹knob(1, 4)")),
    ("knob-values", program(body="a = ‹knob.int(1, 4.5, default=2)")),
    ("knob-values", program(body="a = ‹knob.bool()")),
    ("knob-values", program(body='a = ‹knob.choice("max", 1)')),
    ("knob-values", program(body='a = ‹knob.choice("max", "max")')),
    ("knob-range", program(body="a = ‹knob.int(4, 1, default=2)")),
    ("knob-range", program(body="a = ‹knob.int(0, 4, log=True, default=2)")),
    ("knob-range", program(body="a = ‹knob.int(0, 4, step=0, default=2)")),
    ("knob-range", program(body="a = ‹knob.int(0, 4, step=3, default=3)")),
    ("knob-range", program(body="a = ‹knob.int(0, 4, step=2, default=3)")),
    ("knob-default", program(body="a = ‹knob.int(0, 4)")),
    ("knob-default", program(body="a = ‹knob.int(0, 4, default=5)")),
    ("knob-default", program(body='a = ‹knob.choice("max", "mean", default="min")')),
    ("mapping", program("x = ‹dict(a=1)\nreturn first(1)")),
    ("mapping", program(summarize="return ‹dict(k)")),
    ("mapping", program(summarize="return ‹dict(k, a=v)")),
    ("mapping", program(summarize="return ‹dict(a=v, **k)")),
    ("mapping", program(summarize="return {‹1: k}")),
    ("mapping", program(summarize='return ‹{"a": k, "a": v}')),
    ("no-return", program().replace("def select(ctx):\n        return first(1)", "‹def select(ctx):\n        x = 1")),
    ("no-return", program("‹return")),
    ("dead-statement", program("return first(1)\n‹x = 1")),
    ("program-too-large", "@program(page=16)\n‹class P:\n    def select():\n        x = first(1)\n"
     + "".join(f"        x = x | first({i + 2})\n" for i in range(MAX_PROGRAM_DEPTH)) + "        return x\n"),
    # expressions
    ("not-in-language", program("‹for i in x: y = 1\nreturn first(1)")),
    ("not-in-language", program("‹if ctx.layer: x = 1\nreturn first(1)")),
    ("not-in-language", program("‹a, b = 1, 2\nreturn first(1)")),
    ("not-in-language", program("‹import os\nreturn first(1)")),
    ("not-in-language", program("‹first(2)\nreturn first(1)")),
    ("not-in-language", program("return (‹lambda: first(1))()")),
    ("not-in-language", program("return first(‹1 if ctx.layer else 2)")),
    ("not-in-language", program("return first(‹[1][0])")),
    ("not-in-language", program("return first(‹2 ** 3)")),
    ("not-in-language", program("return first(‹None)")),
    ("not-in-language", program("return first(‹*x)")),
    ("not-in-language", program("return where(‹ctx.layer is 1, first(1), first(2))")),
    ("not-in-language", program(body="‹a: int = 3")),
    ("not-in-language", program(body="‹3")),
    ("not-in-language", program("‹3\nreturn first(1)")),
    ("unknown-name", program("return first(‹n)")),
    ("unknown-name", program("return first(‹ctx.layer)", heads=" ")),
    ("unknown-name", program(summarize="return dict(c=k.mean(‹tokens))")),
    ("unknown-function", program("return ‹fist(1)")),
    ("unknown-function", program("return first(‹int(1.5))")),
    ("unknown-function", program(summarize="return dict(c=‹k.argmin(token))")),
    ("unknown-attribute", program(summarize="return dict(c=‹k.shape)")),
    ("unknown-member", program("return first(‹ctx.layr)")),
    ("unknown-member", program(summarize=C, score="return ‹s.d")),
    ("unknown-argument", program("return first(1, size=‹2)")),
    ("unknown-argument", program(body="a = knob.bool(defualt=‹True)")),
    ("argument-count", program("return first(1, ‹2)")),
    ("argument-count", program("return ‹first()")),
    ("argument-count", program("return first(1, n=‹2)")),
    ("argument-count", program(summarize="return dict(c=‹k.mean())")),
    ("argument-count", program(summarize="return dict(c=‹k.rename(channel))")),
    ("argument-count", program(summarize="return dict(c=‹k.split(token, 4))")),
    ("not-callable", program("return first(‹'a{0.__class__}'.format(1))")),
    ("chained-comparison", program("return where(‹0 < ctx.layer < 3, first(1), first(2))")),
    ("text-as-value", program("return first(‹'one')")),
    ("axis-as-value", program("return first(‹page)")),
    ("record-as-value", program("return first(‹ctx)")),
    ("axis-expected", program(summarize="return dict(c=k.mean(‹0))")),
    ("axis-missing", program(summarize="return dict(c=k.mean(‹head))")),
    ("axis-taken", program(summarize="return dict(c=dot(k, v.rename(‹channel, token), token))")),
    ("axis-taken", program(summarize="part = 2.0\nreturn dict(c=part * k.split(token, part=‹2))")),
    ("axis-taken", program(summarize="return dict(c=k.split(token, part=2).split(‹token, part=2))")),
    ("axis-size", program(summarize="return dict(c=‹k.split(token, part=2) + k)")),
    ("value-size", summary("‹k.window(token, a=64).window(token, b=64).window(token, c=64).max(a, b, c)")),
    ("value-size", summary("‹k" + "".join(f".split(channel, p{i}=2)" for i in range(12)) + ".max(token)")),
    ("split-axis", program(score="return q.split(‹head, part=2)")),
    ("split-size", program(summarize="return dict(c=k.split(token, part=‹5))")),
    ("split-size", program(summarize="return dict(c=k.split(token, part=‹0))")),
    ("split-size", program(summarize="return dict(c=k.split(token, part=‹2.0))")),
    ("split-size", program(summarize="return dict(c=k.split(token, part=‹ctx.page))")),
    ("split-size", program(summarize="return dict(c=k.split(token, part=‹a))", body="a = knob.int(1, 65, default=4)")),
    ("rename-page", program(summarize=C, score="return s.c.rename(‹page, other)")),
    ("unknown-reduction", program(summarize='return dict(c=k.reduce(‹"median", token))')),
    ("unknown-reduction", program(summarize="return dict(c=k.reduce(‹token, token))")),
    ("unknown-dtype", program(summarize='return dict(c=k.to(‹"fp8"))')),
    ("cast-kind", program(summarize='return dict(c=(k > 0).to(‹"bf16"))')),
    ("count-not-scalar", program(summarize="return dict(c=‹floor(k))")),
    ("count-not-int", program("return first(‹0.1 * ctx.pages)")),
    ("count-not-int", program("return topk(score.max(head), ‹score.max(head))", summarize=C, score=RAW)),
    ("not-scalar", program("return topp(score.max(head), ‹score.max(head))", summarize=C, score=RAW)),
    ("integer-only", program("return first(‹ctx.scale // 2)")),
    ("truth-and-number", program(summarize="return dict(c=‹k * (k > 0))")),
    ("truth-and-number", program(summarize="return dict(c=‹where(k > 0, k, k > 1))")),
    ("not-a-truth-value", program("return ‹first(1) or first(2)")),
    ("not-a-truth-value", program("return ‹where(ctx.layer, first(1), first(2))")),
    ("not-a-truth-value", program("return where(‹not ctx.layer, first(1), first(2))")),
    ("set-and-number", program("return ‹first(1) | 2")),
    ("set-and-number", program("return ‹+first(1)")),
    ("set-and-number", program("return ‹first(1) - 2")),
    ("set-and-number", program("return first(‹abs(first(1)))")),
    ("set-and-number", program("return ‹where(ctx.layer > 1, first(1), 2)")),
    ("set-operator", program("return ‹first(1) + first(2)")),
    ("set-condition", program("return ‹where(score.max(head) > 0, first(1), first(2))", summarize=C, score=RAW)),
    ("not-a-set", program("‹return ctx.layer")),
    ("not-a-set", program("return topk(score.max(head), 4, among=‹3)", summarize=C, score=RAW)),
    ("score-axes", program("return topk(‹score, 4)", summarize=C, score="return q * s.c")),
    ("score-axes", program("return topk(‹ctx.layer, 4)")),
    ("share-axes", program("return topk(‹share(score, 'max'), 4)", summarize=C, score=RAW)),
    ("softmax-axis", program("return topk(softmax(score, ‹head), 4)", summarize=C, score=RAW)),
    ("dot-page", program("return first(floor(dot(score, score, ‹page).max(head)))", summarize=C, score=RAW)),
    ("selector-in-summary", program(summarize="return dict(c=‹first(1))")),
    ("summary-not-pure", program(summarize="return dict(c=k / ‹ctx.length)")),
    ("summary-kind", program(summarize="return dict(c=‹k > 0)")),
    ("summary-kind", program(summarize="return dict(c=‹1.0)")),
    ("summary-mapping", program(summarize="‹return k.mean(token)")),
    # axes
    ("page-axis", program(summarize=C, score="return s.c.slice(‹page, 0, 2)")),
    ("page-axis", program(summarize=C, score="return concat(s.c, s.c, ‹page)")),
    ("page-axis", program(summarize=C, score="return s.c.merge(‹page, channel, into=other)")),
    ("index-axis", summary("k.max(token) * index(‹page)")),
    ("index-axis", summary("k.split(token, part=2) * index(‹part)")),
    ("index-axis", program("return topk(float(index(‹query)), 4)")),
    ("index-not-int", program(summarize=C, score="return ‹s.c.take(page, s.c.max(channel))")),
    ("axis-missing", program(summarize=C, score="return s.c.shift(‹token, 1)")),
    ("axis-missing", summary("k.cumsum(‹page)")),
    ("axis-missing", summary("k.window(‹page, near=3)")),
    ("axis-taken", summary("k.window(‹token, channel=3)")),
    ("axis-taken", summary("k.merge(token, ‹token, into=other)")),
    ("axis-taken", summary("k.split(token, part=2).merge(part, token, into=‹channel)")),
    ("axis-taken", summary("k.split(token, m=‹2)")),
    ("axis-taken", summary("k.rename(channel, ‹index)")),
    ("axis-taken", summary("k.merge(token, channel, into=‹pages)")),
    ("axis-expected", summary("k.split(token, part=2).merge(part, token, into=‹'tokens')")),
    ("axis-expected", summary("k.merge(‹0, token, into=tokens)")),
    ("axis-size", summary("‹k.slice(channel, 0, 8) * k.slice(channel, 0, 4)")),
    ("axis-size", summary("‹k.slice(channel, ctx.latent) * v")),
    ("axis-size", summary("‹concat(k, k, channel) * k")),
    ("axis-size", summary("‹k.merge(token, channel, into=channel) * k.mean(token)")),
    ("axis-size", summary("‹k.take(token, k.split(channel, part=2).argmax(token))")),
    ("slice-range", summary("k.slice(token, ‹0, 17)")),
    ("slice-range", summary("k.slice(token, ‹-17)")),
    ("slice-range", summary("k.slice(token, ‹16)")),
    ("slice-range", summary("k.slice(channel, ‹4, 4)")),
    ("slice-range", summary("k.slice(channel, ‹-4, -8)")),
    ("slice-range", summary("k.slice(token, ‹0, a)", body="a = knob.int(1, 32, default=24)")),
    ("slice-bound", summary("k.slice(channel, ‹0.5)")),
    ("slice-bound", summary("k.slice(channel, ‹ctx.page)")),
    ("slice-bound", summary("k.slice(channel, ‹a)", body="a = knob.int(-1, 32, default=24)")),
    ("fill-value", program(summarize=C, score="return s.c.shift(page, 1, fill=‹ctx.scale)")),
    ("fill-value", program(summarize=C, score="return s.c.window(page, near=3, fill=‹True)")),
    ("whole-number", program(summarize=C, score="return s.c.shift(page, ‹0.5)")),
    ("whole-number", program(summarize=C, score="return s.c.window(page, near=‹ctx.page)")),
    ("whole-number", program(summarize=C, score="return s.c.window(page, near=‹65)")),
    ("argument-count", program(summarize=C, score="return ‹s.c.window(page)")),
    ("argument-count", program(summarize=C, score="return ‹s.c.take(page)")),
    ("argument-count", program(summarize=C, score="return s.c.cumsum(page, ‹channel)")),
    ("argument-count", summary("‹k.split(token, part=2).merge(part, token)")),
    ("unknown-argument", program(summarize=C, score="return s.c.shift(page, 1, filling=‹1.0)")),
    ("unknown-reduction", program(summarize=C, score='return s.c.sort(page, ‹"ascending")')),
    ("unknown-function", program(summarize=C, score="return ‹s.c.roll(page, 1)")),
    ("unknown-function", program(summarize=C, score="return ‹cumsum(s.c, page)")),
    ("unknown-function", program(summarize=C, score="return ‹gather(s.c, 1)")),
    ("unknown-dtype", summary('k.to(‹"fp8")')),
    ("unknown-dtype", program(options='kv=‹"fp8_e3m4"')),
    ("cast-kind", program(summarize=C, score='return index(page).to(‹"fp8_e4m3")')),
    ("not-a-set", program("return topk(float(member(‹3)), 4)")),
    # learned constants
    ("param-axes", program(body="a = ‹param()")),
    ("param-axes", program(body='a = ‹param("weight")')),
    ("param-axes", program(body="a = param(‹page)")),
    ("param-axes", program(body="a = param(‹rank)")),
    ("param-axes", program(body="a = param(‹3)")),
    ("param-axes", program(body="a = param(channel=‹64)")),
    ("param-axes", program(body="a = param(query=‹64)")),
    ("param-axes", program(body="a = ‹param(head, head)")),
    ("param-option", program(body="a = param(head, per_layer=‹1)")),
    ("param-option", program(body='a = param(head, kind=‹"bool")')),
    ("param-tensor", program(body='a = param(‹"", head)')),
    ("whole-number", program(body="a = param(head, rank=‹0)")),
    ("axis-taken", program(body="rank = knob.int(1, 4, default=2)\n‹a = param(head, rank=4)")),
    ("name-taken", program(body="‹memory = param(head)")),
    ("unknown-function", program("return first(‹param(head))")),
    # memory
    ("memory-kind", program(body="a = ‹memory.steps(page)")),
    ("memory-kind", program(body="a = ‹memory(page)")),
    ("memory-axes", program(body="a = ‹memory.step(head)")),
    ("memory-axes", program(body="a = memory.step(page, ‹token)")),
    ("memory-axes", program(body="a = memory.step(pages, ‹page)")),
    ("memory-axes", program(body="a = ‹memory.step(page, head, head)")),
    ("memory-option", program(body="a = memory.step(page, init=‹True)")),
    ("unknown-argument", program(body="a = memory.layer(page, every=‹4)")),
    ("unknown-argument", program(body="a = memory.step(pages, init=‹4)")),
    ("whole-number", program(body="a = memory.step(page, every=‹0)")),
    ("whole-number", program(body="n = knob.float(1.0, 2.0, default=1.0)\na = memory.step(page, every=‹n)")),
    ("memory-in-summary", summary("k.mean(token) * ‹m.mass", body=MASS)),
    ("memory-in-summary", pooled("q.mean(query) * ‹m.mass")),
    ("unknown-parameter", program().replace("def select(ctx)", "def select(‹q, ctx)")),
    ("memory-as-value", program("return topk(‹mass, 4)", body=MASS, remember="return dict(mass=m.mass)")),
    ("record-as-value", program("return topk(‹m, 4)", body=MASS, remember="return dict(mass=m.mass)")),
    ("memory-mapping", remembered("m.mass").replace("return m", "‹return m")),
    ("memory-type", remembered("dict(mass=‹q.max(channel))")),
    ("memory-type", remembered("dict(mass=‹pages)")),
    ("memory-type", remembered("dict(mass=‹0.0)")),
    ("memory-type", remembered("dict(kept=‹m.kept)", KEPT).replace("dict(kept=‹m.kept)", "dict(kept=‹ctx.length)")),
    ("memory-type", remembered("dict(kept=‹topk(dot(q, s.c, channel), 4))", KEPT, summarize=C)),
    ("memory-not-written", program("return topk(m.mass, 4)", body="‹" + MASS)),
    ("memory-not-written", remembered("dict(mass=m.mass)", f"{MASS}\n{KEPT}").replace("return dict", "‹return dict")),
    ("memory-written-twice", remembered("dict(mass=m.mass, mass=‹m.mass)")),
    ("unknown-memory", remembered("dict(mass=m.mass, mas=‹m.mass)")),
    ("unknown-memory", program(remember="return dict(mass=‹ctx.scale)")),
    ("unknown-member", program("return topk(‹m.mass, 4)", heads="m")),
    ("unused-memory", program(body="‹" + MASS, remember="return dict(mass=0.5 * m.mass)")),
    ("unused-param", program(body="‹gate = param(head)")),
    # reuse
    ("reuse-kind", program("return ‹reuse(first(4))")),
    ("reuse-kind", program("return ‹reuse(first(4), every=4, layers=True)")),
    ("not-a-set", program("return reuse(‹3, every=4)")),
    ("whole-number", program("return reuse(first(4), every=‹ctx.layer)")),
    ("reuse-condition", program("return reuse(first(4), layers=‹ctx.length > 100)")),
    ("reuse-condition", program("return reuse(first(4), layers=‹ctx.layer)")),
    ("reuse-before-write", program("return ‹reuse(first(4), layers=ctx.layer > 2)")),
    ("reuse-before-write", program("return ‹reuse(first(4), layers=ctx.layer % n == 1)",
                                   body="n = knob.int(2, 8, default=4)")),
    ("selector-in-summary", summary("‹reuse(k, every=2)")),
    # the output
    ("attention-place", program("return ‹attention(first(1))")),
    ("attention-parts", attended("‹attention()")),
    ("attention-parts", attended("‹attention(pages, keys=s.c)", C)),
    ("attention-parts", attended("‹attention(values=s.c)", C)),
    ("attention-parts", attended("‹attention(pages, among=first(3))")),
    ("attention-parts", attended("‹attention(pages, entry_log_weight=index(page))")),
    ("attention-parts", attended("‹attention(keys=s.c, values=s.e, entry_log_weight=index(page))", KV)),
    ("attention-entries", attended("attention(keys=‹q, values=s.e)", KV)),
    ("attention-entries", attended("attention(keys=s.c, values=‹q * s.e)", KV)),
    ("attention-entries", attended("attention(keys=s.c, values=‹s.e)",
                                   "return dict(c=k.split(token, part=2).mean(token), e=v.mean(token))")),
    ("attention-entries", attended("attention(keys=‹s.c.slice(channel, 4), values=s.e)", KV)),
    ("axis-size", attended("attention(keys=s.c, values=‹s.e)", "return dict(c=k.split(token, part=2).mean(token), "
                           "e=v.split(token, part=4).mean(token))")),
    ("log-weight-axes", attended("attention(pages, log_weight=‹s.c)", C)),
    ("log-weight-axes", attended("attention(keys=s.c, values=s.e, log_weight=‹s.c)", KV)),
    ("not-a-set", attended("attention(‹q)")),
    ("argument-count", attended("attention(pages, ‹q)")),
    ("attend-shape", program(attend="‹return pages")),
    ("attend-shape", program(attend="‹return q.max(channel)")),
    ("attend-shape", program(attend="‹return q * index(page)")),
    ("attend-shape", program(attend="‹return q.slice(channel, 4)")),
    ("attend-shape", program(attend="‹return dict(a=q)")),
    # prefill
    ("pool-without-block", program() + "    ‹def pool(q):\n        return q.mean(query)\n"),
    ("block-without-pool", program(options="page=16, block=‹64")),
    ("block-size", program(options="page=16, block=‹24", pool="return q.mean(query)")),
    ("block-size", program(options="page=16, block=‹knob.int(0, 64, default=16)", pool="return q.mean(query)")),
    ("block-size", program(options="page=knob.choice(16, 24, default=16), block=‹64", pool="return q.mean(query)")),
    ("whole-number", program(options="block=‹0", pool="return q.mean(query)")),
    ("pool-shape", program(options=BLOCK, pool="‹return q")),
    ("pool-shape", program(options=BLOCK, pool="‹return q.mean(query).max(head)")),
    ("pool-shape", program(options=BLOCK, pool="‹return q.mean(query).slice(channel, 4)")),
    ("pool-shape", program(options=BLOCK, pool="‹return dict(a=q.mean(query))")),
    ("selector-in-pool", pooled("q.mean(query) + ‹first(1)")),
    ("unknown-name", pooled("q.mean(query) + ‹s.c", summarize=C)),
    ("axis-missing", program(summarize=C, score="return q.mean(‹query)")),
    ("summary-not-pure", summary("where(‹ctx.prefill, k, v)")),
    ("summary-not-pure", summary("k * ‹ctx.position")),
    # warnings
    ("dtype-overflow", summary('where(k > 0, k, ‹1e6).to("fp16").mean(token)', score="return s.c.max(channel)",
                               select="return topk(score, 4)")),
    ("dtype-overflow", summary("maximum(k, ‹500.0)", score="return s.c.max(token, channel)",
                               select="return topk(score, 4)", options='summaries="fp8_e4m3"')),
    ("whole-budget", program("return ‹topk(score.max(head), ctx.pages)", summarize=C, score=RAW)),
    ("budget-on-forced", program("return first(1) | reuse(‹topk(score.max(head), 4), every=4)", summarize=C,
                                 score=RAW)),
    ("unused-summary", program(summarize="return dict(c=‹k.mean(token))", select="return first(1)")),
    ("unused-score", program(summarize=C, score="return dict(a=s.c.max(channel), b=‹s.c.min(channel))",
                             select="return topk(score.a, 4)")),
    ("unused-knob", program(body="‹a = knob.int(1, 4, default=2)")),
    ("unused-variable", program("‹a = 1\nreturn first(1)")),
    ("unused-variable", program(body="‹a = 1")),
    ("budget-on-forced", program("return first(1) | ‹topk(score.max(head), 4)", summarize=C, score=RAW)),
    ("budget-on-forced", program("return first(1) | last(2) | ‹random(4, among=~first(1))")),
    ("split-size", program(summarize="return dict(c=k.split(token, part=‹a))", body="a = knob.choice(4, 5, default=4)",
                           score="return s.c.max(channel).max(part).max(token)", select="return topk(score, 4)")),
]  # fmt: skip


@pytest.mark.parametrize(("code", "marked"), CASES, ids=[f"{code}-{i}" for i, (code, _) in enumerate(CASES)])
def test_finding_points_at_its_place(code: str, marked: str) -> None:
    assert marked.count(MARK) == 1
    text, line, column = unmarked(marked)
    _, findings = check(text)
    assert (code, line, column) in [(f.code, f.line, f.column) for f in findings], list(map(str, findings))


@pytest.mark.parametrize(("code", "marked"), CASES, ids=[f"{code}-{i}" for i, (code, _) in enumerate(CASES)])
def test_finding_says_how_to_mend_it(code: str, marked: str) -> None:
    finding = next(f for f in check(unmarked(marked)[0])[1] if f.code == code)
    assert finding.message and finding.hint
    if finding.severity == "error":
        assert finding.found and finding.expected
        assert f"[{code}]" in str(finding) and f"found {finding.found}" in str(finding)
    assert "\n" not in str(finding)


def test_text_too_long() -> None:
    _, (finding,) = check("#" * (limits.MAX_BYTES + 1))
    assert (finding.code, finding.line, finding.column) == ("text-too-long", 1, 1)


def test_every_code_has_a_case() -> None:
    assert {code for code, _ in CASES} | {"text-too-long"} == set(CODES)


def test_every_finding_has_a_known_code() -> None:
    for _, marked in CASES:
        for finding in check(unmarked(marked)[0])[1]:
            assert finding.code in CODES
            assert finding.severity == "warning" or finding.code not in WARNING_CODES


def test_several_errors_are_reported_at_once() -> None:
    text = program(
        "a = fist(1)\nb = first(2.5)\nreturn a | b",
        summarize="x = k.mean(tokens)\nreturn dict(c=x, d=k.max(hed))",
        body="n = knob.int(4, 1, default=2)",
    )
    _, findings = check(text)
    assert [(f.code, f.line) for f in findings] == [
        ("knob-range", 3), ("unknown-name", 5), ("unknown-name", 6), ("unknown-function", 8), ("count-not-int", 9),
    ]  # fmt: skip


def test_what_depends_on_a_faulty_declaration_is_not_reported_again() -> None:
    text = remembered("dict(mass=0.5 * m.mass)", "mass = memory.step(token)")
    assert [f.code for f in check(text)[1]] == ["memory-axes"]
    text = program("return first(1)", summarize="return dict(c=dot(k, gate, channel))", body="gate = param(size)")
    assert [f.code for f in check(text)[1]] == ["param-axes"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (program(summarize=C, score="return torch.einsum(q, s.c)"), "there are no modules"),
        (attended("attention(pages, s.c, s.c)", C), "write keys=s.c"),
        (program("return reuse(first(4), 8)"), "write every=8"),
        (program(summarize=C, score="return s.c.gather(page, 1)"), "x.take(axis, i)"),
        (program(summarize=C, score="return s.c.mean(token)"), "keep token in a summary"),
        (pooled("q.mean(query) * k"), "k is given to summarize only"),
        (program("return topk(q, 4)"), "let score return what select needs"),
        (remembered("dict(mass=pages)"), "float(member(pages))"),
        (program("return topk(m.mass, 4)", heads="m"), "mass = memory.step(page)"),
    ],
)  # fmt: skip
def test_hints_say_what_to_write(text: str, hint: str) -> None:
    assert hint in next(f for f in check(text)[1] if f.severity == "error").hint


def test_what_depends_on_an_error_is_not_reported_again() -> None:
    text = program(
        "x = score + 1\nreturn topk(x, n)", summarize="return dict(c=k.mean(toke))", score="return s.c.max(channel)",
        body="n = knob.int(4, 1, default=2)",
    )  # fmt: skip
    assert [f.code for f in check(text)[1]] == ["knob-range", "unknown-name"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (program("return frist(1)"), "did you mean first?"),
        (program(summarize="return dict(c=k.mean(chanel))"), "did you mean channel?"),
        (program("return first(ctx.lenght)"), "did you mean length?"),
        (program(options="page=16, sumaries='kv'"), "did you mean summaries?"),
        (program("return first(bugdet)", body="budget = knob.int(1, 9, default=2)"), "did you mean budget?"),
    ],
)
def test_typos_are_recognised(text: str, hint: str) -> None:
    assert hint in [f.hint for f in check(text)[1]]


def test_columns_count_characters_not_bytes() -> None:
    text = program(summarize='return dict(c=k.reduce("é÷", token), d=k.mean(heat))')
    assert [(f.code, f.column) for f in check(text)[1]] == [
        ("unknown-reduction", text.split("\n")[3].index('"é÷"') + 1),
        ("unknown-name", text.split("\n")[3].index("heat") + 1),
    ]


def test_parse_raises_every_error_and_no_warning() -> None:
    with pytest.raises(ProgramError) as raised:
        parse(program("a = 1\nb = fist(2)\nreturn first(2.5)"))
    assert [d.code for d in raised.value.diagnostics] == ["unknown-function", "count-not-int"]
    assert "(and 1 more)" in str(raised.value) and "\n" not in str(raised.value)


def test_warnings_leave_the_program_alone() -> None:
    found, findings = check(program("a = 1\nreturn first(1)"))
    assert found is not None and [f.severity for f in findings] == ["warning"]


@pytest.mark.parametrize(
    "select",
    [
        "return first(1) | topk(x, 4, among=~first(1))",
        "forced = first(1) | last(2)\nreturn forced | topk(x, 4, among=~forced)",
        "return first(1) | topk(x, 4, among=everything() - first(1))",
        "return first(1) | topk(x, 2, among=topk(x, 4, among=stride(2) & ~first(1)))",
        "return last(1) | topk(x, 4)",
        "return topk(x, 4) | above(x, 0)",
    ],
)
def test_rule_4_no_warning_where_forced_pages_are_left_out(select: str) -> None:
    text = program(select.replace("x", "score.max(head)"), summarize=C, score=RAW)
    assert check(text)[1] == []
