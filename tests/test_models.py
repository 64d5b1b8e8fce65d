"""Every supported architecture computes what transformers computes; every other one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import SUPPORTED, save_supported
from transformers import AutoModelForCausalLM

from vortexlab.evaluator.contexts import Context, ContextStore, Fork, Turn
from vortexlab.evaluator.executors import EVERYTHING, executor_for
from vortexlab.evaluator.models import load_model
from vortexlab.evaluator.replay import Session, Step


@pytest.mark.parametrize("kind", SUPPORTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_every_page_gives_the_logits_of_transformers(kind: str, dtype: str, tmp_path: Path) -> None:
    folder = str(save_supported(tmp_path / "model", kind))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 250, (300,), generator=generator)
    asked = 8
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.inference_mode():
        expected = stock(tokens[None]).logits[0, -asked:].float()
    model = load_model(folder, "cpu", dtype)
    head = tuple(tokens[:-asked].tolist())
    store = ContextStore(model, [Context(head, (Turn(tuple(tokens[-asked:].tolist()), 1),))], tmp_path)
    session = Session(EVERYTHING, model, store, executor_for("cpu"))
    session.prepare()
    caches = session.fork([Fork(0, 0)])
    found = []
    with torch.inference_mode():
        for place in range(len(head), len(tokens)):
            step = Step(session, session, caches, session.memories(caches), None)
            found.append(model.step(tokens[place : place + 1], torch.tensor([place]), step)[0].float())
    difference = (torch.stack(found) - expected).norm() / expected.norm()
    assert difference < (1e-5 if dtype == "float32" else 3e-2)
