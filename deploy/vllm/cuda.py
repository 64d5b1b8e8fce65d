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
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from vortexlab.deploy.vllm.checks import pattern_of
from vortexlab.deploy.vllm.layer import SparseLayer
from vortexlab.deploy.vllm.requests import Requests
from vortexlab.deploy.vllm.split import Split, alone


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


class SparseBuilder(FlashAttentionMetadataBuilder):
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    supports_update_block_table: bool = False  # how a step is divided follows from its rows

    requests: Requests | None = None

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> FlashAttentionMetadata:
        whole = super().build(common_prefix_len, common_attn_metadata, fast_build)
        pattern = pattern_of(self.vllm_config)
        assert pattern is not None
        if pattern.program.has_memory and self.requests is None:
            self.requests = Requests(2 * self.vllm_config.scheduler_config.max_num_seqs)
        split = Split.of(common_attn_metadata, self.block_size, pattern.gate, self.requests)
        if split.others.tokens.numel():
            table = split.others.table.clamp(min=0)
            split.stock = super().build(0, alone(common_attn_metadata, split.others, table))
        return SparseMetadata(**{**vars(whole), "split": split})


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
