"""Knobs from Optuna: shared names, reproducible suggestions, infeasible programs, the copy for the dashboard."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from campaign_fakes import FakeEvaluator, config
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from vortexlab.agent import study
from vortexlab.agent.arms import Arm
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import Proposal
from vortexlab.agent.run import Run
from vortexlab.agent.store import Store
from vortexlab.agent.trials import Trial
from vortexlab.dsl import parse, structure_hash
from vortexlab.dsl.ir import Knob
from vortexlab.evaluator.verdict import Estimate, Verdict
from vortexlab.search_spaces.library import load, source

STRUCTURE = "ab" * 32


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = tmp_path_factory.mktemp("runs")
    Campaign(config(runs, evaluations=30, mirror=True), evaluator=FakeEvaluator()).run()
    return Run.open("run", runs)


def test_shared_names_are_one_parameter_and_others_belong_to_their_structure() -> None:
    shared = load("quest").knobs["budget"]
    assert study.parameter(shared, STRUCTURE) == "budget"
    assert study.parameter(replace(shared, log=False), STRUCTURE) == "p/abababab/budget:int"
    assert study.parameter(Knob("tilt", "float", 0.5, 0.0, 1.0), STRUCTURE) == "p/abababab/tilt:float"


def test_every_kind_of_knob_has_its_distribution() -> None:
    cases = [
        (Knob("a", "int", 4, 1, 9, step=2), IntDistribution(1, 9, step=2)),
        (Knob("a", "int", 4, 1, 9, log=True), IntDistribution(1, 9, log=True)),
        (Knob("a", "float", 0.5, 0.1, 1.0, log=True), FloatDistribution(0.1, 1.0, log=True)),
        (Knob("a", "float", 0.5, 0.0, 1.0, step=0.25), FloatDistribution(0.0, 1.0, step=0.25)),
        (Knob("a", "choice", "x", choices=("x", "y")), CategoricalDistribution(("x", "y"))),
        (Knob("a", "bool", True), CategoricalDistribution((False, True))),
    ]
    for knob, expected in cases:
        assert study.distribution(knob) == expected


def test_a_suggestion_depends_on_history_seed_slot_and_attempt_alone(run: Run) -> None:
    program = load("quest")
    structure = structure_hash(program)

    def ask(trials: list[Trial], seed: int = 0, slot: int = 40, attempt: int = 0) -> dict[str, object]:
        return study.Tuner().ask(trials, program, structure, tokens=4096, seed=seed, slot=slot, attempt=attempt)

    first = ask(run.trials)
    assert set(first) == set(program.knobs)
    program.bind(first)
    assert first == ask(list(Run.open(run.folder).trials))
    # Two suggestions may be the same by chance, where the sampler is sure of itself; not all of five.
    for way in ("seed", "slot", "attempt"):
        assert any(ask(run.trials, **{way: number}) != first for number in range(41, 46)), way


def test_page_counts_stay_below_half_of_the_context(run: Run) -> None:
    program, rng = load("quest"), random.Random(0)
    drawn = [study.draw(program, rng, tokens=4096) for _ in range(200)]
    tuner, structure = study.Tuner(), structure_hash(program)
    asked = [tuner.ask(run.trials, program, structure, tokens=4096, seed=0, slot=slot) for slot in range(20)]
    for values in drawn + asked:
        assert isinstance(values["page"], int) and isinstance(values["budget"], int)
        assert values["page"] * values["budget"] <= 2048
    assert len({values["page"] for values in drawn}) == 4
    assert {values["budget"] for values in drawn if values["page"] == 64} <= set(range(4, 33))
    fixed = parse(load("quest").source.replace("page=knob.choice(8, 16, 32, 64, default=16)", "page=64"))
    assert all(study.draw(fixed, rng, tokens=4096)["budget"] <= 32 for _ in range(50))  # type: ignore[operator]


def test_drawn_values_fit_their_knobs() -> None:
    text = """
@program(page=16)
class P:
    n = knob.int(1, 31, step=3, default=1)
    x = knob.float(0.0, 1.0, step=0.25, default=0.5)
    y = knob.float(0.01, 10.0, log=True, default=1.0)
    on = knob.bool(default=True)
    def select(ctx):
        return first(n) | last(floor(x * y)) | where(on, first(2), last(2))
"""
    rng = random.Random(1)
    values = [study.draw(parse(text), rng, tokens=4096) for _ in range(300)]
    assert {v["n"] for v in values} == set(range(1, 32, 3))
    assert {v["x"] for v in values} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert 0.3 < sum(v["y"] < 0.3 for v in values) / 300 < 0.7  # type: ignore[operator]
    assert {v["on"] for v in values} == {True, False}


def test_the_sampler_learns_from_what_was_measured() -> None:
    """A knob whose best value is known: later suggestions gather there."""
    text = """
@program(page=16)
class P:
    x = knob.float(0.0, 1.0, default=0.5)
    def select(ctx):
        return first(floor(x * ctx.pages))
"""
    program = parse(text)
    structure = structure_hash(program)
    trials: list[Trial] = []
    distances = []
    tuner = study.Tuner()
    for slot in range(40):
        tuner.ask(trials, program, structure, tokens=4096, seed=3, slot=slot, attempt=1)
        values = tuner.ask(trials, program, structure, tokens=4096, seed=3, slot=slot)
        assert values == study.Tuner().ask(trials, program, structure, tokens=4096, seed=3, slot=slot)
        x = values["x"]
        assert isinstance(x, float)
        good = 1.0 - abs(x - 0.8)
        exact = Estimate(good, good, good)
        verdict = Verdict("P", "", structure, values, "accepted", speedup=exact, accuracy=exact)
        trials.append(Trial(slot, Arm("knobs", "sampler"), Proposal(text, "P", "knobs", "sampler", knobs=values), "",
                            structure, verdict))  # fmt: skip
        distances.append(abs(x - 0.8))
    assert sum(distances[-10:]) < 0.5 * sum(distances[:10])


def test_a_long_campaign_shows_the_sampler_its_latest_trials_and_its_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    program = load("quest")
    structure, rng = structure_hash(program), random.Random(0)
    trials = []
    for slot in range(1200):
        values, speed, kept = study.draw(program, rng, tokens=4096), rng.random(), rng.random()
        verdict = Verdict("P", "", structure, values, "accepted", speedup=Estimate(speed, speed, speed),
                          accuracy=Estimate(kept, kept, kept))  # fmt: skip
        if slot in (3, 7):  # once found, never beaten
            verdict = replace(verdict, speedup=Estimate(2.0 + slot, 0, 0), accuracy=Estimate(9.0 - slot, 0, 0))
        proposal = Proposal(program.source, "P", "knobs", "sampler", knobs=values)
        trials.append(Trial(slot, Arm("knobs", "sampler"), proposal, "", structure, verdict))
    added: list[str] = []
    frozen = study.frozen
    monkeypatch.setattr(study, "frozen", lambda trial: added.append(trial.id) or frozen(trial))
    kept_on = study.Tuner()
    for count in range(390, 1200, 45):
        values = kept_on.ask(trials[:count], program, structure, tokens=4096, seed=3, slot=count)
        before = len(added)
        fresh = study.Tuner()
        assert values == fresh.ask(trials[:count], program, structure, tokens=4096, seed=3, slot=count)
        shown = added[before:]
        latest = {trial.id for trial in trials[count - 400 : count]} if count > 400 else set()
        assert len(shown) < 520 and set(shown) >= {"t0003", "t0007", *latest}


def test_programs_of_one_structure_may_declare_a_knob_in_several_ways(tmp_path: Path) -> None:
    text = """
@program(page=16)
class P:
    n = {}
    def select(ctx):
        return first(n)
"""
    kinds = ["choice(1, 2, default=1)", "choice(4, 1, 2, default=1)", "int(1, 9, log=True, default=1)",
             "int(1, 9, default=1)", "int(1, 4, default=1)"]  # fmt: skip
    programs = [parse(text.format(f"knob.{kind}")) for kind in kinds]
    assert len({structure_hash(program) for program in programs}) == 1
    structure, tuner, trials = structure_hash(programs[0]), study.Tuner(), list[Trial]()
    for slot in range(30):
        program = programs[slot % len(programs)]
        values = tuner.ask(trials, program, structure, tokens=4096, seed=3, slot=slot)
        exact = Estimate(1.0, 1.0, 1.0)
        verdict = Verdict("P", "", structure, values, "accepted", speedup=exact, accuracy=exact)
        proposal = Proposal(program.source, "P", "knobs", "sampler", knobs=values)
        trials.append(Trial(slot, Arm("knobs", "sampler"), proposal, "", structure, verdict))
    study.Mirror(tmp_path, "run").bring_up(trials)
    names = {study.parameter(program.knobs["n"], structure) for program in programs}
    assert len(names) == 4 and all(name.startswith(f"p/{structure[:8]}/n:") for name in names)


def test_rejected_programs_are_infeasible_and_lost_workers_are_skipped(run: Run) -> None:
    accepted = next(t for t in run.trials if t.point)
    kept = study.frozen(accepted)
    assert kept.state == TrialState.COMPLETE and tuple(kept.values) == accepted.point
    assert kept.constraints == {"rejected": 0.0}
    assert accepted.verdict is not None
    no = replace(accepted.verdict, status="rejected", gate="screen", speedup=None, accuracy=None)
    rejected = study.frozen(replace(accepted, verdict=no))
    assert rejected.state == TrialState.COMPLETE and rejected.values == [0.0, 0.0]
    assert rejected.constraints == {"rejected": 1.0}
    lost = study.frozen(replace(accepted, verdict=replace(no, status="error")))
    assert lost.state == TrialState.FAIL and lost.values is None


def test_the_mirror_holds_every_trial_and_heals(run: Run) -> None:
    def slots() -> list[int]:
        storage = JournalStorage(JournalFileBackend(str(file)))
        return [t.user_attrs["slot"] for t in optuna.load_study(study_name="run", storage=storage).trials]

    file = run.folder / study.MIRROR
    everything = list(range(len(run.trials)))
    assert slots() == everything
    mirror = study.Mirror(run.folder, "run")
    for end in (5, 6, len(run.trials)):
        mirror.bring_up(run.trials[:end])
        assert slots() == everything[:end]
    # A kill in the middle of a write leaves half a line and the lock.
    file.write_bytes(file.read_bytes()[:-9])
    file.with_name(f"{file.name}.lock").symlink_to(file)
    study.Mirror(run.folder, "run").bring_up(run.trials)
    assert slots() == everything
    assert not file.with_name(f"{file.name}.lock").is_symlink()


def test_a_mirror_that_cannot_be_written_costs_a_note(tmp_path: Path) -> None:
    settings = config(tmp_path, evaluations=4, mirror=True)
    settings.folder.mkdir(parents=True)
    (settings.folder / study.MIRROR).mkdir()  # no file can be made there
    Campaign(settings, evaluator=FakeEvaluator()).run()
    with Store.read(settings.folder) as store:
        notes = [event.data["text"] for event in store.events(kind="note")]
    assert len(notes) == 1 and notes[0].startswith("the copy for optuna-dashboard is not kept")
    assert len(Run.open("run", tmp_path).trials) == 4


def test_importance_names_the_knob_that_decides_an_objective() -> None:
    program = load("quest")
    rng, structure = random.Random(3), structure_hash(program)
    trials = []
    for slot in range(80):
        values = study.draw(program, rng, tokens=4096)
        fast = Estimate(*[100.0 / int(values["budget"])] * 3)  # type: ignore[arg-type]
        kept = Estimate(*[int(values["sink"]) / 8] * 3)  # type: ignore[arg-type]
        verdict = Verdict("Quest", "", structure, values, "accepted", speedup=fast, accuracy=kept)
        proposal = Proposal(source("quest"), "Quest", "knobs", "sampler", knobs=values)
        trials.append(Trial(slot, Arm("knobs", "sampler"), proposal, "", structure, verdict))
    found = {row.knob: row for row in study.importances(trials)}
    assert set(found) == set(program.knobs) and all(row.trials == 80 and row.meaning for row in found.values())
    assert max(found.values(), key=lambda row: row.speedup).knob == "budget"
    assert max(found.values(), key=lambda row: row.accuracy).knob == "sink"
    for shares in ([row.speedup for row in found.values()], [row.accuracy for row in found.values()]):
        assert sum(shares) == pytest.approx(1.0)
    assert study.importances(trials[:19]) == [], "too few"
    rejected = replace(trials[0], verdict=replace(trials[0].verdict, status="rejected"))  # type: ignore[type-var]
    assert study.importances([rejected] * 80) == []
    same = [replace(trial, proposal=replace(trial.proposal, knobs=trials[0].knobs)) for trial in trials]
    assert study.importances(same) == [], "one value each"
