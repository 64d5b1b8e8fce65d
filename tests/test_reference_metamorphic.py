"""Changes that must not matter, or matter in a known way, on random programs of the whole language.

The reference holds them by the way it is written; that it does is what executors are compared with.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vortexlab.dsl import parse
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.reference import decode_steps, run
from vortexlab.dsl.reference_prefill import prefill
from vortexlab.dsl.testing import Course, random_course, random_program
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.torch_executor import TorchExecutor

SEEDS = range(20, 32)
STATIC = Static(kv_heads=2, group=2, head_dim=8, scale=0.5)


def course_of(seed: int) -> Course:
    program = parse(random_program(random.Random(seed), whole=True))
    return random_course(seed, program, layers=1, steps=3, max_length=60, dtypes=(torch.float32,))


def test_causality_of_steps_and_prompts() -> None:
    """Tokens behind a query change nothing: an earlier step, or an earlier block, does not see them."""
    blocks = 0
    for seed in SEEDS:
        course = course_of(seed)
        program, static = course.case.program, course.statics[0]
        q, k, v = course.q[0][:, :1], course.keys[0][0], course.values[0][0]
        whole = decode_steps(program, static, q, [k], [v])
        early = decode_steps(program, static, q[:-1], [k[:, :-1]], [v[:, :-1]])
        for a, b in zip(whole, early, strict=False):
            assert a[0].lists == b[0].lists and torch.equal(a[0].output, b[0].output)
        if program.pooled is None:
            continue
        prompt = course.prompt[0][0]
        cut = (k.shape[1] - 1) // program.block * program.block
        full = prefill(program, static, prompt, k, v)
        later = [x.clone() for x in (prompt, k, v)]
        for x in later:
            x[:, cut:] = 7.0
        changed = prefill(program, static, *later)
        assert torch.equal(changed.output[:, :cut].nan_to_num(), full.output[:, :cut].nan_to_num())
        blocks += len(full.blocks)
    assert blocks > 0


def test_requests_do_not_see_each_other_and_their_order_is_free() -> None:
    for seed in SEEDS:
        course = course_of(seed)
        program, static = course.case.program, course.statics[0]
        q, k, v = course.q[0][-1][:1].expand(2, -1, -1), course.keys[0][0], course.values[0][0]
        both = run(program, static, q, [k, k[:, :-1]], [v, v[:, :-1]])
        other = run(program, static, q, [k[:, :-1], k], [v[:, :-1], v])
        assert both.lists == other.lists[::-1]
        assert torch.equal(both.output.nan_to_num(), other.output.flip(0).nan_to_num())


def test_padding_and_the_names_of_physical_pages_change_nothing() -> None:
    """On the executor that has them; lists are compared where inputs are whole numbers."""
    for seed in SEEDS:
        program = parse(random_program(random.Random(seed), whole=True, smooth=False))
        course = random_course(seed, program, layers=1, steps=1, max_length=60, kinds=("integers",),
                               dtypes=(torch.float32,))  # fmt: skip
        found = []
        for shuffle, spare in ((None, 0), (5, 0), (9, 70)):
            cache = PagedKV.from_dense(course.keys[0], course.values[0], course.case.block, shuffle_seed=shuffle,
                                       spare=spare, free_blocks=3)  # fmt: skip
            executor = TorchExecutor(course.case.program, course.statics[0])
            state, memory = executor.new_state(cache), executor.new_memory(cache, carry=Carry())
            executor.summarize(state, cache)
            out, lists = executor.decode(course.q[0][0], state, cache, memory)
            found.append((out, lists.to_list()))
        for out, lists in found[1:]:
            assert lists == found[0][1]
            assert torch.allclose(out, found[0][0], atol=1e-4, rtol=1e-4, equal_nan=True)


FREE = {
    "centroid": "dot(q, s.c, channel).max(head)",
    "softmax": "softmax(dot(q, s.c, channel), page).sum(head)",
    "distance to the best": "dot(q, s.c, channel).max(head) - dot(q, s.c, channel).max(head).max(page)",
    "rank": "dot(q, s.c, channel).max(head).sort(page).take(page, 2, fill=0.0) - dot(q, s.c, channel).max(head)",
}


def free_program(score: str, select: str) -> Program:
    text = '@program(page=4, summaries="fp32")\nclass P:\n    def summarize(k): return dict(c=k.mean(token))\n'
    text += f"    def score(q, s): return {score}\n    def select(score, ctx): return {select}\n"
    return parse(text).bind()


def context(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 4 * 9 + 2, 8, generator=made, dtype=torch.float64) for _ in range(2))
    return k, v, torch.randn(1, 4, 8, generator=made, dtype=torch.float64)


@pytest.mark.parametrize("name", FREE)
def test_permuting_logical_pages_permutes_what_a_program_free_of_position_selects(name: str) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    for select in ("topk(score, 3)", "above(score, 0.0, max=4)", "topp(score, 0.6)"):
        k, v, q = context(1)

        def moved(x: Tensor) -> Tensor:
            pages = x[:, :36].view(2, 9, 4, 8)[:, order].flatten(1, 2)
            return torch.cat([pages, x[:, 36:]], 1)

        program = free_program(FREE[name], select)
        plain, other = run(program, STATIC, q, [k], [v]), run(program, STATIC, q, [moved(k)], [moved(v)])
        place = {int(page): at for at, page in enumerate(order)} | {9: 9}
        for kv in range(2):
            assert other.lists[0][kv][0] == tuple(sorted(place[page] for page in plain.lists[0][kv][0]))
        assert torch.allclose(plain.output, other.output)


@pytest.mark.parametrize("name", FREE)
def test_a_larger_budget_contains_the_smaller(name: str) -> None:
    k, v, q = context(2)
    for form in ("topk(score, {})", "above(score, 0.0, max={})", "topp(score, 0.9, max={})", "random({})"):
        before: set[int] = set()
        for count in range(10):
            step = run(free_program(FREE[name], form.format(count)), STATIC, q, [k], [v])
            pages = set(step.lists[0][0][0])
            assert before <= pages
            before = pages


def test_scores_of_seeds_are_free_of_the_batch() -> None:
    course = course_of(25)
    alone = run(course.case.program, course.statics[0], course.q[0][-1][:1], course.keys[0][:1], course.values[0][:1])
    case = replace(course.case, static=course.statics[0])
    together = run(case.program, case.static, course.q[0][-1], course.keys[0], course.values[0])
    assert together.lists[0] == alone.lists[0]
