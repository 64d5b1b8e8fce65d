"""What is remembered and reused, over steps and layers, against loops written by hand on pages' scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vortexlab.dsl import parse
from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.errors import ProgramError, VortexError
from vortexlab.dsl.ir import Static
from vortexlab.dsl.reference import Selection, decode_steps

PAGE, WIDTH, LAYERS = 4, 8, 3
STATIC = Static(kv_heads=2, group=2, head_dim=WIDTH, scale=0.5, layers=LAYERS)


def program(select: str, *, body: str = "", remember: str = "", score: str = "dot(q, s.c, channel).max(head)") -> str:
    text = f'@program(page={PAGE}, summaries="fp32")\nclass P:\n'
    text += "".join(f"    {line}\n" for line in body.split("\n") if line)
    text += "    def summarize(k):\n        return dict(c=k.mean(token))\n"
    text += f"    def score(q, s, m, ctx):\n        return {score}\n"
    text += f"    def select(score, m, ctx):\n        return {select}\n"
    return text + (f"    def remember(score, pages, m):\n        return dict({remember})\n" if remember else "")


def steps_of(text: str, steps: int, tokens: int, seed: int = 0) -> tuple[list[list[Selection]], Tensor]:
    """What `steps` steps select, [step][layer], the last one at `tokens` tokens; and each step's plain scores
    [step, layer, kv head, page] with NaN where a page is no candidate."""
    made = torch.Generator().manual_seed(seed)
    q = torch.randint(-3, 4, (steps, LAYERS, 4, WIDTH), generator=made).double()
    keys = [torch.randint(-3, 4, (2, tokens, WIDTH), generator=made).double() for _ in range(LAYERS)]
    found = decode_steps(parse(text).bind(), STATIC, q, keys, keys)
    pages = (tokens - 1) // PAGE
    scores = torch.full((steps, LAYERS, 2, pages), torch.nan, dtype=torch.float64)
    for s in range(steps):
        own = (tokens - (steps - 1 - s) - 1) // PAGE
        for layer in range(LAYERS):
            for kv in range(2):
                mean = keys[layer][kv, : own * PAGE].view(own, PAGE, WIDTH).mean(1)
                scores[s, layer, kv, :own] = (q[s, layer, 2 * kv : 2 * kv + 2] @ mean.T).amax(0)
    return found, scores


def seen(selection: Selection, kv: int) -> dict[int, float]:
    """The scores that the one selector of the program saw."""
    (scores,) = selection.scores.values()
    return scores[kv][0]


def best(scores: Tensor, count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda page: (-float(scores[page]), page))[:count]


def test_rule_8_a_running_average_starts_at_its_initial_value_and_takes_in_new_pages() -> None:
    text = program("topk(score, 2)", body="mass = memory.step(page, init=2.0)", remember="mass=score",
                   score="0.75 * m.mass + dot(q, s.c, channel).max(head)")  # fmt: skip
    # Five steps to 19 tokens: page 3 is complete with token 16 and becomes a candidate at the third step.
    found, plain = steps_of(text, 5, 19)
    assert [len(seen(step[0], 0)) for step in found] == [3, 3, 4, 4, 4]
    for layer in range(LAYERS):
        for kv in range(2):
            mass = {page: 2.0 for page in range(4)}
            for s, step in enumerate(found):
                for page, score in seen(step[layer], kv).items():
                    mass[page] = 0.75 * mass[page] + float(plain[s, layer, kv, page])
                    assert score == pytest.approx(mass[page], abs=1e-12), (s, layer, kv, page)


def test_rule_8_memories_per_query_head() -> None:
    text = program("topk(score, 1)", body="mass = memory.step(page, head, init=1.0)", remember="mass=score + 1.0",
                   score="m.mass * (index(head) + 1)")  # fmt: skip
    found, _ = steps_of(text, 2, 9)
    assert [next(iter(found[1][0].scores.values()))[0][head][0] for head in range(2)] == [2.0, 6.0]


def test_rule_8_every_rewrites_at_the_first_step_and_at_multiples_of_the_position() -> None:
    text = program("topk(score, 1)", body="age = memory.step(page, every=4, init=7.0)", remember="age=score",
                   score="dot(q, s.c, channel).max(head) * 0 + m.age + 1")  # fmt: skip
    # Positions 13..20: written at 13 (the first), 16 and 20.
    found, _ = steps_of(text, 8, 21)
    assert [seen(step[0], 0)[0] for step in found] == [8, 9, 9, 9, 10, 10, 10, 10]
    # Page 3 becomes a candidate at position 16: it begins with the initial value.
    assert seen(found[3][0], 0)[3] == 8 and seen(found[4][0], 0)[3] == 9


def test_rule_8_a_set_of_pages_is_remembered_as_it_was() -> None:
    text = program("last(1) | topk(score, 2, among=~m.kept)", body="kept = memory.step(pages)", remember="kept=pages")
    found, plain = steps_of(text, 4, 18)
    for kv in range(2):
        before: set[int] = set()
        for s, step in enumerate(found):
            own = (18 - (3 - s) - 1) // PAGE
            free = [page for page in range(own) if page not in before]
            chosen = {free[i] for i in best(plain[s, 0, kv, free], 2)}
            assert step[0].lists[kv] == [tuple(sorted(chosen | {own}))], (s, kv)
            before = chosen | {own}


def test_rule_8_reuse_keeps_the_candidates_of_the_last_due_step() -> None:
    text = program("reuse(topk(score, 2) | last(1), every=4)")
    found, plain = steps_of(text, 8, 21)  # positions 13..20, due at 13, 16 and 20
    for layer in range(LAYERS):
        for kv in range(2):
            for s, step in enumerate(found):
                due = {0: 0, 1: 0, 2: 0, 3: 3, 4: 3, 5: 3, 6: 3, 7: 7}[s]
                own, own_then = (13 + s) // PAGE, (13 + due) // PAGE
                kept = best(plain[due, layer, kv, :own_then], 2)
                assert step[layer].lists[kv] == [tuple(sorted({*kept, own}))], (s, layer, kv)


def test_rule_8_reuse_over_layers_reads_the_nearest_layer_below() -> None:
    text = program("reuse(topk(score, 2), layers=ctx.layer != 1)")
    found, plain = steps_of(text, 2, 17)
    for s, step in enumerate(found):
        own = (15 + s) // PAGE
        for layer, source in ((0, 0), (1, 0), (2, 2)):
            for kv in range(2):
                kept = best(plain[s, source, kv, :own], 2)
                assert step[layer].lists[kv] == [tuple(sorted({*kept, own}))]


def test_rule_8_what_a_layer_writes_the_next_one_reads() -> None:
    text = program("topk(score, 1)", body="mass = memory.layer(page, init=0.5)", remember="mass=score",
                   score="m.mass + dot(q, s.c, channel).max(head)")  # fmt: skip
    found, plain = steps_of(text, 2, 13)
    for s, step in enumerate(found):
        for kv in range(2):
            total = torch.full((3,), 0.5, dtype=torch.float64)
            for layer in range(LAYERS):
                total = total + plain[s, layer, kv, :3]
                assert [seen(step[layer], kv)[page] for page in range(len(seen(step[layer], kv)))] == pytest.approx(
                    total[: len(seen(step[layer], kv))].tolist()
                )


def test_rule_8_reading_below_every_writer_is_an_error() -> None:
    text = program("reuse(topk(score, 2), layers=ctx.layer >= start)", body="start = knob.int(0, 2, default=0)")
    made = torch.zeros(1, LAYERS, 4, WIDTH)
    keys = [torch.ones(2, 9, WIDTH)] * LAYERS
    with pytest.raises(VortexError, match="reuse-before-write"):
        decode_steps(parse(text).bind({"start": 1}), STATIC, made, keys, keys)
    with pytest.raises(ProgramError, match="reuse-before-write"):
        parse(program("reuse(topk(score, 2), layers=ctx.layer > 0)"))


def test_bounds_hold_for_what_is_kept() -> None:
    long = 64 * PAGE
    for select, most in {
        "reuse(topk(score, 5), every=4)": 6,
        "reuse(topk(score, max(2, 9 - ctx.pages)), every=4)": 5,  # four candidates, later fewer
        "reuse(topk(score, where(ctx.layer == 0, 7, 3)), layers=ctx.layer == 0)": 8,
        "topk(score, 3) | m.kept": 1 + 3 + 4,
        "topk(score, 3) | m.below": 4,  # below layer 0 there is nothing
    }.items():
        body = "kept = memory.step(pages)\nbelow = memory.layer(pages)"
        used = [name for name in ("kept", "below") if f"m.{name}" in select]
        text = program(
            select, body="\n".join(line for line in body.split("\n") if any(line.startswith(name) for name in used)),
            remember=", ".join(f"{name}=topk(score, 4)" for name in used),
        )  # fmt: skip
        assert page_bound(parse(text).bind(), Static(2, 2, WIDTH, 0.5, 0, LAYERS), long) == most, select
        found, _ = steps_of(text, 6, 40)
        for layer in range(LAYERS):
            bound = page_bound(parse(text).bind(), Static(2, 2, WIDTH, 0.5, layer, LAYERS), 40)
            assert max(len(pages) for step in found for kv in step[layer].lists for pages in kv) <= bound
    text = program("topk(score, 3) | m.kept", body="kept = memory.step(pages)", remember="kept=pages")
    assert page_bound(parse(text).bind(), STATIC, long) == 64
