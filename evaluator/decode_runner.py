"""Whole-model decode: transformers' layers, our attention on a paged cache, one CUDA graph a step.

A step takes one token of every row through all layers and leaves the next one, greedily chosen, in `tokens`. Lengths,
tables and tokens live on the device; a step reads none of them back. On the CPU, or without a graph, the same code runs
eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.decode_layers import DecodeModel, Glue, Products, Read, StepContext, fused
from vortexlab.evaluator.executors import EVERYTHING, Make, decode, executor_for, new_memories
from vortexlab.evaluator.timing import WARM_UP, Captured
from vortexlab.evaluator.traits import depends_on_layer
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.place import rms_norm

#: Tokens of a block of the pool: pages of 16 lie inside one, pages of 64 are one.
BLOCK = 64


@dataclass
class Caches:
    """One paged cache a layer, all with the same table and the same lengths."""

    layers: list[PagedKV]

    @staticmethod
    def empty(
        statics: Sequence[Static], batch: int, capacity: int, device: str | torch.device, dtype: torch.dtype,
        *, block: int = BLOCK, seed: int = 0,
    ) -> Caches:  # fmt: skip
        """Room for `capacity` tokens a row, in blocks that lie shuffled in their pools; no token yet."""
        blocks = -(-capacity // block)
        generator = torch.Generator().manual_seed(seed)
        table = torch.randperm(batch * blocks, generator=generator).int().view(batch, blocks).to(device)
        lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        layers = []
        for static in statics:
            shape = (batch * blocks, static.kv_heads, block, static.head_dim)
            k = torch.zeros(shape, dtype=dtype, device=device)
            v = k[..., : static.latent] if static.latent else torch.zeros_like(k)
            layers.append(PagedKV(k, v, table, lengths, block))
        return Caches(layers)

    def fill(self, length: int, seed: int) -> None:
        """Random keys and values everywhere, and `length` tokens a row: a context that nobody had to read."""
        if length > self.capacity:
            raise VortexError(f"{length} tokens do not fit a cache of {self.capacity} tokens a row")
        device = self.lengths.device
        generator = torch.Generator(device).manual_seed(seed)
        for cache in self.layers:
            cache.k.normal_(generator=generator)
            if not cache.is_shared:
                cache.v.normal_(generator=generator)
        self.lengths.fill_(length)

    @property
    def lengths(self) -> Tensor:
        return self.layers[0].lengths

    @property
    def batch(self) -> int:
        return self.layers[0].batch

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity


class DenseReader:
    """Dense attention: our own kernels over all pages on a GPU, the torch executor elsewhere."""

    name = "dense"

    def __init__(self, statics: Sequence[Static], caches: Caches) -> None:
        self.static, self.caches = statics[0], caches.layers
        on_gpu = caches.lengths.device.type == "cuda"
        self._whole = None if on_gpu else ProgramReader(EVERYTHING, statics, caches)

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        if self._whole is not None:
            return self._whole(layer, q)
        # Not before there is a GPU: Triton may be missing elsewhere.
        from vortexlab.kernels.gpu.attention import attend
        from vortexlab.kernels.gpu.latent import attend_latent

        cache, attended = self.caches[layer], attend_latent if self.static.latent else attend
        return attended(q, cache, None, cache.block, self.static.scale)


class ProgramReader:
    """A bound program: summaries of the pages that the newest token completed, selection, attention.

    Made when the caches hold the context, whose pages it summarises. `lists`: what each layer read at the last step.
    """

    def __init__(self, program: Program, statics: Sequence[Static], caches: Caches, make: Make | None = None) -> None:
        self.name, self.caches = program.name, caches.layers
        make = make or executor_for(caches.lengths.device.type)
        alike = not depends_on_layer(program) and len({replace(static, layer=0) for static in statics}) == 1
        if alike:
            self.executors = [make(program, statics[0])] * len(statics)
        else:
            self.executors = [make(program, static) for static in statics]
        self.states = [e.new_state(cache) for e, cache in zip(self.executors, self.caches, strict=True)]
        for executor, state, cache in zip(self.executors, self.states, self.caches, strict=True):
            executor.summarize(state, cache)
        self.memories = new_memories(program, self.executors, self.caches)
        self.lists: list[PageLists | None] = [None] * len(statics)

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        executor, state, cache = self.executors[layer], self.states[layer], self.caches[layer]
        executor.update(state, cache)
        out, self.lists[layer] = decode(executor, q, state, cache, self.memories[layer])
        return out


class DecodeRunner:
    """Steps of one model over its caches, read by `reader`. Several runners may share caches, one after the other.

    `glue` may put what lies between matrix products and attention under torch.compile; runners of one model and batch
    share it.
    """

    def __init__(self, model: DecodeModel, caches: Caches, reader: Read, glue: Glue | None = None) -> None:
        if len(caches.layers) != len(model.layers) or caches.capacity > model.cos.shape[0]:
            raise VortexError(
                f"{len(caches.layers)} caches of {caches.capacity} tokens do not fit a model of {len(model.layers)} "
                f"layers with angles for {model.cos.shape[0]} positions"
            )
        self.model, self.caches, self.reader = model, caches, reader
        self.products, self.glue = Products(), glue or Glue(compiled=False)
        self.tokens = torch.zeros(caches.batch, dtype=torch.int64, device=model.device)
        #: While a list, every layer's query is noted there.
        self.queries: list[Tensor] | None = None
        self._replay: Callable[[], Tensor] | None = None

    def _read(self, layer: int, q: Tensor) -> Tensor:
        if self.queries is not None:
            self.queries.append(q)
        return self.reader(layer, q)

    def _step(self) -> Tensor:
        model, glue = self.model, self.glue
        self.caches.lengths.add_(1)
        step = StepContext(self.products, glue, model.cos, model.sin, self._read)
        residual = functional.embedding(self.tokens, model.embedding)
        add_norm = fused("add_norm", model.device)
        norms = [layer.before for layer in model.layers] + [model.final]
        x = glue(rms_norm, residual, norms[0].weight, norms[0].eps)
        for layer, cache, after in zip(model.layers, self.caches.layers, norms[1:], strict=True):
            x = layer.attention(x, cache, step)
            x, residual = add_norm(x, residual, layer.after.weight, layer.after.eps)
            x, residual = add_norm(layer.mlp(x, step), residual, after.weight, after.eps)
        logits = self.products.linear(x, model.head)
        torch.argmax(logits, -1, out=self.tokens)
        return logits

    @torch.no_grad()
    def step(self) -> Tensor:
        """One token of every row: logits [batch, vocabulary], with a graph overwritten by the next step.

        The caller sees to it that the cache has room: see `room`.
        """
        return self._step() if self._replay is None else self._replay()

    @torch.no_grad()
    def rest(self, products: Sequence[Tensor], attention: Sequence[Tensor]) -> Tensor:
        """A step of which nothing is computed but what lies between `products` and `attention`, whose results it takes
        from these, in the order of the step. The token that it appends, for which there must be room, is not kept."""
        reader, self.reader = self.reader, lambda layer, q: attention[layer]
        self.products.known = iter(products)
        try:
            return self._step()
        finally:
            self.caches.lengths.sub_(1)
            self.reader, self.products.known = reader, None

    def room(self) -> int:
        """Steps until the first row is full. Reads the lengths back from the device."""
        return self.caches.capacity - int(self.caches.lengths.max())

    @torch.no_grad()
    def capture(self) -> None:
        """Puts the step into a CUDA graph, where there is a GPU; lengths and tokens stay as they are.

        Raises `VortexError` when a program runs on the torch executor, whose steps look at numbers on the host.
        """
        if self.model.device.type != "cuda":
            return
        from vortexlab.kernels.torch_executor import TorchExecutor

        executors: list[Any] = getattr(self.reader, "executors", [])
        if any(isinstance(executor, TorchExecutor) for executor in executors):
            raise VortexError("the Triton kernels do not cover this program, and no other step fits a CUDA graph")
        if self.room() < WARM_UP:
            raise VortexError(f"capturing a step needs room for {WARM_UP} tokens in every row, there is {self.room()}")
        kept = self.caches.lengths.clone(), self.tokens.clone()
        self._replay = Captured(self._step)
        self.caches.lengths.copy_(kept[0])
        self.tokens.copy_(kept[1])
