"""Programs, a small model and ways to run one in the other; what the tests of the transformers engine share."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl import parse
from vortexlab.kernels.gate import CONDITIONS, Gate, Ratio
from vortexlab.search_spaces.library import load

PAGE = 16


def program(body: str, page: int = PAGE) -> Any:
    return parse(f"@program(page={page})\nclass Tested:\n{body}").bind()


EVERYTHING = program("    def select():\n        return everything\n")
WINDOW = program("    def select():\n        return first(1) | last(3)\n")
LAYERED = program("    def select(ctx):\n        return first(1) | last(where(ctx.layer == 0, 2, 3))\n")
PER_HEAD = program(
    "    def summarize(k):\n        return dict(c=k.mean(token))\n"
    "    def score(q, s):\n        return dot(q, s.c, channel)\n"
    "    def select(score):\n        return topk(score, 3) | last(1)\n"
)
QUEST = load("quest").bind({"budget": 4})
CARRIES = parse("""
@program(page=8)
class Carries:
    mass = memory.step(page, init=0.25)
    below = memory.layer(page)

    def summarize(k): return dict(c=k.mean(token))
    def score(q, s, m): return dot(q, s.c, channel).max(head) + m.mass + m.below
    def select(score, ctx):
        renewed = reuse(topk(score, 3), every=4)
        return last(2) | renewed | reuse(topk(score, 2), layers=ctx.layer == 0)
    def remember(q, s, m): return dict(mass=0.5 * m.mass + s.c.sum(channel), below=m.below + s.c.max(channel))
""").bind()


def tiny(**changes: Any) -> Qwen3Config:
    return Qwen3Config(**{
        "vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "eos_token_id": None, "bos_token_id": 0, "pad_token_id": 0, **changes,
    })  # fmt: skip


def small_model() -> Qwen3ForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    return Qwen3ForCausalLM(tiny()).eval()


def tokens(count: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 101, (rows, count), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model: Any, cache: Any, *pieces: torch.Tensor, **more: Any) -> torch.Tensor:
    """The logits after each of `pieces`, read one after the other: [rows, tokens of the last, vocabulary]."""
    for piece in pieces:
        out = model(input_ids=piece, past_key_values=cache, **more).logits
    return out


def gate_from(context: int | None, batch: int = 1) -> Gate:
    """Sparse from this context on for batches from this one on; None: never."""
    at, ratio = (64, 0.5) if context is None else (context, 2.0)
    return Gate((Ratio(batch, at, ratio, ratio, ratio),), dict.fromkeys(CONDITIONS, ""))


def using(model: Any, found: Any, gate: Gate | None = None) -> tuple[Any, Pattern]:
    pattern = Pattern(found, f"tested_{found.name}_{id(found)}", gate)
    model.set_attn_implementation(pattern.register())
    return model, pattern
