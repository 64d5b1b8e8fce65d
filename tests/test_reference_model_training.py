"""Training of the reference model: batches, steps, checkpoints, pieces, export. On the CPU, with a tiny decoder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from task_solver import solve
from transformers import AutoModelForCausalLM

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.reference import checkpoint, train
from vortexlab.evaluator.reference.batches import RECALL, batches, skipped_positions, training_plan
from vortexlab.evaluator.reference.curriculum import (
    MIX,
    PEAK_RATE,
    STAGES,
    Feed,
    learning_rate,
    stages_up_to,
)
from vortexlab.evaluator.reference.decoder import Decoder, DecoderConfig
from vortexlab.evaluator.reference.export import export_run
from vortexlab.evaluator.reference.measure import measure_cell, wilson
from vortexlab.evaluator.reference.trainer import Score, Settings, Trainer
from vortexlab.evaluator.tasks import to_text
from vortexlab.evaluator.tasks.families import TRAINING_FAMILIES

TINY = DecoderConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16
)
SETTINGS = Settings(seed=3, max_length=256, tokens_per_step=1024, planned_seconds=600.0)


def new_trainer(folder: Path, settings: Settings = SETTINGS) -> Trainer:
    return Trainer(folder, settings, "cpu", decoder=TINY)


def two_steps(trainer: Trainer) -> None:
    for _ in range(2):
        trainer.train_step(1e-3, Score(trainer.device))


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.pack(trainer.model, trainer.optimizer).items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_resumes_with_the_state_that_it_saved(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    start = state(trainer)
    trainer.stage = 2
    two_steps(trainer)
    trainer.seconds, trainer.stage_seconds = 7.0, 2.0
    saved = state(trainer)
    assert not torch.equal(start["weight/model.norm.weight"], saved["weight/model.norm.weight"])
    trainer.save()
    resumed = Trainer(tmp_path, Settings(seed=9, max_length=64), "cpu", resume=True)
    assert_same(state(resumed), saved)
    assert resumed.model.config == TINY
    for name in ("step", "stage", "tokens", "seconds", "stage_seconds", "settings"):
        assert getattr(resumed, name) == getattr(trainer, name)


def test_a_run_is_determined_by_its_seed_also_after_a_resume(tmp_path: Path) -> None:
    ends = []
    for name in ("a", "b"):
        trainer = new_trainer(tmp_path / name)
        two_steps(trainer)
        trainer.save()
        resumed = Trainer(tmp_path / name, SETTINGS, "cpu", resume=True)
        two_steps(resumed)
        ends.append(state(resumed))
    assert_same(*ends)
    other = new_trainer(tmp_path / "c", Settings(seed=4, max_length=256, tokens_per_step=1024))
    assert not torch.equal(
        state(other)["weight/model.embed_tokens.weight"], ends[0]["weight/model.embed_tokens.weight"]
    )


def test_a_resumed_run_does_not_see_the_first_batches_again(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    first, _ = trainer.feed.next(trainer.stages[0])
    trainer.step = 2
    trainer.save()
    resumed = Trainer(tmp_path, SETTINGS, "cpu", resume=True)
    again, _ = resumed.feed.next(resumed.stages[0])
    assert not torch.equal(first.ids, again.ids)


def test_steps_lower_the_loss(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    losses = [trainer.train_step(3e-3, Score(trainer.device)).item() for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_an_interrupted_save_leaves_the_checkpoint_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(tmp_path)
    trainer.save()
    before = state(trainer)
    two_steps(trainer)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    resumed = Trainer(tmp_path, SETTINGS, "cpu", resume=True)
    assert resumed.step == 0
    assert torch.equal(state(resumed)["weight/model.embed_tokens.weight"], before["weight/model.embed_tokens.weight"])


def test_checkpoints_are_cut_into_small_shards_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 140_000)
    trainer = new_trainer(tmp_path)
    trainer.save()
    two_steps(trainer)
    trainer.save()
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors*"))
    assert len(shards) > 1 and all(name.startswith("checkpoint-2-") for name in shards)
    assert max((tmp_path / name).stat().st_size for name in shards) < 145_000


def test_damaged_and_missing_checkpoints_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"no checkpoint in .*; give the --out folder of a training run"):
        checkpoint.load(tmp_path)
    new_trainer(tmp_path).save()
    next(tmp_path.glob("*.safetensors")).write_bytes(b"no tensors")
    with pytest.raises(VortexError, match=r"the checkpoint in .* is damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", [*TRAINING_FAMILIES, RECALL])
def test_batches_ask_what_their_contexts_answer(name: str) -> None:
    stream = batches({name: 1.0}, 384, 4, torch.Generator().manual_seed(1), random.Random(1))
    for _ in range(3):
        batch = next(stream)
        assert batch.names == (name,)
        assert batch.weight.sum().item() == pytest.approx(1.0)
        assert torch.equal(batch.ids.flatten()[batch.where + 1], batch.target)
        for number in range(batch.task.shape[0]):
            mine = batch.answer == number
            assert (batch.weight[mine] > 0).tolist() == [bool(batch.asked[number])] * int(mine.sum())
            if batch.asked[number]:
                assert answered(batch.ids, batch.where[mine], name) == to_text(batch.target[mine].tolist())


def answered(ids: torch.Tensor, where: torch.Tensor, name: str) -> str:
    """What the solver answers at the targets' place in their row."""
    row, at = divmod(int(where[0]), ids.shape[1])
    words = ids[row].tolist()
    if name == RECALL:  # the key at the target has been a line before
        lines = [words[i : i + 4] for i in range(1, at - 1, 4)]
        return next(to_text(line[2:]) for line in lines if line[:2] == words[at - 1 : at + 1])
    family = TRAINING_FAMILIES[name]
    asked = family.turn_tokens - where.numel()
    start = at + 1 - asked
    while start >= family.turn_tokens and starts_turn(words[start - family.turn_tokens : start], name, asked):
        start -= family.turn_tokens
    return solve(words[:start], words[at + 1 - asked : at + 1])


def starts_turn(turn: list[int], name: str, asked: int) -> bool:
    """Whether the tokens before a turn are another turn: its question then looks like one."""
    if name == "late":
        return turn[asked - 3] == 3
    return 3 <= turn[0] <= 9


def test_recall_asks_every_repeat_and_nothing_else() -> None:
    batch = next(batches({RECALL: 1.0}, 65, 4, torch.Generator().manual_seed(0), random.Random(0)))
    lines = batch.ids[:, 1:].view(4, 16, 4)
    seen = [[line.tolist() in row[:i].tolist() for i, line in enumerate(row)] for row in lines]
    assert batch.asked.view(4, 16).tolist() == seen


def test_training_plans_fit_their_rows() -> None:
    rng = random.Random(0)
    for family in TRAINING_FAMILIES.values():
        for tokens in (32, 64, 128, 384, 1152, 16512):
            for _ in range(20):
                found = training_plan(family, tokens, rng)
                if found is not None:
                    context, plan = found
                    assert context + plan.turns * family.turn_tokens <= tokens
                    assert plan.turns >= 1


def test_skipped_positions_are_four_runs_that_reach_far() -> None:
    positions = skipped_positions(64, 128, 4096, torch.Generator().manual_seed(0))
    steps = positions.diff(dim=1)
    assert positions.shape == (64, 128)
    assert (positions[:, 0] == 0).all() and (steps >= 1).all()
    assert ((steps > 1).sum(dim=1) <= 3).all()
    assert 3000 < int(positions.max()) < 4096


def test_curriculum_ends_with_the_lengths_that_are_measured() -> None:
    assert stages_up_to(16384) == STAGES
    assert [stage.lengths for stage in stages_up_to(1024)] == [
        *((n,) for n in (32, 64, 128, 256, 512, 1024)), (512, 1024)
    ]  # fmt: skip
    assert stages_up_to(64)[-1].lengths == (64,)
    assert set(MIX) == set(TRAINING_FAMILIES)


def test_rows_per_step_follow_the_tokens_per_step() -> None:
    for tokens_per_step, length, rows in ((65536, 32, 2048), (65536, 16384, 8), (2048, 32, 64), (2048, 1024, 2)):
        feed = Feed(torch.Generator().manual_seed(0), random.Random(0), tokens_per_step)
        mix = {RECALL: 1.0} if length == 32 else {"frequent": 1.0}
        batch, _ = feed.next(SimpleNamespace(lengths=(length,), mix=mix))  # type: ignore[arg-type]
        assert batch.ids.shape[0] == rows


def test_learning_rate_warms_up_and_declines() -> None:
    assert learning_rate(0.0, 0, resumed=False) == PEAK_RATE / 200
    assert learning_rate(0.5, 0, resumed=True) == PEAK_RATE / 20
    assert learning_rate(0.5, 500, resumed=True) == PEAK_RATE
    assert learning_rate(0.85, 500, resumed=False) == pytest.approx(PEAK_RATE / 2)
    assert learning_rate(1.0, 500, resumed=False) == pytest.approx(PEAK_RATE / 100)


def test_stages_end_by_time_or_by_success(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    total = 770.0
    allowance = total * STAGES[0].share / sum(stage.share for stage in trainer.stages)
    solved, unsolved = {RECALL: (98, 100)}, {RECALL: (97, 100)}
    trainer.seconds = trainer.stage_seconds = 0.2 * allowance
    assert trainer.stage_done(solved, total) and not trainer.stage_done(unsolved, total)
    assert not trainer.stage_done({RECALL: (7, 7)}, total)  # too few to tell
    trainer.seconds = trainer.stage_seconds = allowance
    assert trainer.stage_done(unsolved, total)
    trainer.seconds = trainer.stage_seconds = 0.05 * allowance
    assert not trainer.stage_done(solved, total)


def test_score_counts_whole_answers() -> None:
    batch = next(batches({"needles": 1.0}, 128, 4, torch.Generator().manual_seed(0), random.Random(0)))
    score, right = Score(torch.device("cpu")), torch.ones_like(batch.target, dtype=torch.bool)
    right[0] = False  # one of the two tokens of the first answer
    score.add(batch, right)
    asked = int(batch.asked.sum())
    assert score.read() == {"needles": (asked - 1, asked)}
    assert score.read() == {}


def test_generation_goes_on_from_a_cache_as_a_full_pass_does() -> None:
    torch.manual_seed(0)
    model = Decoder(TINY).eval()
    ids = torch.randint(16, 1024, (2, 40))
    with torch.no_grad():
        _, cache = model.hidden(ids[:, :30], torch.arange(30)[None], keep=True)
        given = model.generate(ids[:, 30:], 3, cache)
        whole = ids
        for _ in range(3):
            hidden, _ = model.hidden(whole, torch.arange(whole.shape[1])[None])
            whole = torch.cat([whole, model.logits(hidden[:, -1:]).argmax(-1)], dim=1)
    assert torch.equal(given, whole[:, 40:])
    assert cache[0][0].shape[2] == 30


def test_measured_share_has_its_interval() -> None:
    torch.manual_seed(0)
    cell = measure_cell(Decoder(TINY).eval(), "needles", 640, 3, 0, "validation")
    assert (cell.contexts, cell.answers, cell.right, cell.accuracy) == (3, 12, 0, 0.0)
    assert (cell.low, cell.high) == wilson(0, 12)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_a_finished_run_is_measured_exported_and_loads_in_transformers(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, Settings(max_length=512, tokens_per_step=1024))
    two_steps(trainer)
    trainer.save()
    assert train.finished(trainer)
    train.finish(trainer, contexts=2)
    accuracy = json.loads((tmp_path / "accuracy.json").read_text())
    assert accuracy["steps"] == 2 and accuracy["split"] == "validation"
    assert {cell["length"] for cell in accuracy["cells"]} == {512}
    train.main(["--out", str(tmp_path), "--export", str(tmp_path / "copy")])
    for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    ids = torch.arange(16, 48)[None]
    with torch.no_grad():
        hidden, _ = trainer.model.hidden(ids, torch.arange(32)[None])
        torch.testing.assert_close(loaded(ids).logits, trainer.model.logits(hidden), rtol=1e-4, atol=1e-4)


def test_a_run_without_figures_of_its_last_step_is_not_exported(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path)
    trainer.save()
    with pytest.raises(VortexError, match="holds no measured accuracy"):
        export_run(tmp_path, tmp_path / "model")
    (tmp_path / "accuracy.json").write_text(json.dumps({"steps": 5, "cells": []}))
    with pytest.raises(VortexError, match="measured at step 5, but the checkpoint is at step 0"):
        export_run(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--out", str(folder), "--device", "cpu", "--contexts", "1", *more]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_piece_that_ends_before_the_plan_can_be_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[tuple[float, float]] = []

    def run(trainer: Trainer, until: float, total: float) -> None:
        spans.append((until, total))
        trainer.seconds, trainer.step = until, trainer.step + 1
        trainer.save()

    monkeypatch.setattr(Trainer, "run", run)
    monkeypatch.setattr(train, "finish", lambda trainer, contexts: print("measured", contexts))
    monkeypatch.setattr(train, "_STARTED", train.time.monotonic() - 1)
    train.main(arguments(tmp_path, "--plan-minutes", "15", "--minutes", "10"))
    assert "of 900 s of training are done; go on with --resume" in capsys.readouterr().out
    train.main(arguments(tmp_path, "--resume", "--minutes", "10"))
    assert "measured 1" in capsys.readouterr().out
    (first, total), second = spans
    assert 500 < first < 600 and total == 900
    assert second == (900, 900)
    assert "holds a training run; continue it with --resume" in refused(capsys, *arguments(tmp_path))


def test_without_a_plan_a_piece_keeps_time_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[tuple[float, float]] = []
    monkeypatch.setattr(Trainer, "run", lambda trainer, until, total: spans.append((until, total)))
    monkeypatch.setattr(train, "finish", lambda trainer, contexts: None)
    monkeypatch.setattr(train, "_STARTED", train.time.monotonic())
    train.main(arguments(tmp_path, "--minutes", "30", "--measure-minutes", "10"))
    ((until, total),) = spans
    assert 1100 < until == total <= 1200
    assert "--minutes leaves no time for training" in refused(capsys, *arguments(tmp_path, "--minutes", "1"))


def test_training_runs_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run whose plan is over after its first step: nothing is simulated."""
    monkeypatch.setattr(train, "_STARTED", train.time.monotonic())
    plan = ("--max-length", "64", "--plan-minutes", "1e-6", "--minutes", "60")
    train.main(arguments(tmp_path, *plan, "--tokens-per-step", "256"))
    assert "| keys | 0.000 |" in capsys.readouterr().out
    assert checkpoint.load(tmp_path)[0]["step"] == 1
    assert (tmp_path / "model" / "README.md").is_file()
