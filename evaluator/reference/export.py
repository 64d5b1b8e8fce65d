"""From a training run to the model folder that is shipped: Hugging Face Qwen3 format, bfloat16, with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.reference import checkpoint
from vortexlab.evaluator.reference.card import model_card
from vortexlab.evaluator.reference.decoder import DecoderConfig
from vortexlab.evaluator.tasks.vocabulary import PAD, START, write_tokenizer

ACCURACY = "accuracy.json"


def write_model(folder: Path, config: DecoderConfig, weights: dict[str, Tensor]) -> None:
    """Write config, weights (rounded to bfloat16), tokenizer and generation config into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.detach().cpu().to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hugging_face(), indent=1) + "\n", encoding="utf-8")
    generation = {"do_sample": False, "bos_token_id": START, "pad_token_id": PAD}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(folder, config.max_position_embeddings)


def export_run(run: Path, folder: Path) -> None:
    """Write the model of the checkpoint in ``run``, with a card of its measured accuracy, into ``folder``.

    Raises :class:`VortexError` if ``run`` holds no checkpoint, or no accuracy that was measured at that checkpoint.
    """
    record, tensors = checkpoint.load(run)
    try:
        measured: dict[str, Any] = json.loads((run / ACCURACY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VortexError(f"{run} holds no measured accuracy; let the run end before its model is exported") from error
    if measured.get("steps") != record["step"]:
        raise VortexError(
            f"{run / ACCURACY} was measured at step {measured.get('steps')}, but the checkpoint is at step "
            f"{record['step']}; continue with --resume until the run ends"
        )
    config = checkpoint.decoder_config(record)
    weights = checkpoint.weights(tensors)
    write_model(folder, config, weights)
    parameters = sum(weight.numel() for weight in weights.values())
    (folder / "README.md").write_text(model_card(config, parameters, measured), encoding="utf-8")
