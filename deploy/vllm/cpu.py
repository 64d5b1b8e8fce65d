"""vLLM's CPU attention backend with the decode step of a program.

The stock kernels pack keys in an order of their own. Here the pool keeps the keys of a block row by row and then its
values, which executors read in place; the stock kernels are given a packed copy of the rows that are not decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from vortexlab.deploy.vllm.building import SparseBuilding
from vortexlab.deploy.vllm.checks import pattern_of
from vortexlab.deploy.vllm.layer import SparseLayer
from vortexlab.deploy.vllm.split import Split


class SparseBackend(CPUAttentionBackend):
    """The stock backend where no pattern was given."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return SparseImpl if pattern_of(get_current_vllm_config()) else CPUAttentionBackendImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return SparseBuilder


@dataclass
class SparseMetadata(CPUAttentionMetadata):
    """The stock metadata of the whole step and how it is divided."""

    split: Split | None = None


class SparseBuilder(SparseBuilding, CPUAttentionMetadataBuilder):
    metadata = SparseMetadata

    def table(self, held: Tensor) -> Tensor:
        """Blocks are copied one after the other, and numbered like that."""
        real = held >= 0
        return torch.where(real, real.flatten().cumsum(0).view_as(real) - 1, 0).int()


class SparseImpl(SparseLayer, CPUAttentionBackendImpl):
    """One layer's attention; the program is the engine's."""

    def pool(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """A block holds all its keys and then all its values, as the stock kernels have it."""
        blocks, heads, block, _ = kv_cache.shape
        keys, values = kv_cache.view(blocks, heads, 2 * block, self.head_size).chunk(2, dim=2)
        return keys, values

    def do_kv_cache_update(
        self, layer: torch.nn.Module, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Writes a step's tokens ([tokens, kv_heads, channel]) at their slots, row by row instead of packed."""
        slots = slot_mapping.long()
        key, value = key[: slots.numel()], value[: slots.numel()]
        if bool((slots < 0).any()):
            real = slots >= 0
            slots, key, value = slots[real], key[real], value[real]
        block = kv_cache.shape[2]
        keys, values = self.pool(kv_cache)
        keys[slots // block, :, slots % block] = key
        values[slots // block, :, slots % block] = value

    def others(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, split: Split) -> Tensor:
        rows = split.others
        held = kv_cache[rows.table[rows.table >= 0].long()]
        packed = torch.empty_like(held)
        tokens = torch.arange(held.shape[0] * held.shape[2], device=held.device)
        keys, values = (part.transpose(1, 2).flatten(0, 1).contiguous() for part in self.pool(held))
        super().do_kv_cache_update(layer, keys, values, packed, tokens)
        found = query.new_empty(rows.tokens.numel(), self.num_heads, self.head_size)
        CPUAttentionBackendImpl.forward(
            self, layer, query[rows.tokens].view_as(found), key, value, packed, split.stock, found
        )
        return found
