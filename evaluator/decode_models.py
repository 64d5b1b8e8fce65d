"""Models by their published sizes, with random weights: what whole decode steps are timed on.

Sizes are those of the published checkpoints, not the class defaults of transformers. Random weights say nothing about
accuracy; a step reads the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.decode_layers import DecodeModel, Experts, LatentAttention

_ROPE = {"rope_type": "default", "rope_theta": 1e6}
_QWEN3: dict[str, Any] = {
    "vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    "rope_parameters": _ROPE,
}  # fmt: skip
#: Name -> (model type of transformers, configuration).
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-1.7b": ("qwen3", {
        **_QWEN3, "num_hidden_layers": 28, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16,
        "num_key_value_heads": 8, "tie_word_embeddings": True,
    }),
    "qwen3-8b": ("qwen3", {
        **_QWEN3, "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
        "num_key_value_heads": 8, "tie_word_embeddings": False,
    }),
    "llama-3.1-8b": ("llama", {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }),
    "qwen3-30b-a3b": ("qwen3_moe", {
        **_QWEN3, "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 32,
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
    }),
    "glm-4.7-flash": ("glm4_moe_lite", {
        "num_hidden_layers": 47, "hidden_size": 2048, "intermediate_size": 10240, "num_attention_heads": 20,
        "num_key_value_heads": 20, "vocab_size": 154880, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5,
        "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
        "n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536, "n_shared_experts": 1,
        "routed_scaling_factor": 1.8, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "rope_interleave": True,
        "tie_word_embeddings": False, "rope_parameters": _ROPE,
    }),
}  # fmt: skip
#: What makes any of them small, for comparisons with transformers.
_SMALL: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 97, "num_attention_heads": 4,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
_SMALL_HEADS: dict[str, dict[str, Any]] = {
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "llama": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen3_moe": {
        "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
    },
    "glm4_moe_lite": {
        "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "qk_rope_head_dim": 16,
        "v_head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
    },
}  # fmt: skip


def published_config(name: str, *, small: bool = False, **changes: Any) -> Any:
    """The transformers configuration of a published model; `small` shrinks it to two layers of the same kinds.

    Raises `VortexError` for an unknown name or a model that the installed transformers does not have.
    """
    if name not in PUBLISHED:
        raise VortexError(f"unknown model {name!r}; the decode runner knows {', '.join(PUBLISHED)}")
    kind, sizes = PUBLISHED[name]
    extra = {**_SMALL, **_SMALL_HEADS[kind]} if small else {}
    try:
        return AutoConfig.for_model(kind, **{**sizes, **extra, **changes})
    except ValueError as error:
        raise VortexError(f"this transformers has no {kind}, which {name} needs; install a newer one") from error


@torch.no_grad()
def random_model(config: Any, device: str | torch.device, dtype: torch.dtype, seed: int) -> Any:
    """A transformers causal LM whose weights are drawn on the device, by the configuration's initial scale."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    rotary = type(model.model.rotary_emb)(config=config).to(device)
    model.to_empty(device=device)
    model.tie_weights()
    model.model.rotary_emb = rotary
    generator = torch.Generator(device).manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, config.initializer_range, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.zero_()
    return model.eval()


@dataclass(frozen=True)
class StepBytes:
    """Bytes that a step has to read: `weights` of all that every token needs, and of one layer's routed `experts`, of
    which each token needs `per_token` of `total`, in `expert_layers` layers."""

    weights: int
    expert: int
    total: int
    per_token: int
    expert_layers: int

    def read(self, batch: int) -> float:
        """Expected bytes for a batch whose tokens choose their experts at random."""
        chosen = self.total * (1 - (1 - self.per_token / max(1, self.total)) ** batch)
        return self.weights + self.expert_layers * chosen * self.expert


def step_bytes(model: DecodeModel) -> StepBytes:
    """Counted on the weights themselves. The embedding counts only where it is the output head too."""

    def size(*weights: Tensor) -> int:
        return sum(weight.numel() * weight.element_size() for weight in weights)

    weights, expert, total, per_token, expert_layers = size(model.head), 0, 0, 0, 0
    for layer in model.layers:
        attention, mlp = layer.attention, layer.mlp
        weights += (
            size(attention.down, attention.up, attention.key_up, attention.value_up, attention.out)
            if isinstance(attention, LatentAttention)
            else size(attention.qkv, attention.out)
        )
        if isinstance(mlp, Experts):
            total, per_token, expert_layers = mlp.gate_up.shape[0], mlp.routing.count, expert_layers + 1
            expert = size(mlp.gate_up, mlp.down) // total
            weights += size(mlp.router) + (size(mlp.shared.gate_up, mlp.shared.down) if mlp.shared else 0)
        else:
            weights += size(mlp.gate_up, mlp.down)
    return StepBytes(weights, expert, total, per_token, expert_layers)


def random_decode_model(
    name: str, positions: int, device: str | torch.device, seed: int, dtype: torch.dtype = torch.bfloat16
) -> DecodeModel:
    """A published model with random weights, ready to decode up to `positions` tokens a row."""
    return DecodeModel.of(random_model(published_config(name), device, dtype, seed), positions, name)
