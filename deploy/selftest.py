"""Does the deployed pattern compute what the evaluator measured?

One protocol on both sides: the context is read densely into an empty cache, then the question goes through the sparse
path as one chunk, then the answer is generated greedily. A *case* holds token ids and what the evaluator got for them;
`run` repeats it through transformers, and `judge` compares. Every step of the question and the answer is sparse: the
dense gate is off, since what is proved is the program.

``python -m vortexlab.deploy.selftest FOLDER MODEL CASES`` does the first half in a process of its own: it imports the
package as a user would, from the folder that it is installed in, and prints the outcomes as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.deploy.huggingface.pattern import Pattern

#: Logits kept of every answer step: the largest ones.
KEPT = 64
#: Largest difference of a logit that rounding explains, relative to the spread of the step's logits.
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2, "float16": 2e-2}
#: Largest difference of the effective density of a case.
DENSITY_TOLERANCE = 0.01


def sketch(logits: Tensor, ids: Sequence[int] | None = None) -> dict[str, Any]:
    """What is kept of one step's logits ([vocabulary]): their spread, and log-probabilities at `ids` (the largest)."""
    plain = logits.float().cpu().log_softmax(-1)
    chosen = torch.tensor(ids) if ids is not None else plain.topk(min(KEPT, plain.numel())).indices
    return {"ids": chosen.tolist(), "values": plain[chosen].tolist(), "spread": float(plain.std())}


def run(pattern: Pattern, model: Any, cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every case through the engine: `answer`, `logits` (sketches at the ids that the case recorded) and `density`.

    Raises `VortexError` when the model was loaded with another attention implementation.
    """
    if model.config._attn_implementation != pattern.name:
        raise VortexError(
            f"the model runs attention {model.config._attn_implementation!r}, not {pattern.name!r}; "
            "load it with attn_implementation=pattern.NAME"
        )
    outcomes = []
    pattern = replace(pattern, gate=None)
    device = next(model.parameters()).device
    with torch.inference_mode():
        for case in cases:
            cache = pattern.cache(model.config)
            context = torch.tensor([case["context"]], device=device)
            model(input_ids=context, past_key_values=cache, logits_to_keep=1)
            step = torch.tensor([case["question"]], device=device)
            answer: list[int] = []
            logits = []
            for recorded in case["logits"]:
                last = model(input_ids=step, past_key_values=cache, logits_to_keep=1).logits[0, -1]
                answer.append(int(last.argmax()))
                logits.append(sketch(last, recorded["ids"]))
                step = torch.tensor([[answer[-1]]], device=device)
            outcomes.append({"answer": answer, "logits": logits, "density": pattern.density(cache)})
    return outcomes


def judge(cases: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]], dtype: str) -> dict[str, Any]:
    """Compares outcomes with cases of the same form; returns the figures and ``ok``.

    Logits are compared up to and including the first step where the answers part; a parting is excused only where the
    two best logits of the case lie within the tolerance.
    """
    tolerance = TOLERANCE[dtype]
    worst = gap = 0.0
    parted = steps = 0
    for case, outcome in zip(cases, outcomes, strict=True):
        gap = max(gap, _magnitude(case["density"] - outcome["density"]))
        for step, expected in enumerate(case["logits"]):
            steps += 1
            found = dict(zip(outcome["logits"][step]["ids"], outcome["logits"][step]["values"], strict=True))
            spread = expected["spread"] or 1.0
            pairs = zip(expected["ids"], expected["values"], strict=True)
            differences = [_magnitude(value - found.get(i, float("nan"))) for i, value in pairs]
            worst = max(worst, max(differences) / spread)
            if case["answer"][step] != outcome["answer"][step]:
                best = sorted(expected["values"], reverse=True)
                parted += (best[0] - best[1]) / spread > tolerance
                break
    return {
        "cases": len(cases),
        "steps": steps,
        "worst_logit_difference": min(worst, sys.float_info.max),
        "tolerance": tolerance,
        "answers_that_differ": parted,
        "density_difference": min(gap, sys.float_info.max),
        "ok": bool(cases) and worst <= tolerance and parted == 0 and gap <= DENSITY_TOLERANCE,
    }


def _magnitude(difference: float) -> float:
    """The absolute value; NaN, which compares with nothing, counts as infinite."""
    return abs(difference) if difference == difference else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vortexlab.deploy.selftest")
    parser.add_argument("folder", type=Path, help="where the package's module lies")
    parser.add_argument("model", help="folder of a Hugging Face causal LM")
    parser.add_argument("cases", type=Path, help="JSON list of cases")
    parser.add_argument("--module", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(TOLERANCE))
    given = parser.parse_args()
    sys.path.insert(0, str(given.folder))
    try:
        package = importlib.import_module(given.module)
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            given.model,
            dtype=getattr(torch, given.dtype),
            attn_implementation=package.NAME,
            local_files_only=True,
            trust_remote_code=False,
        )
        outcomes = run(package.PATTERN, model.to(given.device).eval(), json.loads(given.cases.read_text()))
        answer: dict[str, Any] = {"module": package.__file__, "outcomes": outcomes}
    except VortexError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
