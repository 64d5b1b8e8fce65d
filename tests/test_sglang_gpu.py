"""SGLang's backend on a GPU, over the fakes: Triton's kernels on slots, eagerly and in CUDA graphs.

Graphs are captured and replayed as SGLang does it: the largest batch first, one pool, two warm runs, static buffers. It
is not SGLang itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import sglang_fakes as fakes
from tests.test_sglang import EVERYTHING, QUEST, expected, started

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    fakes.install(monkeypatch)


def server(program: Any) -> fakes.Server:
    found = started(program, server=fakes.Server(device="cuda", channel=64, group=4), decode="full")
    for keys, values in found.backend.pool.buffers:
        keys[:16], values[:16] = 0.0, 0.0  # rows that pad have page 0
    return found


def check(running: fakes.Server, program: Any, requests: list[int], found: list[tuple[Tensor, Tensor]]) -> None:
    for layer, (q, out) in enumerate(found):
        wanted = expected(running, program, layer, requests, q)
        torch.testing.assert_close(out[: len(requests)], wanted, rtol=5e-3, atol=5e-3)


class Graph:
    """A decode step of `rows` rows through all layers, captured."""

    def __init__(self, running: fakes.Server, rows: int, pool: Any):
        self.running, self.rows = running, rows
        heads, kv_heads, channel = running.kv_heads * running.group, running.kv_heads, running.channel
        zeros: dict[str, Any] = {"device": "cuda"}
        self.given = [
            (torch.zeros(rows, heads * channel, **zeros), *torch.zeros(2, rows, kv_heads, channel, **zeros))
            for _ in range(running.layers)
        ]
        self.batch = SimpleNamespace(
            forward_mode=fakes.ForwardMode.DECODE, req_pool_indices=torch.zeros(rows, dtype=torch.int64, **zeros),
            seq_lens=torch.ones(rows, dtype=torch.int64, **zeros), seq_lens_cpu=torch.ones(rows, dtype=torch.int64),
            out_cache_loc=torch.zeros(rows, dtype=torch.int64, **zeros),
        )  # fmt: skip
        running.backend.init_forward_metadata_out_graph(self.batch, in_capture=True)
        for _ in range(2):
            self._forward()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.out = self._forward()

    def _forward(self) -> list[Tensor]:
        backend = self.running.backend
        return [
            backend.forward_decode(*given, layer, self.batch)
            for given, layer in zip(self.given, self.running.run.model, strict=True)
        ]

    def step(self, requests: list[int]) -> list[tuple[Tensor, Tensor]]:
        batch, queries = self.running.batch(requests, self.rows), []
        for name in ("req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc"):
            getattr(self.batch, name).copy_(getattr(batch, name))
        for number, held in enumerate(self.given):
            fresh = self.running.tokens(number, requests, [1] * len(requests), self.rows)
            queries.append(fresh[0])
            for static, new in zip(held, fresh, strict=True):
                static.copy_(new.view(static.shape))
        self.running.backend.init_forward_metadata_out_graph(self.batch)
        self.graph.replay()
        return [(q, out.cpu()) for q, out in zip(queries, self.out, strict=True)]


@pytest.mark.parametrize("program", [QUEST, EVERYTHING], ids=lambda x: x.name)
def test_eager_steps_are_the_reference(program: Any) -> None:
    running = server(program)
    for _ in range(12):
        check(running, program, [1, 2], running.decode([1, 2]))


def test_graphs_are_the_reference() -> None:
    """Whatever ran in between: graphs of other batches, eager steps, prompts."""
    running, pool = server(QUEST), torch.cuda.graph_pool_handle()
    running.backend.init_cuda_graph_state(4, 4)
    graphs = {rows: Graph(running, rows, pool) for rows in (4, 2, 1)}
    for rows, requests in ((2, [1, 2]), (4, [2, 1]), (1, [1]), (2, [2, 1])) * 3:
        check(running, QUEST, requests, graphs[rows].step(requests))
        check(running, QUEST, [1, 2], running.decode([1, 2]))
    running.admit(3, like=1, pages=11)
    running.extend({3: 20})
    for rows in (4, 4, 4):
        check(running, QUEST, [3, 1, 2], graphs[rows].step([3, 1, 2]))
