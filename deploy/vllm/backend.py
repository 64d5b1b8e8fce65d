"""vLLM's CPU attention backend with the decode step of a program.

A row decodes when it is past its prompt and brings one token; it attends through the program. All others (prompts,
their chunks, what is computed again after a preemption) go through the stock kernels, in the same step, so what a
request gets does not depend on what else is in the batch.

The stock kernels pack keys in an order of their own. Here the pool is in vLLM's logical layout, row by row, which
executors read in place; the stock kernels are given a packed copy of the rows that are not decoding.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)

from vortexlab.deploy import package
from vortexlab.deploy.vllm.pages import LayerPages, Rows
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.lanes import one_lane

#: The key of `additional_config` whose value is the folder of an exported package.
KEY = "vortex"
logger = init_logger(f"vllm.{KEY}")  # vLLM shows what its own loggers say


@functools.cache
def _read(folder: str) -> Program:
    """Read once: the package of an engine does not change while it runs."""
    found = package.read(Path(folder)).program
    if found.has_memory:
        raise VortexError(
            f"program {found.name} carries something from step to step, and vLLM's attention metadata does not name "
            "requests; deploy it with transformers, or choose a program without memory and reuse"
        )
    package.check_program(found, "vllm")
    return found


def program_of(config: VllmConfig) -> Program | None:
    """The program that an engine was given by ``additional_config={"vortex": FOLDER}``; None where it was not.

    Raises `VortexError` for a folder that holds no package, and for an engine or a program that do not go together.
    """
    given = config.additional_config
    folder = given.get(KEY) if isinstance(given, dict) else None
    if folder is None:
        return None
    refused = {
        "a KV connector, whose blocks arrive without their summaries": config.kv_transfer_config is not None,
        "speculative decoding": config.speculative_config is not None,
        "several devices": config.parallel_config.world_size > 1,
    }
    for what, is_so in refused.items():
        if is_so:
            raise VortexError(f"a sparse pattern does not work with {what} in vLLM; turn it off")
    return _read(str(folder))


class SparseBackend(CPUAttentionBackend):
    """The stock backend where no program was given."""

    @staticmethod
    def get_impl_cls() -> type[CPUAttentionBackendImpl]:
        return SparseImpl if program_of(get_current_vllm_config()) else CPUAttentionBackendImpl

    @staticmethod
    def get_builder_cls() -> type[CPUAttentionMetadataBuilder]:
        return SparseBuilder


@dataclass
class Split:
    """The rows of one step: `all` with the number of tokens that each brings (`fresh`, int64 [rows]), those that
    decode, and the others, with what the stock kernels need to read them from a packed copy."""

    all: Rows
    fresh: Tensor
    decoding: Rows
    others: Rows
    stock: CPUAttentionMetadata | None  # None where every row decodes


@dataclass
class SparseMetadata(CPUAttentionMetadata):
    """The stock metadata of the whole step and how it is divided."""

    split: Split | None = None


class SparseBuilder(CPUAttentionMetadataBuilder):
    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        whole = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if program_of(self.vllm_config) is None:
            return whole
        common = common_attn_metadata
        if common.is_prefilling is None:
            raise VortexError("vLLM did not say which rows are in prefill; a sparse pattern cannot tell prompts apart")
        starts, lengths, table = common.query_start_loc, common.seq_lens, common.block_table_tensor
        fresh = (starts[1:] - starts[:-1]).long()
        decodes = (fresh == 1) & ~common.is_prefilling[: fresh.numel()]

        def some(mask: Tensor) -> Rows:
            return Rows.of(mask.nonzero()[:, 0], starts, lengths, table, self.block_size)

        others = (fresh > 0) & ~decodes
        split = Split(some(fresh > 0), fresh[fresh > 0], some(decodes), some(others), None)
        if others.any():
            split.stock = self._stock(common, split.others, fresh[others])
        return SparseMetadata(**{**vars(whole), "split": split})

    def _stock(self, common: CommonAttentionMetadata, rows: Rows, fresh: Tensor) -> CPUAttentionMetadata:
        """Metadata of some rows alone, whose blocks are numbered one after the other."""
        starts = torch.nn.functional.pad(fresh.cumsum(0), (1, 0)).int()
        held = rows.table >= 0
        table = torch.where(held, held.flatten().cumsum(0).view_as(held) - 1, 0).int()
        return super().build(
            0,
            common.replace(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=rows.lengths,
                num_reqs=rows.lengths.numel(),
                num_actual_tokens=rows.tokens.numel(),
                max_query_len=int(fresh.max()),
                max_seq_len=int(rows.lengths.max()),
                block_table_tensor=table,
                slot_mapping=common.slot_mapping[rows.tokens],
            ),
        )


class SparseImpl(CPUAttentionBackendImpl):
    """One layer's attention; the program is the engine's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config()
        program = program_of(config)
        assert program is not None
        refused = {
            "a sliding window": self.sliding_window != -1,
            "soft capping": bool(self.logits_soft_cap),
            "sinks": self.sinks is not None,
            "ALiBi": self.alibi_slopes is not None,
            "layers that share a KV cache": self.kv_sharing_target_layer_name is not None,
            "a quantised KV cache": self.is_fp8_kv_cache,
            "cross or encoder attention": self.attn_type != AttentionType.DECODER,
        }
        for what, is_so in refused.items():
            if is_so:
                raise VortexError(f"the model's attention has {what}, which a pattern cannot express")
        self.program = program
        self.layers = config.model_config.get_total_num_hidden_layers()
        self.pages: LayerPages | None = None

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
        kv_cache[slots // block, :, slots % block] = torch.cat((key, value), -1)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        split = getattr(attn_metadata, "split", None)
        if split is None:  # vLLM's warm-up
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
        if output_scale is not None or output_block_scale is not None:
            raise VortexError("a sparse pattern has no quantised output in vLLM; turn the fusion of attention off")
        with one_lane():  # the worker's threads are vLLM's
            if self.pages is None:
                self.pages = self._pages(layer)
            self.pages.refresh(split.all.cache(kv_cache), split.fresh)
            if split.stock is not None:
                tokens = split.others.tokens
                found = torch.empty_like(output[tokens])
                packed = self._packed(layer, kv_cache, split.others)
                super().forward(layer, query[tokens], key, value, packed, split.stock, found)
                output[tokens] = found
            if split.decoding.tokens.numel():
                tokens = split.decoding.tokens
                output[tokens] = self.pages.decode(query[tokens], split.decoding.cache(kv_cache))
        return output

    def _pages(self, layer: Any) -> LayerPages:
        number = extract_layer_index(layer.layer_name)
        static = Static(self.num_kv_heads, self.num_queries_per_kv, self.head_size, self.scale, number, self.layers)
        if number == 0:
            logger.info("vortex: decode steps run program %s", self.program.name)
        return LayerPages(self.program, static)

    def _packed(self, layer: Any, kv_cache: Tensor, rows: Rows) -> Tensor:
        """A pool of these rows' blocks, one after the other, as the stock kernels write it."""
        blocks = kv_cache[rows.table[rows.table >= 0].long()]
        tokens = blocks.transpose(1, 2).flatten(0, 1)
        packed = torch.empty_like(blocks)
        slots = torch.arange(tokens.shape[0], device=tokens.device)
        channel = self.head_size
        key, value = tokens[..., :channel].contiguous(), tokens[..., channel:].contiguous()
        super().do_kv_cache_update(layer, key, value, packed, slots)
        return packed
