"""vLLM's FlashAttention backend with the decode step of a program, through the Triton executor.

It was written against vLLM's interface and has not been run on a GPU: the contract is tested, the numbers are those of
the parts. Decode steps are launched outside vLLM's full CUDA graphs, since which rows decode is decided on the host;
the rest of the model keeps its piecewise graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from vortexlab.deploy.vllm.building import SparseBuilding
from vortexlab.deploy.vllm.checks import pattern_of
from vortexlab.deploy.vllm.layer import SparseLayer
from vortexlab.deploy.vllm.split import Split


class SparseBackend(FlashAttentionBackend):
    """The stock backend where no pattern was given."""

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        return SparseImpl if pattern_of(get_current_vllm_config()) else FlashAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        return SparseBuilder if pattern_of(get_current_vllm_config()) else FlashAttentionMetadataBuilder


@dataclass
class SparseMetadata(FlashAttentionMetadata):
    """The stock metadata of the whole step and how it is divided."""

    split: Split | None = None


class SparseBuilder(SparseBuilding, FlashAttentionMetadataBuilder):
    metadata = SparseMetadata
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    supports_update_block_table: bool = False  # how a step is divided follows from its rows

    def table(self, held: Tensor) -> Tensor:
        """The pool is read where it lies."""
        return held.clamp(min=0)


class SparseImpl(SparseLayer, FlashAttentionImpl):
    """One layer's attention; the program is the engine's. The pool is written by the stock kernel."""

    def pool(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """A token's value lies behind its key."""
        keys, values = kv_cache.split(self.head_size, dim=-1)
        return keys, values

    def others(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, split: Split) -> Tensor:
        tokens = split.others.tokens
        found = query.new_empty(tokens.numel(), self.num_heads, self.head_size)
        FlashAttentionImpl.forward(
            self, layer, query[tokens].view_as(found), key[tokens], value[tokens], kv_cache, split.stock, found
        )
        return found
