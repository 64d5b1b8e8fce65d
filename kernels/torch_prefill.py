"""Prefill over blocks of queries: every block of every request is a row of one batched step.

A block selects with its pooled query among the pages that are complete before it; then each of its queries attends to
the selected pages and, causally, to those that the block touches. Blocks are taken a few at a time, so that what is
held for them stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.compiled import Compiled
from vortexlab.kernels.executor import PageLists, prompt_lengths
from vortexlab.kernels.lanes import Lanes
from vortexlab.kernels.memory import Memory, Turn
from vortexlab.kernels.torch_attend import Workspace, attend_rows
from vortexlab.kernels.torch_output import Attending
from vortexlab.kernels.torch_step import Step, Summaries

#: Numbers that the rows of one batch of blocks may hold for each of their values.
_CHUNK = 1 << 24
#: Queries of a block of dense attention where values are narrower than keys.
_DENSE_BLOCK = 64


@dataclass(frozen=True)
class Chunk:
    """Some blocks of equally many queries: block i is `starts[i]` to `stops[i]` - 1 of request `rows[i]`."""

    rows: list[int]
    starts: list[int]
    stops: list[int]

    @property
    def each(self) -> int:
        return self.stops[0] - self.starts[0]


def prefill(
    form: Compiled,
    q: Tensor,
    cache: PagedKV,
    summaries: Summaries | None,
    memory: Memory,
    lanes: Lanes,
    workspace: Workspace,
) -> tuple[Tensor, list[PageLists]]:
    """See `TorchExecutor.prefill`; `form` is compiled for prefill."""
    lengths = prompt_lengths(q, cache)
    batch, query_heads, tokens = q.shape[:3]
    out = q.new_zeros(batch, query_heads, tokens, cache.value_dim)
    if form.program.pooled is None:
        _dense(form, q, cache, lengths, out)
        return out, []
    assert summaries is not None
    block = int(form.program.block)  # type: ignore[arg-type]
    memory.carry.enter((True, *lengths))
    found: list[list[PageLists | None]] = [[None] * batch for _ in range(-(-max(lengths) // block))]
    for part, chunk in enumerate(_chunks(lengths, block, form, cache.kv_heads)):
        blocks = form if chunk.each == block else form.for_block(chunk.each)
        lists, rows = _Blocks(blocks, q, cache, summaries, memory, lanes, workspace, chunk, part).run()
        for i, (row, start, stop) in enumerate(zip(chunk.rows, chunk.starts, chunk.stops, strict=True)):
            out[row, :, start:stop] = rows[i].flatten(0, 1).to(out.dtype)
            found[start // block][row] = PageLists(lists.pages[i], lists.counts[i])
    return out, [_stacked(of_block) for of_block in found]


def _chunks(lengths: list[int], block: int, form: Compiled, kv_heads: int) -> Iterator[Chunk]:
    """All blocks in order of their beginning, a few at a time; those shorter than a block by themselves."""
    page = form.program.page_size
    found: list[tuple[int, int, int]] = [
        (start, row, min(start + block, length))
        for row, length in enumerate(lengths)
        for start in range(0, length, block)
    ]
    widest = max((form.widths[i] for i in form.program.live() if "page" in form.program.nodes[i].type.axes), default=1)
    each = block if form.per_query else 1
    held: list[tuple[int, int, int]] = []
    for item in sorted(found):
        start, _, stop = item
        cost = (len(held) + 1) * kv_heads * (start // page + 1) * (widest + each * form.static.group)
        queries = (len(held) + 1) * block * kv_heads * form.static.group * form.static.head_dim
        if held and (stop - start != held[0][2] - held[0][0] or max(cost, queries) > _CHUNK):
            yield _chunk(held)
            held = []
        held.append(item)
    if held:
        yield _chunk(held)


def _chunk(held: list[tuple[int, int, int]]) -> Chunk:
    return Chunk([row for _, row, _ in held], [start for start, _, _ in held], [stop for _, _, stop in held])


def _stacked(of_rows: list[PageLists | None]) -> PageLists:
    """One block's lists of all requests; those that have no such block read nothing in it."""
    have = [item for item in of_rows if item is not None]
    most = max(item.pages.shape[-1] for item in have)
    shape, device = have[0].pages.shape[:2], have[0].pages.device
    pages = torch.full((len(of_rows), *shape, most), -1, dtype=torch.int32, device=device)
    counts = torch.zeros((len(of_rows), *shape), dtype=torch.int32, device=device)
    for row, item in enumerate(of_rows):
        if item is not None:
            pages[row, ..., : item.pages.shape[-1]] = item.pages
            counts[row] = item.counts
    return PageLists(pages, counts)


@dataclass
class _Blocks:
    """Some blocks as one batched step."""

    form: Compiled
    q: Tensor
    cache: PagedKV
    summaries: Summaries
    memory: Memory
    lanes: Lanes
    workspace: Workspace
    chunk: Chunk
    part: int

    def run(self) -> tuple[PageLists, Tensor]:
        """The lists of the blocks and their outputs, fp32 [blocks, kv_heads, group, each, value channel]."""
        form, chunk, device = self.form, self.chunk, self.q.device
        program, page = form.program, form.program.page_size
        rows, heads, each = len(chunk.rows), self.cache.kv_heads, chunk.each
        q = torch.stack(
            [self.q[r, :, a:b] for r, a, b in zip(chunk.rows, chunk.starts, chunk.stops, strict=True)]
        ).float()
        q = q.unflatten(1, (heads, -1))
        constants, pooled = form.constants(device), form.pool(q)

        first = torch.tensor(chunk.starts, device=device)
        stops = torch.tensor(chunk.stops, device=device)
        turn = Turn.begin(
            self.memory, form.static, form.carried, [s + 1 for s in chunk.starts], max(1, max(chunk.starts) // page),
            self.part,
        )  # fmt: skip
        ends = [program.output, *form.attended, *turn.roots, *form.common]
        step = self._step(pooled, first, ends, {**constants, **turn.given}, turn, 1)
        step.run()

        pages = torch.arange(max(step.candidates, (max(chunk.stops) - 1) // page + 1), device=device)
        touched = (pages >= (first // page)[:, None]) & (pages <= ((stops - 1) // page)[:, None])
        last = first[:, None] + torch.arange(each, device=device)
        view = PagedKV(self.cache.k, self.cache.v, self.cache.table[chunk.rows], stops.int(), self.cache.block)
        own = q.permute(0, 1, 3, 2, 4)
        shared = {i: step.values[i] for i in form.common}
        attending = Attending(own, view, touched, shared, last, self.workspace)
        chosen = touched[:, None, None]
        for index in {program.output, *form.attended}:
            chosen = chosen | attending.widened(step.values[index])
        lists = PageLists.from_mask(chosen.expand(rows, heads, form.lists, -1))
        turn.end(step.values, step.own)
        if program.result is not None:
            known = {i: x if self._is_attended_alone(i) else _repeated(x, each) for i, x in shared.items()}
            queries = own.transpose(1, 2).flatten(0, 1)
            starts = first.repeat_interleave(each)
            apart = self._step(queries, starts, [program.result], {**constants, **known}, turn, each)
            apart.attention = attending
            apart.run()
            found = form.as_output(apart.values[program.result])
            return lists, found.unflatten(0, (-1, each)).permute(0, 2, 3, 1, 4)
        hidden = None
        if form.lists > 1:
            group = form.static.group
            hidden = ~chosen.expand(rows, heads, group, -1).repeat(1, 1, each, 1)
        out, _ = attend_rows(
            own.flatten(2, 3), view, lists.union(), page, form.static.scale, hidden=hidden,
            last=last.repeat_interleave(form.static.group, 1), workspace=self.workspace,
        )  # fmt: skip
        return lists, out.unflatten(2, (each, -1)).transpose(2, 3)

    def _is_attended_alone(self, index: int) -> bool:
        """Whether only attention reads a node, which takes it as the block has it."""
        nodes = self.form.program.nodes
        return all(nodes[i].op == "attention" for i in self.form.per_query if index in nodes[i].inputs)

    def _step(
        self, q: Tensor, first: Tensor, roots: list[int], given: dict[int, Tensor], turn: Turn, each: int
    ) -> Step:
        form = self.form
        table = self.cache.page_table(form.program.page_size)[self.chunk.rows]
        exact = [form.scalars(start + 1) for start in self.chunk.starts]
        return Step(
            form.program,
            form.static,
            form.plan(roots, given),
            form.kernels,
            form.widths,
            q=q,
            summaries=self.summaries,
            table=table.repeat_interleave(each, 0),
            lengths=first + 1,
            exact=[numbers for numbers in exact for _ in range(each)],
            lanes=self.lanes,
            given=given,
            kept=turn.kept,
            whole=True,
        )


def _repeated(value: Tensor, each: int) -> Tensor:
    """A row's value for each of its queries."""
    return value.repeat_interleave(each, 0) if value.shape[0] > 1 else value


def _dense(form: Compiled, q: Tensor, cache: PagedKV, lengths: list[int], out: Tensor) -> None:
    """Causal attention of every query to all tokens up to its own, written to `out`."""
    scale, heads = form.static.scale, cache.kv_heads
    for row, length in enumerate(lengths):
        if not length:
            continue
        k, v = (x.float() for x in cache.dense(row))
        mine = q[row : row + 1, :, :length].float()
        if cache.value_dim == cache.head_dim:
            found = scaled_dot_product_attention(mine, k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)
            out[row, :, :length] = found[0].to(out.dtype)
            continue
        for start in range(0, length, _DENSE_BLOCK):
            stop = min(length, start + _DENSE_BLOCK)
            position = torch.arange(start, stop, device=q.device)[:, None]
            late = torch.arange(stop, device=q.device) > position
            logits = torch.matmul(mine[0, :, start:stop].unflatten(0, (heads, -1)), k[:, None, :stop].transpose(2, 3))
            weight = logits.mul_(scale).masked_fill_(late, float("-inf")).softmax(-1)
            out[row, :, start:stop] = torch.matmul(weight, v[:, None, :stop]).flatten(0, 1).to(out.dtype)
