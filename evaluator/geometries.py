"""Attention geometries that speed is measured at: those of published models, or of any Hugging Face ``config.json``.

Random weights are fine for speed; a geometry says nothing about accuracy. Numbers are from the models' published
configurations.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static

#: Rotary channels of a latent key where nothing else is said: those of DeepSeek-V2 and all that followed it.
ROTARY = 64


@dataclass(frozen=True)
class Geometry:
    """`layers` of attention with `kv_heads` KV heads, `group` query heads for each, `head_dim` channels of a key.

    In latent attention (MLA) `latent` channels of a key are its latent part, which is the value too, and the rest are
    rotary; all query heads share the one KV head. There the softmax scale is that of the `logit_dim` channels that a
    query head has before it is absorbed; otherwise `logit_dim` is 0.
    """

    name: str
    layers: int
    kv_heads: int
    group: int
    head_dim: int
    latent: int = 0
    logit_dim: int = 0

    @property
    def scale(self) -> float:
        return float((self.logit_dim or self.head_dim) ** -0.5)

    def static(self, layer: int = 0, layers: int | None = None) -> Static:
        """What a program knows of one layer; `layers` of another model may stand for the geometry's own."""
        count = self.layers if layers is None else layers
        return Static(self.kv_heads, self.group, self.head_dim, self.scale, layer, count, self.latent)

    def with_latent(self, latent: int) -> Geometry:
        """The same heads and layers over latent keys of this width beside their rotary channels.

        The scale stays as it is. Raises `VortexError` for a width below 1.
        """
        if latent < 1:
            raise VortexError(f"a latent key has at least one channel, found {latent}")
        rotary = self.head_dim - self.latent if self.latent else ROTARY
        return replace(
            self, kv_heads=1, group=self.kv_heads * self.group, head_dim=latent + rotary, latent=latent,
            logit_dim=self.logit_dim or self.head_dim,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


GEOMETRIES = {
    item.name: item
    for item in (
        Geometry("qwen3-8b", 36, 8, 4, 128),
        Geometry("qwen3-1.7b", 28, 8, 2, 128),
        Geometry("qwen3-30b-a3b", 48, 4, 8, 128),
        Geometry("llama-3.1-8b", 32, 8, 4, 128),
        Geometry("minimax-m2", 62, 8, 6, 128),
        Geometry("glm-4.7-flash", 47, 1, 20, 576, 512, 256),
        Geometry("deepseek-v2-lite", 27, 1, 16, 576, 512, 192),
    )
}


def find_geometry(name: str) -> Geometry:
    """A geometry by name, or read from a Hugging Face ``config.json`` or the folder that holds one.

    A config with a ``kv_lora_rank`` is one of latent attention.

    Raises `VortexError` for an unknown name or a file that describes no such attention.
    """
    if name in GEOMETRIES:
        return GEOMETRIES[name]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        close = difflib.get_close_matches(name, GEOMETRIES, 1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(GEOMETRIES)}, or a config.json"
        raise VortexError(f"there is no geometry {name!r}; {hint}")
    try:
        config = json.loads(path.read_text())
        query_heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or query_heads)
        head_dim = int(config.get("head_dim") or config["hidden_size"] // query_heads)
        layers = int(config["num_hidden_layers"])
        latent = int(config.get("kv_lora_rank") or 0)
        rotary = int(config.get("qk_rope_head_dim") or 0)
        plain = int(config.get("qk_nope_head_dim") or 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VortexError(f"{path} describes no attention geometry ({type(error).__name__}: {error})") from error
    if min(query_heads, kv_heads, head_dim, layers) < 1 or query_heads % kv_heads:
        raise VortexError(f"{path}: {query_heads} query heads do not divide among {kv_heads} KV heads")
    if latent:
        if min(latent, rotary, plain) < 1:
            raise VortexError(f"{path} has a kv_lora_rank of {latent} without qk_rope_head_dim and qk_nope_head_dim")
        return Geometry(str(path), layers, 1, query_heads, latent + rotary, latent, plain + rotary)
    return Geometry(str(path), layers, kv_heads, query_heads // kv_heads, head_dim)
