"""The language reference is current, and what it shows is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vortexlab.dsl import check
from vortexlab.dsl.codes import CODES
from vortexlab.dsl.ir import DYNAMIC_CTX, STATIC_CTX
from vortexlab.dsl.manual import MISTAKES, Mistake, manual
from vortexlab.dsl.ops import OPS
from vortexlab.dsl.words import FUNCTIONS, METHODS
from vortexlab.search_spaces import seeds

SNIPPETS = re.findall(r"```python\n(.*?)```", manual(), re.DOTALL)


def test_the_written_reference_is_current(repo_root: Path) -> None:
    """`python -m vortexlab.dsl.manual > docs/language.md` mends this."""
    assert (repo_root / "docs" / "language.md").read_text() == manual()


def test_snippets_are_programs_without_warnings() -> None:
    assert len(SNIPPETS) >= 3
    for text in SNIPPETS:
        found, findings = check(text)
        assert found is not None and findings == []


def test_snippets_show_every_construct_beyond_selection() -> None:
    programs = [program for program, _ in map(check, SNIPPETS) if program is not None]
    whole = next(program for program in programs if program.result is not None)
    assert whole.params and whole.memories and whole.pooled is not None and whole.kv_dtype != "auto"
    assert {"reuse", "attention", "window", "slice", "param", "memory"} <= {node.op for node in whole.nodes}


INLINE = {
    "gate": ("class", 'gate = param("name", head, channel, rank=64)'),
    "kept": ("class", "kept = memory.step(pages)"),
    "mass": ("class", "mass = memory.step(page, init=0.0)"),
    ".slice(channel, 0, ctx.latent)": (
        "score",
        "return dot(q.slice(channel, 0, ctx.latent), s.c.slice(channel, 0, ctx.latent), channel).max(head)",
    ),
    "reuse(a, layers=ctx.layer % 4 == 0)": ("select", "return reuse(first(4), layers=ctx.layer % 4 == 0)"),
}


@pytest.mark.parametrize("shown", INLINE)
def test_what_the_text_shows_is_read(shown: str) -> None:
    """Each piece stands in the reference as it is written here, and gives no error."""
    place, line = INLINE[shown]
    piece = line if place == "class" else shown
    assert re.sub(r"\s+", " ", piece) in re.sub(r"\s+", " ", manual(compact=True))
    findings = check(_written(Mistake(place, line, "", line), line))[1]
    assert {f.code for f in findings if f.severity == "error"} <= {"memory-not-written"}


def test_the_reference_names_every_op_word_fact_and_finding() -> None:
    text = manual()
    for spec in OPS.values():
        assert f"`{spec.signature}`: {spec.doc}" in text
    for word in (*FUNCTIONS, *METHODS):
        assert re.search(rf"\b{word}\b", text), word
    for name in (*STATIC_CTX, *DYNAMIC_CTX):
        assert f"`ctx.{name}`" in text
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in text


def test_the_compact_form_fits_a_prompt() -> None:
    compact = manual(compact=True)
    assert len(compact.encode()) <= 18_000
    for spec in OPS.values():
        assert spec.signature in compact
    for word in ("Rules of meaning", "Knobs", "ctx.length", "Common mistakes"):
        assert word in compact
    assert "## Findings" not in compact


def test_examples_can_be_given() -> None:
    texts = {name: seeds()[name] for name in ("dense", "quest", "top_p")}
    compact = manual(compact=True, examples=texts)
    assert all(text.strip() in compact for text in texts.values())
    assert len(compact.encode()) <= 18_000


def _written(mistake: Mistake, line: str) -> str:
    """A program with `line` in the method that the mistake is about."""
    lines = {
        "class": "n = 1",
        "summarize": "return dict(c=k.mean(token))",
        "score": "return dict(raw=dot(q, s.c, channel), page=dot(q, s.c, channel).max(head))",
        "select": "return topk(score.page, 64)",
    }
    if mistake.place == "score":
        lines["select"] = "return topk(score, 64)"
    lines[mistake.place] = line
    return (
        f"@program(page=16)\nclass P:\n    {lines['class']}\n"
        f"    def summarize(k, v, ctx):\n        {lines['summarize']}\n"
        f"    def score(q, s, ctx):\n        {lines['score']}\n"
        f"    def select(score, ctx):\n        {lines['select']}\n"
    )


@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{m.code}-{i}" for i, m in enumerate(MISTAKES)])
def test_common_mistakes_give_their_finding_and_what_is_right_does_not(mistake: Mistake) -> None:
    unused = {"unused-summary", "unused-score", "unused-variable", "unused-knob"}
    wrong = {f.code for f in check(_written(mistake, mistake.wrong))[1]} - unused
    assert mistake.code in wrong
    found, findings = check(_written(mistake, mistake.right))
    assert found is not None and {f.code for f in findings} <= unused
