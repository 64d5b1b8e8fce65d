"""The rows of one of vLLM's steps, divided by what they are.

A row decodes when it is past its prompt and brings one token; it attends through the program, or densely where the gate
says so. All others (prompts, their chunks, what is computed again after a preemption) go through the stock kernels in
the same step, so without a gate what a request gets does not depend on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vortexlab.deploy.vllm.pages import Rows
from vortexlab.deploy.vllm.requests import Continued, Requests
from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.gate import Gate


@dataclass
class Split:
    """`all` rows, and whether each brings just one token (`one_each`); those that decode, and whether they do so by the
    program (`sparse`); the others. `stock`: metadata of the others alone for the stock kernels, None where there are
    none. `continued`: which requests decode; None for a program that carries nothing."""

    all: Rows
    one_each: bool
    decoding: Rows
    sparse: bool
    others: Rows
    stock: Any = None
    continued: Continued | None = None

    @staticmethod
    def of(common: Any, block: int, gate: Gate | None, requests: Requests | None = None) -> Split:
        """Of vLLM's `CommonAttentionMetadata`. Rows are told apart on the host, once for all layers. `requests`: those
        of the engine, where the program carries something.

        Raises `VortexError` where it does not say which rows are in prefill.
        """
        if common.is_prefilling is None:
            raise VortexError("vLLM did not say which rows are in prefill; a sparse pattern cannot tell prompts apart")
        device = common.seq_lens.device
        starts = common.query_start_loc_cpu
        fresh = (starts[1:] - starts[:-1]).long()
        prefilling = common.is_prefilling[: fresh.numel()].cpu()
        decodes = (fresh == 1) & ~prefilling
        others = (fresh > 0) & ~decodes

        def some(mask: Tensor) -> Rows:
            rows = mask.nonzero()[:, 0].to(device)
            return Rows.of(rows, common.query_start_loc, common.seq_lens, common.block_table_tensor, block)

        decoding = some(decodes)
        count = decoding.lengths.numel()
        sparse = count > 0 and (gate is None or gate.is_sparse(count, int(decoding.lengths.max())))
        real = fresh > 0
        continued = None if requests is None else requests.step(decoding, common.slot_mapping, block)
        return Split(some(real), bool((fresh[real] == 1).all()), decoding, sparse, some(others), continued=continued)


def alone(common: Any, rows: Rows, table: Tensor) -> Any:
    """vLLM's metadata of some rows alone, with a block table ([rows, blocks]) of their own."""
    counts = rows.fresh.cpu()
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    return common.replace(
        query_start_loc=starts.to(rows.lengths.device),
        query_start_loc_cpu=starts,
        seq_lens=rows.lengths,
        num_reqs=rows.lengths.numel(),
        num_actual_tokens=rows.tokens.numel(),
        max_query_len=int(counts.max()),
        max_seq_len=int(rows.lengths.max()),
        block_table_tensor=table,
        slot_mapping=common.slot_mapping[rows.tokens],
        # What else is said of rows is said of all of them, and is not needed.
        seq_lens_cpu_upper_bound=rows.lengths.cpu(),
        is_prefilling=None,
        positions=None,
        req_idx=None,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )
