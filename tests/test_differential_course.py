"""Steps, layers and prompts of the torch executor against the reference, and the comparison against planted faults.

The random courses have fixed seeds; VORTEX_FUZZ_FIRST=<number> moves them.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.differential_course import compare_course
from tests.fuzz import whole_course, whole_programs
from vortexlab.dsl import parse
from vortexlab.dsl.testing import random_course
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.torch_executor import TorchExecutor

FIRST = int(os.environ.get("VORTEX_FUZZ_FIRST", "100"))
SLICE = 150  #: courses of the short run

WHOLE = """
@program(page=8, block=16)
class Whole:
    mass = memory.step(page, init=0.5)
    below = memory.layer(page)
    def summarize(k, v):
        return dict(c=k.mean(token), k=k.max(token), v=v.mean(token))
    def pool(q):
        return q.slice(query, -4).mean(query)
    def score(q, s, m):
        return 0.5 * m.mass + m.below + dot(q, s.c, channel).max(head)
    def select(score):
        return reuse(topk(score, 2), every=3) | reuse(topk(-score, 1), layers=ctx.layer == 0)
    def attend(q, s, score, pages):
        return attention(pages, keys=s.k, values=s.v, among=~pages, log_weight=clamp(score, -1.0, 1.0))
    def remember(score):
        return dict(mass=clamp(score, -9.0, 9.0), below=clamp(score, -3.0, 3.0))
""".replace("select(score)", "select(score, ctx)")


def course() -> Any:
    return random_course(5, parse(WHOLE), max_length=90, steps=6, kinds=("normal",), dtypes=(torch.float32,))


def test_the_torch_executor_agrees_over_steps_layers_and_prompts() -> None:
    report = compare_course(TorchExecutor, course())
    assert report.disagreements == [] and report.determined > 50
    total, done, _ = whole_programs(TorchExecutor, FIRST, SLICE, shrinking=30.0, stop=True)
    assert total.disagreements == [] and done == SLICE and total.determined > 0.9 * total.lists > 1000


@pytest.mark.slow
def test_the_torch_executor_agrees_on_many_programs() -> None:
    total, _, _ = whole_programs(TorchExecutor, FIRST + SLICE, 1000)
    assert total.disagreements == []


class Forgets(TorchExecutor):
    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> Any:
        memory.reset()
        return super().decode(q, state, cache, memory)


class SlightlyOff(TorchExecutor):
    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> Any:
        out, lists = super().decode(q, state, cache, memory)
        return out * (1 + 1e-4), lists


class PoolsAnotherQuery(TorchExecutor):
    def prefill(self, q: Tensor, cache: PagedKV, state: Any = None, memory: Any = None) -> Any:
        return super().prefill(q.roll(1, 2), cache, state, memory)


class LooksAhead(TorchExecutor):
    def prefill(self, q: Tensor, cache: PagedKV, state: Any = None, memory: Any = None) -> Any:
        out, lists = super().prefill(q, cache, state, memory)
        return out.roll(-1, 2), lists


@pytest.mark.parametrize("fault", [Forgets, SlightlyOff, PoolsAnotherQuery, LooksAhead])
def test_planted_faults_are_found(fault: type[TorchExecutor]) -> None:
    assert compare_course(fault, course()).disagreements


def test_courses_are_made_again_from_their_seed() -> None:
    one, two = whole_course(3), whole_course(3)
    assert torch.equal(one.q[0], two.q[0]) and one.case.program.source == two.case.program.source
