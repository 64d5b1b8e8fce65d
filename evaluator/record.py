"""Records what the evaluator's own path computes for some questions, logits included, as cases of a self-test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Program
from vortexlab.evaluator.config import CONTEXT_DENSE, PROMPT_DENSE
from vortexlab.evaluator.contexts import Context, ContextStore, Fork, Turn
from vortexlab.evaluator.executors import everything_of, executor_for
from vortexlab.evaluator.models import Handler, LoadedModel
from vortexlab.evaluator.replay import Session, Tally, replay


@dataclass(frozen=True)
class _Heard(LoadedModel):
    """The same model; keeps the logits of every step."""

    logits: list[Tensor] = field(default_factory=list)

    def step(self, tokens: Tensor, positions: Tensor, handler: Handler) -> Tensor:
        found = super().step(tokens, positions, handler)
        self.logits.append(found)
        return found


def record(
    program: Program,
    model: LoadedModel,
    questions: Sequence[Mapping[str, Any]],
    sketch: Callable[[Tensor, Sequence[int] | None], dict[str, Any]],
    protocol: str = CONTEXT_DENSE,
) -> list[dict[str, Any]]:
    """Every question through `replay`, the function that accuracy is measured with.

    `questions` hold token ids, `context` and `question`, and how long the answer is: `length`, or `logits` of an
    earlier recording, whose ids are then looked at again. Returns each with `answer`, `logits` (for every answer
    token, `sketch` of its logits [vocabulary]) and `density`, of the steps that are sparse under `protocol`. Raises
    `VortexError` when the model is too short.
    """
    lengths = [len(item["logits"]) if "logits" in item else int(item["length"]) for item in questions]
    contexts = [
        Context(tuple(item["context"]), (Turn(tuple(item["question"]), length),))
        for item, length in zip(questions, lengths, strict=True)
    ]
    heard = _Heard(**{item.name: getattr(model, item.name) for item in fields(LoadedModel)})
    cases = []
    with tempfile.TemporaryDirectory(prefix="vortex-record-") as folder, torch.inference_mode():
        store = ContextStore(heard, contexts, Path(folder))
        session = Session(program, heard, store, executor_for(model.device.type))
        dense = None
        if protocol == PROMPT_DENSE:
            dense = Session(everything_of(program), heard, store, executor_for(model.device.type))
        for i, (item, length) in enumerate(zip(questions, lengths, strict=True)):
            tally = Tally()
            heard.logits.clear()
            (answer,) = replay(session, [Fork(i, 0)], tally, dense=dense)
            ids = [step["ids"] for step in item["logits"]] if "logits" in item else [None] * length
            steps = zip(heard.logits[-length:], ids, strict=True)
            cases.append({
                "context": list(item["context"]),
                "question": list(item["question"]),
                "answer": answer,
                "logits": [sketch(found[0], chosen) for found, chosen in steps],
                "density": tally.mean_density,
            })  # fmt: skip
    return cases


def answers(
    program: Program, model: LoadedModel, contexts: Sequence[Mapping[str, Any]], protocol: str
) -> tuple[list[list[int]], list[list[int]]]:
    """The answers of dense attention and of the program to every question of every context, in order.

    `contexts` are those of `Suite.contexts`. Raises `VortexError` when the model is too short.
    """
    read = [
        Context(tuple(item["tokens"]), tuple(Turn(tuple(turn["question"]), turn["answer"]) for turn in item["turns"]))
        for item in contexts
    ]
    forks = [Fork(i, turn) for i, item in enumerate(read) for turn in range(len(item.turns))]
    with tempfile.TemporaryDirectory(prefix="vortex-record-") as folder, torch.inference_mode():
        store = ContextStore(model, read, Path(folder))
        kind = executor_for(model.device.type)
        everything = Session(everything_of(program), model, store, kind)
        session = Session(program, model, store, kind)
        dense = replay(everything, forks, Tally())
        return dense, replay(session, forks, Tally(), dense=everything if protocol == PROMPT_DENSE else None)
