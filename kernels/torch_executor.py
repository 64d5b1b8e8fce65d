"""The torch executor: a program's typed form evaluated with whole-batch tensor ops, on any torch device.

It touches fewer bytes than dense attention: summaries are read once, a few pages at a time, and only selected pages
of K and V are read at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import QUERY_STAGE, SET, Program, Static
from vortexlab.dsl.scalars import scalar_value
from vortexlab.kernels.cache import PagedKV, Rows
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.lanes import lanes
from vortexlab.kernels.lowering import contract
from vortexlab.kernels.plan import make_plan, over_pages
from vortexlab.kernels.torch_attend import Workspace, attend
from vortexlab.kernels.torch_ops import TORCH_DTYPES, Kernel, Value, as_kind, make_kernel, operand_kind
from vortexlab.kernels.torch_step import SWEEP_BYTES, Exact, Step

_LEAVES = ("q", "k", "v", "field", "const", "ctx")


@dataclass
class PageState:
    """Summaries by physical page: field name -> [kv_heads, physical pages, *the field's axes]."""

    fields: dict[str, Tensor]


class TorchExecutor:
    """Runs a bound program on one layer; see `vortexlab.kernels.executor.Executor`."""

    def __init__(self, program: Program, static: Static):
        if not program.is_bound:
            raise VortexError(f"program {program.name} still has knobs; bind it before running it")
        self.program, self.static = program, static
        self._page = program.page_size
        self._lowered = program = contract(program, static)
        self._sizes = program.axis_sizes(static)
        self._widths = [math.prod(sizes.values()) for sizes in self._sizes]
        self._plan = make_plan(program)
        self._kernels: dict[int, Kernel] = {}
        for index in program.live():
            node = program.nodes[index]
            numeric = index not in self._plan.exact and node.type.kind != SET and node.op not in _LEAVES
            if numeric and not over_pages(node):
                self._kernels[index] = make_kernel(program, index, self._sizes)
        query = [i for i in program.live() if i not in self._plan.exact and program.nodes[i].stage == QUERY_STAGE]
        self._read_scalars = sorted({i for index in query for i in program.nodes[index].inputs} & self._plan.exact)
        self._exact: dict[int, dict[int, Exact]] = {}
        self._workspace = Workspace()

    def new_state(self, cache: PagedKV) -> PageState:
        slots = cache.physical_pages(self._page)
        dtype = TORCH_DTYPES.get(self.program.summary_dtype, cache.k.dtype)
        fields = {}
        for name, index in self._lowered.live_fields().items():
            shape = [self._sizes[index][axis] for axis in self._lowered.nodes[index].type.axes]
            with torch.inference_mode(False):  # so that it may be written in either mode
                fields[name] = torch.zeros(cache.kv_heads, slots, *shape, dtype=dtype, device=cache.k.device)
        return PageState(fields)

    def summarize(self, state: PageState, cache: PagedKV, pages: Tensor | None = None) -> None:
        """Raises `VortexError` when `pages` names a page that no row of the table holds complete."""
        if not state.fields:
            return
        table = cache.page_table(self._page)
        complete = cache.lengths.long() // self._page
        number = torch.arange(table.shape[1], device=table.device)
        row, page = (number < complete[:, None]).nonzero(as_tuple=True)
        found, inverse = torch.unique(table[row, page], return_inverse=True)
        # Rows that share a page agree on its tokens: any one of them will do.
        where = torch.empty_like(found).scatter_(0, inverse, torch.arange(row.numel(), device=table.device))
        if pages is not None:
            wanted = pages.to(table.device, torch.int64).flatten()
            at = torch.searchsorted(found, wanted).clamp(max=max(0, found.numel() - 1))
            if wanted.numel() and (not found.numel() or bool((found[at] != wanted).any())):
                raise VortexError("summarize: no row of the table holds one of the given physical pages complete")
            where = where[at]
        self._write(state, cache, row[where], page[where])

    def update(self, state: PageState, cache: PagedKV) -> None:
        lengths = cache.lengths.long()
        rows = (lengths % self._page == 0).nonzero()[:, 0]
        if state.fields and rows.numel():
            self._write(state, cache, rows, lengths[rows] // self._page - 1)

    def select(self, q: Tensor, state: PageState, cache: PagedKV) -> PageLists:
        with lanes(q.device) as open_lanes:
            step = Step(
                self._lowered,
                self.static,
                self._plan,
                self._kernels,
                self._widths,
                q=q.reshape(q.shape[0], cache.kv_heads, -1, q.shape[-1]).float(),
                fields=state.fields,
                table=cache.page_table(self._page),
                lengths=cache.lengths.long(),
                exact=[self._scalars(length) for length in cache.lengths.tolist()],
                lanes=open_lanes,
            )
            lists = self.static.group if self._lowered.nodes[self._lowered.output].type.axes else 1
            shape = (q.shape[0], cache.kv_heads, lists, step.candidates + 1)
            own = torch.arange(step.candidates + 1, device=q.device) == step.own[:, None, None, None]
            chosen = step.run() if step.candidates else own
            return PageLists.from_mask((chosen | own).expand(shape))

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return attend(q, cache, lists, self._page, self.static.scale, self._workspace)

    def decode(self, q: Tensor, state: PageState, cache: PagedKV) -> tuple[Tensor, PageLists]:
        with lanes(q.device):
            lists = self.select(q, state, cache)
            return self.attend(q, cache, lists), lists

    def _scalars(self, length: int) -> dict[int, Exact]:
        """The exact scalars of the query stage for a request of `length` tokens."""
        if length not in self._exact:
            if len(self._exact) >= 1 << 16:
                self._exact.clear()
            self._exact[length] = {i: scalar_value(self._lowered, i, self.static, length) for i in self._read_scalars}
        return self._exact[length]

    def _write(self, state: PageState, cache: PagedKV, rows: Tensor, pages: Tensor) -> None:
        """Summarises logical page `pages[i]` of request `rows[i]` for every i."""
        keys, values = Rows(cache.k, self._page), Rows(cache.v, self._page)
        slots = cache.page_table(self._page)[rows, pages]
        widest = max(self._widths[i] for i in self._plan.page)
        chunk = max(1, SWEEP_BYTES.get(cache.k.device.type, 1 << 24) // (4 * cache.kv_heads * widest))

        def write(part: slice) -> None:
            found: dict[int, Value] = {}
            for index in self._plan.page:
                node = self._lowered.nodes[index]
                if node.op in ("k", "v"):
                    pool = keys if node.op == "k" else values
                    found[index] = _tokens(pool, cache, self._page, rows[part], pages[part])
                elif index in self._plan.exact:
                    found[index] = scalar_value(self._lowered, index, self.static, None)
                else:
                    inputs = []
                    for i in node.inputs:
                        value = found[i]
                        if not isinstance(value, Tensor):
                            value = as_kind(value, operand_kind(self._lowered, node, i))
                        inputs.append(value)
                    found[index] = self._kernels[index](inputs)
            for name, field in state.fields.items():
                result = found[self._lowered.fields[name]]
                if not isinstance(result, Tensor):
                    result = torch.tensor(float(result), device=field.device)
                shape = (cache.kv_heads, slots[part].numel(), *field.shape[2:])
                field[:, slots[part]] = result.to(field.dtype).expand(shape)

        with lanes(cache.k.device) as open_lanes:
            open_lanes.run(write, [slice(start, start + chunk) for start in range(0, rows.numel(), chunk)])


def _tokens(rows: Rows, cache: PagedKV, page_size: int, request: Tensor, page: Tensor) -> Tensor:
    """fp32 [kv_heads, n, token, channel]: the tokens of logical page `page[i]` of request `request[i]`."""
    per_page, per_block = page_size // rows.atom, cache.block // rows.atom
    atoms = page[:, None] * per_page + torch.arange(per_page, device=page.device)
    blocks = cache.table.long()[request[:, None], atoms // per_block]
    heads = torch.arange(cache.kv_heads, device=page.device)[:, None, None]
    index = rows.index(blocks, heads, atoms % per_block)
    found = rows.memory.index_select(0, index.flatten()).float()
    return found.view(cache.kv_heads, page.numel(), page_size, rows.channel)
