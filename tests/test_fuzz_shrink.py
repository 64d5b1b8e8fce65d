"""Failures shrink: planted faults of an executor come down to a few lines and one short request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fuzz import again, main, shrunk, whole_course
from tests.shrink import Setting, edits, normal, shrink, size
from tests.test_differential_course import WHOLE
from vortexlab.dsl import parse, to_source
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.dsl.testing import Course
from vortexlab.kernels import torch_select
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.torch_executor import TorchExecutor


class Forgets(TorchExecutor):
    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> Any:
        memory.reset()
        return super().decode(q, state, cache, memory)


class PoolsAnotherQuery(TorchExecutor):
    def prefill(self, q: Tensor, cache: PagedKV, state: Any = None, memory: Any = None) -> Any:
        return super().prefill(q.roll(1, 2), cache, state, memory)


class Crashes(TorchExecutor):
    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> Any:
        if "softmax" in {node.op for node in self.program.nodes}:
            raise ZeroDivisionError("planted")
        return super().decode(q, state, cache, memory)


def one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch_select.topk
    monkeypatch.setattr(torch_select, "topk", lambda score, count, allowed: right(score, count + 1, allowed))


def failing(executor: Any, wanted: str) -> Course:
    """The first random course with `wanted` in its text on which the executor fails."""
    for seed in range(200):
        course = whole_course(seed)
        program = course.case.program
        if wanted in program.source and again(executor, program, Setting.of(course)).disagreements:
            return course
    raise AssertionError(f"no course of {wanted} fails")


@pytest.mark.parametrize(
    ("executor", "wanted"),
    [(TorchExecutor, "topk("), (Forgets, "m.mass"), (PoolsAnotherQuery, "def pool"), (Crashes, "softmax(")],
)
def test_a_planted_fault_comes_down_to_a_few_lines(executor: Any, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if executor is TorchExecutor:
        one_too_many(monkeypatch)
    course = failing(executor, wanted)
    found = shrunk(executor, course.case.program, Setting.of(course), None, 60.0)
    assert found.finished and found.code_lines <= 12, found.text
    setting = found.setting
    assert len(setting.lengths) == setting.kv_heads == setting.group == setting.layers == 1
    assert max(setting.lengths) <= 8 and setting.kind == "integers" and setting.dtype == "float32"
    assert again(executor, found.text, setting).disagreements
    monkeypatch.undo()
    assert again(TorchExecutor, found.text, setting).disagreements == []


def test_fuzz_prints_what_makes_the_least_disagreement_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_too_many(monkeypatch)
    monkeypatch.setattr("sys.argv", ["fuzz", "programs", "--count", "30", "--stop", "--shrink", "60"])
    assert main() == 1
    printed = capsys.readouterr().out
    assert "nothing smaller disagrees. tests.fuzz.again(executor, TEXT, Setting(lengths=(" in printed
    text = printed[printed.index("from vortexlab") : printed.index("{'lists'")]
    assert len(text.split("\n")) <= 14 and "topk(" in text and parse(text).bind()


def test_a_setting_makes_a_configuration_again() -> None:
    course = whole_course(7)
    setting = Setting.of(course)
    same = setting.course(course.case.program)
    assert all(torch.equal(a, b) for a, b in zip(course.q, same.q, strict=True))
    assert all(
        torch.equal(a, b) for x, y in zip(course.keys, same.keys, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert eval(str(setting), {"Setting": Setting}) == setting


def test_settings_and_texts_only_get_smaller() -> None:
    course = whole_course(3)
    text = to_source(course.case.program)
    tried = [found for edited in edits(text) if (found := normal(edited))]
    assert len(tried) > 50 and min(map(size, tried)) < size(text)
    for setting in Setting.of(course).smaller(16):
        assert setting != Setting.of(course) and sum(setting.lengths) <= sum(course.case.lengths)


def test_a_search_without_time_keeps_what_it_has() -> None:
    course = whole_course(3)
    found = shrink(course.case.program, Setting.of(course), lambda *_: True, seconds=0.0)
    assert not found.finished and found.text == to_source(course.case.program) and found.setting == Setting.of(course)


def test_what_does_not_fail_is_not_shrunk() -> None:
    course = whole_course(3)
    with pytest.raises(VortexError, match="no longer fails"):
        shrink(course.case.program, Setting.of(course), lambda *_: False)


def test_shrinking_keeps_to_what_fails() -> None:
    """Whatever the predicate asks for stays; all else goes."""

    def fails(program: Program, setting: Setting) -> bool:
        return any(node.op == "cast" for node in program.nodes) and setting.steps > 1

    text = WHOLE.replace("c=k.mean(token)", 'c=k.to("bf16").mean(token)')
    found = shrink(parse(text).bind(), Setting((40, 50), steps=4, kv_heads=3), fails)
    assert ".to(" in found.text and found.code_lines <= 12 and found.setting == Setting((1,), steps=2)
