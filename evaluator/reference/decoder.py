"""The reference model's architecture, as trained: a small Qwen3 decoder in plain PyTorch.

Parameter names and arithmetic are those of ``Qwen3ForCausalLM`` in transformers, so a state dict of this module is the
checkpoint that transformers and serving engines load. Training needs its own module for two reasons: the hosts that
train may have torch alone, and the language-model head is wanted at the supervised positions only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values per layer, each [batch, KV heads, tokens, head_dim]; keys after RoPE."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; the names are those of a Hugging Face ``config.json``."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 16640
    rope_theta: float = 1e7
    rms_norm_eps: float = 1e-6

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "dtype": "bfloat16",
            "bos_token_id": 2,
            "eos_token_id": None,
            "pad_token_id": 0,
        }


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of ``x`` [batch, heads, tokens, head_dim]; tables [batch or 1, 1, tokens, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        width, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, tokens, self.heads, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        mask = None
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            if tokens > 1:
                total = k.shape[2]
                mask = torch.ones(tokens, total, dtype=torch.bool, device=x.device).tril(total - tokens)
        group = self.heads // self.kv_heads
        # KV heads are repeated by hand: every fused SDPA kernel then applies, with gradients, on every device.
        wide_k, wide_v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, wide_k, wide_v, attn_mask=mask, is_causal=past is None)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), k, v


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, k, v = self.self_attn(self.input_layernorm(x), cos, sin, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class Backbone(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """The decoder with tied embeddings; random weights are drawn from torch's global generator."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        rate = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
        angle = torch.arange(config.max_position_embeddings, dtype=torch.float32)[:, None] * rate
        angle = torch.cat([angle, angle], dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def hidden(
        self, ids: Tensor, positions: Tensor, past: Cache | None = None, keep: bool = False
    ) -> tuple[Tensor, Cache]:
        """Final hidden states [batch, tokens, width] of ``ids`` [batch, tokens] at ``positions`` [batch or 1, tokens].

        ``past`` is the cache of everything before ``ids``; returned is the cache including ``ids`` if ``keep``,
        else an empty one.
        """
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.model.embed_tokens(ids)
        cache: Cache = []
        for i, layer in enumerate(self.model.layers):
            x, k, v = layer(x, cos, sin, None if past is None else past[i])
            if keep:
                cache.append((k, v))
        return self.model.norm(x), cache

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of hidden states [..., width]."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, question: Tensor, steps: int, past: Cache) -> Tensor:
        """Greedy continuation, int64 [batch, steps], of ``question`` [batch, tokens] after ``past``, which stays."""
        start = past[0][0].shape[2]
        positions = torch.arange(start, start + question.shape[1] + steps, device=question.device)[None]
        ids, out, seen = question, [], 0
        for _ in range(steps):
            hidden, past = self.hidden(ids, positions[:, seen : seen + ids.shape[1]], past, keep=True)
            seen += ids.shape[1]
            ids = self.logits(hidden[:, -1:]).argmax(dim=-1)
            out.append(ids)
        return torch.cat(out, dim=1)
