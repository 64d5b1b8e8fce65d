"""The training loop: steps, readings of the score, stages that end by time or by success, checkpoints."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.reference import checkpoint
from vortexlab.evaluator.reference.batches import RECALL, Batch, skipped_positions
from vortexlab.evaluator.reference.curriculum import (
    BETAS,
    CLIP,
    DECAY,
    LENGTHS,
    PEAK_RATE,
    Feed,
    learning_rate,
    stages_up_to,
)
from vortexlab.evaluator.reference.decoder import Decoder, DecoderConfig
from vortexlab.evaluator.tasks.families import TRAINING_FAMILIES

SOLVED = 0.97
MEASURED_EVERY = 4  # steps; those steps have plain positions and are scored
SKIP_FROM, SKIP_SHARE = 128, 0.4
LEAST_OF_STAGE = 0.1  # of its time, before a solved stage may end
READ_SECONDS = (2.0, 8.0)  # between readings of the score: at least, and at most even if few steps were scored
SAVE_SECONDS = 60.0


class Score:
    """Exact matches by task since the last reading, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        self._names = (RECALL, *TRAINING_FAMILIES)
        self._counts = torch.zeros(2, len(self._names), device=device)
        self._index = {name: i for i, name in enumerate(self._names)}

    def add(self, batch: Batch, right: Tensor) -> None:
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


@dataclass(frozen=True)
class Settings:
    """What a run is: its seed, longest context in tokens, tokens per step, and the seconds of training it is planned
    for.

    A resumed run takes these from its checkpoint. ``planned_seconds`` is None for a run that is planned piece by piece.
    """

    seed: int = 0
    max_length: int = LENGTHS[-1]
    tokens_per_step: int = 65536
    planned_seconds: float | None = None


class Trainer:
    """A run in folder ``out``, from its checkpoint if ``resume``; raises :class:`VortexError` where there is none."""

    def __init__(
        self,
        out: Path,
        settings: Settings,
        device: str,
        resume: bool = False,
        decoder: DecoderConfig | None = None,
    ) -> None:
        self.out, self.settings, self.device, self.resumed = out, settings, torch.device(device), resume
        self.step = self.stage = self.tokens = 0
        self.seconds = self.stage_seconds = 0.0  # trained so far, in all and in the current stage
        if resume:
            record, tensors = checkpoint.load(out)
            self._restore(record)
            decoder = checkpoint.decoder_config(record)
        torch.manual_seed(self.settings.seed)
        self.model = Decoder(decoder or DecoderConfig()).to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        gains = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": gains, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS, fused=self.device.type == "cuda")
        if resume:
            checkpoint.unpack(tensors, self.model, self.optimizer)
        self.stages = stages_up_to(self.settings.max_length)
        # A resumed run must not see the first piece's batches again.
        self.generator = torch.Generator(self.device).manual_seed(self.settings.seed * 1_000_003 + self.step)
        self.rng = random.Random(f"{self.settings.seed}/{self.step}")
        self.feed = Feed(self.generator, self.rng, self.settings.tokens_per_step)
        self.first_step = self.step
        self.out.mkdir(parents=True, exist_ok=True)

    def _restore(self, record: dict[str, Any]) -> None:
        self.step, self.stage, self.tokens = record["step"], record["stage"], record["tokens"]
        self.seconds, self.stage_seconds = record["seconds"], record["stage_seconds"]
        known = {name: record[name] for name in asdict(self.settings) if name in record}
        self.settings = replace(self.settings, **known)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def log(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def save(self) -> None:
        record = {
            "step": self.step,
            "stage": self.stage,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "stage_seconds": self.stage_seconds,
            **asdict(self.settings),
            "decoder": asdict(self.model.config),
        }
        checkpoint.save(self.out, record, checkpoint.pack(self.model, self.optimizer))

    def train_step(self, rate: float, score: Score) -> Tensor:
        """One step at learning rate ``rate``; returns the loss, a scalar still on the device."""
        batch, length = self.feed.next(self.stages[self.stage])
        rows, tokens = batch.ids.shape
        measured = self.step % MEASURED_EVERY == 0
        chance = SKIP_SHARE * MEASURED_EVERY / (MEASURED_EVERY - 1)
        if not measured and length >= SKIP_FROM and self.rng.random() < chance:
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

    def stage_done(self, result: dict[str, tuple[int, int]], total: float) -> bool:
        """A stage ends when its share of the time left to it and its successors is used up.

        It ends early when every task is solved in the last reading.
        """
        left = total - (self.seconds - self.stage_seconds)
        allowance = left * self.stages[self.stage].share / sum(stage.share for stage in self.stages[self.stage :])
        solved = all(asked >= 8 and right > SOLVED * asked for right, asked in result.values())
        return self.stage_seconds >= allowance or (solved and self.stage_seconds >= LEAST_OF_STAGE * allowance)

    def run(self, until: float, total: float) -> None:
        """Train until ``until`` seconds of training, of ``total`` that the schedule is laid out for; then save."""
        clock = read_at = saved_at = time.monotonic()
        score, steps, tokens = Score(self.device), 0, 0
        while self.seconds < until:
            rate = learning_rate(self.seconds / total, self.step - self.first_step, self.resumed)
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
                raise VortexError("the loss is not finite; go back to the last checkpoint with --resume")
            self.log(
                {
                    "seconds": round(self.seconds, 1),
                    "step": self.step,
                    "tokens": self.tokens,
                    "tokens_per_second": round(tokens / (time.monotonic() - read_at)),
                    "stage": self.stage,
                    "lengths": self.stages[self.stage].lengths,
                    "rate": round(rate, 6),
                    "loss": round(value, 4),
                    "accuracy": {name: round(right / asked, 3) for name, (right, asked) in result.items()},
                }
            )
            if result and self.stage < len(self.stages) - 1 and self.stage_done(result, total):
                self.stage, self.stage_seconds = self.stage + 1, 0.0
            read_at, steps, tokens = time.monotonic(), 0, 0
            if read_at - saved_at > SAVE_SECONDS:
                self.save()
                saved_at = read_at
        self.save()
