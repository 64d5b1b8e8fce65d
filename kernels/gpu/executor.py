"""Runs a program through its generated kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parameters import parameter
from vortexlab.dsl.scalars import scalar_value
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.compiled import Compiled, is_plain
from vortexlab.kernels.executor import PageLists, prompt_lengths
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention import LocatedLists, attend
from vortexlab.kernels.gpu.codegen import Kernel, Kernels, generate
from vortexlab.kernels.gpu.coverage import check_coverage
from vortexlab.kernels.gpu.device import INTERPRETED, combine_partials
from vortexlab.kernels.gpu.fp8 import handed
from vortexlab.kernels.gpu.latent import attend_latent
from vortexlab.kernels.gpu.modules import load_source
from vortexlab.kernels.gpu.outputs import attend_own, listing_arguments, new_listings
from vortexlab.kernels.gpu.prefill import Blocks, attend_prefill
from vortexlab.kernels.memory import Carry, Memory
from vortexlab.kernels.precision import NAMES, check_cache, is_fp8
from vortexlab.kernels.torch_executor import TorchExecutor

#: Numbers that the blocks of queries pooled, or selecting, at one time may hold.
_CHUNK = 1 << 27


@dataclass
class TritonState:
    """Summaries by physical page: one tensor [pages, kv_heads, axes...] per live field; `lists` is decode's own.

    Summaries in fp8 have `scales` beside them, fp32 [pages, kv_heads].
    """

    fields: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)
    lists: LocatedLists | None = None


@dataclass
class TritonExecutor:
    """The `Executor` of kernels/executor.py on generated Triton kernels.

    Tensors must be on a GPU, or anywhere when Triton runs in its interpreter (``TRITON_INTERPRET=1``). No step reads
    a tensor back to the host, and every grid follows from the capacity of the cache, so steps can be captured in a
    CUDA graph. The lists that `decode` returns are overwritten by the next `decode` of the same state.
    """

    program: Program
    static: Static
    _kernels: dict[tuple[str, str], tuple[Kernels, ModuleType]] = field(default_factory=dict, repr=False)
    _tables: dict[tuple[Any, ...], dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _bounds: dict[int, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.program.is_bound:
            raise VortexError(f"program {self.program.name}: bind its knobs before running it")
        check_coverage(self.program, self.static)

    # kernels and their arguments

    def kernels(self, kv: torch.dtype, q: torch.dtype) -> tuple[Kernels, ModuleType]:
        """The generated kernels for a cache and a query of the given precisions."""
        if kv not in NAMES or q not in NAMES or is_fp8(q):
            raise VortexError(
                "generated kernels take queries in bf16, fp16 or fp32 and caches in these or in fp8_e4m3 or fp8_e5m2, "
                f"not {q} and {kv}"
            )
        key = (NAMES[kv], NAMES[q])
        if key not in self._kernels:
            kernels = generate(self.program, self.static, *key)
            self._kernels[key] = (kernels, load_source(kernels.text))
        return self._kernels[key]

    def _page_kernels(self, cache: PagedKV) -> tuple[Kernels, ModuleType]:
        """The kernels for a step whose query is not known yet; the summaries do not depend on it."""
        return self.kernels(cache.k.dtype, torch.bfloat16 if is_fp8(cache.k.dtype) else cache.k.dtype)

    @staticmethod
    def _summaries(state: TritonState, write: bool = False) -> dict[str, Tensor]:
        """The arguments that hold summaries; fp8 is always written as bytes."""
        have = {}
        for number, (name, tensor) in enumerate(state.fields.items()):
            have[f"f{number}"] = tensor.view(torch.uint8) if write and name in state.scales else handed(tensor)
            if name in state.scales:
                have[f"s{number}"] = state.scales[name]
        return have

    def _check(self, cache: PagedKV) -> None:
        if cache.k.device.type == "cpu" and not INTERPRETED:
            raise VortexError(
                "the triton executor needs a GPU; set TRITON_INTERPRET=1 to run its interpreter on the CPU"
            )
        check_cache(self.program, cache.k.dtype)
        wanted = (self.static.kv_heads, self.static.head_dim, self.static.value_dim)
        if (cache.kv_heads, cache.head_dim, cache.value_dim) != wanted:
            raise VortexError(
                f"the cache has {cache.kv_heads} KV heads with keys of {cache.head_dim} and values of "
                f"{cache.value_dim} channels; the executor was made for {wanted[0]}, {wanted[1]} and {wanted[2]}"
            )
        cache.blocks_per_page(self.program.page_size)

    def _exact(self, kernels: Kernels, cache: PagedKV) -> dict[str, Tensor]:
        """Tables of the exact scalars that vary with the step, by length or by pages."""
        size = cache.capacity
        key = (id(kernels), size, cache.k.device)
        if key not in self._tables:
            page, tables = self.program.page_size, {}
            for index, by in kernels.graph.exact.items():
                if isinstance(by, str):
                    origin = kernels.graph.ops[index].origin
                    steps = range(1, size + 1) if by == "length" else range(1, size + page, page)
                    numbers = [scalar_value(kernels.graph.program, origin, self.static, step) for step in steps]
                    dtype = torch.float32 if kernels.graph.ops[index].kind == "float" else torch.int64
                    tables[f"t{index}"] = torch.tensor([0, *numbers], dtype=torch.float64).to(dtype).to(cache.k.device)
            self._tables[key] = tables
        return self._tables[key]

    def _learned(self, kernels: Kernels, device: torch.device) -> dict[str, Tensor]:
        """The learned constants of this layer, [kv_heads or 1, axes...].

        Raises `VortexError` when one is missing or does not fit.
        """
        key = (id(kernels), device)
        if key not in self._tables:
            found: dict[str, Tensor] = {}
            for index, op in enumerate(kernels.graph.ops):
                if op.op == "param":
                    name = str(op.attrs["name"])
                    heads = self.static.kv_heads if self.program.params[name].per_kv_head else 1
                    stacked = torch.stack([parameter(self.program, name, self.static, kv) for kv in range(heads)])
                    found[f"w{index}"] = stacked.to(device, torch.float32 if op.kind == "float" else torch.int32)
            self._tables[key] = found
        return self._tables[key]

    def most(self, cache: PagedKV) -> int:
        """Entries that the longest list of this program can have in this cache."""
        if cache.capacity not in self._bounds:
            pages = -(-cache.capacity // self.program.page_size)
            self._bounds[cache.capacity] = min(pages, page_bound(self.program, self.static, cache.capacity))
        return self._bounds[cache.capacity]

    @staticmethod
    def _launch(
        module: ModuleType, kernel: Kernel, grid: tuple[int, ...], have: dict[str, Any], **options: Any
    ) -> None:
        names = [name.partition(":")[0] for name in kernel.params]
        have = have | {"CHAINED": options.pop("CHAINED")}
        getattr(module, kernel.name)[grid](**{name: have[name] for name in names}, **options)

    # the Executor protocol

    def new_state(self, cache: PagedKV) -> TritonState:
        """Storage for the summaries of every physical page of the cache's pool."""
        self._check(cache)
        kernels, _ = self._page_kernels(cache)
        units = cache.physical_pages(self.program.page_size)
        state = TritonState({})
        for name, index in kernels.graph.fields.items():
            op = kernels.graph.ops[index]
            shape = (units, cache.kv_heads, *(op.sizes[axis] for axis in op.axes))
            stored = kernels.field_dtypes[name]
            state.fields[name] = torch.empty(shape, dtype=stored, device=cache.k.device)
            if is_fp8(stored):
                state.scales[name] = torch.empty(shape[:2], device=cache.k.device)
        return state

    def summarize(self, state: TritonState, cache: PagedKV, pages: Tensor | None = None) -> None:
        """Writes the summaries of the given physical pages, or of all complete pages of the table."""
        wanted = None
        if pages is not None:
            wanted = torch.zeros(cache.physical_pages(self.program.page_size), dtype=torch.int32, device=pages.device)
            wanted[pages.long()] = 1
        per_row = cache.capacity // self.program.page_size
        self._summarize(state, cache, newest=False, programs=cache.batch * per_row, per_row=per_row, wanted=wanted)

    def update(self, state: TritonState, cache: PagedKV) -> None:
        """After an append: writes the summaries of the pages that the newest token completed."""
        self._summarize(state, cache, newest=True, programs=cache.batch, per_row=1)

    def _summarize(
        self,
        state: TritonState,
        cache: PagedKV,
        *,
        newest: bool,
        programs: int,
        per_row: int,
        wanted: Tensor | None = None,
    ) -> None:
        self._check(cache)
        if not state.fields or not programs:
            return
        kernels, module = self._page_kernels(cache)
        k, v = cache.k.stride(), cache.v.stride()
        have: dict[str, Any] = {
            "k": handed(cache.k), "k_block": k[0], "k_head": k[1], "k_token": k[2],
            "v": handed(cache.v), "v_block": v[0], "v_head": v[1], "v_token": v[2],
            "table": cache.table, "table_row": cache.table.stride(0), "lengths": cache.lengths,
            "pages_per_row": per_row, "BLOCK": cache.block, "NEWEST": newest,
            "wanted": cache.lengths if wanted is None else wanted, "FILTER": wanted is not None,
        } | self._summaries(state, write=True) | self._learned(kernels, cache.k.device)  # fmt: skip
        kernel = kernels.kernels["summarize"]
        _, options = launch.shape(kernel, 1)
        self._launch(module, kernel, (programs, cache.kv_heads), have, **options, **launch.chained(cache.k.device))

    def new_memory(self, cache: PagedKV, rows: int | None = None, carry: Carry | None = None) -> Memory:
        """An empty one: programs that remember or reuse are not covered."""
        return Memory(
            self.program, self.static, rows or cache.batch, cache.kv_heads, cache.k.device, carry or Carry()
        )

    def select(self, q: Tensor, state: TritonState, cache: PagedKV, memory: Memory | None = None) -> PageLists:
        """The pages that each row's query reads. `q`: [batch, query_heads, channel], after norm and RoPE."""
        lists = self._new_lists(q, cache)
        self._select(q, state, cache, lists)
        return lists.reported(self.kernels(cache.k.dtype, q.dtype)[0].graph.reported)

    def _new_lists(self, q: Tensor, cache: PagedKV) -> LocatedLists:
        graph = self.kernels(cache.k.dtype, q.dtype)[0].graph
        lists = LocatedLists.empty(cache, graph.lists, self.most(cache), self.program.page_size)
        if graph.result is not None:
            lists.listings = new_listings(graph, lists, cache)
        return lists

    def _select(self, q: Tensor, state: TritonState, cache: PagedKV, lists: LocatedLists) -> dict[str, Any]:
        """Writes the lists; returns what the step's kernels were given."""
        self._check(cache)
        kernels, module = self.kernels(cache.k.dtype, q.dtype)
        graph, device, chained = kernels.graph, q.device, launch.chained(q.device)
        if q.stride(2) != 1:
            q = q.contiguous()
        rows, capacity = cache.batch * cache.kv_heads, -(-cache.capacity // self.program.page_size)
        have: dict[str, Any] = {
            "q": q, "q_row": q.stride(0), "q_head": q.stride(1), "table": cache.table,
            "table_row": cache.table.stride(0), "lengths": cache.lengths, "capacity": capacity, "BLOCK": cache.block,
            "layer": self.static.layer, "pages": lists.pages, "counts": lists.counts, "most": lists.pages.shape[3],
            "entries": lists.entries, "tokens": lists.live,
        }  # fmt: skip
        have |= self._summaries(state) | self._exact(kernels, cache) | self._learned(kernels, device)
        have |= listing_arguments(lists.listings)
        for number, step in enumerate(kernels.plan.maps):
            kernel = kernels.kernels[f"map{number}"]
            constants, options = launch.shape(kernel, capacity)
            parts = launch.map_programs(kernel, -(-capacity // constants["TILE"]), rows, launch.processors(device))
            for index in step.stores:
                heads = graph.ops[index].sizes.get("head", 1)
                have[f"b{index}"] = torch.empty(rows * heads * capacity, dtype=torch.float32, device=device)
            rest = {index: _rest(kernels, index) for index in step.partials}
            for index, size in rest.items():
                have[f"p{index}"] = torch.empty(rows * parts * size, dtype=torch.float32, device=device)
            self._launch(module, kernel, (rows, parts), have | constants, **options, **chained)
            for index, size in rest.items():
                have[f"r{index}"] = torch.empty(rows * size, dtype=torch.float32, device=device)
                how = str(graph.ops[index].attrs["how"])
                identity = {"sum": 0.0, "max": float("-inf"), "min": float("inf")}[how]
                width = min(256, triton.next_power_of_2(size))
                combine_partials[(rows, -(-size // width))](
                    have[f"p{index}"], have[f"r{index}"], parts, identity, REST=size, TILE=width, HOW=how
                )
        kernel = kernels.kernels["choose_whole"]
        if capacity > launch.whole_row(kernel):
            kernel = kernels.kernels["choose_tiled"]
        constants, options = launch.shape(kernel, capacity)
        self._launch(module, kernel, (rows * graph.lists,), have | constants, **options, **chained)
        return have

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        """Attention over the listed pages: [batch, query_heads, value channel] in q's dtype.

        Raises `VortexError` for a program with an attention output of its own.
        """
        self._check(cache)
        if not is_plain(self.program):
            raise VortexError(f"program {self.program.name} attends by itself; decode it in one call")
        attended = attend_latent if self.static.latent else attend
        return attended(q, cache, lists, self.program.page_size, self.static.scale)

    def decode(
        self, q: Tensor, state: TritonState, cache: PagedKV, memory: Memory | None = None
    ) -> tuple[Tensor, PageLists]:
        """`select` and `attend`, with lists that live in the state."""
        lists, most = state.lists, self.most(cache)
        if lists is None or lists.pages.shape[0] != cache.batch or lists.pages.shape[3] != most:
            lists = state.lists = self._new_lists(q, cache)
        have = self._select(q, state, cache, lists)
        kernels, module = self.kernels(cache.k.dtype, q.dtype)
        if kernels.graph.result is None:
            return self.attend(q, cache, lists), lists
        return self._output(kernels, module, have, state, cache, lists), lists.reported(kernels.graph.reported)

    def _output(
        self, kernels: Kernels, module: ModuleType, have: dict[str, Any], state: TritonState, cache: PagedKV,
        lists: LocatedLists,
    ) -> Tensor:  # fmt: skip
        """The program's own attention output."""
        graph, q = kernels.graph, have["q"]
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for index, attention in graph.attentions.items():
            part = out if index == graph.result else out.new_empty(q.shape, dtype=torch.float32)
            attend_own(q, cache, attention, lists, state.fields, state.scales, self.static.scale, part)
            have[f"a{index}"] = part
        if "finish" in kernels.kernels:
            kernel, rows = kernels.kernels["finish"], cache.batch * cache.kv_heads
            _, options = launch.shape(kernel, 1)
            have |= {"out": out, "out_row": out.stride(0), "out_head": out.stride(1)}
            self._launch(module, kernel, (rows,), have, **options, **launch.chained(q.device))
        return out

    # prompts

    @cached_property
    def _of_blocks(self) -> TritonExecutor:
        """The executor whose steps are blocks of prefill queries."""
        return TritonExecutor(self.program, replace(self.static, prefill=True))

    @cached_property
    def _pool(self) -> Compiled:
        """What makes one query of a block's, in torch."""
        return Compiled(self.program, replace(self.static, prefill=True), False)

    def prefill(
        self, q: Tensor, cache: PagedKV, state: TritonState | None = None, memory: Memory | None = None
    ) -> tuple[Tensor, Sequence[PageLists]]:
        """The prompts of all rows: q [batch, query_heads, tokens, channel] holds a query for every token of the cache
        (those past a row's length are ignored); returns the output, of q's shape, and the lists of each block of
        queries, none where prefill is dense. `state`: summaries of the complete pages; those that it lacks, since
        decode has no use for them, are made here.

        A block selects as a decode step at its first token would, all blocks at once, with its pooled query. Prompts
        over latent keys and fp8 caches, and of programs that attend by themselves, are read by the torch executor.
        """
        self._check(cache)
        own = self.program.pooled is not None and not is_plain(self.program)
        if self.static.latent or is_fp8(cache.k.dtype) or own:
            return TorchExecutor(self.program, self.static).prefill(q, cache, memory=memory)
        lengths, page, scale = prompt_lengths(q, cache), self.program.page_size, self.static.scale
        if self.program.pooled is None:
            return attend_prefill(q, cache, None, None, page, scale, lengths=lengths), []
        blocks = Blocks.of(lengths, self._block)
        lists = self._select_blocks(self._pooled(q, lengths), self._block_state(state, cache), cache, blocks)
        lists = blocks.with_touched(lists, page)
        return attend_prefill(q, cache, blocks, lists, page, scale, lengths=lengths), blocks.by_number(lists)

    @property
    def _block(self) -> int:
        assert isinstance(self.program.block, int)
        return self.program.block

    def _block_state(self, state: TritonState | None, cache: PagedKV) -> TritonState:
        fields = self._of_blocks.kernels(cache.k.dtype, cache.k.dtype)[0].graph.fields
        if state is not None and all(name in state.fields for name in fields):
            return TritonState({name: state.fields[name] for name in fields})
        made = self._of_blocks.new_state(cache)
        self._of_blocks.summarize(made, cache)
        return made

    def _pooled(self, q: Tensor, lengths: list[int]) -> Tensor:
        """The query of every block, request after request: fp32 [blocks, query_heads, channel]."""
        size, found = self._block, []
        for request, length in enumerate(lengths):
            whole = length // size
            own = q[request].unflatten(0, (self.static.kv_heads, -1))
            step = max(1, _CHUNK // (q.shape[1] * size * q.shape[3]))
            for first in range(0, whole, step):
                some = own[:, :, first * size : min(first + step, whole) * size]
                found.append(self._pool.pool(some.unflatten(2, (-1, size)).movedim(2, 0).float()))
            if length % size:
                found.append(self._pool.for_block(length % size).pool(own[None, :, :, whole * size : length].float()))
        return torch.cat(found).flatten(1, 2)

    def _select_blocks(self, pooled: Tensor, state: TritonState, cache: PagedKV, blocks: Blocks) -> PageLists:
        """The lists of all blocks as far as the first page that each touches."""
        device, pages = pooled.device, -(-cache.capacity // self.program.page_size)
        rows, starts = blocks.rows.to(device), blocks.starts.to(device)
        pooled = pooled[blocks.by_request().to(device)]
        step = max(1, _CHUNK // (pooled.shape[1] * pages))
        found = []
        for part in (slice(i, i + step) for i in range(0, len(rows), step)):
            view = PagedKV(cache.k, cache.v, cache.table[rows[part]], (starts[part] + 1).int(), cache.block)
            found.append(self._of_blocks.select(pooled[part], state, view))
        return PageLists(torch.cat([item.pages for item in found]), torch.cat([item.counts for item in found]))


def _rest(kernels: Kernels, index: int) -> int:
    size = 1
    for length in kernels.graph.ops[index].sizes.values():
        size *= length
    return size
