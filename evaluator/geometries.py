"""Attention geometries that speed is measured at: those of published models, or of any Hugging Face ``config.json``.

Random weights are fine for speed; a geometry says nothing about accuracy. Numbers are from the models' published
configurations.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError


@dataclass(frozen=True)
class Geometry:
    """`layers` of attention with `kv_heads` KV heads, `group` query heads for each, `head_dim` channels."""

    name: str
    layers: int
    kv_heads: int
    group: int
    head_dim: int

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

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
    )
}


def find_geometry(name: str) -> Geometry:
    """A geometry by name, or read from a Hugging Face ``config.json`` or the folder that holds one.

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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VortexError(f"{path} describes no attention geometry ({type(error).__name__}: {error})") from error
    if min(query_heads, kv_heads, head_dim, layers) < 1 or query_heads % kv_heads:
        raise VortexError(f"{path}: {query_heads} query heads do not divide among {kv_heads} KV heads")
    return Geometry(str(path), layers, kv_heads, query_heads // kv_heads, head_dim)
