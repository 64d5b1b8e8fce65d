"""Programs that declare the precision of their KV cache: every gate keeps it, and dense attention keeps the model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from vortexlab import dsl
from vortexlab.dsl.ir import FP8, Program, Static
from vortexlab.evaluator import courses, fidelity, numerics, prefill, speed, timing
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.contexts import Context, ContextStore, Fork, Turn
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.executors import EVERYTHING, everything_of
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.models import load_model
from vortexlab.evaluator.replay import Session, Tally, Watcher, replay
from vortexlab.evaluator.tasks import make_samples
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.precision import TORCH_DTYPES, cast
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.search_spaces import library

STATIC = Static(2, 2, 16, 0.25, 0, 2)
GEOMETRY = Geometry("small", 4, 2, 2, 32)
QUEST = """@program(page=16, kv="{kv}")
class Quest:
    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))
    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)
    def select(score):
        return topk(score, 6, among=~(first(1) | last(2))) | first(1) | last(2)
"""
WHOLE = '@program(page=16, kv="{kv}")\nclass All:\n    def select():\n        return everything()\n'


def _of(text: str, kv: str) -> Program:
    return dsl.parse(text.format(kv=kv)).bind()


# --- recorded contexts and forks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ContextStore:
    samples = [make_samples(task, 272, 1)[0] for task in ("needles", "keys")]
    contexts = [
        Context(tuple(s.context), tuple(Turn(tuple(t.question), len(t.answer)) for t in s.turns[:2])) for s in samples
    ]
    return ContextStore(load_model(str(REFERENCE_MODEL)), contexts, tmp_path_factory.mktemp("precision"))


@pytest.mark.parametrize("page", [16, 24])
@pytest.mark.parametrize("kv", [*FP8, "fp16"])
def test_recorded_contexts_are_rounded_as_they_would_have_been_written(store: ContextStore, kv: str, page: int) -> None:
    dtype = TORCH_DTYPES[kv]
    own, rounded = store.caches(page), store.caches(page, dtype)
    forked = store.fork(page, [Fork(1, 0), Fork(0, 1)], dtype)
    for layer in range(store.model.layers):
        assert rounded[layer].k.dtype == rounded[layer].v.dtype == dtype and own[layer].k.dtype == torch.float32
        for row, fork in ((0, 1), (1, 0)):
            for mine, other, there in zip(
                own[layer].dense(row), rounded[layer].dense(row), forked[layer].dense(fork), strict=True
            ):
                assert torch.equal(cast(mine, dtype).float(), other.float()) and torch.equal(
                    other.float(), there.float()
                )


def test_one_converted_pool_is_kept(store: ContextStore) -> None:
    first = store.caches(16, torch.float8_e4m3fn)[0].k
    assert store.caches(32, torch.float8_e4m3fn)[0].k.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
    store.caches(16, torch.float16)
    assert store._copy is not None and store._copy[1].dtype == torch.float16
    assert store.caches(16)[0].k.untyped_storage().data_ptr() == store._pool.untyped_storage().data_ptr()


def test_tokens_that_a_question_appends_are_rounded_and_saturate(store: ContextStore) -> None:
    cache = store.fork(16, [Fork(0, 0)], torch.float8_e4m3fn)[0]
    shape = (1, store.model.kv_heads, store.model.head_dim)
    cache.append(torch.full(shape, 1e4), torch.full(shape, 0.3))
    k, v = cache.dense(0)
    assert bool((k[:, -1].float() == 448.0).all()) and bool((v[:, -1].float() == 0.3125).all())


class _Spy(TorchExecutor):
    """Notes the precision of every cache that it reads."""

    seen: ClassVar[set[torch.dtype]] = set()

    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> tuple[Tensor, PageLists]:
        self.seen.add(cache.k.dtype)
        assert q.dtype == torch.float32
        return super().decode(q, state, cache, memory)


@pytest.mark.parametrize("dense", [False, True])
def test_a_replay_reads_the_declared_cache_alone(store: ContextStore, dense: bool) -> None:
    program, _Spy.seen = _of(QUEST, "fp8_e5m2"), set()
    reader = Session(everything_of(program), store.model, store, _Spy) if dense else None
    forks = [Fork(0, 0), Fork(0, 1)]
    session = Session(program, store.model, store, _Spy)
    first = replay(session, forks, Tally(), dense=reader)
    assert _Spy.seen == {torch.float8_e5m2}
    assert replay(session, forks, Tally(), dense=reader) == first


def test_the_models_own_precision_by_name_changes_nothing(store: ContextStore) -> None:
    forks = [Fork(0, 0), Fork(1, 0), Fork(1, 1)]
    answers = [
        replay(Session(_of(QUEST, kv), store.model, store, TorchExecutor), forks, Tally()) for kv in ("auto", "fp32")
    ]
    assert answers[0] == answers[1] and store.caches(16, torch.float32)[0].k.dtype == torch.float32


# --- fidelity ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(store: ContextStore) -> fidelity.Recording:
    forks = [Fork(0, 0), Fork(1, 0)]
    watcher = Watcher({0: 2, 1: 2}, store.model.layers)
    replay(Session(EVERYTHING, store.model, store, TorchExecutor), forks, Tally(), watch=watcher)
    return fidelity.Recording.from_watcher(forks, watcher)


def _fidelity(program: Program, store: ContextStore, recording: fidelity.Recording) -> dict[str, Any]:
    return fidelity.measure(Session(program, store.model, store, TorchExecutor), recording, None)


def test_fidelity_tells_rounding_from_selection(store: ContextStore, recording: fidelity.Recording) -> None:
    """Reading every page of a rounded cache is no fault of the executor: the error is that of the rounding alone."""
    found = {kv: _fidelity(_of(WHOLE, kv), store, recording) for kv in ("auto", "fp16", *FP8)}
    assert found["auto"]["cache_error"] == 0.0 and found["auto"]["error_mean"] == found["auto"]["selection_error"]
    for kv in ("fp16", *FP8):
        assert found[kv]["selection_error"] < found[kv]["dense_limit"] and found[kv]["density"] == pytest.approx(1.0)
        assert found[kv]["error_mean"] == pytest.approx(found[kv]["cache_error"], rel=1e-3)
    errors = [found[kv]["cache_error"] for kv in ("fp16", "fp8_e4m3", "fp8_e5m2")]
    assert errors == sorted(errors) and errors[0] < 1e-3 < found["fp8_e4m3"]["dense_limit"] * 10 < errors[1]
    sparse = _fidelity(_of(QUEST, "fp8_e4m3"), store, recording)
    assert sparse["selection_error"] > 0 and sparse["cache_error"] == pytest.approx(errors[1], rel=1e-6)


# --- numerics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [*FP8, "bf16"])
def test_numerics_compares_in_the_declared_precision(kv: str) -> None:
    for program in (_of(QUEST, kv), replace(library.load("tidal").bind(), kv_dtype=kv)):
        found = numerics.check(program, STATIC, "cpu", 0)
        assert found["failure"] == "" and found["steps"] > 0


def test_sparse_prefill_keeps_the_declared_precision() -> None:
    program = replace(library.load("bigbird_prefill").bind(), kv_dtype="fp8_e4m3")
    generator = torch.Generator().manual_seed(0)
    assert courses.check(program, STATIC, TorchExecutor, "cpu", generator) > 0
    found = prefill.measure(
        program, TorchExecutor, GEOMETRY, 320, layers=2, device="cpu", dtype=torch.float32, seed=0, pairs=1
    )
    assert 0 < found.worst_error < 1e-4, "outputs are held against the rounded keys"


class _Unrounded(TorchExecutor):
    """Computes on keys and values a little off those of the cache, as one that keeps them elsewhere would."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        wide = PagedKV(cache.k.float() * 1.01, cache.v.float(), cache.table, cache.lengths, cache.block)
        return super().attend(q, wide, lists)


def test_an_executor_that_reads_other_numbers_fails_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "executor_for", lambda device: _Unrounded)
    assert "off by" in numerics.check(_of(QUEST, "fp8_e4m3"), STATIC, "cpu", 0)["failure"]


# --- speed ---------------------------------------------------------------------------------------------------------


def test_speed_is_that_of_the_declared_cache_beside_dense_in_the_models_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[torch.dtype] = set()

    def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        read.update((k.dtype, v.dtype))
        return torch.zeros_like(q)

    monkeypatch.setattr(speed, "DENSE_PATHS", {"spied": dense})
    workload, _Spy.seen = timing.Workload.make(GEOMETRY, 256, 1024, "cpu", torch.float32, 0), set()
    found = speed.measure(
        _of(QUEST, "fp8_e4m3"), _Spy, workload, layers=2, counts=[], seed=0, pairs=2, most_pairs=2
    )
    assert read == {torch.float32} and _Spy.seen == {torch.float8_e4m3fn}
    assert 0 < found.worst_error < speed.TOLERANCE[torch.float32]
    stored = workload.stored_in(torch.float8_e4m3fn)
    assert torch.equal(stored.k[:, :, :-2].float(), cast(workload.k, torch.float8_e4m3fn)[:, :, :-2].float())
    assert workload.stored_in(torch.float32) is workload and stored.fresh(torch.Generator()).dtype == torch.float32


def test_who_writes_into_keys_of_the_models_precision_is_noticed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        k[0, 0, 0, 0] += 1
        return torch.zeros_like(q)

    monkeypatch.setattr(speed, "DENSE_PATHS", {"writing": dense})
    workload, _Spy.seen = timing.Workload.make(GEOMETRY, 256, 1024, "cpu", torch.float32, 0), set()
    with pytest.raises(speed.SpeedError, match="wrote into the keys or values"):
        speed.measure(_of(QUEST, "fp8_e4m3"), _Spy, workload, layers=2, counts=[], seed=0, pairs=2, most_pairs=2)


# --- whole evaluations ---------------------------------------------------------------------------------------------

CONFIG = EvaluationConfig(
    tasks=("needles",), lengths=(320,), contexts=2, screen_contexts=1, batch_tokens=640, compile_for=("sm_90",),
    geometry="qwen3-1.7b", audit_share=0.0, threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    with Evaluator(CONFIG) as found:
        yield found


@pytest.mark.parametrize("kv", ["fp8_e4m3", "fp16"])
def test_a_program_with_a_precision_of_its_own_passes_every_gate(kv: str, evaluator: Evaluator, tmp_path: Path) -> None:
    found = evaluator.evaluate(QUEST.format(kv=kv))
    assert (found.status, found.reason) == ("accepted", "")
    assert found.conditions["kv_dtype"] == kv and found.conditions["dtype"] == "float32"
    assert found.accuracy is not None and found.accuracy.value > 0.2 and found.speedup is not None
    details = {gate.name: gate.details for gate in found.gates}
    assert details["fidelity"]["cache_error"] > 0
    assert not details["compile"]["not_covered"]
    predicted = found.stages["predicted"]["h200"]["320"]
    assert (predicted["dtype"], predicted["dense_dtype"]) == (kv, "bf16")
    plain = evaluator.evaluate(QUEST.format(kv="auto")).stages["predicted"]["h200"]["320"]
    read = {stage["name"]: stage["read"] for stage in predicted["stages"]}
    wide = {stage["name"]: stage["read"] for stage in plain["stages"]}
    assert read["attend"] * (2 if kv in FP8 else 1) == wide["attend"] and predicted["dense"] == plain["dense"]
