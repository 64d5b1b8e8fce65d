"""Writes small programs for tests of the language."""

from __future__ import annotations

MARK = "‹"


def program(
    select: str = "return first(1)",
    *,
    summarize: str = "",
    score: str = "",
    body: str = "",
    options: str = "page=16",
    heads: str = "",
    pool: str = "",
    attend: str = "",
    remember: str = "",
) -> str:
    """A program from method bodies; lines are separated by newlines. `heads` replaces `score, m, ctx` of select."""
    lines = [f"@program({options})", "class P:"]
    lines += [f"    {line}" for line in body.split("\n") if line]
    given = ("score, " if score else "") + ("m, " if "memory." in body else "")
    methods = (
        ("summarize", "k, v, ctx", summarize),
        ("pool", "q, ctx", pool),
        ("score", "q, s, m, ctx" if "memory." in body else "q, s, ctx", score),
        ("select", heads or f"{given}ctx", select),
        ("attend", f"q, s, {given}pages, ctx", attend),
        ("remember", f"q, s, {given}pages, ctx", remember),
    )
    for name, parameters, text in methods:
        if text:
            lines += [f"    def {name}({parameters}):", *(f"        {line}" for line in text.split("\n"))]
    return "\n".join(lines) + "\n"


def unmarked(text: str) -> tuple[str, int, int]:
    """The text without its one mark, and the line and column, from 1, at which the mark stood."""
    before, _, after = text.partition(MARK)
    return before + after, before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
