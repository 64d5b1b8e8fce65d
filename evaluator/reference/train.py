"""Train the reference model, seeded and resumable, on a GPU or a CPU.

    python3 evaluator/reference/train.py --out RUN --minutes 9 --device cuda

runs from a plain checkout on a host that has only torch, NumPy and safetensors.  ``--out`` receives a log, checkpoints, the
model folder and the measured accuracy; ``--resume`` continues the checkpoint found there for another ``--minutes``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import random
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

_STARTED = time.monotonic()


def _use_checkout() -> None:
    """Make ``vortexlab.evaluator`` importable from this checkout where the package is not installed."""
    if importlib.util.find_spec("vortexlab") is not None:
        return
    root = Path(__file__).resolve().parents[2]
    for name, folder in (("vortexlab", root), ("vortexlab.evaluator", root / "evaluator"), ("vortexlab.dsl", root / "dsl")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


if __name__ == "__main__":
    _use_checkout()

from vortexlab.dsl.errors import VortexError  # noqa: E402
from vortexlab.evaluator.reference import checkpoint  # noqa: E402
from vortexlab.evaluator.reference.batches import RECALL, Batch, batches, skipped_positions  # noqa: E402
from vortexlab.evaluator.reference.decoder import Decoder, DecoderConfig  # noqa: E402
from vortexlab.evaluator.reference.export import write_model  # noqa: E402
from vortexlab.evaluator.reference.measure import Cell, measure_cell, table, to_json  # noqa: E402
from vortexlab.evaluator.tasks import TASKS  # noqa: E402

PEAK_RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.98), 0.01, 1.0
WARM_UP_STEPS = 200
DECLINE = 0.3  # the last share of the time, in which the rate falls linearly
TOKENS_PER_STEP, FEWEST_ROWS = 65536, 8
SOLVED = 0.97
MEASURED_EVERY = 4  # steps; those steps have plain positions and are scored
SKIP_FROM, SKIP_SHARE = 128, 0.4
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LEAST_OF_STAGE = 0.1  # of its time, before a solved stage may end
READ_SECONDS = (2.0, 8.0)  # between readings of the score: at least, and at most even if few steps were scored
SAVE_SECONDS = 60.0
QUESTION_ROOM = 128  # tokens that a row of 256 and more has beyond its nominal length, for questions and answers

MIX = {
    "needle": 0.05,
    "needles": 0.15,
    "keys": 0.14,
    "multivalue": 0.17,
    "numbered": 0.1,
    "multiquery": 0.13,
    "frequent": 0.07,
    "chain": 0.15,
    "late": 0.08,
}
START_MIX = {RECALL: 1.0}
SHORT_MIX = {RECALL: 0.2, **MIX}


@dataclass(frozen=True)
class Stage:
    """Rows of a nominal ``length`` (one drawn per step where there are several) for a ``share`` of the time."""

    lengths: tuple[int, ...]
    share: float
    mix: dict[str, float]


STAGES = (
    Stage((32,), 25, START_MIX),  # ends as soon as look-up is learned; nothing else can be before
    Stage((64,), 6, SHORT_MIX),
    Stage((128,), 9, SHORT_MIX),
    Stage((256,), 12, MIX),
    Stage((512,), 10, MIX),
    Stage((1024,), 10, MIX),
    Stage((2048,), 11, MIX),
    Stage((4096,), 10, MIX),
    Stage((8192,), 8, MIX),
    Stage((16384,), 9, MIX),
    Stage(LENGTHS, 15, MIX),
)


def stages_up_to(longest: int) -> tuple[Stage, ...]:
    """The curriculum for contexts of at most ``longest`` tokens; its last stage mixes the lengths that will be measured."""
    single = tuple(stage for stage in STAGES[:-1] if stage.lengths[0] <= longest)
    mixed = tuple(length for length in LENGTHS if length <= longest) or (longest,)
    return (*single, Stage(mixed, STAGES[-1].share, MIX))


class Feed:
    """Batches of every row length, each from its own endless stream."""

    def __init__(self, generator: torch.Generator, rng: random.Random, tokens_per_step: int) -> None:
        self._generator, self._rng, self._tokens = generator, rng, tokens_per_step
        self._streams: dict[tuple[int, bool], Iterator[Batch]] = {}

    def next(self, stage: Stage) -> tuple[Batch, int]:
        """A batch of the stage, and the nominal length of its rows."""
        length = self._rng.choice(stage.lengths)
        key = (length, RECALL in stage.mix)
        if key not in self._streams:
            tokens = length + QUESTION_ROOM if length >= 256 else length
            rows = max(FEWEST_ROWS, self._tokens // length)
            self._streams[key] = batches(stage.mix, tokens, rows, self._generator, self._rng)
        return next(self._streams[key]), length


class Score:
    """Exact matches by task since the last reading, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._names = (RECALL, *TASKS)
        self._counts = torch.zeros(2, len(self._names), device=device)
        self._index = {name: i for i, name in enumerate(self._names)}

    def add(self, batch: Batch, right: torch.Tensor) -> None:
        """``right`` bool [m]: which targets were predicted; an answer is right when all its targets are."""
        answers = torch.ones(batch.task.shape[0], device=right.device)
        answers.scatter_reduce_(0, batch.answer, right.float(), "amin")
        task = torch.tensor([self._index[name] for name in batch.names], device=right.device)[batch.task]
        asked = batch.asked.float()
        self._counts[0].index_add_(0, task, answers * asked)
        self._counts[1].index_add_(0, task, asked)

    def read(self) -> dict[str, tuple[int, int]]:
        """(right, asked) by task; starts anew."""
        right, asked = self._counts.tolist()
        self._counts.zero_()
        return {name: (int(r), int(n)) for name, r, n in zip(self._names, right, asked, strict=True) if n}


class Trainer:
    def __init__(self, config: DecoderConfig, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.device = args, torch.device(args.device)
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.model = Decoder(config).to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        gains = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, fused=self.device.type == "cuda")
        self.stages = stages_up_to(args.max_length)
        self.step = self.stage = self.tokens = 0
        self.seconds = self.stage_seconds = 0.0  # trained so far, in all and in the current stage
        if args.resume:
            record, tensors = checkpoint.load(self.out)
            checkpoint.unpack(tensors, self.model, self.optimizer)
            self.step, self.stage, self.tokens = record["step"], record["stage"], record["tokens"]
            self.seconds, self.stage_seconds = record["seconds"], record["stage_seconds"]
        # A resumed run must not see the first piece's batches again.
        self.generator = torch.Generator(self.device).manual_seed(args.seed * 1_000_003 + self.step)
        self.rng = random.Random(f"{args.seed}/{self.step}")
        self.feed = Feed(self.generator, self.rng, args.tokens_per_step)
        self.first_step = self.step
        self.log_file = (self.out / "log.jsonl").open("a", encoding="utf-8")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def log(self, **entry: object) -> None:
        self.log_file.write(json.dumps(entry) + "\n")
        self.log_file.flush()
        print(json.dumps(entry), flush=True)

    def save(self) -> None:
        record = {
            "step": self.step,
            "stage": self.stage,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "stage_seconds": self.stage_seconds,
            "seed": self.args.seed,
            "max_length": self.args.max_length,
        }
        checkpoint.save(self.out, record, checkpoint.pack(self.model, self.optimizer))

    def train_step(self, rate: float, score: Score) -> torch.Tensor:
        batch, length = self.feed.next(self.stages[self.stage])
        rows, tokens = batch.ids.shape
        measured = self.step % MEASURED_EVERY == 0
        skip = not measured and length >= SKIP_FROM and self.rng.random() < SKIP_SHARE * MEASURED_EVERY / (MEASURED_EVERY - 1)
        if skip:
            positions = skipped_positions(rows, tokens, self.model.config.max_position_embeddings, self.generator)
        else:
            positions = torch.arange(tokens, device=self.device)[None]
        with self.autocast():
            hidden, _ = self.model.hidden(batch.ids, positions)
            logits = self.model.logits(hidden.flatten(0, 1)[batch.where]).float()
        loss = (F.cross_entropy(logits, batch.target, reduction="none") * batch.weight).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP, foreach=True)
        self.optimizer.step()
        if measured:
            score.add(batch, logits.argmax(dim=-1) == batch.target)
        self.step += 1
        self.tokens += rows * tokens
        return loss.detach()

    def stage_allowance(self, total: float) -> float:
        """Seconds for the current stage: its share of the time that is left for it and all later stages."""
        left = total - (self.seconds - self.stage_seconds)
        return left * self.stages[self.stage].share / sum(stage.share for stage in self.stages[self.stage :])

    def stage_done(self, result: dict[str, tuple[int, int]], total: float) -> bool:
        """A stage ends when its time is used up, or early when every task is solved in the last reading."""
        allowance = self.stage_allowance(total)
        solved = all(asked >= 8 and right > SOLVED * asked for right, asked in result.values())
        return self.stage_seconds >= allowance or (solved and self.stage_seconds >= LEAST_OF_STAGE * allowance)

    def run(self) -> None:
        """Train until the time that the arguments leave for training is used up, then save."""
        clock = read_at = saved_at = time.monotonic()
        total = self.seconds + (self.args.minutes - self.args.measure_minutes) * 60 - (clock - _STARTED)
        if total <= self.seconds:
            raise VortexError("--minutes leaves no time for training; it must exceed --measure-minutes and the start-up")
        score, steps, tokens = Score(self.device), 0, 0
        while self.seconds < total:
            warm = (self.step - self.first_step + 1) / WARM_UP_STEPS
            rate = PEAK_RATE * min(1.0, warm, max(0.01, (1 - self.seconds / total) / DECLINE))
            before = self.tokens
            loss = self.train_step(rate, score)
            now = time.monotonic()
            self.seconds, self.stage_seconds, clock = self.seconds + now - clock, self.stage_seconds + now - clock, now
            steps, tokens = steps + 1, tokens + self.tokens - before
            # Reading the score waits for the device, so it is done every few seconds only.
            if now - read_at < READ_SECONDS[0] or (steps < 10 * MEASURED_EVERY and now - read_at < READ_SECONDS[1]):
                continue
            result, value = score.read(), loss.item()
            if not math.isfinite(value):
                raise VortexError("the loss is not finite; resume from the last checkpoint with another --seed")
            self.log(
                seconds=round(self.seconds, 1),
                step=self.step,
                tokens=self.tokens,
                tokens_per_second=round(tokens / (time.monotonic() - read_at)),
                stage=self.stage,
                lengths=self.stages[self.stage].lengths,
                rate=round(rate, 6),
                loss=round(value, 4),
                accuracy={name: round(right / asked, 3) for name, (right, asked) in result.items()},
            )
            if self.stage < len(self.stages) - 1 and self.stage_done(result, total):
                self.stage, self.stage_seconds = self.stage + 1, 0.0
            read_at, steps, tokens = time.monotonic(), 0, 0
            if read_at - saved_at > SAVE_SECONDS:
                self.save()
                saved_at = read_at
        self.save()


def measure(trainer: Trainer, lengths: tuple[int, ...], contexts: int) -> Iterator[list[Cell]]:
    """Dense accuracy of the weights as exported (rounded to bfloat16), on samples never trained on; one length at a time."""
    model = trainer.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    for length in lengths:
        fitting = [name for name, family in TASKS.items() if length >= family.shortest]
        with trainer.autocast():
            yield [measure_cell(model, task, length, contexts, trainer.args.seed, "validation") for task in fitting]


def report(trainer: Trainer, cells: list[Cell], seconds: float) -> dict[str, object]:
    """The measured cells with the conditions under which they were measured."""
    cuda = trainer.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": "bfloat16 weights, bfloat16 autocast" if cuda else "bfloat16 weights, float32",
        "seed": trainer.args.seed,
        "split": "validation",
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "train_seconds": round(trainer.seconds, 1),
        "measure_seconds": round(seconds, 1),
        "cells": to_json(cells),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference model.")
    parser.add_argument("--out", required=True, help="folder for log, checkpoint, model and accuracy")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock of this piece, measurement included")
    parser.add_argument("--measure-minutes", type=float, default=1.25, help="of these, kept for measuring accuracy")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-length", type=int, default=LENGTHS[-1], help="longest context, tokens")
    parser.add_argument("--tokens-per-step", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--contexts", type=int, default=64, help="contexts per task and length in the measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    args = parser.parse_args()
    try:
        trainer = Trainer(DecoderConfig(), args)
        trainer.run()
    except VortexError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(2)
    write_model(trainer.out / "model", trainer.model.config, dict(trainer.model.named_parameters()))
    lengths = tuple(length for length in LENGTHS if length <= args.max_length) or (args.max_length,)
    began = time.monotonic()
    cells: list[Cell] = []
    for found in measure(trainer, lengths, args.contexts):
        cells += found
        result = report(trainer, cells, time.monotonic() - began)
        (trainer.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(table(found), flush=True)
    print(table(cells))
    print(json.dumps({key: value for key, value in result.items() if key != "cells"}))


if __name__ == "__main__":
    main()
