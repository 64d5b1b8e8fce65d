"""Does the deployed pattern compute what the evaluator measured?

One protocol on both sides: the context is read densely into an empty cache, then the question goes through the sparse
path as one chunk, then the answer is generated greedily. A case holds token ids and what the evaluator got for them;
`run` repeats it through `model` and a `Pattern`, and `judge` compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vortexlab.deploy.transformers_engine import Pattern
from vortexlab.dsl.errors import VortexError

#: Largest difference of a logit that rounding explains, relative to the spread of the step's logits.
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 2e-2}


@dataclass(frozen=True)
class Outcome:
    """One case through the engine: generated ids, the logits of each answer step, and the density of its steps."""

    answer: list[int]
    logits: list[list[float]]
    density: float


def run(pattern: Pattern, model: Any, cases: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Runs every case; the model must have been loaded with the pattern's name as attention implementation."""
    if model.config._attn_implementation != pattern.name:
        raise VortexError(
            f"the model runs attention {model.config._attn_implementation!r}, not {pattern.name!r}; "
            "load it with attn_implementation=pattern.NAME"
        )
    outcomes = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for case in cases:
            cache = pattern.cache(model.config)
            context = torch.tensor([case["context"]], device=device)
            model(input_ids=context, past_key_values=cache, logits_to_keep=1)
            step = torch.tensor([case["question"]], device=device)
            answer: list[int] = []
            logits: list[list[float]] = []
            for _ in case["answer"]:
                last = model(input_ids=step, past_key_values=cache, logits_to_keep=1).logits[0, -1].float()
                answer.append(int(last.argmax()))
                logits.append(last.tolist())
                step = torch.tensor([[answer[-1]]], device=device)
            outcomes.append(Outcome(answer, logits, pattern.density(cache) or 1.0))
    return outcomes


def judge(cases: Sequence[Mapping[str, Any]], outcomes: Sequence[Outcome], dtype: str) -> dict[str, Any]:
    """Compares outcomes with what the cases recorded.

    Logits are compared up to and including the first step where the answers part; a parting is excused only where the
    two best recorded logits lie within the tolerance. Returns the figures and ``ok``.
    """
    tolerance = TOLERANCE[dtype]
    worst = 0.0
    density_gap = 0.0
    parted = 0
    for case, outcome in zip(cases, outcomes, strict=True):
        density_gap = max(density_gap, abs(case["density"] - outcome.density))
        for step, expected in enumerate(case["logits"]):
            want, got = torch.tensor(expected), torch.tensor(outcome.logits[step])
            spread = float(want.std()) or 1.0
            difference = float((want - got).abs().max()) / spread
            worst = max(worst, difference if difference == difference else float("inf"))
            if case["answer"][step] != outcome.answer[step]:
                best = want.topk(2).values
                parted += float(best[0] - best[1]) / spread > tolerance
                break
    return {
        "cases": len(cases),
        "worst_logit_difference": worst,
        "tolerance": tolerance,
        "answers_that_differ": parted,
        "density_difference": density_gap,
        "ok": bool(worst <= tolerance and parted == 0 and density_gap <= 0.01),
    }
