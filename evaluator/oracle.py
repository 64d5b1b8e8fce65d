"""The best that page selection could do: pages by the attention mass they truly hold. An upper bound, no program.

It reads every key to decide what to read, so it has no speed; it has the interface of an executor, so that it is
asked the same questions along the same path.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.fidelity import page_mass
from vortexlab.evaluator.traits import forced_part
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.torch_executor import TorchExecutor


class OracleExecutor(TorchExecutor):
    """Reads what its program reads whatever the scores and, beside that, as many candidates as the program chooses:
    those that hold the largest attention mass, summed over the query heads of the KV head.

    Takes programs that `traits.without_oracle` says nothing against.
    """

    def __init__(self, program: Program, static: Static):
        super().__init__(program, static)
        self._forced = TorchExecutor(forced_part(program), static)

    def select(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> PageLists:
        page = self.program.page_size
        most = (int(cache.lengths.max()) - 1) // page + 1
        forced = self._forced.select(q, state, cache).to_mask(most)
        budget = super().select(q, state, cache).counts - forced.sum(-1)
        mass = torch.full(forced.shape, -1.0, device=q.device)
        for row in range(cache.batch):
            held = page_mass(q[row], cache, row, page, self.static.scale).sum(1)
            mass[row, :, 0, : held.shape[-1]] = held
        mass.masked_fill_(forced, -1.0)
        rank = mass.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return PageLists.from_mask(forced | (rank < budget[..., None]))
