"""What the best choice of as many pages would keep: the executor, the evaluator, and what a campaign records of it."""

from __future__ import annotations

import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign_fakes import FakeEvaluator, Threads, config
from library_runs import LATENT, NAMES, PLAIN, bound_run, geometries

from vortexlab.agent import requests
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.oracles import reason_against
from vortexlab.agent.progress import ProgressState
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.agent.trials import Trial
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.fidelity import page_mass
from vortexlab.evaluator.oracle import OracleExecutor
from vortexlab.evaluator.phases import PREFILL
from vortexlab.evaluator.traits import forced_part, without_oracle
from vortexlab.evaluator.verdict import ERROR, REJECTED, Estimate, Verdict
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.report.plot import marks_line, pareto
from vortexlab.report.selection import Selection
from vortexlab.report.summary import why_line
from vortexlab.search_spaces.library import source

#: Programs of the library without an oracle, by a word of why.
WITHOUT = {
    "every query head": ("block_sparse", "flexprefill", "moba", "quest_heads", "seer_attention", "snapkv", "sparge",
                         "twilight", "vertical"),
    "earlier steps": ("gqa_h2o_tokens", "h2o_tokens", "lserve", "running_average", "tidal"),
    "no page by a score": ("dense", "sink_window", "strided", "a_shape", "local_global", "streaming_heads"),
    "its output": ("nsa", "retroinfer", "vattention"),
}  # fmt: skip


# --- the executor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_reads_as_many_pages_and_they_hold_the_most_attention(name: str, tmp_path: Path) -> None:
    run = bound_run(name, next(shape for shape in geometries(name) if shape in (*PLAIN, *LATENT)), tmp_path)
    program, static = run.program, run.static
    (*why,) = (word for word, names in WITHOUT.items() if name in names)
    if why:
        assert why[0] in without_oracle(program)
        return
    assert without_oracle(program) == ""
    page, length = program.page_size, run.keys[0].shape[1]
    k, v = run.keys[0].float(), run.values[0].float()
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, -length % page)) for x in (k, v))
    cache = PagedKV.from_contiguous(k, v, [0], [length], page)
    q = run.q[-1, 0][None].float()

    def chosen(executor: TorchExecutor) -> torch.Tensor:
        state = executor.new_state(cache)
        executor.summarize(state, cache)
        return executor.select(q, state, cache).to_mask(-(-length // page))[0, :, 0]

    own, best = chosen(TorchExecutor(program, static)), chosen(OracleExecutor(program, static))
    forced = chosen(TorchExecutor(forced_part(program), static))
    mass = page_mass(q[0], cache, 0, page, static.scale).sum(1)
    assert best.sum(1).tolist() == own.sum(1).tolist() and bool((best >= forced).all())
    for mine, theirs, always, held in zip(best, own, forced, mass, strict=True):
        free = held[~always].sort(descending=True).values
        assert float(held[mine & ~always].sum()) == pytest.approx(float(free[: int((mine & ~always).sum())].sum()))
        assert float(held[mine].sum()) >= float(held[theirs].sum()) - 1e-6


# --- the evaluator -------------------------------------------------------------------------------------------------

CONFIG = EvaluationConfig(
    tasks=("needles", "keys"), lengths=(320,), contexts=4, screen_contexts=2, batch_tokens=1280, compile_for=(),
    geometry="qwen3-1.7b", audit_share=0.0, threads=1, speed="predicted",
)  # fmt: skip
FEW = {"budget": 4, "page": 16, "sink": 1, "recent": 1}


def test_an_evaluator_asks_the_same_questions_of_an_oracle() -> None:
    with Evaluator(CONFIG) as evaluator:
        knobs = {name: value for name, value in FEW.items() if name in _knobs("quest")}
        oracle = evaluator.oracle(source("quest"), knobs)
        program = evaluator.evaluate(source("quest"), knobs)
        assert oracle.status == program.status == "accepted" and oracle.speedup is None
        assert oracle.accuracy is not None and program.accuracy is not None
        assert (oracle.answers, oracle.contexts) == (program.answers, program.contexts)
        assert oracle.density == pytest.approx(program.density, abs=0.01)
        assert oracle.accuracy.value >= program.accuracy.value
        assert oracle.source_hash == program.source_hash and {"batch", *oracle.conditions} == {*program.conditions}
        twilight = evaluator.oracle(source("twilight"))
        assert twilight.status == REJECTED and "every query head" in twilight.reason and twilight.accuracy is None
        with pytest.raises(VortexError):
            evaluator.oracle("no program")
        evaluator.config = replace(CONFIG, phase=PREFILL, speed="measured")
        assert "reads contexts by itself" in evaluator.oracle(source("quest")).reason


def _knobs(name: str) -> set[str]:
    from vortexlab.search_spaces.library import load

    return set(load(name).knobs)


# --- a campaign ----------------------------------------------------------------------------------------------------


class Knowing(FakeEvaluator):
    """Tells of oracles, which keep everything; `asked` names their programs, `status` is what becomes of them."""

    status = "accepted"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def oracle(self, source: str, knobs: dict[str, Any]) -> Verdict:
        time.sleep(0.1)
        found = self.evaluate(source, knobs)
        self.asked.append(found.source_hash)
        why = {"accepted": "", ERROR: "its worker was lost", REJECTED: "no oracle reads so"}[self.status]
        kept = Estimate(1.0, 0.98, 1.0) if self.status == "accepted" else None
        return replace(found, accuracy=kept, speedup=None, status=self.status, reason=why)


def leading(run: Run, most: int = 3) -> list[Trial]:
    front = [trial for trial in run.history.frontier() if trial.point and not reason_against(trial)]
    return sorted(front, key=lambda trial: -trial.point[0] * trial.point[1])[:most]  # type: ignore[index]


def test_a_campaign_ends_with_the_oracles_of_its_leaders(tmp_path: Path) -> None:
    evaluator, states = Knowing(), list[ProgressState]()
    Campaign(config(tmp_path), evaluator=evaluator).run(states.append)
    run = Run.open("run", tmp_path)
    leaders = {trial.hash for trial in leading(run)}
    assert len(leaders) == 3 and set(run.history.oracles) == leaders == set(evaluator.asked)
    kinds = [event.kind for event in run.events()]
    assert kinds[-5:] == ["oracles_begun", "oracle", "oracle", "oracle", "campaign_finished"]
    assert [event.data["id"] for event in run.events("oracle")] == [
        trial.id for trial in run.history.frontier() if trial.hash in run.history.oracles
    ]
    assert run.progress().evaluations == 28, "they count against no budget"
    times = [event.time for event in run.events()]
    spent = times[-1] - times[-5]
    assert run.history.seconds == pytest.approx(times[-1] - times[0] - spent), "and are no time of work"
    bounding = [state for state in states if state.phase == "bounding"]
    assert len(bounding) == 3 and len({state.seconds for state in bounding}) == 1
    assert states[-1].seconds - bounding[0].seconds < spent
    member = run.member(leading(run)[0].id)
    assert member["oracle"]["accuracy"] == {"value": 1.0, "low": 0.98, "high": 1.0} and not member["oracle"]["reason"]
    other = next(t for t in run.trials if t.hash not in run.history.oracles and t.point and not reason_against(t))
    assert run.member(other.id)["oracle"] is None
    dense = next(trial for trial in run.trials if trial.proposal.name == "Dense")
    assert run.member(dense.id)["oracle"]["reason"] == "there is none: it chooses no page by a score"


def test_oracles_are_measured_once_and_again_where_the_worker_was_lost(tmp_path: Path) -> None:
    evaluator = Knowing()
    Campaign(config(tmp_path), evaluator=evaluator).run()
    first = Run.open("run", tmp_path)
    again = Knowing()
    Campaign.resume("run", runs=str(tmp_path), evaluator=again).run()
    assert again.asked == []
    more = Knowing()
    more.status = ERROR
    Campaign.resume("run", runs=str(tmp_path), evaluations=60, evaluator=more).run()
    run = Run.open("run", tmp_path)
    new = {trial.hash for trial in leading(run)} - set(first.history.oracles)
    assert set(more.asked) == new
    last = Knowing()
    Campaign.resume("run", runs=str(tmp_path), evaluator=last).run()
    assert set(last.asked) == new
    assert all(found.head.status == "accepted" for found in Run.open("run", tmp_path).history.oracles.values())


@pytest.mark.parametrize("most", [0, 1])
def test_how_many_is_a_setting(most: int, tmp_path: Path) -> None:
    evaluator = Knowing()
    Campaign(config(tmp_path, oracles=most), evaluator=evaluator).run()
    assert len(evaluator.asked) == most
    with pytest.raises(VortexError, match="oracles must not be negative, found -1"):
        config(tmp_path, oracles=-1)


def test_an_evaluator_that_knows_of_none_leaves_none(tmp_path: Path) -> None:
    Campaign(config(tmp_path), evaluator=FakeEvaluator()).run()
    assert Run.open("run", tmp_path).history.oracles == {}


def test_a_replay_takes_them_from_the_record(tmp_path: Path) -> None:
    Campaign(config(tmp_path), evaluator=Knowing()).run()
    evaluator = Knowing()
    Campaign(config(tmp_path, name="again", replay="run"), evaluator=evaluator).run()
    there, here = (Run.open(name, tmp_path) for name in ("run", "again"))
    assert evaluator.asked == [] and here.history.oracles.keys() == there.history.oracles.keys()
    assert {event.data["from_run"] for event in here.events("oracle")} == {"run"}


def test_a_replay_measures_what_a_lost_worker_left_open(tmp_path: Path) -> None:
    lost, evaluator = Knowing(), Knowing()
    lost.status = ERROR
    Campaign(config(tmp_path), evaluator=lost).run()
    Campaign(config(tmp_path, name="again", replay="run"), evaluator=evaluator).run()
    assert len(evaluator.asked) == 3


class Slow(Threads):
    """Whose oracles never come; the first one interrupts, after a while."""

    def oracle(self, source: str, knobs: Any) -> Future[Verdict | None]:
        time.sleep(0.5)
        signal.raise_signal(signal.SIGINT)
        return Future()


def test_a_signal_leaves_them_to_the_next_session(tmp_path: Path) -> None:
    summary = Campaign(config(tmp_path, parallel=2), pool=Slow(2)).run()
    run = Run.open("run", tmp_path)
    assert run.history.oracles == {} and run.state == "finished"
    (begun,) = run.events("oracles_begun")
    assert run.history.seconds == pytest.approx(begun.time - next(run.events()).time), "the rest was no work"
    assert summary.state.seconds < run.history.seconds + 0.4
    evaluator = Knowing()
    Campaign.resume("run", runs=str(tmp_path), evaluator=evaluator).run()
    assert len(evaluator.asked) == 3


class Failing(Knowing):
    """Cannot be opened for the first of its oracles."""

    def oracle(self, source: str, knobs: dict[str, Any]) -> Verdict:
        found = super().oracle(source, knobs)
        if len(self.asked) == 1:
            raise VortexError("no room is left")
        return found


def test_one_that_fails_is_a_note_and_ends_nothing(tmp_path: Path) -> None:
    Campaign(config(tmp_path), evaluator=Failing()).run()
    run = Run.open("run", tmp_path)
    assert len(run.history.oracles) == 2 and run.state == "finished"
    assert [note for note in run.history.notes if "no room is left" in note and "no oracle was measured for t0" in note]


class Asking(Knowing):
    """People ask for something while its oracles are measured."""

    def __init__(self, runs: Path):
        super().__init__()
        self.runs, self.receipts = runs, list[requests.Receipt]()

    def oracle(self, source: str, knobs: dict[str, Any]) -> Verdict:
        self.receipts.append(requests.pin("t0001", "run", self.runs))
        return super().oracle(source, knobs)


def test_what_people_ask_meanwhile_is_taken(tmp_path: Path) -> None:
    evaluator = Asking(tmp_path)
    Campaign(config(tmp_path), evaluator=evaluator).run()
    assert Run.open("run", tmp_path).history.pinned == [1]
    how = f"raise it with `vortex search --resume {tmp_path / 'run'}"
    assert f"has spent its budget; {how}" in evaluator.receipts[0].message


def test_seeds_alone_have_none_before_the_budget_is_spent(tmp_path: Path) -> None:
    """Programs are told one by one then, to a run that nobody is writing."""
    evaluator = Knowing()
    made = Campaign(config(tmp_path, proposers=("handoff",)), evaluator=evaluator)
    made.run()
    assert evaluator.asked == []
    member = Campaign.resume("run", runs=str(tmp_path), evaluator=evaluator).submit(
        Proposal(source("arkvale"), "Arkvale", "me", "told")
    )
    assert member.id and dict(member.limits) is not None


# --- what people see -----------------------------------------------------------------------------------------------


def test_the_report_marks_them_above_their_programs(tmp_path: Path) -> None:
    Campaign(config(tmp_path), evaluator=Knowing()).run()
    run = Run.open("run", tmp_path)
    chosen = Selection(run)
    (marks,) = (trace for trace in pareto(chosen)["data"] if trace["name"] == "oracle")
    speeds = {trial.point[0] for trial in leading(run) if trial.point}
    assert set(marks["x"]) == speeds and set(marks["y"]) == {1.0}
    assert marks["error_y"]["arrayminus"] == pytest.approx([0.02] * 3)
    assert "diamond" in marks_line(chosen) and "the program keeps" in marks["hovertext"][0]
    entry = chosen.entries[leading(run)[0].id]
    assert "The best choice of as many pages would keep 1.000 [0.980, 1.000]." in why_line(run, entry)


def test_a_report_without_any_says_so(tmp_path: Path) -> None:
    evaluator = Knowing()
    evaluator.status = REJECTED
    Campaign(config(tmp_path), evaluator=evaluator).run()
    chosen = Selection(Run.open("run", tmp_path))
    assert not [trace for trace in pareto(chosen)["data"] if trace["name"] == "oracle"]
    assert "no mark of an oracle" in marks_line(chosen) and "no oracle reads so" in marks_line(chosen)
