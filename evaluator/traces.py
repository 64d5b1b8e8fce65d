"""A cheap evaluator over recorded traces: a verdict in a tenth of a second, for studies of the search itself.

Queries, keys and values of the shipped model are recorded once, along dense attention, while it reads questions about
contexts of its own. A program then chooses pages at the last token of each question, and what counts as its accuracy is
the part of dense attention's mass on the tokens that hold the answer which lies on pages that it reads. Speed is
predicted by the cost model at the same length, with the pages that were read. Nothing is confined, no answer is
generated and no gate is asked, and a program's own attention output is not looked at: this ranks programs of our own
grammar while the search is studied, and what it says of one is no result.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vortexlab.dsl import canonical_hash, parse, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr, Program, Static, digest
from vortexlab.evaluator import costs
from vortexlab.evaluator.config import REFERENCE_MODEL, model_digest, versions
from vortexlab.evaluator.executors import new_memories
from vortexlab.evaluator.geometries import find_geometry
from vortexlab.evaluator.tasks import Sample, make_samples
from vortexlab.evaluator.traits import depends_on_layer
from vortexlab.evaluator.verdict import ACCEPTED, GATES, REJECTED, Estimate, GateResult, Head, Verdict
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.devices import get_device
from vortexlab.kernels.torch_executor import TorchExecutor

#: Tasks whose question has three tokens and whose answer stands in the context, pair of tokens for pair of tokens.
TASKS = ("needle", "needles", "keys", "multivalue", "chain")
#: Rows of the recorded pool begin at multiples of this, so that pages of every usual size are views of it.
_ALIGNMENT = 384


@dataclass(frozen=True)
class TraceConfig:
    """What is recorded and what speed is predicted for: `contexts` of `length` tokens per task, one question each."""

    model: str = str(REFERENCE_MODEL)
    length: int = 2048
    contexts: int = 2
    seed: int = 0
    predicted_device: str = "h200"
    geometry: str = "qwen3-8b"
    batch_tokens: int = 1 << 20

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "model": model_digest(self.model)}


@dataclass(frozen=True)
class Traces:
    """`q`: [layers, steps, rows, query_heads, channel] at the tokens of a question; `k`, `v`: [layers, kv_heads, pool,
    channel], row r at multiples of `stride`; `lengths`: tokens of every row after the last step; `needle`: [layers,
    rows, query_heads, tokens], dense attention's mass at the last step on the tokens that hold the answer."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths: Tensor
    needle: Tensor
    scale: float

    @property
    def layers(self) -> int:
        return self.q.shape[0]

    @property
    def steps(self) -> int:
        return self.q.shape[1]

    @property
    def stride(self) -> int:
        return self.k.shape[2] // len(self.lengths)

    def static(self, layer: int) -> Static:
        heads = self.k.shape[1]
        return Static(heads, self.q.shape[3] // heads, self.q.shape[4], self.scale, layer, self.layers)

    def cache(self, layer: int, page: int, back: int = 0) -> PagedKV:
        """The cache of one layer, `back` tokens before the last step. Raises `VortexError` for a page size that does
        not divide a row's room."""
        if self.stride % page:
            raise VortexError(f"pages of {page} tokens do not divide the {self.stride} of a recorded row")
        each = self.stride // page
        table = torch.arange(each * len(self.lengths), dtype=torch.int32).view(-1, each)
        k, v = (side[layer].unflatten(1, (-1, page)).transpose(0, 1) for side in (self.k, self.v))
        return PagedKV(k, v, table, self.lengths - back, page)

    def save(self, path: Path) -> None:
        tensors = {name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_file({**tensors, "scale": torch.tensor(self.scale)}, str(path))

    @staticmethod
    def load(path: Path) -> Traces:
        tensors = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}
        return Traces(**{**tensors, "scale": float(tensors["scale"])})  # type: ignore[arg-type]


@torch.inference_mode()
def record(config: TraceConfig) -> Traces:
    """Reads the contexts and their first questions densely; some 20 s."""
    from vortexlab.evaluator.models import load_model

    model = load_model(config.model)
    samples = [s for task in TASKS for s in make_samples(task, config.length, config.contexts, config.seed)]
    steps = min(len(sample.turns[0].question) for sample in samples)
    lengths = [len(sample.context) + steps for sample in samples]
    stride = -(-max(lengths) // _ALIGNMENT) * _ALIGNMENT
    shape = (model.layers, model.kv_heads, stride * len(samples), model.head_dim)
    k, v = torch.zeros(shape), torch.zeros(shape)
    q = torch.zeros(model.layers, steps, len(samples), model.kv_heads * model.group, model.head_dim)
    needle = torch.zeros(model.layers, len(samples), model.kv_heads * model.group, stride)
    for row, sample in enumerate(samples):
        handler = _Reader(steps)
        model.prefill(torch.tensor([*sample.context, *sample.turns[0].question[:steps]]), handler)  # type: ignore[arg-type]
        part = slice(row * stride, row * stride + lengths[row])
        places = _places(sample)
        for layer in range(model.layers):
            k[layer, :, part], v[layer, :, part] = handler.k[layer][0], handler.v[layer][0]
            q[layer, :, row] = handler.q[layer][0].transpose(0, 1)
            keys = handler.k[layer][0].repeat_interleave(model.group, 0)
            weights = torch.softmax(torch.einsum("hd,htd->ht", q[layer, -1, row], keys) * model.scale, -1)
            needle[layer, row][:, places] = weights[:, places]
    return Traces(q, k, v, torch.tensor(lengths, dtype=torch.int32), needle, model.scale)


def newest_token(folder: Path) -> Traces:
    """One context of 512 tokens and its newest token, without transformers: some 0.2 s. It has no needle."""
    from vortexlab.evaluator.reference.recorded import recorded

    layers = recorded(folder)
    query, keys, _ = layers[0]
    heads, tokens, width = keys.shape
    stride = -(-tokens // _ALIGNMENT) * _ALIGNMENT
    k, v = torch.zeros(len(layers), heads, stride, width), torch.zeros(len(layers), heads, stride, width)
    for layer, (_, own_k, own_v) in enumerate(layers):
        k[layer, :, :tokens], v[layer, :, :tokens] = own_k, own_v
    q = torch.stack([item[0] for item in layers])[:, None, None]
    needle = torch.zeros(len(layers), 1, query.shape[0], stride)
    return Traces(q, k, v, torch.tensor([tokens], dtype=torch.int32), needle, width**-0.5)


class _Reader:
    """Dense attention over a whole prompt; keeps keys, values and the last `steps` queries of every layer."""

    def __init__(self, steps: int):
        self.steps = steps
        self.q: dict[int, Tensor] = {}
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def attend(self, module: Any, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.q[layer], self.k[layer], self.v[layer] = q[:, :, -self.steps :], k, v
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)


def _places(sample: Sample) -> list[int]:
    """The tokens of the context that hold the answer of the first question."""
    answer = sample.turns[0].answer
    pairs = {tuple(answer[n : n + 2]) for n in range(0, len(answer), 2)}
    starts = [n for n, pair in enumerate(itertools.pairwise(sample.context)) if pair in pairs]
    return sorted({place for n in starts for place in (n, n + 1)})


@torch.inference_mode()
def pages_read(traces: Traces, program: Program) -> list[Tensor]:
    """What a bound program reads at the last step: for every layer bool [rows, kv_heads, lists, pages].

    A program that remembers begins with the first token of the question.
    """
    draws = any(program.nodes[index].op == "random" for index in program.live())  # by layer
    if draws or depends_on_layer(program) or program.has_memory:
        executors = [TorchExecutor(program, traces.static(layer)) for layer in range(traces.layers)]
    else:
        executors = [TorchExecutor(program, traces.static(0))] * traces.layers
    caches = [traces.cache(layer, program.page_size) for layer in range(traces.layers)]
    memories = new_memories(program, executors, caches)
    states: list[Any] = []
    masks: list[Tensor] = []
    for executor, cache in zip(executors, caches, strict=True):
        states.append(executor.new_state(cache))
        executor.summarize(states[-1], cache)
    for step in range(0 if program.has_memory else traces.steps - 1, traces.steps):
        masks = []
        for layer, executor in enumerate(executors):
            cache = traces.cache(layer, program.page_size, traces.steps - 1 - step)
            q, state, memory = traces.q[layer, step], states[layer], memories[layer]
            lists = executor.select(q, state, cache) if memory is None else executor.decode(q, state, cache, memory)[1]
            masks.append(lists.to_mask(traces.stride // program.page_size))
    return masks


def needle_mass(traces: Traces, masks: Sequence[Tensor], page: int) -> float:
    """The share of the dense mass on the answer's tokens that lies on pages that were read, 0 to 1."""
    kept = torch.zeros((), dtype=torch.float64)
    for needle, mask in zip(traces.needle, masks, strict=True):
        by_head = mask.expand(-1, -1, needle.shape[1] // mask.shape[1], -1).flatten(1, 2)
        kept += (needle * by_head.repeat_interleave(page, -1)).double().sum()
    return float(kept / traces.needle.double().sum())


def mean_pages(masks: Sequence[Tensor]) -> float:
    """Pages that a KV head reads, mean over layers, rows and heads."""
    return float(torch.stack([mask.any(2).double().sum(-1).mean() for mask in masks]).mean())


class TraceEvaluator:
    """Evaluates programs on recorded traces; what a campaign takes in place of `Evaluator`.

    `known` holds verdicts by the hash of the bound program and may be shared: nothing is evaluated twice. `folder`
    keeps the traces for the next time. What cannot be run, or has another page size than 8, 16, 24, 32, 48, 64, 96 or
    128, is rejected.
    """

    def __init__(
        self, config: TraceConfig = TraceConfig(), *, known: dict[str, Verdict] | None = None,
        folder: Path | None = None,
    ):  # fmt: skip
        """Raises `VortexError` for an unknown geometry or device, or a length too short for the tasks."""
        self.config = config
        self.known = {} if known is None else known
        self.geometry = find_geometry(config.geometry)
        get_device(config.predicted_device)
        self._environment = digest({"traces": 1, "settings": config.to_json(), "versions": versions()})
        path = folder / f"traces-{self._environment[:12]}.safetensors" if folder else None
        if path is not None and path.exists():
            self.traces = Traces.load(path)
        else:
            self.traces = record(config)
            if path is not None:
                self.traces.save(path)

    @property
    def environment(self) -> str:
        return self._environment

    def close(self) -> None:
        """A campaign closes its evaluator; the traces stay, so that the next campaign can use them."""

    def recall(self, verdicts: Iterable[Verdict | Head]) -> None:
        """Whole verdicts are not found again; a head says too little for that."""
        for verdict in verdicts:
            if isinstance(verdict, Verdict):
                self.known.setdefault(verdict.source_hash, verdict)

    def evaluate(self, source: str, knobs: Mapping[str, Attr] | None = None, *, fidelity: str = "full") -> Verdict:
        """One program with its knobs. There is one fidelity. Raises `VortexError` when the text is no program."""
        program = parse(source)
        values = {**program.defaults, **(knobs or {})}
        bound = program.bind(values)
        key = canonical_hash(bound)
        if key not in self.known:
            self.known[key] = self._evaluate(program, bound, values, key)
        return self.known[key]

    def _evaluate(self, program: Program, bound: Program, values: Mapping[str, Attr], key: str) -> Verdict:
        began = time.monotonic()
        config, reason = self.config, ""
        kept, speed, density = 0.0, 0.0, 0.0
        try:
            masks = pages_read(self.traces, bound)
            kept, pages = needle_mass(self.traces, masks, bound.page_size), mean_pages(masks)
            density = min(1.0, pages * bound.page_size / config.length)
            seen = {str(config.length): [max(1, round(pages))]}
            speed = costs.speedup(costs.predictions(
                bound, self.geometry, self.traces.layers, (config.length,), config.batch_tokens,
                config.predicted_device, seen,
            ))  # fmt: skip
        except (VortexError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        seconds = time.monotonic() - began
        base = Verdict(
            program.name, key, structure_hash(program), dict(values), REJECTED, "fidelity", reason,
            (GateResult("parse", True, 0.0), GateResult("fidelity", False, seconds, reason)),
            conditions={"speed": "predicted", **config.to_json(), "lengths": [config.length]}, seconds=seconds,
        )  # fmt: skip
        if reason:
            return base
        gates = tuple(GateResult(name, True, seconds if name == "fidelity" else 0.0) for name in GATES)
        return Verdict(**{
            **base.__dict__, "status": ACCEPTED, "gate": None, "gates": gates, "density": density,
            "speedup": Estimate(speed, speed, speed), "accuracy": Estimate(kept, kept, kept),
            "predicted_speedup": speed, "contexts": len(self.traces.lengths),
        })  # fmt: skip
