"""What the tuner runs and times: one attention call on random caches, under any choice of tiles and splits.

Calls go through the caches of several layers, so that none finds its context in L2, whose blocks lie shuffled, as in a
serving engine. On a GPU they are captured in a CUDA graph; in Triton's interpreter they are simply called.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
import triton
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention import AttentionShape, LocatedLists, attend, split_count
from vortexlab.kernels.gpu.latent import LatentShape, attend_latent, latent_splits
from vortexlab.kernels.gpu.prefill import DENSE_BLOCK, Blocks, PrefillShape, attend_prefill
from vortexlab.kernels.gpu.tuning import Case, Choice
from vortexlab.kernels.precision import BYTES, NAMES, TORCH_DTYPES, cast, is_fp8

#: Bytes that one graph reads, many times the L2 cache, and layers at most; calls of a graph of short ones at least.
ROTATED_BYTES, MOST_LAYERS, CALLS = 1e9, 32, 12
#: Bytes that a short call reads at most.
_SHORT = 1e8
#: Differences of two right outputs: each element's rounding, and that of the sums it is made from.
UNIT = {torch.float32: 2.0**-13, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

#: A timer of one choice: microseconds of a call, a number for each replay within so many seconds.
Timer = Callable[[float], list[float]]


class Trial(Protocol):
    """One case, as the search sees it."""

    @property
    def usual(self) -> Choice:
        """What the rules choose."""
        ...

    def splits(self, choice: Choice) -> int | None:
        """The rule's splits for the tiles of a choice; None where nothing is split."""
        ...

    def run(self, choice: Choice) -> Tensor:
        """The output of one call. Raises whatever the compiler or the launch does for a choice that cannot run."""
        ...

    def timer(self, choice: Choice) -> Timer: ...


@dataclass(frozen=True)
class Problem:
    """What is tuned: attention of `batch` requests of `length` tokens in blocks of `page`, over all pages or over lists
    of `listed` tokens. `static.prefill`: whole prompts, in blocks of `page` queries where pages are listed. `dtype`: of
    the cache, and of the query but over fp8, whose queries are bf16."""

    static: Static
    dtype: str
    batch: int
    length: int
    page: int = 16
    listed: int = 0

    def __post_init__(self) -> None:
        numbers = {"batch": self.batch, "context": self.length, "page": self.page, "KV heads": self.static.kv_heads,
                   "group": self.static.group, "head width": self.static.head_dim}  # fmt: skip
        for name, value in numbers.items():
            if value < 1:
                raise VortexError(f"the tuner needs a {name} of at least 1, found {value}")
        if self.dtype not in BYTES:
            raise VortexError(f"dtype {self.dtype!r} is not one of {', '.join(BYTES)}")
        if self.static.latent and not self.static.latent < self.static.head_dim:
            raise VortexError(
                f"keys of {self.static.head_dim} channels have no rotary ones behind {self.static.latent} latent ones"
            )
        if self.static.prefill and (self.static.latent or is_fp8(TORCH_DTYPES[self.dtype])):
            raise VortexError("prefill over latent keys and fp8 caches runs in torch: there is nothing to tune")
        if self.length % self.page or self.listed % self.page or not 0 <= self.listed <= self.length:
            raise VortexError(
                f"contexts and lists are whole pages of {self.page} tokens, a list no longer than its context; found "
                f"{self.length} and {self.listed}"
            )

    @property
    def kernel(self) -> str:
        return "attend_prefill" if self.static.prefill else "attend_latent" if self.static.latent else "attend"

    @property
    def query(self) -> torch.dtype:
        dtype = TORCH_DTYPES[self.dtype]
        return torch.bfloat16 if is_fp8(dtype) else dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of a token of one layer."""
        width = self.static.head_dim if self.static.latent else 2 * self.static.head_dim
        return self.static.kv_heads * width * BYTES[self.dtype]

    @property
    def read_bytes(self) -> int:
        """Bytes of keys and values that one decode step reads."""
        return self.batch * (self.listed or self.length) * self.token_bytes

    @property
    def case(self) -> Case:
        block = self.page if self.static.prefill and self.listed else 0
        length = self.length if self.static.prefill else self.listed or self.length
        return Case(
            self.kernel, self.static.group, 1 if self.listed else 0, self.static.kv_heads, self.static.head_dim,
            self.static.value_dim, NAMES[self.query], self.dtype, self.page, block, self.batch, length,
        )  # fmt: skip

    def small(self) -> Problem:
        """One request, as short as may be for the same kernels: their variants depend on whether strides are multiples
        of 16."""
        pages = max(self.length // self.page % 16 + 16, self.listed // self.page)
        return replace(self, batch=1, length=min(self.length, pages * self.page))

    def __str__(self) -> str:
        s = self.static
        width = f"{s.latent} + {s.head_dim - s.latent}" if s.latent else str(s.head_dim)
        what = f"lists of {self.listed} tokens" if self.listed else "dense"
        phase = " prefill" if s.prefill else ""
        return (
            f"{s.kv_heads * s.group} / {s.kv_heads} x {width} {self.dtype}{phase} page {self.page} {what}, "
            f"batch {self.batch}, context {self.length}"
        )


@dataclass
class Pool:
    """Random numbers in one precision that all problems read, made once and anew where more are needed."""

    device: torch.device
    _flat: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def take(self, size: int, dtype: torch.dtype) -> Tensor:
        """`size` elements, the same ones every time. Raises torch's error where there is no room for them."""
        if dtype not in self._flat or self._flat[dtype].numel() < size:
            self._flat.clear()
            flat = torch.empty(size, dtype=dtype, device=self.device)
            generator = torch.Generator(self.device).manual_seed(0)
            for part in flat.split(1 << 27):
                made = torch.bfloat16 if is_fp8(dtype) else dtype
                part.copy_(cast(torch.randn(part.shape, dtype=made, device=self.device, generator=generator), dtype))
            self._flat[dtype] = flat
        return self._flat[dtype][:size]

    def room(self) -> float:
        """Bytes that may be taken in all."""
        if self.device.type != "cuda":
            return 1e9
        held = sum(flat.numel() * flat.element_size() for flat in self._flat.values())
        return 0.8 * (torch.cuda.mem_get_info(self.device)[0] + held)


class Rules:
    """What the rules choose for a problem, and shapes of other choices."""

    def __init__(self, problem: Problem, device: torch.device):
        self.problem, self.device = problem, device

    @cached_property
    def _usual_shape(self) -> Any:
        p, shared = self.problem, launch.shared_bytes(self.device)
        s, itemsize = p.static, p.query.itemsize
        if s.prefill:
            size = p.page if p.listed else DENSE_BLOCK
            return PrefillShape.of(size, s.group, s.head_dim, itemsize, shared)
        if s.latent:
            hopper = launch.is_hopper(self.device)
            return LatentShape.of(s.latent, s.head_dim - s.latent, itemsize, BYTES[p.dtype], shared, hopper)
        return AttentionShape.of(s.group, s.head_dim, itemsize)

    @cached_property
    def usual(self) -> Choice:
        """What the rules choose."""
        return self._of(self._usual_shape)

    def _of(self, shape: Any) -> Choice:
        prefill = self.problem.static.prefill
        return Choice.of(shape, None if prefill else self._splits(shape), rows=prefill)

    def _splits(self, shape: Any) -> int:
        p, processors = self.problem, launch.processors(self.device)
        rows, tiles = p.batch * p.static.kv_heads, -(-p.case.length // shape.tile)
        if p.static.latent:
            return latent_splits(rows * -(-p.static.group // shape.heads), tiles, processors)
        return split_count(rows, tiles, processors)

    @property
    def has_fixed_tiles(self) -> bool:
        """Whether only the splits can be chosen."""
        return bool(getattr(self._usual_shape, "hopper", False))

    def shape(self, choice: Choice) -> Any:
        """The kernel's shape with the tiles of a choice."""
        return replace(self._usual_shape, **choice.tiles)

    def splits(self, choice: Choice) -> int | None:
        return None if self.problem.static.prefill else self._splits(self.shape(choice))


class KernelTrial(Rules):
    """A `Trial` of our kernels on a device, over `layers` caches at most.

    Raises `VortexError` where one layer of the problem does not fit the device.
    """

    def __init__(self, problem: Problem, pool: Pool, layers: int = MOST_LAYERS):
        super().__init__(problem, pool.device)
        self._pool, device = pool, pool.device
        size = problem.batch * problem.length * problem.token_bytes
        fit = int(pool.room() // size)
        if not fit:
            raise VortexError(f"{problem}: keys and values of {size / 1e9:.1f} GB do not fit the device")
        wanted = -(-int(ROTATED_BYTES) // problem.read_bytes)
        self.layers = 1 if problem.static.prefill else max(1, min(fit, layers, wanted))
        self._caches = self._make_caches()
        shape: tuple[int, ...] = (problem.batch, problem.static.kv_heads * problem.static.group)
        shape += (problem.length,) if problem.static.prefill else ()
        generator = torch.Generator(device).manual_seed(1)
        self._queries = [
            torch.randn((*shape, problem.static.head_dim), device=device, generator=generator).to(problem.query)
            for _ in range(self.layers)
        ]
        self._blocks = self._make_blocks()
        self._lists = self._make_lists()

    def _make_caches(self) -> list[PagedKV]:
        p, blocks = self.problem, self.problem.batch * self.problem.length // self.problem.page
        each = blocks * p.page * p.static.kv_heads * p.static.head_dim
        parts = 1 if p.static.latent else 2
        flat = self._pool.take(self.layers * parts * each, TORCH_DTYPES[p.dtype]).view(self.layers, parts, each)
        generator = torch.Generator(self.device).manual_seed(2)
        table = torch.randperm(blocks, device=self.device, generator=generator).int().view(p.batch, -1)
        lengths = torch.full((p.batch,), p.length, dtype=torch.int32, device=self.device)
        found = []
        for layer in flat:
            pools = [x.view(blocks, p.page, p.static.kv_heads, p.static.head_dim).transpose(1, 2) for x in layer]
            v = pools[0][..., : p.static.latent] if p.static.latent else pools[1]
            found.append(PagedKV(pools[0], v, table, lengths, p.page))
        return found

    def _make_blocks(self) -> Blocks | None:
        p = self.problem
        return Blocks.of([p.length] * p.batch, p.page) if p.static.prefill and p.listed else None

    def _make_lists(self) -> PageLists | None:
        """Random pages; the newest one is among them, in prefill the one that a block lies in is the last."""
        p, device = self.problem, self.device
        if not p.listed:
            return None
        pages, count = p.length // p.page, p.listed // p.page
        generator = torch.Generator(device).manual_seed(3)
        column = torch.arange(pages, device=device)
        own = (torch.full((p.batch,), pages - 1) if self._blocks is None else self._blocks.touched(p.page)[0]).to(
            device
        )
        found = []
        for last in own.split(256):  # of so many requests or blocks at once
            score = torch.rand(len(last), p.static.kv_heads, 1, pages, device=device, generator=generator)
            last = last[:, None, None, None]
            score = score.masked_fill(column > last, -1).masked_fill(column == last, 2)
            value, chosen = score.topk(count, -1)
            chosen = chosen.masked_fill(value < 0, pages).sort(-1).values
            found.append(chosen.masked_fill(chosen == pages, -1).int())
        listed = torch.cat(found)
        lists = PageLists(listed, (listed >= 0).sum(-1).int())
        return lists if p.static.prefill else LocatedLists.of(lists, self._caches[0], p.page)

    def run(self, choice: Choice) -> Tensor:
        return self.launch(choice)

    def launch(self, choice: Choice | None = None, layer: int = 0) -> Tensor:
        """One call over the cache of a layer; without a choice as everybody calls it, with what a table or the rule
        says."""
        p, q, cache = self.problem, self._queries[layer], self._caches[layer]
        shape, splits = (None, None) if choice is None else (self.shape(choice), choice.splits)
        if p.static.prefill:
            lengths = [p.length] * p.batch
            return attend_prefill(
                q, cache, self._blocks, self._lists, p.page, p.static.scale, lengths=lengths, shape=shape
            )
        attended = attend_latent if p.static.latent else attend
        return attended(q, cache, self._lists, p.page, p.static.scale, splits=splits, shape=shape)

    def timer(self, choice: Choice) -> Timer:
        rounds = -(-CALLS // self.layers) if self.problem.read_bytes < _SHORT and not self.problem.static.prefill else 1
        calls = self.layers * rounds

        def every() -> None:
            for number in range(calls):
                self.launch(choice, number % self.layers)

        if self.device.type != "cuda":
            return _called(every, calls)
        # Prompts copy their work list from the host, which no graph does.
        return _timed(every, calls) if self.problem.static.prefill else _replayed(every, calls)


def _called(work: Callable[[], None], calls: int) -> Timer:
    def once(span: float) -> list[float]:
        began = time.perf_counter()
        work()
        return [(time.perf_counter() - began) * 1e6 / calls]

    return once


def _replayed(work: Callable[[], None], calls: int) -> Timer:
    """Replays of a CUDA graph of `work`, which was run before."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return _timed(graph.replay, calls)


def _timed(work: Callable[[], None], calls: int) -> Timer:
    """Each `work` between two events, at least three times, after one that is not counted."""

    def once(span: float) -> list[float]:
        work()
        torch.cuda.synchronize()
        found: list[float] = []
        ends = time.perf_counter() + span
        while len(found) < 3 or (time.perf_counter() < ends and len(found) < 200):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            found.append(float(start.elapsed_time(end)) * 1e3 / calls)
        return found

    return once


def conditions(device: torch.device) -> dict[str, Any]:
    """What an entry of a table says about how it was measured."""
    found = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    return {**found, "driver": _driver(device), "date": time.strftime("%Y-%m-%d", time.gmtime()), "seed": 0}


def _driver(device: torch.device) -> str:
    """The GPU driver's version, empty where none can be asked."""
    if device.type != "cuda":
        return ""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
