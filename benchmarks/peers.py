"""The kernels that ours are compared with, on the same memory: FlashInfer and torch. Neither has to be installed to
import this; `PeerMissing` says what is missing where one is asked for.

FlashInfer's kernels can be compiled on a machine without a GPU: scripts/build_flashinfer.sh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from gpu_times import Cell
from torch import Tensor

from vortexlab.dsl.ir import Static
from vortexlab.kernels.cache import PagedKV

#: Bytes of FlashInfer's workspace for the parts of split requests.
_WORKSPACE = 512 << 20


class PeerMissing(Exception):
    """A peer that this machine does not have."""


def flashinfer() -> Any:
    """The package. Raises `PeerMissing` where it cannot be imported."""
    try:
        import flashinfer
    except ImportError as error:
        raise PeerMissing(f"not installed ({error})") from error
    return flashinfer


def flashinfer_version() -> str:
    try:
        return str(flashinfer().__version__)
    except PeerMissing:
        return "not installed"


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    return torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)


def paged_decode(cell: Cell, block: int, tensor_cores: bool) -> Callable[[int], Tensor]:
    """FlashInfer's paged decode of a layer of the cell, planned here and once: layers share their table."""
    wrapper = flashinfer().BatchDecodeWithPagedKVCacheWrapper(
        _workspace(cell.device), cell.pool.layout, use_tensor_cores=tensor_cores,
        **({"backend": "fa2"} if tensor_cores else {}),
    )  # fmt: skip
    g, table = cell.geometry, cell.table(block)
    counts = {"dtype": torch.int32, "device": cell.device}
    indptr = torch.arange(cell.batch + 1, **counts) * table.shape[1]  # type: ignore[call-overload]
    wrapper.plan(
        indptr.int(), table.flatten().contiguous(), torch.full((cell.batch,), block, **counts),  # type: ignore[call-overload]
        g.heads, g.kv_heads, g.head_dim, block, pos_encoding_mode="NONE", q_data_type=torch.bfloat16,
        kv_data_type=torch.bfloat16, sm_scale=cell.scale,
    )  # fmt: skip
    outs = [torch.empty_like(query) for query in cell.queries]
    layers = [cell.blocks(layer, block) for layer in range(cell.layers)]
    return lambda layer: wrapper.run(cell.queries[layer], layers[layer], out=outs[layer])


def latent_decode(
    static: Static, caches: list[PagedKV], queries: list[Tensor], backend: str
) -> Callable[[int], Tensor]:
    """FlashInfer's MLA decode of a layer (`backend`: "fa2" or "fa3"), planned here and once: layers share their table
    and lengths. Latent and rotary channels are read where they lie, behind each other in the rows of our cache."""
    cache, latent = caches[0], static.latent
    wrapper = flashinfer().mla.BatchMLAPagedAttentionWrapper(_workspace(cache.k.device), backend=backend)
    counts = {"dtype": torch.int32, "device": cache.k.device}
    indptr = torch.arange(cache.batch + 1, **counts)  # type: ignore[call-overload]
    wrapper.plan(
        indptr, indptr * cache.table.shape[1], cache.table.flatten().contiguous(), cache.lengths,
        static.group, latent, static.head_dim - latent, cache.block, False, static.scale,
        queries[0].dtype, cache.k.dtype,
    )  # fmt: skip
    parts = [[x[..., :latent].contiguous(), x[..., latent:].contiguous()] for x in queries]
    stored = [[c.k[:, 0, :, :latent], c.k[:, 0, :, latent:]] for c in caches]
    outs = [torch.empty_like(part[0]) for part in parts]
    return lambda layer: wrapper.run(*parts[layer], *stored[layer], out=outs[layer])


def page_top_k(
    scores: Tensor, table: Tensor, lengths: Tensor, k: int, row_to_batch: Tensor, graph_safe: bool
) -> Callable[[], Tensor]:
    """FlashInfer's fused top-k and page table: scores fp32 [rows, pages] -> physical pages int32 [rows, k]."""
    transform = flashinfer().top_k_page_table_transform
    return lambda: transform(scores, table, lengths, k, row_to_batch=row_to_batch, dsa_graph_safe=graph_safe)


def sdpa(cell: Cell) -> Callable[[int], Tensor]:
    """torch's attention of a layer on contiguous keys and values."""
    layers = [cell.contiguous(layer) for layer in range(cell.layers)]

    def run(layer: int) -> Tensor:
        k, v = layers[layer]
        q = cell.queries[layer][:, :, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=cell.scale, enable_gqa=True)[:, :, 0]

    return run
