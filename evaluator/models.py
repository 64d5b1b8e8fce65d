"""Any Hugging Face causal LM with our attention in place of its own, without touching the model's code.

transformers looks attention and mask functions up by name; ours are registered as `ATTENTION`. What they do at a
forward pass is decided by the handler that is active around it: `Prefill` runs the stock SDPA and records keys and
values, a decode step appends to a paged cache and lets a program's executor read it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.evaluator.architectures import WORKS, check_config

ATTENTION = "vortex"


class Handler(Protocol):
    """What attention means during one forward pass."""

    def attend(self, module: torch.nn.Module, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q: [rows, query_heads, tokens, channel]; k, v: [rows, kv_heads, tokens, channel], all after norm and RoPE.

        Returns [rows, tokens, query_heads, channel].
        """
        ...


_active: Handler | None = None


@contextlib.contextmanager
def attention(handler: Handler) -> Iterator[None]:
    """Makes `handler` what the registered attention does inside the block."""
    global _active
    previous, _active = _active, handler
    try:
        yield
    finally:
        _active = previous


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    if _active is None:
        raise RuntimeError("the model was called outside an `attention` block")
    for name, what in (("sliding_window", "a sliding window"), ("softcap", "soft capping"), ("s_aux", "sinks")):
        if kwargs.get(name) is not None:
            raise VortexError(f"this model's attention has {what}, which programs cannot express; {WORKS}")
    scale = kwargs.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    channels = value.shape[-1]
    # Latent attention may have values of fewer channels than its keys: zeros behind them change no other channel.
    value = pad(value, (0, max(0, key.shape[-1] - channels)))
    out = _active.attend(module, int(module.layer_idx), query, key, value, scale)  # type: ignore[arg-type]
    return out[..., :channels], None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Rows are never padded: raggedness is in the lengths of the paged cache."""


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)


class Prefill:
    """Stock causal SDPA; keeps every layer's keys and values ([rows, kv_heads, tokens, channel]) and scale."""

    def __init__(self) -> None:
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}
        self.scale: dict[int, float] = {}

    def attend(self, module: torch.nn.Module, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.k[layer], self.v[layer], self.scale[layer] = k, v, scale
        out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, None, scaling=scale, is_causal=True)
        return out


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for replay, and the geometry of its attention."""

    model: PreTrainedModel
    path: str
    layers: int
    kv_heads: int
    group: int
    head_dim: int
    scale: float
    vocabulary: int
    max_length: int
    device: torch.device
    dtype: torch.dtype

    def static(self, layer: int) -> Static:
        return Static(self.kv_heads, self.group, self.head_dim, self.scale, layer, self.layers)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, handler: Prefill | None = None) -> Prefill:
        """Reads one context, densely unless `handler` does otherwise. `tokens`: int64 [tokens].

        Raises `VortexError` when the model's logits after dense reading are not finite.
        """
        dense = handler is None
        handler = handler or Prefill()
        positions = torch.arange(tokens.numel(), device=self.device)[None]
        with attention(handler):
            out = self.model(tokens[None].to(self.device), position_ids=positions, use_cache=False, logits_to_keep=1)
        if dense and not bool(out.logits.isfinite().all()):
            kind = str(self.dtype).removeprefix("torch.")
            raise VortexError(
                f"model {self.path!r} gives logits that are not finite after {tokens.numel()} tokens in {kind}; "
                "choose another --dtype, or check its weights"
            )
        return handler

    @torch.inference_mode()
    def step(self, tokens: Tensor, positions: Tensor, handler: Handler) -> Tensor:
        """One token for every row. `tokens`, `positions`: int64 [rows]; returns logits [rows, vocabulary]."""
        with attention(handler):
            out = self.model(tokens[:, None], position_ids=positions[:, None], use_cache=False, logits_to_keep=1)
        return out.logits[:, -1]

    def describe(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "group": self.group,
            "head_dim": self.head_dim,
            "scale": self.scale,
            "vocabulary": self.vocabulary,
            "max_length": self.max_length,
            "architecture": type(self.model).__name__,
        }


def load_model(path: str, device: str = "cpu", dtype: str = "float32") -> LoadedModel:
    """Loads a model folder with our attention registered, and reads the geometry off one short forward pass.

    Raises `VortexError` when the folder is missing, holds no causal LM or not all of its weights, when its attention
    is none that programs can express, its layers differ in geometry, or its logits are not finite.
    """
    check_config(path)
    torch_dtype = getattr(torch, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch_dtype, attn_implementation=ATTENTION, local_files_only=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
        model, report = loaded[0].to(device).eval(), loaded[1]
    except Exception as error:  # whatever a broken folder makes the loader raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VortexError(f"model {path!r} cannot be loaded: {first[:200]}") from error
    if missing := sorted(report["missing_keys"]):  # the loader has drawn them at random
        raise VortexError(
            f"model {path!r} lacks {len(missing)} of its weights, such as {missing[0]}; put all of its files there"
        )
    config = model.config.get_text_config()
    probe = LoadedModel(model, path, 0, 0, 0, 0, 0.0, 0, 0, torch.device(device), torch_dtype)
    seen = probe.prefill(torch.zeros(2, dtype=torch.int64))
    bare = [layer for layer in range(config.num_hidden_layers) if layer not in seen.k]
    if bare:
        raise VortexError(
            f"model {path!r} ({type(model).__name__}) has {len(bare)} of {config.num_hidden_layers} layers without "
            f"softmax attention, and programs are about attention; {WORKS}"
        )
    shapes = {(k.shape[1], k.shape[3], seen.v[layer].shape[3]) for layer, k in seen.k.items()}
    scales = set(seen.scale.values())
    if len(seen.k) != config.num_hidden_layers or len(shapes) != 1 or len(scales) != 1:
        raise VortexError(f"model {path!r}: every layer must be attention of one geometry; found {sorted(shapes)}")
    ((kv_heads, key_dim, value_dim),) = shapes
    if key_dim != value_dim:
        raise VortexError(f"model {path!r}: keys of {key_dim} and values of {value_dim} channels are not supported")
    return LoadedModel(
        model=model,
        path=path,
        layers=config.num_hidden_layers,
        kv_heads=kv_heads,
        group=config.num_attention_heads // kv_heads,
        head_dim=key_dim,
        scale=scales.pop(),
        vocabulary=config.vocab_size,
        max_length=config.max_position_embeddings,
        device=torch.device(device),
        dtype=torch_dtype,
    )
