"""The tuner's logic on trials with made-up times, and the command line around it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from vortexlab.cli import main, schemas
from vortexlab.cli import tune as command
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.kernels.gpu import tune, tune_compile, tuning
from vortexlab.kernels.gpu.tune import MARGIN, REPEATS, Outcome, Search
from vortexlab.kernels.gpu.tune_trial import Problem, Rules
from vortexlab.kernels.gpu.tuning import Choice

PROBLEM = Problem(Static(8, 4, 128, 128**-0.5), "bf16", 8, 32768)
USUAL = Choice(64, 4, 3, 8)
FAST, SLOW = Choice(128, 4, 3), Choice(32, 4, 3)
OUT = torch.arange(12.0).view(3, 4)


@dataclass
class FakeTrial:
    """`us`: the time of a choice; a call to a timer moves the clock by its span, a run by `seconds`."""

    us: Callable[[Choice], float]
    seconds: float = 0.001
    now: float = 0.0
    wrong: tuple[Choice, ...] = ()
    broken: tuple[Choice, ...] = ()
    fatal: tuple[Choice, ...] = ()
    noise: float = 0.0
    lost: bool = False
    began: list[float] = field(default_factory=list)
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    usual: Choice = USUAL

    def splits(self, choice: Choice) -> int | None:
        return 8

    def run(self, choice: Choice) -> Tensor:
        self.began.append(self.now)
        self.now += self.seconds
        tiles = tune.with_splits(choice, None)
        if tiles in self.fatal:
            self.lost = True
        if self.lost or tiles in self.broken:
            raise RuntimeError("out of resource: shared memory")
        return OUT + 1 if tiles in self.wrong else OUT.clone()

    def timer(self, choice: Choice) -> Callable[[float], list[float]]:
        def once(span: float) -> list[float]:
            self.began.append(self.now)
            self.now += span
            return [self.us(choice) * (1 + self.noise * self.dice.uniform(-1, 1))] * 3

        return once


def search(trial: FakeTrial, shapes: tuple[Choice, ...] = (FAST, SLOW), seconds: float = 10.0) -> Outcome:
    outcome = Outcome(PROBLEM, USUAL, USUAL)
    return Search(trial, outcome, trial.now + seconds, lambda: trial.now).run(shapes, PROBLEM.length)


def by_tile(fast: float = 8.0) -> Callable[[Choice], float]:
    return lambda choice: {64: 10.0, 128: fast, 32: 20.0}[choice.tile]


def test_the_fastest_choice_is_found_with_its_splits() -> None:
    def us(choice: Choice) -> float:
        return by_tile()(choice) - (1.0 if choice.splits == 12 else 0.0)

    found = search(FakeTrial(us))
    assert found.choice == tune.with_splits(FAST, 12) and not found.reason
    assert (found.us, found.usual_us) == (7.0, 10.0) and found.gain == pytest.approx(3 / 7)
    entry = found.entry({"date": "today"})
    assert entry is not None and entry.case == PROBLEM.case and entry.usual == USUAL
    assert found.tried == found.candidates and found.failed == {}


@pytest.mark.parametrize(
    ("gain", "noise", "kept"),
    [(MARGIN / 2, 0.0, False), (3 * MARGIN, 0.0, True), (0.5, 0.05, True), (-0.1, 0.0, False), (-0.1, 0.05, False)],
)
def test_the_rule_stays_unless_beaten_by_more_than_the_noise(gain: float, noise: float, kept: bool) -> None:
    found = search(FakeTrial(by_tile(10.0 / (1 + gain)), noise=noise), (FAST,))
    assert (found.choice.tile == 128) == kept == (found.entry({}) is not None)
    assert kept or found.reason == "nothing is faster by more than the noise"
    assert found.us is not None  # it was measured: an old entry of this case goes


def test_noise_alone_beats_the_rule_once_in_many_searches_at_most() -> None:
    trials = [FakeTrial(by_tile(10.0), noise=0.05, dice=random.Random(seed)) for seed in range(60)]
    assert sum(search(trial, (FAST,)).choice != USUAL for trial in trials) <= 1


def test_a_wrong_candidate_is_rejected_however_fast() -> None:
    found = search(FakeTrial(by_tile(), wrong=(FAST,)))
    assert found.choice == USUAL
    assert found.failed == {str(tune.with_splits(FAST, 8)): "VortexError: another output than the rule's choice"}


def test_a_candidate_that_breaks_is_noted_and_survived() -> None:
    found = search(FakeTrial(by_tile(), broken=(SLOW,)))
    assert found.choice.tile == 128
    assert found.failed == {str(tune.with_splits(SLOW, 8)): "RuntimeError: out of resource: shared memory"}


def test_a_lost_device_ends_the_search_and_changes_nothing() -> None:
    trial = FakeTrial(by_tile(), fatal=(SLOW,))
    searched = Search(trial, Outcome(PROBLEM, USUAL, USUAL), 10.0, lambda: trial.now)
    found = searched.run((SLOW, FAST), PROBLEM.length)
    assert searched.lost and found.entry({}) is None and found.us is None and "lost" in found.reason


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3, 1.0])
def test_nothing_begins_when_time_is_over(seconds: float) -> None:
    shapes = tuple(Choice(128, warps, stages) for warps in (1, 2, 4, 8, 16) for stages in range(1, 9))
    trial = FakeTrial(by_tile(), seconds=0.02)
    found = search(trial, shapes, seconds)
    first = 2  # the rule's own run and time, without which nothing can be said
    assert max(trial.began[first:], default=0.0) <= seconds + REPEATS * 0.006
    assert found.tried < found.candidates
    if found.us is None:
        assert found.choice == USUAL and "time was over" in found.reason


def test_a_rule_that_does_not_run_is_an_outcome() -> None:
    found = search(FakeTrial(by_tile(), broken=(tune.with_splits(USUAL, None),)))
    assert found.entry({}) is None and found.reason.startswith("the rule's choice does not run: RuntimeError")


PROBLEMS = (
    PROBLEM,
    Problem(PROBLEM.static, "fp8_e4m3", 1, 4096, 64, 2048),
    Problem(Static(1, 20, 576, 0.06, latent=512), "bf16", 1, 4096),
    Problem(Static(8, 4, 128, 0.09, prefill=True), "bf16", 1, 4096, 64, 512),
    Problem(Static(1, 24, 64, 0.1, prefill=True), "bf16", 1, 64),
)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_candidate_is_one_that_a_table_may_hold(problem: Problem) -> None:
    rules = Rules(problem, torch.device("cpu"))
    choices = tune.tiles(problem, rules.usual, 227 << 10)
    assert len(set(choices)) == len(choices) > 5 and rules.usual.tiles not in [choice.tiles for choice in choices]
    for shape in choices:
        choice = tune.with_splits(shape, rules.splits(shape))
        tuning.Entry(problem.case, choice, rules.usual, "", 1.0, 2.0, 0.0)
    assert tune.tiles(problem, rules.usual, 1 << 10) != choices  # what surely does not fit is left out


def test_splits_lie_around_the_rules_and_within_the_tiles() -> None:
    assert tune.other_splits(8, 32768, 64) == [1, 4, 6, 12, 16]
    assert tune.other_splits(8, 512, 64) == [1, 4, 6]
    assert tune.other_splits(1, 512, 64) == [2]


def test_outputs_are_compared_by_rounding() -> None:
    wanted = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert tune.same(wanted * (1 + 2.0**-8), wanted)
    assert not tune.same(wanted * 1.1, wanted) and not tune.same(wanted[:2], wanted)
    assert not tune.same(wanted.where(wanted < wanted.max(), torch.nan), wanted)


def test_variants_are_compiled_once_for_each_kind_of_splits() -> None:
    device = torch.device("cpu")
    for shape, kinds in tune_compile.variants(PROBLEM, device).items():
        assert all(tune.with_splits(choice, None) == shape for choice in kinds.values())
        assert {(((c.splits or 0) - 1).bit_length(), (c.splits or 0) % 16 == 0) for c in kinds.values()} == set(kinds)
    assert Problem(PROBLEM.static, "bf16", 32, 4096).small() == PROBLEM.small()
    assert PROBLEM.small().length == 256 and PROBLEM.small().batch == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "torch finds none here"),
        (["--batch", "x"], "--batch needs whole numbers"),
        (["--batch", "0"], "batch of at least 1"),
        (["--context", "100"], "whole pages of 16 tokens"),
        (["--listed", "100"], "whole pages of 16 tokens"),
        (["--dtype", "int4"], "dtype 'int4' is not one of"),
        (["--phase", "both"], "--phase 'both' is not one of decode, prefill"),
        (["--phase", "prefill", "--latent", "512"], "nothing to tune"),
        (["--seconds", "0"], "--seconds"),
        (["--kv-heads", "0"], "--kv-heads"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.run(["tune", *words]) == main.BAD_INPUT
    out, err = capsys.readouterr()
    assert not out and says in err and err.count("\n") == 1


@pytest.fixture
def with_fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command with a GPU that has made-up times; returns the folder of the user's cache."""
    monkeypatch.setenv("VORTEX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tuning, "device_name", lambda device: "Test GPU 1")
    monkeypatch.setattr(tune_compile, "compile_ahead", lambda *of: {})

    def outcomes(problems: list[Problem], *_: Any, say: Callable[[str], None], **__: Any) -> Any:
        for problem in problems:
            trial = FakeTrial(by_tile(8.0 if problem.listed else 10.0))
            found = Search(trial, Outcome(problem, USUAL, USUAL), 9.0, lambda t=trial: t.now).run((FAST,), 2048)
            say(tune.describe(found))
            yield found, found.entry({"date": "today"})

    monkeypatch.setattr(tune, "tune", outcomes)
    tuning.forget()
    return tmp_path / "kernels" / "tables"


def test_the_command_writes_the_users_table(with_fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["tune", "--batch", "1,8", "--context", "4k", "--json"]) == main.DONE
    out, err = capsys.readouterr()
    found = json.loads(out)
    schemas.Tune.model_validate(found)
    path = with_fakes / "test-gpu-1.json"
    assert (found["file"], found["kept"], found["entries"], found["cases"]) == (str(path), 2, 2, 4)
    assert len(err.splitlines()) == 4 and "the rule stays" in err and "% faster" in err
    table = tuning.Table.read(path, "Test GPU 1")
    assert {(item.case.batch, item.case.lists) for item in table.entries} == {(1, 1), (8, 1)}
    assert main.run(["tune", "--batch", "1", "--context", "4k"]) == main.DONE
    assert len(tuning.Table.read(path, "Test GPU 1").entries) == 2
    assert "1 beat the rule" in capsys.readouterr().out


def test_a_table_that_cannot_be_written_is_known_before_any_work(
    with_fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main.run(["tune", "--out", str(tmp_path / "file" / "t.json")]) == main.BAD_INPUT
    assert "cannot be written" in capsys.readouterr().err
    (tmp_path / "t.json").write_text("[]")
    assert main.run(["tune", "--out", str(tmp_path / "t.json")]) == main.BAD_INPUT
    assert "t.json: " in capsys.readouterr().err


def test_lists_are_tuned_where_contexts_are_longer() -> None:
    found = command._problems((8, 4, 128, None), "bf16", "decode", (1,), (1024, 4096), 16, 2048)
    assert [(problem.length, problem.listed) for problem in found] == [(1024, 0), (4096, 0), (4096, 2048)]
    (mla,) = command._problems((1, 20, 256, 512), "bf16", "decode", (1,), (4096,), 16, 0)
    assert (mla.static.head_dim, mla.static.latent, mla.static.scale, mla.kernel) == (576, 512, 1 / 16, "attend_latent")
    with pytest.raises(VortexError, match="at least 1"):
        Problem(PROBLEM.static, "bf16", 1, 0)
