"""Checkpoints of a training run: a JSON record and shards of tensors that are each small enough to copy anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.reference.decoder import DecoderConfig

RECORD = "checkpoint.json"
WEIGHT = "weight/"
SHARD_BYTES = 14 << 20


def save(folder: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint.

    The record is replaced last and names its shards, so an interrupted save leaves the checkpoint before it whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        if size + kept.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = kept
        size += kept.nbytes
    old = list(folder.glob("checkpoint-*.safetensors"))
    names = [f"checkpoint-{record['step']}-{i}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / f"{name}.new")
        os.replace(folder / f"{name}.new", folder / name)
    draft = folder / f"{RECORD}.new"
    draft.write_text(json.dumps({**record, "shards": names}, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, folder / RECORD)
    for path in old:
        if path.name not in names:
            path.unlink()


def exists(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the checkpoint in ``folder``; raises :class:`VortexError` if there is none or it is damaged."""
    if not exists(folder):
        raise VortexError(f"no checkpoint in {folder}; give the --out folder of a training run")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        for name in record["shards"]:
            tensors.update(load_file(folder / name))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise VortexError(f"the checkpoint in {folder} is damaged ({error}); train again in another folder") from error
    return record, tensors


def decoder_config(record: dict[str, Any]) -> DecoderConfig:
    """The sizes of the model in a checkpoint; those of the shipped model where the record does not say."""
    return DecoderConfig(**record.get("decoder", {}))


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights alone, by parameter name."""
    return {name.removeprefix(WEIGHT): tensor for name, tensor in tensors.items() if name.startswith(WEIGHT)}


def pack(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights in float32 and Adam's moments in bfloat16, by name."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[WEIGHT + name] = parameter
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = value.float() if moment == "step" else value.to(torch.bfloat16)
    return tensors


def unpack(tensors: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of :func:`pack`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[WEIGHT + name])
            state = {}
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                if f"{moment}/{name}" in tensors:
                    # A fused optimizer wants its step counter on the device, an ordinary one on the CPU.
                    fused = bool(optimizer.defaults.get("fused"))
                    place = parameter.device if moment != "step" or fused else torch.device("cpu")
                    state[moment] = tensors[f"{moment}/{name}"].float().to(place)
            if state:
                optimizer.state[parameter] = state
