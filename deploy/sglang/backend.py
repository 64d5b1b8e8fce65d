"""SGLang's Triton attention backend with the decode step of a program. It has not been run on hardware yet.

SGLang runs a batch either as prompts (extend) or as a decode step. Prompts, their chunks and what is computed again
after a retraction go through the stock kernels, and the pages that they complete are summarised layer by layer; decode
steps attend through the program. In both the pool is written before it is read, so a page's summary is renewed by the
step that writes its last token.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

from vortexlab.deploy.sglang.checks import Pattern, check_engine, layers_of
from vortexlab.deploy.sglang.pages import GraphSteps, LayerPages, Step, filled, page_table
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static

logger = logging.getLogger(__name__)
#: Arguments of an attention call that change its meaning.
_REFUSED = {"sinks": "sinks", "score_mod": "a score of its own", "aux_tensors": "a score of its own"}


class SparseBackend(TritonAttnBackend):
    """`runner` is SGLang's ModelRunner. Raises `VortexError` for what `checks` refuses."""

    needs_cpu_seq_lens = True  # eager steps are as wide as their longest row, and the gate looks at it

    def __init__(self, runner: Any, pattern: Pattern):
        check_engine(pattern, runner)
        super().__init__(runner)
        self.pattern, self.page = pattern, pattern.program.page_size
        self.pool = runner.token_to_kv_pool
        layers = layers_of(runner.model)
        self.pages = {layer.layer_id: self._layer(layer, len(layers)) for layer in layers}
        self.graphs: GraphSteps | None = None
        self.step: Step | None = None
        self.filled: Tensor | None = None
        held = sum(layer.bytes for layer in self.pages.values()) / 2**20
        logger.info("vortex: decode steps run program %s; its summaries take %.0f MiB", pattern.program.name, held)

    def _layer(self, layer: Any, layers: int) -> LayerPages:
        heads, number = layer.tp_k_head_num, layer.layer_id
        static = Static(heads, layer.tp_q_head_num // heads, layer.qk_head_dim, layer.scaling, number, layers)
        return LayerPages(self.pattern.program, static, *self.pool.get_kv_buffer(number))

    # before the layers of a step

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Of a step that runs eagerly."""
        super().init_forward_metadata(forward_batch)
        self.step = self.filled = None
        if forward_batch.forward_mode.is_decode():
            self.step = self._eager(forward_batch)
        elif forward_batch.forward_mode.is_extend():
            self.filled = filled(
                self.req_to_token, forward_batch.req_pool_indices, _on_host(forward_batch, "extend_prefix_lens"),
                _on_host(forward_batch, "extend_seq_lens"), self.page,
            )  # fmt: skip

    def _eager(self, forward_batch: Any) -> Step:
        requests, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        longest, gate = max(_on_host(forward_batch, "seq_lens")), self.pattern.gate
        sparse = gate is None or gate.is_sparse(len(lengths), longest)
        return Step(self._table(requests, lengths, longest), lengths.int(), sparse)

    def _table(self, requests: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """As wide as the longest row, in powers of two: what executors keep by capacity stays little."""
        width = 1 << (-(-longest // self.page) - 1).bit_length()
        return page_table(self.req_to_token, requests, lengths, self.page, min(width, self._widest))

    @property
    def _widest(self) -> int:
        """Pages of the longest request."""
        return -(-self.req_to_token.shape[1] // self.page)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        super().init_cuda_graph_state(max_bs, max_num_tokens)
        self.graphs = GraphSteps(max_bs, self._widest, self.req_to_token.device)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Of a step that is captured, or replayed."""
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        if not forward_batch.forward_mode.is_decode() or self.graphs is None:
            raise VortexError(f"SGLang captures a graph of {forward_batch.forward_mode!r}; a pattern has decode alone")
        self.step = self.graphs.fill(
            self.req_to_token, forward_batch.req_pool_indices, forward_batch.seq_lens, self.page
        )

    # in every layer

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **given: Any
    ) -> Tensor:
        """The stock kernels, and the summaries of what they completed."""
        self._check(k, forward_batch, given)
        out = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **given)
        if self.filled is None:
            raise VortexError("SGLang runs a prompt whose metadata was never made; a pattern cannot follow its pages")
        keys, values = self.pool.get_kv_buffer(layer.layer_id)
        self.pages[layer.layer_id].summarize(keys, values, self.filled)
        return out

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **given: Any
    ) -> Tensor:
        """The program's step: q [rows, query_heads * channel]; the same shape is returned."""
        self._check(k, forward_batch, given)
        if self.step is None:
            raise VortexError("SGLang decodes a batch whose metadata was never made; a pattern cannot tell its pages")
        pages, (keys, values) = self.pages[layer.layer_id], self.pool.get_kv_buffer(layer.layer_id)
        if not self.step.sparse:
            out = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **given)
            pages.renew(keys, values, self.step)
            return out
        if save_kv_cache:
            self.pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch), k, v, layer.k_scale, layer.v_scale)
        cache = pages.renew(keys, values, self.step)
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        captured = self.graphs if self.graphs is not None and self.graphs.holds(self.step) else None
        return pages.decode(query, cache, captured).reshape(query.shape[0], -1)

    @staticmethod
    def _check(k: Tensor | None, forward_batch: Any, given: dict[str, Any]) -> None:
        for name, what in _REFUSED.items():
            if given.get(name) is not None:
                raise VortexError(f"the model's attention has {what}, which a pattern cannot express")
        if k is None:
            raise VortexError("the model has layers that share a KV cache, which a pattern does not read in SGLang")
        if forward_batch.forward_mode.is_mixed():
            raise VortexError("SGLang mixes prompts and decode steps in a batch; turn --enable-mixed-chunk off")


def _on_host(forward_batch: Any, name: str) -> list[int]:
    """A batch's numbers on the host, from its mirror where it has one."""
    mirror = getattr(forward_batch, f"{name}_cpu")
    found = getattr(forward_batch, name) if mirror is None else mirror
    return found.tolist() if isinstance(found, torch.Tensor) else list(found)
