"""Training batches: rows of many task families, generated on the device that trains.

A row is a context and, behind it, as many turns (question and answer) as fit into half of the row; the loss is taken at
the answers only. How full a context is and how often it is asked varies from batch to batch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.evaluator.tasks.draws import BatchDraws
from vortexlab.evaluator.tasks.families import LINE, TRAINING_FAMILIES, Plan, TaskFamily
from vortexlab.evaluator.tasks.keys import KeyRing
from vortexlab.evaluator.tasks.vocabulary import START, VALUE, VALUE_HALVES

RECALL = "recall"
MOST_TURNS = 16
MOST_PAIRS = 32
POSITION_CHUNKS = 4


@dataclass(frozen=True)
class Batch:
    """One training step. Its shapes do not depend on what was drawn, so making one never waits for the device.

    ``ids`` int64 [rows, tokens]; ``where`` [m]: flat indices of the positions that predict ``target`` [m], with loss
    weights ``weight`` [m], zero where nothing is asked; ``answer`` [m]: the answer (numbered over the batch) that a
    target belongs to; ``task`` [answers]: index into ``names``; ``asked`` [answers]: whether the answer counts.
    """

    ids: Tensor
    where: Tensor
    target: Tensor
    weight: Tensor
    answer: Tensor
    task: Tensor
    asked: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Rows:
    """Rows of one family: ids [rows, tokens]; positions [answers, n] that predict the answers' tokens, the same in
    every row; which answers are asked, bool [rows, answers]."""

    name: str
    ids: Tensor
    where: Tensor
    asked: Tensor


def training_plan(family: TaskFamily, tokens: int, rng: random.Random) -> tuple[int, Plan] | None:
    """Context length and plan for a training row of ``tokens`` tokens; None if the family does not fit."""
    fixed = family.least == 0  # nothing to vary: a list of words, or every line a fact
    least = 1 if fixed else max(family.asked, min(family.least, 2))
    densest = tokens // 4 if tokens > 128 else tokens // 2
    most = least if fixed else max(least, densest // family.group_tokens)
    groups = round(math.exp(rng.uniform(math.log(least), math.log(most))))
    limit = groups // family.asked if not fixed else MOST_TURNS if family.turns > 1 else 1
    turns = max(1, min(limit, MOST_TURNS, tokens // 2 // family.turn_tokens))
    context = tokens - turns * family.turn_tokens
    spare = context - 1 - groups * family.group_tokens
    if spare < 0 or context < 24:
        return None
    near_misses = 0 if fixed else rng.randint(0, min(max(groups, 4), spare // 14))
    return context, Plan(groups, near_misses, turns)


def _task_rows(family: TaskFamily, draws: BatchDraws, context: int, plan: Plan) -> _Rows:
    episodes = family.build(draws, context, plan)
    tail = torch.cat([episodes.question, episodes.answer], dim=-1)
    turns, asked, answered = tail.shape[1], episodes.question.shape[2], episodes.answer.shape[2]
    turn = torch.arange(turns, device=draws.device)[:, None]
    where = context + turn * (asked + answered) + asked - 1 + torch.arange(answered, device=draws.device)
    every = torch.ones(draws.rows, turns, dtype=torch.bool, device=draws.device)
    return _Rows(family.name, torch.cat([episodes.context, tail.flatten(1)], dim=1), where, every)


def _recall_rows(draws: BatchDraws, tokens: int) -> _Rows:
    """Facts drawn again and again from a small set, of a size that varies from row to row; every repeat is asked.

    This dense supervision teaches look-up as such; from answers behind a long context alone the model stays at "some
    value of the context" for long.
    """
    ring, lines = KeyRing(draws), (tokens - 1) // LINE
    pairs = min(MOST_PAIRS, lines)
    keys, values = ring.keys(pairs), VALUE + draws.integers(2 * pairs, VALUE_HALVES).view(draws.rows, pairs, 2)
    facts = torch.cat([keys, values], dim=-1)
    set_size = 2 + draws.integers(1, pairs - 1)
    drawn = (draws.uniform(lines) * set_size).long()
    ids = torch.full((draws.rows, tokens), START, device=draws.device)
    ids[:, 1 : 1 + LINE * lines] = facts.gather(1, drawn[..., None].expand(-1, -1, LINE)).flatten(1)
    line = torch.arange(lines, device=draws.device)
    repeated = ((drawn[:, :, None] == drawn[:, None, :]) & (line[:, None] > line)).any(dim=-1)
    where = (1 + LINE * line)[:, None] + torch.tensor([1, 2], device=draws.device)
    return _Rows(RECALL, ids, where, repeated)


def _assemble(parts: list[_Rows]) -> Batch:
    """One batch of the rows of several families, all of the same length."""
    ids = torch.cat([part.ids for part in parts])
    tokens, device = ids.shape[1], ids.device
    where, weight, answer, task = [], [], [], []
    first_row = first_answer = 0
    for i, part in enumerate(parts):
        rows, answers = part.asked.shape
        width = part.where.shape[1]
        row = torch.arange(first_row, first_row + rows, device=device)[:, None, None]
        where.append((row * tokens + part.where).flatten())
        # Between one weight per token and one per row: families with short answers count, those with long ones do not
        # drown them.
        share = part.asked.float() * (part.asked.sum(dim=1, keepdim=True) * width).clamp(min=1).rsqrt()
        weight.append(share[..., None].expand(-1, -1, width).flatten())
        number = torch.arange(first_answer, first_answer + rows * answers, device=device)
        answer.append(number[:, None].expand(-1, width).flatten())
        task.append(torch.full((rows * answers,), i, device=device))
        first_row, first_answer = first_row + rows, first_answer + rows * answers
    flat, weights = torch.cat(where), torch.cat(weight)
    target = ids.flatten()[flat + 1]
    asked = torch.cat([part.asked.flatten() for part in parts])
    names = tuple(part.name for part in parts)
    return Batch(ids, flat, target, weights / weights.sum(), torch.cat(answer), torch.cat(task), asked, names)


def batches(
    mix: dict[str, float], tokens: int, rows: int, generator: torch.Generator, rng: random.Random
) -> Iterator[Batch]:
    """An endless stream of batches of ``rows`` rows of ``tokens`` tokens; ``mix``: each family's share of the rows.

    Families that do not fit into ``tokens`` are left out. ``generator`` names the device.
    """
    bundle = 4 if rows >= 32 else 1  # several steps' rows at once: short rows are bound by kernel launches
    while True:
        plans: dict[str, tuple[int, Plan]] = {}
        for name in mix:
            fitting = training_plan(TRAINING_FAMILIES[name], tokens, rng) if name != RECALL else None
            if fitting is not None:
                plans[name] = fitting
        names = [name for name in mix if name in plans or name == RECALL]
        rng.shuffle(names)
        total, reached = sum(mix[name] for name in names), rng.random()
        made: list[_Rows] = []
        for name in names:  # systematic sampling: each family gets its share of the rows, rounded up or down at random
            before = math.floor(reached)
            reached += rows * mix[name] / total
            count = math.floor(reached) - before
            if count:
                draws = BatchDraws(count * bundle, generator)
                if name == RECALL:
                    made.append(_recall_rows(draws, tokens))
                else:
                    made.append(_task_rows(TRAINING_FAMILIES[name], draws, *plans[name]))
        for i in range(bundle):
            yield _assemble([_Rows(m.name, m.ids[i::bundle], m.where, m.asked[i::bundle]) for m in made])


def skipped_positions(rows: int, tokens: int, reach: int, generator: torch.Generator) -> Tensor:
    """Positions of four contiguous chunks with random gaps between them, below ``reach``: int64 [rows, tokens].

    Position skips (PoSE, Zhu et al., arXiv 2309.10400) show distances of long contexts in short rows.
    """
    device = generator.device
    cuts = torch.randint(1, tokens, (rows, POSITION_CHUNKS - 1), generator=generator, device=device).sort(dim=1).values
    gaps = torch.randint(0, reach - tokens + 1, (rows, POSITION_CHUNKS - 1), generator=generator, device=device)
    gaps = gaps.sort(dim=1).values
    place = torch.arange(tokens, device=device).expand(rows, tokens).contiguous()
    chunk = torch.searchsorted(cuts, place, right=True)
    offsets = torch.cat([torch.zeros(rows, 1, dtype=torch.int64, device=device), gaps], dim=1)
    return place + offsets.gather(1, chunk)
