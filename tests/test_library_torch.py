"""Every published program on the torch executor against the reference, step by step and layer by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from library_runs import CASES, PREFILLS, Run, bound_run, prefill_queries
from torch import Tensor

from vortexlab.dsl.reference import decode_steps
from vortexlab.dsl.reference_prefill import prefill
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.torch_executor import TorchExecutor


def in_fp32(run: Run) -> Run:
    """Inputs that both sides hold exactly."""
    run.q = run.q.float()
    run.keys, run.values = [k.float() for k in run.keys], [v.float() for v in run.values]
    return run


def paged(run: Run, layer: int, tokens: int) -> PagedKV:
    """The first tokens of a layer in a cache with scattered blocks."""
    k, v = run.keys[layer][:, :tokens], run.values[layer][:, :tokens]
    return PagedKV.from_dense([k], [v], run.program.page_size, shuffle_seed=1)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_decode_agrees_with_the_reference(name: str, shape: str, tmp_path: Path) -> None:
    run = in_fp32(bound_run(name, shape, tmp_path))
    wanted = decode_steps(run.program, run.static, run.q, run.keys, run.values, cache_dtype=torch.float32)
    layers = range(run.static.layers)
    executors = [TorchExecutor(run.program, replace(run.static, layer=layer)) for layer in layers]
    carry = Carry()
    first = [paged(run, layer, run.keys[layer].shape[1]) for layer in layers]
    memories = [executor.new_memory(cache, carry=carry) for executor, cache in zip(executors, first, strict=True)]
    for step, of_layers in enumerate(wanted):
        for layer, selection in enumerate(of_layers):
            cache = paged(run, layer, run.keys[layer].shape[1] - (len(wanted) - 1 - step))
            state = executors[layer].new_state(cache)
            executors[layer].summarize(state, cache)
            output, lists = executors[layer].decode(run.q[step, layer][None], state, cache, memories[layer])
            what = (name, step, layer)
            found = [[tuple(pages) for pages in per_kv] for per_kv in lists.to_list()[0]]
            assert found == selection.lists, what
            assert selection.output is not None
            close(output[0], selection.output, what)


@pytest.mark.parametrize("name", PREFILLS)
def test_prefill_agrees_with_the_reference(name: str, tmp_path: Path) -> None:
    run = in_fp32(bound_run(name, "one_by_one" if name == "nsa" else "two_by_three", tmp_path, tokens=205))
    q = prefill_queries(run).float()
    for layer in range(run.static.layers):
        static = replace(run.static, layer=layer)
        wanted = prefill(run.program, static, q, run.keys[layer], run.values[layer], cache_dtype=torch.float32)
        output, blocks = TorchExecutor(run.program, static).prefill(q[None], paged(run, layer, q.shape[1]))
        assert len(blocks) == len(wanted.blocks)
        for lists, block in zip(blocks, wanted.blocks, strict=True):
            assert [[tuple(pages) for pages in per_kv] for per_kv in lists.to_list()[0]] == block.lists, block.start
        close(output[0], wanted.output, (name, layer))


def close(found: Tensor, wanted: Tensor, what: object) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=2e-4, atol=2e-5, msg=lambda text: f"{what}: {text}")
