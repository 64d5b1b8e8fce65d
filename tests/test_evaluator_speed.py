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
from vortexlab.search_spaces import library

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

        def update(self, state: Any, cache: PagedKV) -> None:
            events.append("update")
            super().update(state, cache)

    def watched(dense: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            events.append("dense")
            return dense(*arguments)

        return call

    paths = {name: watched(path) for name, path in speed.DENSE_PATHS.items()}
    monkeypatch.setattr(speed, "DENSE_PATHS", paths)
    _measure(EXAMPLE, workload, Watched)
    assert events[-10:] == ["dense", "update", "sparse"] * 3 + ["dense"]
    assert len(set(queries)) == len(queries) == 4


class _Charged:
    """A clock that counts what calls charge to it instead of time."""

    now = 0.0

    def __init__(self, device: torch.device):
        self.pairs: list[tuple[float, float]] = []

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


class _Staged(TorchExecutor):
    """Selection takes 3 ms, attention 1 ms, and a step by itself 7 ms."""

    def select(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> PageLists:
        _Charged.now += 3.0
        return super().select(q, state, cache, memory)

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        _Charged.now += 1.0
        return super().attend(q, cache, lists)

    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> tuple[Tensor, PageLists]:
        before = _Charged.now
        found = super().decode(q, state, cache, memory)
        _Charged.now = before + 7.0
        return found


@pytest.mark.parametrize(
    ("name", "sparse", "attend"),
    [("quest", 7.0, 1.0), ("top_p", 4.0, 1.0), ("running_average", 7.0, 1.0), ("vattention", 7.0, 4.0)],
)
def test_stages_are_timed_apart(
    name: str, sparse: float, attend: float, workload: timing.Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selection counts too where lists of another length are attended; and what composes its output by itself attends
    for as long as the step takes beyond its selection."""

    def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        _Charged.now += 10.0
        return q

    monkeypatch.setattr(speed, "DENSE_PATHS", {"charged": dense})
    monkeypatch.setattr(speed, "Clock", _Charged)
    found = _measure(library.load(name).bind({"page": 16}), workload, _Staged, counts=[5])
    assert (found.sparse_ms, found.select_ms, found.attend_ms) == (sparse, 3.0, attend)


def test_steps_are_timed_with_the_summaries_of_their_contexts() -> None:
    loudest = _program(
        "    def summarize(k):\n        return dict(loud=k.norm(token).sum(channel))\n"
        "    def score(s):\n        return s.loud\n    def select(score):\n        return topk(score, 1)\n"
    )
    contexts = timing.Workload.make(GEOMETRY, 256, 1024, "cpu", torch.float32, 0)
    contexts.k[:, :, 40:48] *= 10
    read: list[Any] = []

    class Noting(TorchExecutor):
        def decode(self, q: Tensor, state: Any, cache: PagedKV) -> tuple[Tensor, PageLists]:
            out, lists = super().decode(q, state, cache)
            read.append(lists.to_list())
            return out, lists

    _measure(loudest, contexts, Noting)
    assert read == [[[[[5, 31]]] * 2] * 4] * 4


def test_the_output_that_a_program_composes_must_be_finite(workload: timing.Workload) -> None:
    class Hot(TorchExecutor):
        def decode(self, q: Tensor, state: Any, cache: PagedKV) -> tuple[Tensor, PageLists]:
            out, lists = super().decode(q, state, cache)
            return out * float("nan"), lists

    with pytest.raises(speed.SpeedError, match="a timed output is not finite"):
        _measure(library.load("vattention").bind(), workload, Hot)


# --- clocks --------------------------------------------------------------------------------------------------------


class _Scaling(TorchExecutor):
    """Scales its query in place after it has used it: what comes next would find another one."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        out = super().attend(q, cache, lists)
        q.mul_(2)
        return out


def test_a_call_may_not_write_into_its_query(workload: timing.Workload) -> None:
    with pytest.raises(speed.SpeedError, match="wrote into its query"):
        _measure(EXAMPLE, workload, _Scaling)


def test_every_call_gets_a_newest_token_and_a_query_that_none_has_seen(workload: timing.Workload) -> None:
    generator = torch.Generator().manual_seed(1)
    asked = [workload.fresh(generator) for _ in range(2)]
    newest = []
    for _ in range(2):
        workload.fresh(generator)
        newest.append(workload.newest())
    assert not torch.equal(*asked)
    for first, second in zip(*newest, strict=True):
        assert not (first == second).any()
    workload.restore(*newest[0])
    assert all(torch.equal(now, old) for now, old in zip(workload.newest(), newest[0], strict=True))


def test_a_cache_of_another_precision_is_a_copy_and_one_of_the_same_is_not(workload: timing.Workload) -> None:
    assert workload.stored_in(torch.float32) is workload
    other = workload.stored_in(torch.bfloat16)
    assert other.k.dtype == other.v.dtype == torch.bfloat16 and other.dtype == torch.float32
    assert torch.equal(other.k, workload.k.bfloat16()) and torch.equal(other.v, workload.v.bfloat16())


@pytest.mark.parametrize(("dtype", "channel"), [(torch.float32, 4), (torch.bfloat16, 3), (torch.float16, 6)])
def test_any_written_number_of_a_cache_shows(dtype: torch.dtype, channel: int) -> None:
    cells = timing.Workload.make(Geometry("odd", 2, 1, 1, channel), 16, 32, "cpu", dtype, 0)
    before = speed._fingerprint(cells)
    for pool in (cells.k, cells.v):
        for token in (0, 13):
            old = pool[0, 1, token, -1].clone()
            pool[0, 1, token, -1] = old + 1
            assert any(not torch.equal(a, b) for a, b in zip(before, speed._fingerprint(cells), strict=True))
            pool[0, 1, token, -1] = old
    cells.k[:, :, 14:] = 7  # the newest token changes from call to call
    assert all(torch.equal(a, b) for a, b in zip(before, speed._fingerprint(cells), strict=True))


def test_other_inputs_are_timed_against_the_path_that_was_the_fastest(workload: timing.Workload) -> None:
    first = _measure(EXAMPLE, workload)
    again = _measure(EXAMPLE, workload, baseline=first.baseline)
    assert len(first.baselines_ms) > 1 and list(again.baselines_ms) == [again.baseline] == [first.baseline]


def test_drift_is_the_way_from_the_first_third_to_the_last() -> None:
    assert timing.drift([10.0] * 9) == timing.drift([]) == timing.drift([1.0, 2.0]) == 0.0
    assert timing.drift([10, 99, 10, 11, 11, 11, 12, 12, 0]) == pytest.approx(0.2), "medians, so outliers do not count"
    assert timing.drift([12.0] * 3 + [10.0] * 3) == pytest.approx(0.2), "getting faster is drift too"


def test_events_that_say_less_or_more_than_the_wall_clock_are_seen() -> None:
    assert timing.apart([]) == timing.apart([(1.0, 1.09), (0.02, 0.1)]) == 0.0
    assert timing.apart([(0.4, 1.0)] * 3) == pytest.approx(0.5)
    assert timing.apart([(1.6, 1.0)] * 3) == pytest.approx(0.5)
    assert timing.apart([(1.0, 9.0), (1.0, 1.0), (1.0, 1.0)]) == 0.0, "once may be an interrupt"


class _Gpu:
    """Fakes of what the clock of a GPU uses; `log` has their order, `now` is its time in milliseconds."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.log: list[str] = []
        self.now = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool):
                assert enable_timing

            def record(self) -> None:
                gpu.log.append("event")
                self.at = gpu.now

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        class Scratch:
            def zero_(self) -> None:
                gpu.log.append("flush")

        def empty(size: int, **_: Any) -> Scratch:
            assert size == 2 * 1000
            return Scratch()

        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "synchronize", lambda: self.log.append("wait"))
        patch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"L2_cache_size": 1000}))
        patch.setattr(timing.torch, "empty", empty)
        patch.setattr(timing.time, "perf_counter", lambda: self.now / 1e3)


def test_a_gpus_clock_flushes_waits_and_has_events_beside_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = _Gpu(monkeypatch)
    clock = timing.Clock(torch.device("cuda"))

    def call() -> str:
        gpu.log.append("call")
        gpu.now += 3.0
        return "out"

    assert clock(call) == (pytest.approx(3.0), "out")
    assert gpu.log == ["flush", "wait", "event", "call", "event", "wait"]
    assert clock.pairs == [(3.0, pytest.approx(3.0))]


class _Liar(timing.Clock):
    """Events that see half of the time."""

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        spent, result = super().__call__(call)
        self.pairs.append((5.0, 10.0))
        return spent, result


def test_events_that_disagree_with_the_wall_clock_end_the_gate(
    workload: timing.Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "Clock", _Liar)
    with pytest.raises(speed.SpeedError, match="disagree by 49 %"):
        _measure(EXAMPLE, workload)


def test_the_drift_of_a_run_is_told_and_makes_it_go_on(
    workload: timing.Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = [0.0]

    def drifting(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        step[0] += 1
        _Charged.now += 10 * 1.06 ** step[0]
        return q

    class Following(TorchExecutor):
        def decode(self, q: Tensor, state: Any, cache: PagedKV) -> tuple[Tensor, PageLists]:
            _Charged.now += 5 * 1.06 ** (step[0] + 0.5)
            return super().decode(q, state, cache)

    monkeypatch.setattr(speed, "DENSE_PATHS", {"drifting": drifting})
    monkeypatch.setattr(speed, "Clock", _Charged)
    monkeypatch.setattr(speed, "TOLERANCE", {torch.float32: float("inf")})
    found = _measure(EXAMPLE, workload, Following, pairs=3, most_pairs=8)
    assert len(found.ratios) == 8, "ratios agree, the clock does not"
    assert found.drift > speed.DRIFT and found.ratios == pytest.approx([2.0] * 8, rel=0.02), "neighbours are compared"


# --- recorded inputs -----------------------------------------------------------------------------------------------


def test_recorded_contexts_are_stretched_to_the_geometry(workload: timing.Workload) -> None:
    keys = torch.arange(3 * 300 * 8).view(3, 300, 8).float()
    queries = torch.randn(5, 6, 8)
    found = timing.RecordedWorkload.like(workload, [(keys, -keys), (keys + 0.5, keys)], queries)
    assert (found.k.shape, found.v.shape, found.batch) == (workload.k.shape, workload.v.shape, workload.batch)
    assert torch.equal(found.k[1, 0, :, :8], keys[1, :256]) and torch.equal(found.k[1, 0, :, 8:16], keys[1, :256])
    assert torch.equal(found.k[0, 1, :, :8], keys[0, :256] + 0.5) and torch.equal(found.v[0, 2, :, :8], -keys[0, :256])
    generator = torch.Generator().manual_seed(0)
    first, second = found.fresh(generator), found.fresh(generator)
    assert first.shape == (4, 4, 32) and not torch.equal(first, second)
    nearest = torch.cdist(first[0].flatten()[None], found.queries.flatten(1)).min()
    assert float(nearest) < 0.1 * float(first[0].norm())
    newest = found.k[:, 0, 254]
    assert any(torch.equal(newest, found.k[:, 0, at]) for at in range(254)), "a token of the context"


def test_the_worse_of_both_inputs_counts() -> None:
    slow, fast = speed.Timing(ratios=[2.0, 9.0, 2.0], batch=7), speed.Timing(ratios=[3.0, 1.0, 3.0])
    for names in (("synthetic", "recorded"), ("recorded", "synthetic")):
        found = speed.worse(dict(zip(names, (slow, fast), strict=True)))
        assert (found.inputs, found.batch) == (names[0], 7)
        assert found.by_inputs == dict(zip(names, (2.0, 3.0), strict=True))
