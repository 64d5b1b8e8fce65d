"""The speed gate: what it times, against what, and that it looks at what the timed calls computed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from vortexlab import dsl, search_spaces
from vortexlab.dsl.ir import Program
from vortexlab.evaluator import speed, timing
from vortexlab.evaluator.geometries import Geometry
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.torch_executor import TorchExecutor

EXAMPLE = dsl.parse("""@program(page=8)
class Example:
    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))
    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)
    def select(score, ctx):
        return topk(score, 3) | first(1) | last(2)
""").bind()


def _program(body: str, page: int = 8) -> Program:
    return dsl.parse(f"@program(page={page})\nclass Example:\n{body}").bind()


GEOMETRY = Geometry("small", 4, 2, 2, 32)


@pytest.fixture(scope="module")
def workload() -> timing.Workload:
    return timing.Workload.make(GEOMETRY, 256, 1024, "cpu", torch.float32, 0)


def _measure(
    program: Program, workload: timing.Workload, kind: type[Any] = TorchExecutor, **changes: Any
) -> speed.Timing:
    settings = {"layers": 2, "counts": [], "seed": 0, "pairs": 3, "most_pairs": 3} | changes
    return speed.measure(program, kind, workload, **settings)


def test_a_timing_says_what_was_read(workload: timing.Workload) -> None:
    found = _measure(_program("    def select():\n        return first(1) | last(3)\n", 16), workload)
    assert found.batch == 4 and len(found.ratios) == 3 and all(ratio > 0 for ratio in found.ratios)
    assert found.density == pytest.approx((3 * 16 + 15) / 255)
    assert found.baseline in found.baselines_ms and found.baselines_ms[found.baseline] == min(
        found.baselines_ms.values()
    )


def test_live_counts_are_timed_where_budgets_depend_on_data(workload: timing.Workload) -> None:
    program = search_spaces.load("top_p").bind({"page": 16})
    found = _measure(program, workload, counts=[5, 5, 7])
    assert (5 * 16 - 1) / 255 <= found.density <= (7 * 16 - 1) / 255
    with pytest.raises(speed.SpeedError, match="no live counts"):
        _measure(program, workload)


def test_programs_that_differ_by_layer_are_timed_on_every_layer(workload: timing.Workload) -> None:
    layered = _program("    def select(ctx):\n        return where(ctx.layer < 1, everything(), last(2))\n", 16)
    found = _measure(layered, workload, layers=2, pairs=4, most_pairs=4)
    assert found.density == pytest.approx((1 + 31 / 255) / 2)
    assert len(found.ratios) == 2


class _Shortcut(TorchExecutor):
    """Returns the output of its first call again: a cached result."""

    kept: Tensor | None = None

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        if self.kept is None:
            self.kept = super().attend(q, cache, lists)
        return self.kept


class _SamePages(TorchExecutor):
    """Selects once and for all."""

    kept: PageLists | None = None

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        fresh = super().select(q, state, cache)
        previous, self.kept = self.kept, fresh
        return previous or fresh


class _Uninitialised(TorchExecutor):
    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q, cache, lists) * float("nan")


@pytest.mark.parametrize(
    ("fault", "words"), [(_Shortcut, "off by"), (_SamePages, "other pages"), (_Uninitialised, "not finite")]
)
def test_outputs_of_timed_calls_are_verified(fault: type[Any], words: str, workload: timing.Workload) -> None:
    with pytest.raises(speed.SpeedError, match=words):
        _measure(EXAMPLE, workload, fault)


def test_timed_calls_get_fresh_inputs_and_alternate_with_dense(
    workload: timing.Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    queries: list[float] = []

    class Watched(TorchExecutor):
        def decode(self, q: Tensor, state: Any, cache: PagedKV) -> tuple[Tensor, PageLists]:
            events.append("sparse")
            queries.append(float(q.sum() + cache.k.sum()))
            return super().decode(q, state, cache)

    def watched(dense: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            events.append("dense")
            return dense(*arguments)

        return call

    paths = {name: watched(path) for name, path in speed.DENSE_PATHS.items()}
    monkeypatch.setattr(speed, "DENSE_PATHS", paths)
    _measure(EXAMPLE, workload, Watched)
    assert events[-7:] == ["dense", "sparse"] * 3 + ["dense"]
    assert len(set(queries)) == len(queries) == 4


class _Charged:
    """A clock that counts what calls charge to it instead of time."""

    now = 0.0

    def __init__(self, device: torch.device): ...

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        before = _Charged.now
        result = call()
        return _Charged.now - before, result


@pytest.mark.parametrize(("swing", "pairs"), [(0.0, 3), (0.5, 8)])
def test_a_ratio_is_the_dense_time_around_a_step_over_the_step_with_its_summaries(
    swing: float, pairs: int, workload: timing.Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense attention drifts from call to call; steps that swing make the run noisy, and it goes on."""
    dense_costs: list[float] = []
    step_costs: list[float] = []
    summary = 2.4

    class Charging(TorchExecutor):
        def update(self, state: Any, cache: PagedKV) -> None:
            if int(cache.lengths[0]) % self.program.page_size == 0:  # a page fills up
                _Charged.now += summary
            super().update(state, cache)

        def decode(self, q: Tensor, state: Any, cache: PagedKV) -> tuple[Tensor, PageLists]:
            step_costs.append(2.0 + swing * (len(step_costs) % 2))
            _Charged.now += step_costs[-1]
            return super().decode(q, state, cache)

    def drifting(*arguments: Any) -> Tensor:
        dense_costs.append(10.0 + len(dense_costs) / 4)
        _Charged.now += dense_costs[-1]
        return path(*arguments)

    def slow(*arguments: Any) -> Tensor:
        _Charged.now += 99.0
        return path(*arguments)

    path = next(iter(speed.DENSE_PATHS.values()))
    monkeypatch.setattr(speed, "DENSE_PATHS", {"slow": slow, "drifting": drifting})
    monkeypatch.setattr(speed, "Clock", _Charged)
    found = _measure(EXAMPLE, workload, Charging, pairs=3, most_pairs=8)
    assert found.baseline == "drifting" and found.baselines_ms == pytest.approx({"slow": 99.0, "drifting": 10.0})
    assert found.summary_ms == pytest.approx(summary / 8), "its cost is spread over the page"
    around = [(first + second) / 2 for first, second in pairwise(dense_costs[3:])]
    steps = [cost + summary / 8 for cost in step_costs[-pairs:]]
    assert found.ratios == pytest.approx([one / other for one, other in zip(around, steps, strict=True)])
    assert len(found.ratios) == pairs
    assert found.dense_ms == pytest.approx(sum(dense_costs[3:]) / (pairs + 1))
