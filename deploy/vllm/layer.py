"""One layer's sparse attention in vLLM, on any device: a mixin in front of a stock `AttentionImpl`.

The stock class attends for prompts; a subclass says where keys and values lie in the pool, and how the stock kernels
are given some rows alone.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.distributed import get_world_group
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionType

from vortexlab.deploy.vllm.checks import check_layer, pattern_of
from vortexlab.deploy.vllm.config import KEY
from vortexlab.deploy.vllm.pages import LayerPages
from vortexlab.deploy.vllm.requests import Continued, slots
from vortexlab.deploy.vllm.split import Split
from vortexlab.deploy.vllm.stats import Stats
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.kernels.lanes import one_lane
from vortexlab.kernels.memory import Carry

logger = init_logger(f"vllm.{KEY}")  # vLLM shows what its own loggers say


class Shared:
    """What the layers of a worker have in common: its statistics, the layers themselves, and what those of the step
    under way hand upwards."""

    def __init__(self) -> None:
        self.stats: Stats | None = None
        self.layers: dict[int, LayerPages] = {}
        self._step: Continued | None = None
        self._carry = Carry()

    def carry(self, step: Continued) -> Carry:
        """Of one step: another one starts from nothing."""
        if step is not self._step:
            self._step, self._carry = step, Carry()
        return self._carry

    def end(self, number: int) -> None:
        """After a layer's step; the last one writes."""
        if self.stats is not None and number == max(self.layers):
            self.stats.write(sum(layer.read for layer in self.layers.values()), len(self.layers))


_shared: dict[int, Shared] = {}


def shared(config: VllmConfig) -> Shared:
    """Of the worker's engine: a process may have several, one after the other."""
    if id(config) not in _shared:
        _shared[id(config)] = Shared()
        weakref.finalize(config, _shared.pop, id(config), None)
    return _shared[id(config)]


class SparseLayer:
    """Put before a stock `AttentionImpl` among the bases."""

    num_heads: int
    num_kv_heads: int
    num_queries_per_kv: int
    head_size: int
    scale: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = get_current_vllm_config()
        found = pattern_of(config)
        assert found is not None
        check_layer(self, AttentionType.DECODER)
        self.pattern = found
        self.slots = slots(config)
        self.count = config.model_config.get_total_num_hidden_layers()
        self.shared = shared(config)
        if found.stats is not None and self.shared.stats is None:
            rank = get_world_group().rank
            self.shared.stats = Stats(
                found.name, found.stats.with_stem(f"{found.stats.stem}.{rank}") if rank else found.stats
            )
        self.number = -1
        self.pages: LayerPages | None = None

    def pool(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, views of the layer's pool: two of [blocks, kv_heads, block, channel]."""
        raise NotImplementedError

    def others(self, layer: Any, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, split: Split) -> Tensor:
        """What the stock kernels find for the rows that do not decode: [tokens of these rows, heads, channel]."""
        raise NotImplementedError

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        split: Split | None = getattr(attn_metadata, "split", None)
        if split is None:  # vLLM's warm-up
            return super().forward(  # type: ignore[misc]
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
        if output_scale is not None or output_block_scale is not None:
            raise VortexError("a sparse pattern has no quantised output in vLLM; turn the fusion of attention off")
        with one_lane():  # the worker's threads are vLLM's
            pages = self.pages or self._open(layer, query.device)
            k, v = self.pool(kv_cache)
            pages.refresh(split.all.cache(k, v), split.all.fresh, split.one_each)
            if split.stock is not None:
                output[split.others.tokens] = self.others(layer, query, key, value, kv_cache, split)
            if split.decoding.tokens.numel():
                self._decode(pages, query, split, k, v, output)
            if self.shared.stats is not None:
                if self.number == min(self.shared.layers):
                    self.shared.stats.count(split)
                self.shared.end(self.number)
        return output

    def _decode(self, pages: LayerPages, query: Tensor, split: Split, k: Tensor, v: Tensor, output: Tensor) -> None:
        rows, continued = split.decoding, split.continued
        q, cache = query[rows.tokens].view(-1, self.num_heads, self.head_size), rows.cache(k, v)
        if continued is not None:
            pages.remember(cache, self.slots, continued.slots, continued.begun, self.shared.carry(continued))
        counted = self.shared.stats is not None
        found = pages.decode(q, cache, count=counted) if split.sparse else pages.decode_densely(q, cache)
        output[rows.tokens] = found.view(-1, *output.shape[1:]).to(output.dtype)

    def _open(self, layer: Any, device: torch.device) -> LayerPages:
        self.number = extract_layer_index(layer.layer_name)
        static = Static(self.num_kv_heads, self.num_queries_per_kv, self.head_size, self.scale, self.number, self.count)
        if not self.shared.layers:
            logger.info("vortex: decode steps run program %s", self.pattern.program.name)
        self.pages = self.shared.layers[self.number] = LayerPages(self.pattern.program, static, device)
        return self.pages
