"""Which models can be evaluated, as far as the `config.json` of their folder tells: read before any weight is.

A program chooses pages of full causal attention. What a model's attention does beside that (windows, sinks, chunks)
it could not express, and leaving it out would evaluate another model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError

WORKS = "models with full causal attention in every layer work, such as Qwen3, Llama, Mistral 0.3 or GLM-4.7-Flash"
#: Endings of the classes that generate text from left to right.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def model_folder(model: str | Path) -> str:
    """The folder of a model: itself, or where Hugging Face's cache has what was downloaded under this name.

    Raises `VortexError` for a name that the cache does not have; nothing is downloaded here.
    """
    name = str(model)
    if Path(model).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return str(Path(model).absolute())
    from transformers.utils import cached_file

    try:
        found = cached_file(name, "config.json", local_files_only=True)
        assert found is not None  # it raises for a file that it does not find
        return str(Path(found).parent)
    except Exception as error:  # whatever the hub's library makes of a name
        raise VortexError(
            f"model {name!r} has no config.json and is not in Hugging Face's cache; give the folder of a causal LM, or "
            f"download it first: hf download {name}"
        ) from error


def read_config(folder: str | Path) -> dict[str, Any]:
    """The settings of the text model in a folder. Raises `VortexError` when there is no config that can be read."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise VortexError(f"model {str(folder)!r} has no config.json; give the folder of a Hugging Face causal LM")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        line = " ".join(str(error).split())
        raise VortexError(f"model {str(folder)!r} cannot be loaded: its config.json is damaged ({line})") from error
    inner = found.get("text_config")
    return {**found, **(inner if isinstance(inner, dict) else {})}


def check_config(folder: str | Path) -> None:
    """Raises `VortexError` for a model that programs cannot be evaluated on; it says why, and what works instead."""
    config = read_config(folder)
    if reason := _reason(config):
        raise VortexError(f"model {str(folder)!r} {reason}; {WORKS}")


def _reason(config: dict[str, Any]) -> str:
    """Why not; empty where nothing speaks against it."""
    classes = [str(name) for name in config.get("architectures") or ()]
    if config.get("is_encoder_decoder") or (classes and not any(name.endswith(_CAUSAL) for name in classes)):
        return f"is no causal LM but {', '.join(classes) or 'an encoder and a decoder'}"
    if config.get("model_type") == "gpt_oss":
        return "has attention sinks and sliding windows (gpt-oss), which programs cannot express"
    kinds = [str(kind) for kind in config.get("layer_types") or ()]
    window = _window(config, kinds)
    if window:
        count = kinds.count("sliding_attention")
        where = f"{count} of {len(kinds)} layers" if kinds else "its layers"
        return (
            f"has a sliding window of {window} tokens in {where}, which programs cannot express (for contexts that the "
            'window covers, a copy whose config.json says "sliding_window": null and no "layer_types" is the same)'
        )
    other = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if other:
        return f"has layers of kind {', '.join(other)} beside full attention, which programs cannot express"
    return ""


def _window(config: dict[str, Any], kinds: list[str]) -> int:
    """Tokens of the sliding window that some layer has, 0 for none."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:  # Qwen keeps a window that it does not use
        return 0
    return int(window) if not kinds or "sliding_attention" in kinds else 0
