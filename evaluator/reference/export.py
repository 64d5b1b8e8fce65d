"""From a training run to the model folder that is shipped: Hugging Face Qwen3 format, bfloat16, with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.evaluator.reference.decoder import DecoderConfig
from vortexlab.evaluator.tasks.vocabulary import PAD, START, write_tokenizer


def write_model(folder: Path, config: DecoderConfig, weights: dict[str, Tensor]) -> None:
    """Write config, weights (rounded to bfloat16), tokenizer and generation config into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.detach().cpu().to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hugging_face(), indent=1) + "\n", encoding="utf-8")
    generation = {"do_sample": False, "bos_token_id": START, "pad_token_id": PAD}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(folder, config.max_position_embeddings)
