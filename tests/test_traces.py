"""The cheap evaluator over recorded traces, and novelty by behaviour."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from vortexlab.agent.novelty import behaviour, is_worth_a_slot, simpler
from vortexlab.agent.proposers.grammar import SIMPLIFY, GrammarProposer
from vortexlab.dsl import parse, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import traces
from vortexlab.evaluator.traces import TraceConfig, TraceEvaluator, Traces, mean_pages, needle_mass, pages_read
from vortexlab.evaluator.verdict import GATES
from vortexlab.search_spaces.library import source


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> TraceEvaluator:
    return TraceEvaluator(TraceConfig(length=512, contexts=1), folder=tmp_path_factory.mktemp("traces"))


def test_dense_keeps_everything_and_a_narrow_window_little(evaluator: TraceEvaluator) -> None:
    dense = evaluator.evaluate(source("dense"))
    window = evaluator.evaluate(source("sink_window"), {"sink": 0, "recent": 1})
    assert dense.accuracy is not None and dense.speedup is not None
    assert window.accuracy is not None and window.speedup is not None
    assert dense.accuracy.value == pytest.approx(1.0) and dense.speedup.value == pytest.approx(1.0, rel=0.05)
    assert window.accuracy.value < 0.5 and window.speedup.value > 2
    assert tuple(gate.name for gate in window.gates) == GATES and window.conditions["speed"] == "predicted"


def test_more_budget_keeps_more(evaluator: TraceEvaluator) -> None:
    kept = [evaluator.evaluate(source("quest"), {"budget": n, "page": 8}) for n in (4, 16, 56)]
    values = [verdict.accuracy.value for verdict in kept if verdict.accuracy]
    assert values == sorted(values) and values[0] < values[-1]


@pytest.mark.parametrize("select", ["topk(score, 4)", "random(4)", "topk(score, where(ctx.layer < 1, 8, 2))"])
def test_layers_share_an_executor_only_where_it_would_do_the_same(
    select: str, evaluator: TraceEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"""@program(page=8)
class Example:
    def summarize(k):
        return dict(centre=k.mean(token))
    def score(q, s):
        return (q * s.centre).sum(channel).max(head)
    def select(score, ctx):
        return {select} | last(1)
"""
    program = parse(text).bind()
    found = pages_read(evaluator.traces, program)
    monkeypatch.setattr(traces, "depends_on_layer", lambda program: True)
    one_each = pages_read(evaluator.traces, program)
    assert all(torch.equal(a, b) for a, b in zip(found, one_each, strict=True))


def test_nothing_is_evaluated_twice(evaluator: TraceEvaluator) -> None:
    first = evaluator.evaluate(source("centroid"), {"budget": 8})
    assert evaluator.evaluate(source("centroid"), {"budget": 8}) is first


def test_what_cannot_run_is_rejected(evaluator: TraceEvaluator) -> None:
    text = source("quest").replace("page=knob.choice(8, 16, 32, 64, default=16)", "page=40")
    verdict = evaluator.evaluate(text)
    assert verdict.status == "rejected" and "pages of 40 tokens" in verdict.reason and verdict.accuracy is None


def test_the_needle_is_counted_by_hand() -> None:
    needle = torch.zeros(1, 1, 2, 384)
    needle[0, 0, :, 17], needle[0, 0, 0, 100] = 0.25, 0.5
    q, kv = torch.zeros(1, 1, 1, 2, 4), torch.zeros(1, 1, 384, 4)
    traces = Traces(q, kv, kv, torch.tensor([384], dtype=torch.int32), needle, 0.5)
    mask = torch.zeros(1, 1, 1, 24, dtype=torch.bool)
    mask[..., 1] = True  # tokens 16 to 31
    assert needle_mass(traces, [mask], 16) == pytest.approx(0.5) and mean_pages([mask]) == 1
    with pytest.raises(VortexError, match="pages of 100 tokens"):
        traces.cache(0, 100)


def test_traces_are_kept(evaluator: TraceEvaluator, tmp_path: Path) -> None:
    evaluator.traces.save(tmp_path / "t.safetensors")
    again = Traces.load(tmp_path / "t.safetensors")
    bound = parse(source("quest")).bind({"budget": 8})
    both = zip(pages_read(evaluator.traces, bound), pages_read(again, bound), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    assert again.scale == evaluator.traces.scale


def test_a_program_that_reads_the_same_is_worth_a_slot_only_where_it_is_cheaper() -> None:
    quest = source("quest")
    assert behaviour(quest) is not None and behaviour(source("lserve")) is None
    costly = quest.replace("lo=k.min(token), hi=k.max(token)", "lo=k.min(token), hi=k.max(token), c=k.mean(token)")
    costly = costly.replace(".sum(channel).max(head)", ".sum(channel).max(head) + 0.0 * dot(q, s.c, channel).max(head)")
    assert not is_worth_a_slot(costly, [quest]) and is_worth_a_slot(quest, [costly])
    assert is_worth_a_slot(source("centroid"), [quest])


def test_a_part_that_changes_nothing_of_what_is_read_can_go() -> None:
    useless = """
from vortexlab.dsl import *


@program(page=16)
class Useless:
    budget = knob.int(4, 512, log=True, default=16)

    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token), mean=k.mean(token))

    def score(q, s):
        bound = maximum(q * s.lo, q * s.hi).sum(channel)
        return (bound + 1e-12 * dot(q, s.mean, channel)).max(head)

    def select(score):
        return topk(score, budget) | first(1) | last(2)
"""
    found = {item.change for seed in range(8) if (item := simpler(useless, (), random.Random(seed)))}
    assert len(found) == 1 and "mean" in found.pop()
    made = next(item for seed in range(8) if (item := simpler(useless, (), random.Random(seed))))
    assert behaviour(made.source).tokens == behaviour(useless).tokens  # type: ignore[union-attr]
    assert set(parse(made.source).fields) == {"lo", "hi"} and is_worth_a_slot(made.source, [useless])
    wanted = structure_hash(parse(made.source))
    assert not any(simpler(useless, {wanted}, random.Random(seed)) for seed in range(8)), "known already"
    assert simpler(source("quest"), (), random.Random(0)) is None, "every part of it counts"
    assert simpler(source("moba"), (), random.Random(0)) is None, "a decode step does not show how it prefills"
    assert simpler(source("lserve"), (), random.Random(0)) is None, "nor what it keeps"

    proposer = GrammarProposer({"useless": useless})
    made_by = {proposer.propose([], random.Random(seed), 0, SIMPLIFY).operator for seed in range(8)}  # type: ignore[union-attr]
    assert SIMPLIFY in made_by

