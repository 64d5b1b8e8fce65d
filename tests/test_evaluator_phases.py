"""Programs that remember, attend and prefill for themselves go through the same gates as all others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from vortexlab import dsl
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.evaluator import courses, prefill, speed
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.timing import Clock, Workload
from vortexlab.evaluator.traits import depends_on_layer, forced_part, kinds_of_step, period
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.search_spaces.library import load, source

SMALL = {"tasks": ("needles",), "lengths": (512,), "contexts": 3, "compile_for": (), "geometry": "qwen3-1.7b",
         "batch_tokens": 1024}  # fmt: skip
SHAPE = Geometry("small", 2, 2, 32, 2)
STATIC = Static(kv_heads=2, group=2, head_dim=32, scale=32**-0.5, layers=6)


BLIND = """
@program(page=16, block=16)
class Blind:
    def pool(q):
        return q.mean(query)

    def select(ctx):
        return where(ctx.prefill, last(1), everything())
"""


@pytest.fixture(scope="module")
def decode() -> Iterator[Evaluator]:
    with Evaluator(EvaluationConfig(**SMALL)) as evaluator:  # type: ignore[arg-type]
        yield evaluator


@pytest.mark.parametrize("name", ["lserve", "tidal", "running_average", "retroinfer"])
def test_what_a_program_carries_on_is_measured(decode: Evaluator, name: str) -> None:
    verdict = decode.evaluate(source(name))
    assert (verdict.status, verdict.reason) == ("accepted", "")
    assert verdict.speedup is not None and verdict.accuracy is not None
    assert verdict.density is not None and 0 < verdict.density <= 1


def test_a_program_reads_its_own_contexts(decode: Evaluator) -> None:
    with Evaluator(EvaluationConfig(**SMALL, phase="prefill")) as evaluator:  # type: ignore[arg-type]
        assert evaluator.environment != decode.environment
        whole = evaluator.evaluate(source("dense"))
        blind = evaluator.evaluate(BLIND)
    assert whole.accuracy is not None and whole.accuracy.value == 1.0
    assert whole.conditions["phase"] == "prefill"
    # Its decode steps read everything, of contexts in which no token has seen more than its own page.
    assert blind.accuracy is not None and blind.accuracy.value < 1 and blind.density == 1


def test_the_speed_of_sparse_prefill_is_measured() -> None:
    assert EvaluationConfig(phase="prefill", device="cuda").speed == "measured"
    with pytest.raises(VortexError, match="the speed of sparse prefill is measured, not predicted"):
        EvaluationConfig(phase="prefill", speed="predicted")


def test_prefill_is_timed_and_its_outputs_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    program = load("local_global").bind({"span": 2})

    def timed() -> speed.Timing:
        return prefill.measure(
            program, TorchExecutor, SHAPE, 700, layers=2, device="cpu", dtype=torch.float32, seed=0, pairs=1
        )

    found = timed()
    assert found.batch == 1 and len(found.ratios) == 1 and found.worst_error < 1e-4
    assert 0 < found.density < 1
    right = TorchExecutor.prefill

    def wrong(self, q, cache, state=None, memory=None):  # type: ignore[no-untyped-def]
        out, lists = right(self, q, cache, state, memory)
        return out * 1.01, lists

    monkeypatch.setattr(TorchExecutor, "prefill", wrong)
    with pytest.raises(speed.SpeedError, match="off by"):
        timed()


def test_steps_that_renew_count_by_how_often_they_come() -> None:
    program = load("lserve").bind({"every": 4})
    assert period(program) == 4 and not depends_on_layer(program)
    assert depends_on_layer(load("tidal").bind())
    assert kinds_of_step(program, 1023) == [(1021, 0.25), (1023, 0.75)], "the first token is at position 0"
    assert kinds_of_step(load("quest").bind(), 1023) == [(1023, 1.0)]
    snap = load("snapkv")
    assert kinds_of_step(snap.bind({"every": 1024}), 4095) == [(3073, 1 / 1024), (4095, 1023 / 1024)]
    assert kinds_of_step(snap.bind({"every": 4096}), 4095) == [(4095, 1.0)], "too rare to count"
    assert kinds_of_step(snap.bind({"every": 1}), 100) == [(100, 1.0)]
    workload = Workload.make(SHAPE, 1024, 2048, "cpu", torch.float32, 0)
    done: list[str | int] = []

    class Counting(TorchExecutor):
        def decode(self, q, state, cache, memory=None):  # type: ignore[no-untyped-def]
            done.append(int(cache.lengths[0]))
            return super().decode(q, state, cache, memory)

        def update(self, state, cache):  # type: ignore[no-untyped-def]
            done.append("update")
            super().update(state, cache)

    class Told(Clock):
        """The step that renews takes 5 ms, summaries none, and all else 1 ms."""

        def __call__(self, call):  # type: ignore[no-untyped-def]
            done.clear()
            result = call()
            return {"update": 0.0, 1021: 5.0}.get(done[-1] if done else 1023, 1.0), result

    clock = Told(torch.device("cpu"))
    found = speed.measure(
        program, Counting, workload, layers=2, counts=[3], seed=0, pairs=4, most_pairs=4, clock=clock
    )
    assert found.ratios == [0.5, 0.5] and found.sparse_ms == 2.0 and found.dense_ms == 1.0


@pytest.mark.parametrize("name", ["vattention", "lserve"])
def test_a_timed_call_that_is_made_again_gives_the_same(name: str) -> None:
    """Of a program that attends by itself, and of one that remembers, the whole step is made again."""

    class Drifting(TorchExecutor):
        calls = 0

        def decode(self, q, state, cache, memory=None):  # type: ignore[no-untyped-def]
            Drifting.calls += 1
            out, lists = super().decode(q, state, cache, memory)
            return out * (1 + Drifting.calls), lists

    workload = Workload.make(SHAPE, 512, 1024, "cpu", torch.float32, 0)
    settings = {"layers": 1, "counts": [3], "seed": 0, "pairs": 2, "most_pairs": 2}
    assert speed.measure(load(name).bind(), TorchExecutor, workload, **settings).ratios  # type: ignore[arg-type]
    with pytest.raises(speed.SpeedError, match="another output than the same call"):
        speed.measure(load(name).bind(), Drifting, workload, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lserve", "h2o_tokens", "tidal", "retroinfer", "block_sparse", "moba"])
def test_a_course_finds_what_one_step_does_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = load(name).bind()
    assert courses.needs_course(program)

    def check() -> int:
        return courses.check(program, STATIC, TorchExecutor, "cpu", torch.Generator().manual_seed(3))

    assert check() >= 8
    decode, read = TorchExecutor.decode, TorchExecutor.prefill

    def off(self, q, state, cache, memory=None):  # type: ignore[no-untyped-def]
        out, lists = decode(self, q, state, cache, memory)
        return out + 0.01, lists

    def off_in_prefill(self, q, cache, state=None, memory=None):  # type: ignore[no-untyped-def]
        out, lists = read(self, q, cache, state, memory)
        return out + 0.01, lists

    monkeypatch.setattr(TorchExecutor, "decode", off)
    monkeypatch.setattr(TorchExecutor, "prefill", off_in_prefill)
    with pytest.raises(courses.Disagreement, match="the output is off by"):
        check()


def test_a_forgotten_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor that begins anew at every step attends correctly, and selects other pages than the program says."""
    program = load("running_average").bind({"budget": 4, "decay": 0.95})
    decode = TorchExecutor.decode

    def forgetful(self, q, state, cache, memory=None):  # type: ignore[no-untyped-def]
        memory.reset()
        return decode(self, q, state, cache, memory)

    monkeypatch.setattr(TorchExecutor, "decode", forgetful)
    with pytest.raises(courses.Disagreement, match=r"KV head \d reads pages .*, the reference .* at step"):
        courses.check(program, STATIC, TorchExecutor, "cpu", torch.Generator().manual_seed(0))


def test_what_is_read_regardless_has_no_scores_and_no_memory() -> None:
    for name in ("lserve", "quest_heads", "block_sparse", "rocketkv"):
        program = forced_part(load(name).bind())
        ops = {program.nodes[i].op for i in program.live()}
        assert not ops & {"topk", "topp", "above", "random", "reuse", "memory"}, name
        assert program.axis_sizes(STATIC)
        assert dsl.canonical_hash(program)
