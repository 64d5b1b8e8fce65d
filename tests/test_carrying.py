"""Which programs fit the op set of the original Vortex: its own do, and each thing outside is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vortexlab.dsl import parse
from vortexlab.search_spaces.carrying import outside_vortex, table
from vortexlab.search_spaces.catalogue import VORTEX_LINES
from vortexlab.search_spaces.library import NAMES, load

HEAD = """
from vortexlab.dsl import *

@program(page=16)
class Tried:
    {knobs}

    def summarize(k, v): return dict(c={summary}, t=k.max(token))

    def score(q, s, ctx): return {score}

    def select(score, ctx):
        forced = {forced}
        return {chosen}
"""
PLAIN = {
    "knobs": "budget = knob.int(4, 512, default=64)", "summary": "k.mean(token)",
    "score": "dot(q, s.c, channel).max(head)", "forced": "first(1) | last(2)",
    "chosen": "forced | topk(score, budget, among=~forced)",
}  # fmt: skip


def outside(**changes: str) -> tuple[str, ...]:
    return outside_vortex(parse(HEAD.format(**PLAIN | changes)))


@pytest.mark.parametrize("name", sorted(VORTEX_LINES.keys() - {"centered_block"}))
def test_what_vortex_publishes_itself_fits(name: str) -> None:
    """But our centered_block, which uses the centre as a threshold."""
    assert outside_vortex(load(name)) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score": "softmax(ctx.scale * dot(q, s.c, channel), page).mean(head) / 3"},
        {"score": "(maximum(q * s.c, q * s.t).sum(channel) - 1.0).max(head)"},
        {
            "summary": "k.slice(channel, 0, 4).sum(token)",
            "score": "dot(q.slice(channel, 0, 4), s.c, channel).max(head)",
        },
        {"score": "dot(q, s.c, channel).max(head).window(page, near=3, fill=0.0).sum(near)"},
        {"score": "dot(q, s.c, channel).max(head) - dot(q, s.c, channel).max(head).mean(page)"},
        {"chosen": "forced | topk(score, maximum(budget, floor(0.1 * ctx.pages)), among=~forced)"},
        {"chosen": "where(ctx.layer < 2, everything(), forced | topk(score, budget, among=~forced))"},
        {"summary": "k.mean(token) * v.norm(channel).mean(token)"},
    ],
)
def test_what_a_flow_can_say_fits(changes: dict[str, str]) -> None:
    assert outside(**changes) == ()


@pytest.mark.parametrize(
    ("says", "changes"),
    [
        ("top-p", {"chosen": "forced | topp(score, 0.9, max=64, among=~forced)"}),
        ("a threshold", {"chosen": "forced | above(score, 0.0, max=64, among=~forced)"}),
        ("random pages", {"chosen": "forced | topk(score, budget, among=~forced) | random(3)"}),
        ("strided pages", {"chosen": "forced | topk(score, budget, among=~forced) | stride(8)"}),
        ("several choices united", {"chosen": "forced | topk(score, 4) | topk(-score, 4)"}),
        ("a choice among chosen pages", {"chosen": "forced | topk(score, 8, among=topk(-score, 64, among=~forced))"}),
        ("a selection without a score", {"chosen": "forced"}),
        ("a selection kept for other steps or layers", {"chosen": "forced | reuse(topk(score, budget), every=4)"}),
        ("one selection here and another there",
         {"chosen": "where(ctx.layer < 2, forced, topk(score, budget) | last(1))"}),
        ("a budget that follows ctx.layer", {"chosen": "forced | topk(score, 4 + ctx.layer, among=~forced)"}),
        ("first pages whose number is no constant from 1", {"forced": "first(0) | last(2)"}),
        ("a list for every query head", {"score": "dot(q, s.c, channel)"}),
        ("one list for all KV heads", {"score": 'share(dot(q, s.c, channel).max(head), "max")'}),
        ("division by what is not a constant", {"score": "dot(q, s.c, channel).max(head) / s.t.sum(channel)"}),
        ("square roots", {"score": "sqrt(abs(dot(q, s.c, channel))).max(head)"}),
        ("slices that are not summed up", {"score": "(q * s.c).slice(channel, 0, 4).max(channel).max(head)"}),
        ("neighbours of a page other than weighted sums",
         {"score": "dot(q, s.c, channel).max(head).window(page, near=3, fill=0.0).max(near)"}),
        ("running sums and extremes", {"score": "dot(q, s.c, channel).max(head).cumsum(page)"}),
        ("ctx.pages in a score", {"score": "dot(q, s.c, channel).max(head) * float(ctx.pages)"}),
        ("sorting", {"score": "(q * s.c).sort(channel).slice(channel, 0, 1).sum(channel).max(head)"}),
    ],
)  # fmt: skip
def test_what_it_cannot_say_is_named(says: str, changes: dict[str, str]) -> None:
    assert says in outside(**changes)


def test_the_table_is_in_the_docs(repo_root: Path) -> None:
    """``python -m vortexlab.search_spaces.carrying`` prints it anew."""
    assert table() in (repo_root / "docs" / "carrying.md").read_text(encoding="utf-8")
    assert table().count("\n") == len(NAMES) + 2
