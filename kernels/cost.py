"""The cost model: what a decode step of a program will read, compute and take, before anything runs.

Everything follows from the program's typed form: which summaries are alive and how large they are, what has to be
computed for each candidate page, and how many pages the lists can hold. Time is a roofline for each stage,

    seconds = latency + kernels * launch + max(bytes / bandwidth(bytes), products / matrix rate, results / vector rate),

with the rates of `vortexlab.kernels.devices`; `benchmarks/calibrate.py` fits those of the H200 and reports how far
predictions are from what was measured. The same inputs always give the same numbers; they are predictions and never
stand in one column with measurements.

What only a set kept over steps needs counts for one step in its period; what a layer reuses from below, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import FP8, QUERY_STAGE, SET, Program, Static
from vortexlab.dsl.scalars import pages_of
from vortexlab.kernels.compiled import is_plain, parts_of
from vortexlab.kernels.devices import Device, get_device
from vortexlab.kernels.lowering import contract
from vortexlab.kernels.plan import Plan, Sweep, make_plan, node_weights, over_pages
from vortexlab.kernels.precision import BYTES, SCALE_BYTES, cache_name

#: Tokens that one part of a split attention reads at least: fewer do not pay for combining the parts.
_SPLIT_TOKENS = 256
#: Torch calls of one attended tile, of one node of a selection, and tokens' bytes of one tile (CPU only).
_TILE_CALLS, _SET_CALLS, _TILE_BYTES = 12, 6, 6 << 20
#: Ops over pages that are no part of scoring.
_ELSEWHERE = ("memory", "reuse", "attention", "member")


@dataclass(frozen=True)
class Stage:
    """One stage of one decode step of one layer, for the whole batch.

    `read` and `written` in bytes; `flops` counts multiplications and additions of products, `results` the elements that
    elementwise work makes; `kernels` the launches (on a CPU: torch calls).
    """

    name: str
    read: float
    written: float
    flops: float
    results: float
    kernels: float
    seconds: float

    @property
    def bytes(self) -> float:
        return self.read + self.written

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "bytes": self.bytes}


@dataclass(frozen=True)
class Prediction:
    """A decode step, or the prefill of whole prompts, of one layer: the program's stages, and dense attention on the
    same device.

    `dtype` is the precision of the program's cache, `dense_dtype` that of the one that dense attention reads. `pages`:
    pages that a KV head reads, the own page included; `exact_pages` tells whether that was given rather than bounded
    from the program. `density`: tokens read over context tokens. `ideal`: the speed-up if time were bytes.
    """

    program: str
    device: Device
    static: Static
    context: int
    batch: int
    dtype: str
    dense_dtype: str
    pages: float
    exact_pages: bool
    density: float
    stages: tuple[Stage, ...]
    dense: Stage
    phase: str = "decode"

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def speedup_over_dense(self) -> float:
        return self.dense.seconds / self.seconds

    @property
    def ideal(self) -> float:
        """Bytes of dense attention over those that summaries, scores and selected pages take at the very least.

        With m summary vectors a page of P tokens this is 1 / (density + m / (2 P)).
        """
        least = sum(stage.read for stage in self.stages if stage.name in ("score", "attend", "entries"))
        return self.dense.read / least

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "predicted",
            "program": self.program,
            "phase": self.phase,
            "device": self.device.name,
            "evidence": self.device.evidence,
            "source": self.device.source,
            "geometry": {
                "kv_heads": self.static.kv_heads,
                "group": self.static.group,
                "head_dim": self.static.head_dim,
                "latent": self.static.latent,
                "layer": self.static.layer,
            },
            "context": self.context,
            "batch": self.batch,
            "dtype": self.dtype,
            "dense_dtype": self.dense_dtype,
            "pages": self.pages,
            "exact_pages": self.exact_pages,
            "density": self.density,
            "stages": [stage.to_json() for stage in self.stages],
            "seconds": self.seconds,
            "dense": self.dense.to_json(),
            "speedup_over_dense": self.speedup_over_dense,
            "ideal": self.ideal,
        }


def predict(
    program: Program,
    static: Static,
    context: int,
    batch: int,
    device: str | Device,
    live_pages: float | None = None,
    *,
    dtype: str = "bf16",
) -> Prediction:
    """The cost of one decode step of one layer of a bound program.

    `context`: tokens of every request, the query's own included. `live_pages`: pages that a KV head reads on average,
    the own page included, as recorded in a run; without it the program's bound is taken, which for selections that
    depend on the scores is an upper bound. `dtype`: precision of the cache that dense attention reads, and the program
    unless it wants one of its own. Raises `VortexError` for a program with open knobs, an unknown device or dtype, and
    sizes below 1.
    """
    return model(program, static, context, batch, device, dtype).predict(live_pages)


def model(
    program: Program, static: Static, context: int, batch: int, device: str | Device, dtype: str
) -> Model:
    if not program.is_bound:
        raise VortexError(f"program {program.name} still has knobs; bind it before predicting its cost")
    if dtype not in BYTES:
        raise VortexError(f"unknown cache precision {dtype!r}; choose one of {', '.join(BYTES)}")
    if context < 1 or batch < 1:
        raise VortexError(f"a prediction needs at least one token and one request; found {context} and {batch}")
    device = get_device(device) if isinstance(device, str) else device
    return Model(program, static, context, batch, device, dtype)


class Model:
    def __init__(self, program: Program, static: Static, context: int, batch: int, device: Device, dtype: str):
        self.program, self.static, self.device = program, static, device
        self.dtype, self.dense_dtype = cache_name(program, dtype), dtype
        self.context, self.batch = context, batch
        self.page = program.page_size
        self.rows = batch * static.kv_heads
        self.candidates = pages_of(context, self.page) - 1
        self.lowered = contract(program, static)
        self.plan: Plan = make_plan(self.lowered)
        self.sizes = self.lowered.axis_sizes(static)
        self.weight = node_weights(self.lowered, static)

    def predict(self, live_pages: float | None) -> Prediction:
        every = self.candidates + 1
        if live_pages is None:
            pages = float(page_bound(self.program, self.static, self.context))
            if self.program.nodes[self.program.output].type.axes:
                pages *= self.static.group  # lists of query heads need not overlap
        else:
            pages = float(live_pages)
        pages = min(max(pages, 1.0), float(every))
        tokens = self._tokens(pages)
        # A list of every page lies in one run and is read in place.
        rate = self.device.gather if pages < every else self.device.dense
        stages = (
            self.summary(), self.score(), self.select(pages), *self._memory(), *self._output(pages, tokens, rate)
        )  # fmt: skip
        whole = self.dense()._attention(float(self.context), self.device.dense)
        return Prediction(
            self.program.name, self.device, self.static, self.context, self.batch, self.dtype, self.dense_dtype, pages,
            live_pages is not None, tokens / self.context, stages, merged("dense", whole),
        )  # fmt: skip

    def dense(self) -> Model:
        """The model whose attention is that over the dense cache."""
        if self.dtype == self.dense_dtype:
            return self
        program = replace(self.program, kv_dtype="auto")
        return Model(program, self.static, self.context, self.batch, self.device, self.dense_dtype)

    def _tokens(self, pages: float) -> float:
        """Tokens of `pages` pages of one KV head: the own one holds its live tokens only."""
        return (pages - 1) * self.page + (self.context - self.candidates * self.page)

    # what the program computes

    def _size(self, index: int) -> int:
        """Elements of a node for each page (or for each step, where it has no page axis) and KV head."""
        return math.prod(self.sizes[index].values())

    def _work(self, indices: Iterable[int]) -> tuple[float, float]:
        """Flops of contractions and results of elementwise work, of nodes without their page axis."""
        flops = results = 0.0
        for index in indices:
            node, share = self.lowered.nodes[index], self.weight[index]
            if node.op == "dot":
                flops += share * 2.0 * self._size(index) * self.sizes[node.inputs[0]][str(node.attrs["axis"])]
            elif node.op not in ("q", "k", "v", "field", "const", "ctx", "param", "memory", "index", "attention"):
                seen = [self._size(index), *(self._size(i) for i in node.inputs if i not in self.plan.exact)]
                results += share * max(seen)
        return flops, results

    def _field_bytes(self, *, read: bool = False) -> float:
        """Bytes of a page's summaries of one KV head, with their scales; `read`: as far as a step reads them."""
        stored = self.dtype if self.program.summary_dtype == "kv" else self.program.summary_dtype
        share = {name: 1.0 for name in self.lowered.live_fields()}
        if read:
            share = {
                str(node.attrs["name"]): self.weight[i] for i, node in self.lowered if node.op == "field"
            }
        scale = SCALE_BYTES if stored in FP8 else 0
        fields = self.lowered.live_fields().items()
        return sum(share[name] * (BYTES[stored] * self._size(index) + scale) for name, index in fields)

    def state_bytes(self) -> float:
        """Bytes that the program keeps of one page of one KV head beside keys and values: summaries, in the precision
        they are stored in, and what is carried on, in fp32 (sets and reused selections: a byte)."""
        carried = [
            1.0 if self.lowered.memories[name].type.kind == SET else 4.0 * self._size(index)
            for name, index in self.lowered.live_memories().items()
        ]
        reused = sum(node.op == "reuse" for _, node in self.lowered)
        return self._field_bytes() + sum(carried) + reused

    # stages

    def stage(
        self, name: str, *, read: float = 0.0, written: float = 0.0, flops: float = 0.0, results: float = 0.0,
        kernels: float = 0.0, rate: float | None = None, extra: float = 0.0,
    ) -> Stage:  # fmt: skip
        device = self.device
        moved = device.transfer(read + written, rate or device.read)
        work = max(moved, flops / self._matrix_rate(), results / device.vector)
        seconds = kernels * device.launch + work + extra
        return Stage(name, read, written, flops, results, kernels, seconds)

    def summary(self, *, launched: bool = True) -> Stage:
        """Summaries of pages as they complete: one page in P steps, spread over the steps.

        `launched` False leaves out what a step's launches cost.
        """
        if not self.lowered.live_fields():
            return self.stage("summary")
        sources = sum(self.lowered.nodes[i].op in ("k", "v") for i in self.plan.page)
        sources = min(sources, 1) if self.static.latent else sources
        tokens = self.page * self.static.head_dim * BYTES[self.dtype]
        flops, results = self._work(i for i in self.plan.page if i not in self.plan.exact)
        share = self.rows / self.page
        # A GPU launches at every step, since the device finds out which pages are complete.
        kernels = 1.0 if self.device.kind != "cpu" else len(self.plan.page) / self.page
        kernels *= launched
        return self.stage(
            "summary", read=share * sources * tokens, written=share * self._field_bytes(), flops=share * flops,
            results=share * results, kernels=kernels,
        )  # fmt: skip

    def score(self) -> Stage:
        """Everything computed for candidate pages: summaries are read once, narrow results written for selection."""
        live = [
            i for i in self.lowered.live() if self.lowered.nodes[i].stage == QUERY_STAGE and i not in self.plan.exact
        ]
        numeric = [i for i in live if self.lowered.nodes[i].type.kind != SET]
        paged = [i for i in numeric if "page" in self.lowered.nodes[i].type.axes]
        if not paged or not self.candidates:
            return self.stage("score")
        flops, results = self._work(paged)
        barriers = [
            i for i in numeric if over_pages(self.lowered.nodes[i]) and self.lowered.nodes[i].op not in _ELSEWHERE
        ]
        sweeps = [step for step in self.plan.steps if isinstance(step, Sweep)]
        outputs = {i for sweep in sweeps for i in sweep.outputs} | set(barriers)
        kept = 4.0 * sum(self.weight[i] * self._size(i) for i in outputs if "page" in self.lowered.nodes[i].type.axes)
        kernels: float = max(1, len(sweeps)) + len(barriers)
        if self.device.kind == "cpu":
            kernels = len(numeric) - len(paged) + sum(self.batch * len(s.nodes) for s in sweeps) + len(paged)
        count = self.rows * self.candidates
        return self.stage(
            "score", read=count * self._field_bytes(read=True), written=count * kept, flops=count * flops,
            results=count * results, kernels=kernels,
        )  # fmt: skip

    def select(self, pages: float) -> Stage:
        """Exact selection, and writing the lists."""
        sets = [i for i in self.lowered.live() if self.lowered.nodes[i].type.kind == SET]
        scored = [i for i in sets if self.lowered.nodes[i].op in ("topk", "topp", "above", "random")]
        lists = self.static.group if self.lowered.nodes[self.lowered.output].type.axes else 1

        def scores(index: int) -> float:
            heads = self.static.group if self.lowered.nodes[index].type.axes else 1
            return self.weight[index] * self.rows * self.candidates * heads

        elements = sum(scores(index) for index in scored)
        kernels = 1.0 if self.device.kind != "cpu" else _SET_CALLS * sum(self.weight[i] for i in sets)
        extra = elements / self.device.choose
        if scored or self.device.kind == "cpu":
            extra += self.device.choose_latency
        return self.stage(
            "select", read=4 * elements, written=4.0 * self.rows * lists * pages, kernels=kernels, extra=extra
        )

    def _memory(self) -> tuple[Stage, ...]:
        """What is carried from step to step and from layer to layer, in fp32 (sets: a byte a page)."""
        read = written = 0.0
        for name, index in self.lowered.live_memories().items():
            item = self.lowered.memories[name]
            each = 1.0 if item.type.kind == SET else 4.0 * self._size(index)
            read += each
            written += each / (int(item.every) if item.scope == "step" else 1)  # type: ignore[arg-type]
        for _, node in self.lowered:
            if node.op == "reuse":
                read, written = read + 1.0, written + 1.0 / int(node.attrs.get("every", 1))  # type: ignore[arg-type]
        if not read:
            return ()
        count = self.rows * self.candidates
        return (self.stage("memory", read=count * read, written=count * written, kernels=2.0),)

    def token_bytes(self) -> int:
        """Bytes of key and value of one token; in MLA the value is a part of the key."""
        width = self.static.head_dim + (0 if self.static.latent else self.static.value_dim)
        return width * BYTES[self.dtype]

    def _matrix_rate(self) -> float:
        """Products of a cache in fp8 are those of what it is widened to."""
        return self.device.matrix["bf16" if self.dtype in FP8 else self.dtype]

    def _output(self, pages: float, tokens: float, rate: float) -> tuple[Stage, ...]:
        """Attention over the selected pages, or whatever the program's own output attends to."""
        if is_plain(self.lowered):
            return self._attention(tokens, rate)
        stages: list[Stage] = []
        for index in (i for i in self.lowered.live() if self.lowered.nodes[i].op == "attention"):
            given = dict(zip(parts_of(self.lowered, index), self.lowered.nodes[index].inputs, strict=True))
            if "pages" in given:
                part = min(pages, self._bound(given["pages"])) if given["pages"] != self.lowered.output else pages
                stages += self._attention(self._tokens(part), rate)
            if "keys" in given:
                stages.append(self._entries(given["keys"], given["values"]))
        names = dict.fromkeys(stage.name for stage in stages)
        return tuple(merged(name, [stage for stage in stages if stage.name == name]) for name in names)

    def _bound(self, index: int) -> float:
        """The most pages of a set, the own page included."""
        program = replace(self.lowered, output=index, result=None)
        bound = float(page_bound(program, self.static, self.context))
        bound *= self.static.group if self.lowered.nodes[index].type.axes else 1
        return min(max(bound, 1.0), self.candidates + 1.0)

    def _entries(self, keys: int, values: int) -> Stage:
        """Attention over entries made of summaries, whose bytes are those of fp32 keys and values."""
        count = self.rows * self.candidates
        entries = self._size(keys) / max(1, self.sizes[keys].get("channel", 1))
        flops = 2.0 * count * self.static.group * entries * (self.static.head_dim + self.static.value_dim)
        read = 4.0 * count * (self._size(keys) + self._size(values))
        return self.stage("entries", read=read, flops=flops, kernels=3.0 if self.device.kind != "cpu" else 12.0)

    def _attention(self, tokens: float, rate: float) -> tuple[Stage, Stage]:
        """Attention over `tokens` tokens of every KV head, and the combination of its parts where it is split."""
        static, device = self.static, self.device
        read = self.rows * tokens * self.token_bytes()
        heads = self.rows * static.group
        flops = 2.0 * heads * tokens * (static.head_dim + static.value_dim)
        rate *= min(1.0, BYTES[self.dtype] / device.least_bytes)
        if device.kind == "cpu":
            calls = _TILE_CALLS * math.ceil(read / 2 / _TILE_BYTES)
            attend = self.stage(
                "attend", read=read, flops=flops, kernels=calls, rate=rate, extra=device.attend_latency
            )
            return attend, self.stage("combine")
        parts = max(1, min(math.ceil(2 * device.units / self.rows), math.ceil(tokens / _SPLIT_TOKENS)))
        traffic = 4.0 * heads * parts * (static.value_dim + 1) if parts > 1 else 0.0
        attend = self.stage("attend", read=read, flops=flops, kernels=1, rate=rate, extra=device.attend_latency)
        return attend, self.stage("combine", read=traffic, written=traffic, kernels=1 if parts > 1 else 0)


def times(stage: Stage, count: float) -> Stage:
    numbers = ("read", "written", "flops", "results", "kernels", "seconds")
    return Stage(stage.name, *(count * getattr(stage, key) for key in numbers))


def merged(name: str, stages: Iterable[Stage]) -> Stage:
    parts = list(stages)
    numbers = ("read", "written", "flops", "results", "kernels", "seconds")
    return Stage(name, *(sum(getattr(part, key) for part in parts) for key in numbers))
