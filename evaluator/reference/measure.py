"""Accuracy of the reference model with full attention, by greedy generation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from vortexlab.evaluator.reference.decoder import Decoder
from vortexlab.evaluator.tasks import make_samples

_TOKENS_AT_ONCE = {"cuda": 1 << 19, "cpu": 1 << 15}


@dataclass(frozen=True)
class Cell:
    """Exact matches of one task at one context length, with the 95 % Wilson interval."""

    task: str
    length: int
    contexts: int
    answers: int
    right: int
    accuracy: float
    low: float
    high: float


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a binomial share (Wilson, 1927)."""
    z = 1.959964
    centre = (right + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(right * (count - right) / count + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.no_grad()
def measure_cell(model: Decoder, task: str, length: int, contexts: int, seed: int, split: str) -> Cell:
    """Ask every turn of ``contexts`` samples; contexts are read once, turns continue them independently."""
    device = model.cos.device
    samples = make_samples(task, length, contexts, seed, split)
    at_once = max(1, _TOKENS_AT_ONCE[device.type] // length)
    right = answers = 0
    for first in range(0, contexts, at_once):
        part = samples[first : first + at_once]
        ids = torch.tensor([sample.context for sample in part], device=device)
        _, cache = model.hidden(ids, torch.arange(length, device=device)[None], keep=True)
        for turn in range(len(part[0].turns)):
            question = torch.tensor([sample.turns[turn].question for sample in part], device=device)
            answer = torch.tensor([sample.turns[turn].answer for sample in part], device=device)
            given = model.generate(question, answer.shape[1], cache)
            right += int((given == answer).all(dim=1).sum())
            answers += len(part)
    return Cell(task, length, contexts, answers, right, right / answers, *wilson(right, answers))


def table(cells: list[Cell]) -> str:
    """Cells as a Markdown table, one row per task and one column per length."""
    lengths = sorted({cell.length for cell in cells})
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    found = {(cell.task, cell.length): f"{cell.accuracy:.3f}" for cell in cells}
    lines = ["| task | " + " | ".join(f"{n:,}" for n in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    lines += [f"| {task} | " + " | ".join(found.get((task, n), "–") for n in lengths) + " |" for task in tasks]
    return "\n".join(lines)


def to_json(cells: list[Cell]) -> list[dict[str, str | int | float]]:
    return [asdict(cell) for cell in cells]
