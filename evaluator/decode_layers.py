"""The layers of a transformers model as a serving engine decodes them: one token a row, projections fused.

Everything is made from the modules of transformers, whose weights are taken over and given up there. Matrix products go
through `Products`, what lies between them through `Glue`, so that each can be timed by itself. Attention is the only
thing that is not here: a layer asks `Read` for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.kernels import experts, place
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.experts import Mixture
from vortexlab.kernels.place import Norm, Norms

#: (layer, query [batch, query_heads, channel]) -> [batch, query_heads, value channel]
Read = Callable[[int, Tensor], Tensor]


class Products:
    """The matrix products of a step. While `seen` is a list, every product is noted there with what it was given and
    what it gave; while `known` is there, results are taken from it and nothing is multiplied."""

    def __init__(self) -> None:
        self.seen: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]] | None = None
        self.known: Iterator[Tensor] | None = None

    def __call__(self, product: Callable[..., Tensor], *given: Tensor) -> Tensor:
        if self.known is not None:
            return next(self.known)
        found = product(*given)
        if self.seen is not None:
            self.seen.append((product, given, found))
        return found

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self(functional.linear, x, weight)


class Glue:
    """What runs between matrix products and attention; `compiled` by torch.compile, a few kernels for each.

    Shapes are fixed: a captured step has one batch. Making a compiled one forgets what was compiled before, since a
    process that goes through many shapes of one function would meet the compiler's limit.
    """

    def __init__(self, compiled: bool) -> None:
        if compiled:
            torch.compiler.reset()
        self.compiled = compiled
        self._made: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __call__(self, function: Callable[..., Any], *given: Any) -> Any:
        if not self.compiled:
            return function(*given)
        if function not in self._made:
            self._made[function] = torch.compile(function, fullgraph=True, dynamic=False)
        return self._made[function](*given)


def norm_of(module: Any) -> Norm:
    """An RMSNorm module of transformers."""
    return Norm(module.weight.data, float(module.variance_epsilon))


def fused(name: str, device: torch.device) -> Callable[..., Any]:
    """A function of `vortexlab.kernels.place` or `.experts`: on a GPU the kernel that does all of it."""
    module: Any = experts if hasattr(experts, name) else place
    if device.type == "cuda":
        module = import_module(module.__name__.replace("kernels.", "kernels.gpu."))
    function: Callable[..., Any] = getattr(module, name)
    return function


def gated(x: Tensor) -> Tensor:
    """silu(first half) * second half."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def take(module: nn.Module, *names: str) -> Tensor:
    """The weights of several linear modules as one [sum of outputs, inputs]; the modules are given up."""
    weights = []
    for name in names:
        linear = getattr(module, name)
        if getattr(linear, "bias", None) is not None:
            raise VortexError(f"the decode runner takes models without biases; {name} has one")
        weights.append(linear.weight.data)
        setattr(module, name, None)
    return weights[0] if len(weights) == 1 else torch.cat(weights)


@dataclass
class StepContext:
    """What all layers of a step share. `cos`, `sin`: [positions, rotary channels]; `read` is our attention."""

    products: Products
    glue: Glue
    cos: Tensor
    sin: Tensor
    read: Read


class GroupedAttention:
    """Multi-head attention with groups of query heads: fused QKV, norm and RoPE of heads, append, attention, output."""

    def __init__(self, module: Any) -> None:
        self.layer, scale = int(module.layer_idx), float(module.scaling)
        config = module.config
        self.norms = None
        if hasattr(module, "q_norm"):
            self.norms = Norms(norm_of(module.q_norm), norm_of(module.k_norm))
        self.qkv = take(module, "q_proj", "k_proj", "v_proj")
        self.out = take(module, "o_proj")
        kv_heads, heads = config.num_key_value_heads, config.num_attention_heads
        self.static = Static(
            kv_heads, heads // kv_heads, int(module.head_dim), scale, self.layer, config.num_hidden_layers
        )

    def __call__(self, x: Tensor, cache: PagedKV, step: StepContext) -> Tensor:
        qkv = step.products.linear(x, self.qkv)
        q = fused("place_heads", x.device)(qkv, cache, step.cos, step.sin, self.norms)
        return step.products.linear(step.read(self.layer, q).flatten(1), self.out)


def by_head(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """`x` [batch, heads, in] times every head's `weight` [heads, in, out], into the first channels of `out` [batch,
    heads, at least out], which is returned."""
    torch.bmm(x.transpose(0, 1), weight, out=out[..., : weight.shape[2]].transpose(0, 1))
    return out


def linear_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """`x` times the transposed `weight` as if both were fp32."""
    if x.device.type == "cuda" and x.dtype == weight.dtype != torch.float32:
        return torch.mm(x, weight.t(), out_dtype=torch.float32)  # products of 16-bit numbers are exact in fp32
    return functional.linear(x.float(), weight.float())


class LatentAttention:
    """MLA (DeepSeek-V2, arXiv 2405.04434) as it is decoded: the up-projection of keys is absorbed into the queries,
    that of values into the output, and all heads read one latent key, whose first channels are its value."""

    def __init__(self, module: Any) -> None:
        self.layer, config = int(module.layer_idx), module.config
        self.heads, self.latent = config.num_attention_heads, config.kv_lora_rank
        self.plain, self.rotary, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.interleaved = bool(getattr(config, "rope_interleave", True))
        if not config.q_lora_rank:
            raise VortexError("the decode runner takes latent attention with a low-rank query; q_lora_rank is missing")
        self.norms = Norms(norm_of(module.q_a_layernorm), norm_of(module.kv_a_layernorm))
        self.down = take(module, "q_a_proj", "kv_a_proj_with_mqa")
        self.up = take(module, "q_b_proj")
        up = take(module, "kv_b_proj").view(self.heads, self.plain + self.value, self.latent)
        self.key_up = up[:, : self.plain].contiguous()
        self.value_up = up[:, self.plain :].transpose(1, 2)
        self.out = take(module, "o_proj")
        self.static = Static(
            1, self.heads, self.latent + self.rotary, float(module.scaling), self.layer, config.num_hidden_layers,
            latent=self.latent,
        )  # fmt: skip

    def __call__(self, x: Tensor, cache: PagedKV, step: StepContext) -> Tensor:
        product = step.products
        down = product.linear(x, self.down)
        low = fused("place_latent", x.device)(down, cache, step.cos, step.sin, self.norms, self.interleaved)
        heads = product.linear(low, self.up).unflatten(1, (self.heads, -1))
        q = heads.new_empty(*heads.shape[:2], self.static.head_dim)
        q = product(by_head, heads[..., : self.plain], self.key_up, q)
        q = fused("turn_latent", x.device)(q, heads, cache.lengths, step.cos, step.sin, self.interleaved)
        read = step.read(self.layer, q)
        values = product(by_head, read, self.value_up, read.new_empty(*read.shape[:2], self.value))
        return product.linear(values.flatten(1), self.out)


class GatedMLP:
    """down(silu(gate x) * up x), gate and up fused."""

    def __init__(self, module: Any) -> None:
        self.gate_up, self.down = take(module, "gate_proj", "up_proj"), take(module, "down_proj")

    def __call__(self, x: Tensor, step: StepContext) -> Tensor:
        return step.products.linear(step.glue(gated, step.products.linear(x, self.gate_up)), self.down)


class Experts:
    """A mixture of experts, with shared ones where the model has them."""

    def __init__(self, module: Any, config: Any) -> None:
        bias = getattr(module.gate, "e_score_correction_bias", None)
        self.bias = None if bias is None else bias.data.float()
        if self.bias is not None and int(getattr(config, "n_group", 1)) != 1:
            raise VortexError("the decode runner routes to experts of one group; the model has several")
        self.router = module.gate.weight.data
        self.gate_up, self.down = module.experts.gate_up_proj.data, module.experts.down_proj.data
        module.experts = None
        self.routing = experts.Routing(
            self.gate_up.shape[0], int(config.num_experts_per_tok), self.bias is not None, bool(config.norm_topk_prob),
            float(getattr(config, "routed_scaling_factor", 1.0)),
        )  # fmt: skip
        self.shared = GatedMLP(module.shared_experts) if hasattr(module, "shared_experts") else None

    def __call__(self, x: Tensor, step: StepContext) -> Mixture:
        product = step.products
        # GLM computes its router in fp32.
        logits = product(functional.linear if self.bias is None else linear_fp32, x, self.router)
        routed = fused("route", x.device)(logits, self.bias, self.routing)
        middle = product(fused("gated_product", x.device), x, self.gate_up, routed.experts)
        rows = product(fused("grouped_product", x.device), middle, self.down, routed.experts)
        shared = None if self.shared is None else self.shared(x, step)
        return Mixture(rows, routed.weights, shared)


@dataclass
class Layer:
    before: Norm
    attention: GroupedAttention | LatentAttention
    after: Norm
    mlp: GatedMLP | Experts

    @staticmethod
    def of(module: Any, config: Any) -> Layer:
        latent = hasattr(module.self_attn, "kv_b_proj")
        experts = hasattr(module.mlp, "experts")
        return Layer(
            norm_of(module.input_layernorm),
            LatentAttention(module.self_attn) if latent else GroupedAttention(module.self_attn),
            norm_of(module.post_attention_layernorm),
            Experts(module.mlp, config) if experts else GatedMLP(module.mlp),
        )


@dataclass
class DecodeModel:
    """A causal LM taken apart; `cos` and `sin` reach to `positions`."""

    name: str
    embedding: Tensor
    layers: list[Layer]
    final: Norm
    head: Tensor
    cos: Tensor
    sin: Tensor
    config: Any = field(repr=False)

    @staticmethod
    def of(model: Any, positions: int, name: str = "") -> DecodeModel:
        """Takes the weights of a transformers causal LM over; the model cannot be used afterwards.

        Raises `VortexError` for what the runner does not do: sliding windows, other activations, partial RoPE, RoPE
        whose angles depend on the length.
        """
        config, body = model.config, model.model
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        rope = config.rope_parameters
        refused = {
            f"layers of kind {', '.join(sorted(kinds))}": kinds != {"full_attention"},
            f"activation {config.hidden_act}": config.hidden_act != "silu",
            f"RoPE of type {rope['rope_type']}": rope["rope_type"] in ("dynamic", "longrope"),
            "partial RoPE": rope.get("partial_rotary_factor", 1.0) != 1.0,
        }
        for what, wrong in refused.items():
            if wrong:
                raise VortexError(f"the decode runner does not run {what}; it takes Qwen3, Llama, Qwen3-MoE and GLM")
        embedding = body.embed_tokens.weight.data
        at = torch.arange(positions, device=embedding.device)[None]
        cos, sin = (x[0].contiguous() for x in body.rotary_emb(embedding[:1, None], at))
        layers = [Layer.of(layer, config) for layer in body.layers]
        final, head = norm_of(body.norm), model.lm_head.weight.data
        return DecodeModel(name or config.model_type, embedding, layers, final, head, cos, sin, config)

    def statics(self) -> list[Static]:
        return [layer.attention.static for layer in self.layers]

    @property
    def device(self) -> torch.device:
        return self.embedding.device
