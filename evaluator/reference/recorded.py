"""Queries, keys and values of the shipped model on one of its own contexts, without transformers: some 0.2 s."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vortexlab.evaluator.reference.decoder import Decoder, DecoderConfig, rotate
from vortexlab.evaluator.tasks import make_samples

TASK, TOKENS = "needles", 512


@torch.inference_mode()
def recorded(folder: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For every layer the newest query [query_heads, channel] and keys and values [kv_heads, tokens, channel], after
    norm and RoPE, in fp32."""
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = DecoderConfig(**{item.name: settings[item.name] for item in fields(DecoderConfig)})
    with torch.random.fork_rng():
        model = Decoder(config)
    model.load_state_dict({name: x.float() for name, x in load_file(folder / "model.safetensors").items()})
    queries: list[Tensor] = []

    def keep(_: nn.Module, __: object, found: Tensor) -> None:
        queries.append(found[:, -1:].transpose(1, 2))

    for layer in model.model.layers:
        layer.self_attn.q_norm.register_forward_hook(keep)  # type: ignore[union-attr]
    ids = torch.tensor([make_samples(TASK, TOKENS, 1)[0].context])
    last = ids.shape[1] - 1
    _, cache = model.hidden(ids, torch.arange(last + 1)[None], keep=True)
    at = model.cos[last], model.sin[last]
    return [(rotate(q, *at)[0, :, 0], k[0], v[0]) for q, (k, v) in zip(queries, cache, strict=True)]
