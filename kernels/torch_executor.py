"""The torch executor: a program's typed form evaluated with whole-batch tensor ops, on any torch device.

It touches fewer bytes than dense attention: summaries are read once, a few pages at a time, and only selected pages
of K and V are read at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cache import PagedKV, Rows
from vortexlab.kernels.compiled import Compiled
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.lanes import lanes
from vortexlab.kernels.memory import Carry, Memory, Turn
from vortexlab.kernels.precision import check_cache, is_fp8, scaled, stored_dtype
from vortexlab.kernels.torch_attend import Workspace, attend
from vortexlab.kernels.torch_output import Attending
from vortexlab.kernels.torch_prefill import prefill
from vortexlab.kernels.torch_shapes import Value
from vortexlab.kernels.torch_step import SWEEP_BYTES, Step, Summaries


@dataclass
class PageState:
    """Summaries by physical page: field name -> [kv_heads, physical pages, *the field's axes].

    Summaries in fp8 have `scales` beside them, fp32 [kv_heads, physical pages].
    """

    fields: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)


class TorchExecutor:
    """Runs a bound program on one layer; see `vortexlab.kernels.executor.Executor`."""

    def __init__(self, program: Program, static: Static):
        if not program.is_bound:
            raise VortexError(f"program {program.name} still has knobs; bind it before running it")
        self.program, self.static = program, replace(static, prefill=False)
        self._page = program.page_size
        self._compiled: dict[tuple[bool, bool], Compiled] = {}
        self._workspace = Workspace()
        self.compiled(torch.float32).constants(torch.device("cpu"))  # what is wrong with parameters is said at once

    def compiled(self, cache_dtype: torch.dtype, in_prefill: bool = False) -> Compiled:
        """The program as it runs over a cache of this precision."""
        key = (is_fp8(stored_dtype(self.program, cache_dtype)), in_prefill)
        if key not in self._compiled:
            self._compiled[key] = Compiled(self.program, replace(self.static, prefill=in_prefill), key[0])
        return self._compiled[key]

    # summaries

    def new_state(self, cache: PagedKV) -> PageState:
        self._check(cache)
        slots = cache.physical_pages(self._page)
        dtype, form = stored_dtype(self.program, cache.k.dtype), self.compiled(cache.k.dtype)
        state = PageState({})
        for name, index in form.program.live_fields().items():
            shape = [form.sizes[index][axis] for axis in form.program.nodes[index].type.axes]
            with torch.inference_mode(False):  # so that it may be written in either mode
                state.fields[name] = torch.zeros(cache.kv_heads, slots, *shape, dtype=dtype, device=cache.k.device)
                if is_fp8(dtype):
                    state.scales[name] = torch.ones(cache.kv_heads, slots, device=cache.k.device)
        return state

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
        rows = ((lengths % self._page == 0) & (lengths > 0)).nonzero()[:, 0]
        if state.fields and rows.numel():
            self._write(state, cache, rows, lengths[rows] // self._page - 1)

    def _write(self, state: PageState, cache: PagedKV, rows: Tensor, pages: Tensor) -> None:
        """Summarises logical page `pages[i]` of request `rows[i]` for every i."""
        form = self.compiled(cache.k.dtype)
        keys = Rows(cache.k, self._page)
        values = keys if cache.is_shared else Rows(cache.v, self._page)
        slots = cache.page_table(self._page)[rows, pages]
        indices = form.default.page
        widest = max(form.widths[i] for i in indices)
        chunk = max(1, SWEEP_BYTES.get(cache.k.device.type, 1 << 24) // (4 * cache.kv_heads * widest))
        constants: dict[int, Value] = {i: x.transpose(0, 1) for i, x in form.constants(cache.k.device).items()}

        def write(part: slice) -> None:
            leaves = dict(constants)
            for index in indices:
                op = form.program.nodes[index].op
                if op in ("k", "v"):
                    tokens = _tokens(keys if op == "k" else values, cache, self._page, rows[part], pages[part])
                    leaves[index] = tokens if op == "k" else tokens[..., : cache.value_dim]
            found = form.settled(indices, leaves)
            for name, stored in state.fields.items():
                result = found[form.program.fields[name]]
                if not isinstance(result, Tensor):
                    result = torch.tensor(float(result), device=stored.device)
                result = result.expand(cache.kv_heads, slots[part].numel(), *stored.shape[2:])
                if name in state.scales:
                    result, scale = scaled(result, stored.dtype, 2)
                    state.scales[name][:, slots[part]] = scale
                stored[:, slots[part]] = result.to(stored.dtype)

        with lanes(cache.k.device) as open_lanes:
            open_lanes.run(write, [slice(start, start + chunk) for start in range(0, rows.numel(), chunk)])

    # steps

    def new_memory(self, cache: PagedKV, rows: int | None = None, carry: Carry | None = None) -> Memory:
        """Memory for `rows` requests (the cache's by default) in this layer; layers share one `carry`."""
        form = self.compiled(cache.k.dtype)
        count = cache.batch if rows is None else rows
        return Memory(form.program, self.static, count, cache.kv_heads, cache.k.device, carry or Carry())

    def select(self, q: Tensor, state: PageState, cache: PagedKV, memory: Memory | None = None) -> PageLists:
        """The memory stays as it is: only `decode` moves it on."""
        form = self.compiled(cache.k.dtype)
        rows = cache.busy()
        if rows is not None:
            if not rows:
                return self._nothing(form, cache)
            with nullcontext() if memory is None else memory.only(rows, cache.batch):
                return self.select(q[rows], state, cache.part(rows), memory).spread(rows, cache.batch)
        return self._step(form, q, state, cache, memory, [form.program.output, *form.attended], False)[0]

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        """Raises `VortexError` for a program with an attention output of its own."""
        if not self.compiled(cache.k.dtype).is_plain:
            raise VortexError(f"program {self.program.name} attends by itself; decode it in one call")
        rows = cache.busy()
        if rows is not None:
            out = q.new_zeros(*q.shape[:2], cache.value_dim)
            if rows:
                some = PageLists(lists.pages[rows], lists.counts[rows])
                out[rows] = self.attend(q[rows], cache.part(rows), some)
            return out
        return attend(q, cache, lists, self._page, self.static.scale, self._workspace)

    def decode(
        self, q: Tensor, state: PageState, cache: PagedKV, memory: Memory | None = None
    ) -> tuple[Tensor, PageLists]:
        form, rows = self.compiled(cache.k.dtype), cache.busy()
        if rows is not None:
            out = q.new_zeros(*q.shape[:2], cache.value_dim)
            if not rows:
                return out, self._nothing(form, cache)
            with nullcontext() if memory is None else memory.only(rows, cache.batch):
                out[rows], lists = self.decode(q[rows], state, cache.part(rows), memory)
            return out, lists.spread(rows, cache.batch)
        with lanes(q.device):
            if form.is_plain and not form.carried:
                lists = self.select(q, state, cache)
                return self.attend(q, cache, lists), lists
            roots = [form.program.output, *form.attended]
            if not form.is_plain:
                assert form.program.result is not None
                roots.append(form.program.result)
            lists, own = self._step(form, q, state, cache, memory, roots, True)
            if own is None:
                return self.attend(q, cache, lists), lists
            return own.reshape(*q.shape[:2], -1).to(q.dtype), lists

    @staticmethod
    def _nothing(form: Compiled, cache: PagedKV) -> PageLists:
        """The lists of a batch without a request."""
        shape = (cache.batch, cache.kv_heads, form.lists)
        make = torch.zeros(*shape, dtype=torch.int32, device=cache.k.device)
        return PageLists(make.new_zeros(*shape, 0), make)

    def prefill(
        self,
        q: Tensor,
        cache: PagedKV,
        state: PageState | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, list[PageLists]]:
        """The prompts of all rows: q [batch, query_heads, tokens, channel] holds a query for every token of the cache
        (those past a row's length are ignored); returns [batch, query_heads, tokens, value channel] and the lists of
        each block, none where prefill is dense. `state`: summaries of the complete pages, made here by default.
        """
        self._check(cache)
        if state is None and self.program.pooled is not None:
            state = self.new_state(cache)
            self.summarize(state, cache)
        form = self.compiled(cache.k.dtype, True)
        if memory is None:
            memory = Memory(form.program, self.static, cache.batch, cache.kv_heads, cache.k.device, Carry())
        with lanes(q.device) as open_lanes:
            summaries = None if state is None else Summaries(state.fields, state.scales)
            return prefill(form, q, cache, summaries, memory, open_lanes, self._workspace)

    def _step(
        self,
        form: Compiled,
        q: Tensor,
        state: PageState,
        cache: PagedKV,
        memory: Memory | None,
        roots: Sequence[int],
        moves: bool,
    ) -> tuple[PageLists, Tensor | None]:
        """Evaluates `roots`: the lists and, where it is one of them, the program's own output.

        With `moves` what is to be remembered is computed too, and remembered.
        """
        self._check(cache)
        program, lengths = form.program, cache.lengths.tolist()
        whole = not form.is_plain or bool(form.carried)
        with lanes(q.device) as open_lanes:
            given, turn = form.constants(q.device), None
            if form.carried:
                if memory is None:
                    raise VortexError(
                        f"program {program.name} remembers; give the step a memory made by new_memory(cache)"
                    )
                memory.carry.enter((False, *lengths))
                pages = max(1, (max(lengths) - 1) // self._page)
                turn = Turn.begin(memory, form.static, form.carried, lengths, pages)
                given = {**given, **turn.given}
                roots = [*roots, *(turn.roots if moves else [])]
            query = q.reshape(q.shape[0], cache.kv_heads, -1, q.shape[-1]).float()
            step = Step(
                program,
                form.static,
                form.plan(roots, given),
                form.kernels,
                form.widths,
                q=query,
                summaries=Summaries(state.fields, state.scales),
                table=cache.page_table(self._page),
                lengths=cache.lengths.long(),
                exact=[form.scalars(length) for length in lengths],
                lanes=open_lanes,
                given=given,
                kept=turn.kept if turn else None,
                whole=whole,
            )
            own = torch.arange(step.candidates + 1, device=q.device) == step.own[:, None]
            step.attention = Attending(query[:, :, None], cache, own, {}, None, self._workspace)
            own = own[:, None, None]
            chosen = own
            if step.candidates:
                step.run()
                for index in {program.output, *form.attended}:
                    chosen = chosen | step.values[index]
            found = PageLists.from_mask(chosen.expand(q.shape[0], cache.kv_heads, form.lists, -1))
            if turn is not None and moves:
                turn.end(step.values, step.own)
            out = None
            if program.result in roots:
                assert program.result is not None
                out = form.as_output(step.values[program.result])
            return found, out

    def _check(self, cache: PagedKV) -> None:
        check_cache(self.program, cache.k.dtype)
        wanted = (self.static.kv_heads, self.static.head_dim, self.static.value_dim)
        if (cache.kv_heads, cache.head_dim, cache.value_dim) != wanted:
            raise VortexError(
                f"the cache has {cache.kv_heads} KV heads with keys of {cache.head_dim} and values of "
                f"{cache.value_dim} channels; the executor was made for {wanted[0]}, {wanted[1]} and {wanted[2]}"
            )


def _tokens(rows: Rows, cache: PagedKV, page_size: int, row: Tensor, page: Tensor) -> Tensor:
    """The tokens of complete pages as fp32 [kv_heads, pages, token, channel]."""
    per_page, per_block = page_size // rows.atom, cache.block // rows.atom
    atoms = page[:, None] * per_page + torch.arange(per_page, device=page.device)
    blocks = cache.table.long()[row[:, None], atoms // per_block]
    heads = torch.arange(cache.kv_heads, device=page.device)[:, None, None]
    index = rows.index(blocks, heads, atoms % per_block)
    found = rows.memory.index_select(0, index.flatten()).float()
    return found.view(cache.kv_heads, page.numel(), page_size, rows.channel)
