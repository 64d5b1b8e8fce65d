"""A step's metadata with its rows divided: a mixin in front of one of vLLM's stock builders."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vortexlab.deploy.vllm.checks import pattern_of
from vortexlab.deploy.vllm.requests import Requests, slots
from vortexlab.deploy.vllm.split import Split, alone


class SparseBuilding:
    """Put before a stock `AttentionMetadataBuilder` among the bases; `metadata` is the stock class with a `split`."""

    metadata: type
    vllm_config: Any
    block_size: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pattern = pattern_of(self.vllm_config)
        self.requests: Requests | None = None
        if self.pattern is not None and self.pattern.program.has_memory:
            self.requests = Requests(slots(self.vllm_config))

    def table(self, held: Tensor) -> Tensor:
        """The block table for the stock kernels of the rows that do not decode; `held` [rows, blocks], -1 past each
        length, is the one of the pool."""
        raise NotImplementedError

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        whole = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        if self.pattern is None:
            return whole
        split = Split.of(common_attn_metadata, self.block_size, self.pattern.gate, self.requests)
        if split.others.tokens.numel():
            others = alone(common_attn_metadata, split.others, self.table(split.others.table))
            split.stock = super().build(0, others)  # type: ignore[misc]
        return self.metadata(**{**vars(whole), "split": split})
