"""Small random checkpoints of published architectures, made here: no hub, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from worded_models import byte_tokenizer

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_GQA: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
#: Architectures that programs are evaluated on: settings that differ from `_SIZES`.
SUPPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", _GQA),
    "llama": ("Llama", _GQA),
    "mistral": ("Mistral", _GQA | {"sliding_window": None}),
    "glm": ("Glm4MoeLite", _LATENT | {"v_head_dim": 16, "mlp_layer_types": ["dense", "sparse"]}),
    "deepseek": ("DeepseekV3", _LATENT | {"v_head_dim": 8, "first_k_dense_replace": 1}),
}


def save(folder: Path, name: str, settings: dict[str, Any], tokens: int = 2048, chat: str | None = None) -> Path:
    """A random checkpoint of ``{name}ForCausalLM`` that reads `tokens`, with a byte-level tokenizer."""
    tokenizer = byte_tokenizer(400, chat)
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **_SIZES | {"vocab_size": 1024, "max_position_embeddings": tokens} | settings
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_supported(folder: Path, kind: str, **options: Any) -> Path:
    return save(folder, *SUPPORTED[kind], **options)
