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
    ("unknown-function", program(summarize="return dict(c=‹k.argmax(token))")),
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
    # warnings
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
