"""Train the reference model, seeded and resumable, on a GPU or a CPU.

    python -m vortexlab.evaluator.reference.train --out RUN --minutes 9

From the root of a checkout this needs no installation, only torch, NumPy and safetensors. ``--out`` receives a log,
checkpoints, the model folder and the measured accuracy; ``--resume`` goes on from the checkpoint found there.
``--plan-minutes`` lays the schedule out over many such pieces; the model is written and measured at its end.
``--export FOLDER`` writes the model of a finished run, with its card, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.reference import checkpoint
from vortexlab.evaluator.reference.curriculum import LENGTHS, TOKENS_PER_STEP, measured_lengths
from vortexlab.evaluator.reference.export import ACCURACY, export_run, write_model
from vortexlab.evaluator.reference.measure import Cell, measure_cell, table, to_json
from vortexlab.evaluator.reference.trainer import Settings, Trainer
from vortexlab.evaluator.tasks import TASKS

_STARTED = time.monotonic()


def train(args: argparse.Namespace) -> Trainer:
    """One piece of training; the model is complete where ``trainer.seconds`` reached what was planned."""
    resume = args.resume and checkpoint.exists(args.out)
    if checkpoint.exists(args.out) and not resume:
        raise VortexError(f"{args.out} holds a training run; continue it with --resume or give another --out")
    settings = Settings(
        args.seed,
        args.max_length,
        args.tokens_per_step or TOKENS_PER_STEP[args.device],
        args.plan_minutes * 60 if args.plan_minutes else None,
    )
    trainer = Trainer(args.out, settings, args.device, resume)
    piece = args.minutes * 60 - (time.monotonic() - _STARTED)
    planned = trainer.settings.planned_seconds
    if planned is None:  # this piece ends the run, measurement included
        total = until = trainer.seconds + piece - args.measure_minutes * 60
    else:
        total, until = planned, min(planned, trainer.seconds + piece)
    if until <= trainer.seconds and (planned is None or trainer.seconds < planned):
        raise VortexError("--minutes leaves no time for training; it must exceed --measure-minutes and the start-up")
    trainer.run(until, total)
    return trainer


def finished(trainer: Trainer) -> bool:
    planned = trainer.settings.planned_seconds
    return planned is None or trainer.seconds >= planned


def measure(trainer: Trainer, contexts: int) -> Iterator[list[Cell]]:
    """Accuracy of the weights as exported (rounded to bfloat16), on samples never trained on; one length at a time."""
    model = trainer.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    seed = trainer.settings.seed
    for length in measured_lengths(trainer.settings.max_length):
        fitting = [name for name, family in TASKS.items() if length >= family.shortest]
        with trainer.autocast():
            yield [measure_cell(model, task, length, contexts, seed, "validation") for task in fitting]


def report(trainer: Trainer, cells: list[Cell], seconds: float) -> dict[str, object]:
    """The measured cells with the conditions under which they were measured."""
    cuda = trainer.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": "bfloat16 weights, bfloat16 autocast" if cuda else "bfloat16 weights, float32",
        "seed": trainer.settings.seed,
        "split": "validation",
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "train_seconds": round(trainer.seconds, 1),
        "measure_seconds": round(seconds, 1),
        "cells": to_json(cells),
    }


def finish(trainer: Trainer, contexts: int) -> None:
    """Write the model, then measure it, length by length, then write its card."""
    write_model(trainer.out / "model", trainer.model.config, dict(trainer.model.named_parameters()))
    began = time.monotonic()
    cells: list[Cell] = []
    for found in measure(trainer, contexts):
        cells += found
        result = report(trainer, cells, time.monotonic() - began)
        (trainer.out / ACCURACY).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(table(found), flush=True)
    print(table(cells))
    export_run(trainer.out, trainer.out / "model")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description="Train the reference model.")
    add = result.add_argument
    add("--out", type=Path, default=Path("training"), help="folder for log, checkpoint, model and accuracy")
    add("--minutes", type=float, default=9.0, help="wall clock of this piece")
    add("--measure-minutes", type=float, default=1.25, help="of these, kept for measuring where there is no plan")
    add("--plan-minutes", type=float, help="training time of the whole run, over all its pieces")
    add("--device", choices=sorted(TOKENS_PER_STEP), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--max-length", type=int, default=LENGTHS[-1], help="longest context, tokens")
    add("--tokens-per-step", type=int, help="65,536 on a GPU and 2,048 on a CPU unless given")
    add("--contexts", type=int, default=64, help="contexts per task and length in the measurement")
    add("--seed", type=int, default=0)
    add("--resume", action="store_true", help="go on from the checkpoint in --out, with its plan, seed and lengths")
    add("--export", type=Path, metavar="FOLDER", help="write the model of the finished run in --out; train nothing")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        if args.export:
            export_run(args.out, args.export)
            return
        trainer = train(args)
        if finished(trainer):
            finish(trainer, args.contexts)
        else:
            planned = trainer.settings.planned_seconds or 0.0
            print(f"{trainer.seconds:.0f} of {planned:.0f} s of training are done; go on with --resume")
    except VortexError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
