"""What a whole decode step takes and where the time goes, beside what its bytes alone would take.

A step is timed as replays of its CUDA graph. Attention alone, matrix products alone and *the rest* alone (norms, RoPE,
appends, activations, routing, the embedding, the greedy choice) are timed as graphs of their own, with the queries,
operands and results of a real step. The parts need not add up to the step: the experts that tokens choose differ from
step to step, and a part by itself may find more in L2 or overlap less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.decode_layers import Read
from vortexlab.evaluator.decode_models import StepBytes
from vortexlab.evaluator.decode_runner import Caches, DecodeRunner
from vortexlab.evaluator.timing import WARM_UP, Captured
from vortexlab.kernels.cost import Prediction, predict
from vortexlab.kernels.devices import Device, get_device
from vortexlab.kernels.precision import BYTES

_PARTS_REPEATS = 20


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds, medians; `quartiles` of the steps. `context`: mean tokens of a row over the timed steps."""

    step_ms: float
    quartiles: tuple[float, float]
    attention_ms: float
    product_ms: float
    rest_ms: float
    layers: int
    context: float
    steps: int

    @property
    def rest_us_a_layer(self) -> float:
        """Microseconds a layer of what is neither attention nor a matrix product."""
        return 1e3 * self.rest_ms / self.layers

    @property
    def unexplained_us_a_layer(self) -> float:
        """Microseconds a layer by which the step is longer than its parts together; below 0 where it is shorter."""
        return 1e3 * (self.step_ms - self.attention_ms - self.product_ms - self.rest_ms) / self.layers

    def to_json(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("rest_us_a_layer", "unexplained_us_a_layer")}
        return {**self.__dict__, **derived}


def room_needed(steps: int) -> int:
    """Tokens that `time_step` appends to every row before and while it times `steps` steps."""
    return 2 + WARM_UP + steps  # the last one is appended again and again, and not kept


@torch.no_grad()
def time_step(runner: DecodeRunner, steps: int) -> StepTimes:
    """Times `steps` steps that go on from where the caches stand; a runner whose step is captured cannot be timed.

    Every step reads random tokens: what a model with random weights decodes greedily falls into a few tokens, which
    choose few experts. (On a GPU their copy, of some microseconds, counts.) The course of decoding goes on with them.
    Raises `VortexError` when the caches have no room for the steps.
    """
    if runner.room() < room_needed(steps):
        raise VortexError(f"timing {steps} steps needs room for {room_needed(steps)} tokens; there is {runner.room()}")
    device = runner.model.device
    noted: list[Tensor] = []
    tokens = iter(random_tokens(runner, steps + 1))
    runner.tokens.copy_(next(tokens))
    runner.products.seen, runner.queries = [], noted
    runner.step()
    products, runner.products.seen, runner.queries = runner.products.seen, None, None
    runner.capture()
    before = runner.caches.lengths.float().mean()

    def step() -> None:
        runner.tokens.copy_(next(tokens))
        runner.step()

    spans = spans_ms(step, device, steps)
    after = runner.caches.lengths.float().mean()
    low, _, high = quantiles(spans, n=4)
    attention = attention_ms(runner.reader, noted, device)

    def multiply() -> list[Tensor]:
        return [product(*given) for product, given, _ in products]

    product_ms = _graph_ms(multiply, device)
    rest = _rest_ms(runner, [found for _, _, found in products], noted)
    context = float(before + after + 1) / 2
    return StepTimes(median(spans), (low, high), attention, product_ms, rest, len(noted), context, steps)


def random_tokens(runner: DecodeRunner, steps: int) -> Tensor:
    """What the timed steps read, after the one that notes products: int64 [steps, batch]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(runner.model.embedding), (steps, runner.caches.batch), generator=generator)
    return tokens.to(runner.model.device)


def _rest_ms(runner: DecodeRunner, products: Sequence[Tensor], queries: Sequence[Tensor]) -> float:
    """Median milliseconds of what lies between products and attention."""
    attention = [runner.reader(layer, q).clone() for layer, q in enumerate(queries)]
    tokens = runner.tokens.clone()
    found = _graph_ms(lambda: [runner.rest(products, attention)], tokens.device)
    runner.tokens.copy_(tokens)
    return found


def attention_ms(read: Read, queries: Sequence[Tensor], device: torch.device) -> float:
    """Median milliseconds of the attention of all layers: for a program with updates and selection."""
    return _graph_ms(lambda: [read(layer, q) for layer, q in enumerate(queries)], device)


def _graph_ms(work: Callable[[], list[Tensor]], device: torch.device) -> float:
    call = Captured(work) if device.type == "cuda" else work
    return median(spans_ms(call, device, _PARTS_REPEATS if device.type == "cuda" else 2))


def spans_ms(call: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each of `repeats` calls. On a GPU they are queued back to back."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(repeats):
            call()
            marks.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    # The device is kept busy while the first calls are queued, so that no span waits for the host.
    torch.cuda._sleep(2_000_000)
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in pairwise(events)]


def selected_pages(caches: Caches, lists: Sequence[Any], page: int) -> float:
    """Pages that a KV head read at the last step, the own page included: mean over layers, rows and KV heads."""
    tokens = torch.stack([each.tokens(caches.lengths, page).double().mean() for each in lists])
    return float(tokens.mean()) / page


def attention_bytes(
    program: Program | None, static: Static, context: int, batch: int, device: Device, pages: float | None = None
) -> float:
    """Bytes in bf16 that attention of one layer has to read: all keys and values (`program` None), or the summaries
    that are scored and the selected `pages`; without `pages` the program's bound."""
    if program is None:
        width = static.head_dim + (0 if static.latent else static.value_dim)
        return batch * context * static.kv_heads * width * BYTES["bf16"]
    found = predict(program, static, context, batch, device, pages)
    return sum(stage.read for stage in found.stages if stage.name in ("score", "attend", "entries"))


def ideal_ms(weights: float, attention: float, layers: int, device: Device) -> float:
    """Milliseconds of a step that only reads its bytes, at the rate of the device's fastest reads."""
    return 1e3 * (weights + layers * attention) / device.ceiling


def predicted_step(
    program: Program, static: Static, layers: int, weights: StepBytes, context: int, batch: int, shards: int,
    device_name: str,
) -> dict[str, Any]:  # fmt: skip
    """A whole step by the cost model: attention of one shard (`static` is its geometry) and its part of the weights.

    Norms, routing and communication between shards are left out, for dense and sparse alike.
    """
    device = get_device(device_name)
    found: Prediction = predict(program, static, context, batch, device)
    product_ms = 1e3 * weights.read(batch) / shards / device.read
    dense, sparse = (1e3 * layers * seconds + product_ms for seconds in (found.dense.seconds, found.seconds))
    return {
        "kind": "predicted", "device": device.name, "product_ms": product_ms, "dense_ms": dense, "step_ms": sparse,
        "speedup": dense / sparse, "density": found.density, "left_out": "norms, routing, communication between shards",
    }  # fmt: skip
