"""A program as an attention implementation of Hugging Face transformers.

`Pattern.register` makes the name usable as ``attn_implementation``; `Pattern.cache` gives the cache that goes with
it. What runs follows from the cache alone: tokens that meet an empty cache are a prompt and are read densely; every
later token, alone or in a chunk, selects pages for itself, unless a gate says that dense attention is faster at this
batch and length: then it is read densely, and summaries are written all the same. No model code changes.

What a program carries begins with the first sparse token after a prompt, anew for every sequence. In a chunk a layer
reads all tokens before the next layer reads any, so what layers hand upwards is kept for each token of the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.dense import sdpa_folded
from vortexlab.kernels.executor import Executor
from vortexlab.kernels.gate import Gate
from vortexlab.kernels.memory import Carry, Memory

_LAYER = "_vortex_layer"
#: Arguments of attention functions that change its meaning.
_REFUSED = {"sliding_window": "a sliding window", "softcap": "soft capping", "s_aux": "sinks"}


def executor_for(device: torch.device, program: Program, static: Static) -> type[Executor]:
    """The executor of a device: Triton on a GPU for what it covers, torch elsewhere."""
    if device.type == "cuda":
        from vortexlab.kernels.gpu.coverage import uncovered
        from vortexlab.kernels.gpu.executor import TritonExecutor

        if not uncovered(program, static):
            return TritonExecutor
    from vortexlab.kernels.torch_executor import TorchExecutor

    return TorchExecutor


@dataclass
class Chunk:
    """What the layers hand upwards at each token of the chunk under way; all layers of a cache share it."""

    carries: dict[int, Carry] = field(default_factory=dict)

    def begin(self, layer: int) -> None:
        if layer == 0:
            self.carries.clear()

    def carry(self, length: int) -> Carry:
        return self.carries.setdefault(length, Carry())


class PagedLayer(CacheLayerMixin):
    """One layer's keys and values in pages, with the summaries of the complete ones and what the program carries.

    The pool keeps each KV head's tokens next to each other, so transformers sees ordinary
    [batch, kv_heads, tokens, channel] views and the executor sees pages of the same memory.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, program: Program, layer: int, layers: int, chunk: Chunk, gate: Gate | None = None):
        super().__init__()
        self.program, self.layer, self.layers, self.chunk, self.gate = program, layer, layers, chunk, gate
        self.carries = program.has_memory
        self.executor: Executor | None = None
        self.state: Any = None
        self.memory: Memory | None = None
        self.began = 0  # tokens at the first step of the memory
        self.length = self.first_new = self.capacity = 0
        self.steps = 0
        self.share: Tensor | None = None  # of the context read, summed over steps, rows and KV heads; on the device

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._grow(key_states, value_states, key_states.shape[2])
        self.is_initialized = True

    def _grow(self, key_states: Tensor, value_states: Tensor, tokens: int) -> None:
        """Makes room for `tokens` tokens a row, at least doubling, in whole pages."""
        batch, heads = key_states.shape[:2]
        page = self.program.page_size
        old = self.length
        capacity = -(-max(tokens, 2 * old, 256) // page) * page
        pools, views = [], []
        for states, held in ((key_states, self.keys), (value_states, self.values)):
            pool = states.new_zeros(heads, batch * capacity, states.shape[3])
            view = pool.view(heads, batch, capacity, states.shape[3]).transpose(0, 1)
            if held is not None and old:
                view[:, :, :old] = held[:, :, :old]
            pools.append(pool)
            views.append(view)
        self.capacity = capacity
        self.keys, self.values = views
        starts = [row * capacity for row in range(batch)]
        self.paged = PagedKV.from_contiguous(pools[0], pools[1], starts, [old] * batch, page)
        self.state = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if key_states.shape[0] != self.keys.shape[0]:
            raise VortexError(
                f"the cache holds {self.keys.shape[0]} rows and was given {key_states.shape[0]}; use a new cache"
            )
        end = self.length + key_states.shape[2]
        if end > self.capacity:
            self._grow(key_states, value_states, end)
        if self.length == 0:
            self.state = self.memory = None  # what was remembered of earlier tokens is void
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.first_new, self.length = self.length, end
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        setattr(keys, _LAYER, self)
        return keys, values

    def step(self, q: Tensor, scale: float) -> Tensor:
        """Attention of the newest tokens, one by one, sparse but where the gate says otherwise.

        `q`: [batch, heads, tokens, channel]; returns as many channels as values have.
        """
        batch, heads, tokens, channel = q.shape
        assert self.keys is not None and self.values is not None
        cache, lengths = self.paged, self.paged.lengths
        if self.executor is None:
            static = Static(cache.kv_heads, heads // cache.kv_heads, channel, scale, self.layer, self.layers)
            self.executor = executor_for(q.device, self.program, static)(self.program, static)
        if self.state is None:
            self.state = self.executor.new_state(cache)
            lengths.fill_(self.first_new)
            self.executor.summarize(self.state, cache)
        if self.carries:
            self.chunk.begin(self.layer)
        out = q.new_empty(batch, heads, tokens, self.values.shape[3])
        for i in range(tokens):
            length = self.first_new + i + 1
            lengths.fill_(length)
            if length % self.program.page_size == 0:  # rows are equally long; no other step completes a page
                self.executor.update(self.state, cache)
            query = q[:, :, i].contiguous()
            if self.gate is not None and not self.gate.is_sparse(batch, length):
                out[:, :, i] = sdpa_folded(query, self.keys[:, :, :length], self.values[:, :, :length], scale)
                read = torch.ones((), dtype=torch.float64, device=q.device)
            else:
                out[:, :, i], read = self._sparse(query, length)
            self.share = read if self.share is None else self.share + read
            self.steps += 1
        return out

    def _sparse(self, query: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The program's step at `length` tokens: its output, and the share of the context that it read."""
        assert self.executor is not None
        if not self.carries:
            out, lists = self.executor.decode(query, self.state, self.paged)
        else:
            if self.memory is None:
                self.memory, self.began = self.executor.new_memory(self.paged), length - 1
            self.memory.carry = self.chunk.carry(length)
            out, lists = self.executor.decode(query, self.state, self.paged, self.memory)
        return out, lists.tokens(self.paged.lengths, self.program.page_size).double().mean() / length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier releases of transformers

    def reset(self) -> None:
        self.keys = self.values = self.state = self.share = self.memory = None
        self.is_initialized = False
        self.length = self.first_new = self.capacity = self.steps = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens. Summaries of pages cut open are written anew when they fill.

        What the program carries begins anew when all steps that wrote it are removed. Raises `VortexError` when only
        some of them are: what it was then is not kept.
        """
        if tokens_to_remove > 0:
            raise VortexError("crop takes a negative number, the tokens to remove from the end")
        left = max(0, self.length + tokens_to_remove)
        if self.memory is not None and left < self.length:
            if left > self.began:
                raise VortexError(
                    f"program {self.program.name} carries something from step to step: crop its cache back to the "
                    f"{self.began} tokens that it began after, or not at all"
                )
            self.memory = None
        self.length = left

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise VortexError("beam search is not supported with a sparse pattern; use greedy search or sampling")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise VortexError("a sparse pattern's cache cannot be repeated; prefill the rows that are needed")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise VortexError("rows of a sparse pattern's cache cannot be picked; prefill the rows that are needed")


@dataclass
class Pattern:
    """A bound program that transformers can run under `name`.

    With a `gate`, caches made from here on read densely where it says that the program would be slower.
    """

    program: Program
    name: str
    gate: Gate | None = None

    def register(self) -> str:
        """Registers attention and mask; returns the name for ``attn_implementation``. Repeating it is harmless."""
        AttentionInterface.register(self.name, _attention(self.name))
        AttentionMaskInterface.register(self.name, sdpa_mask)
        return self.name

    def cache(self, config: Any) -> Cache:
        """A fresh cache for one batch of sequences of the model with this config.

        Raises `VortexError` for models whose layers are not all full attention.
        """
        text = config.get_text_config(decoder=True)
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise VortexError(
                f"the model has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}; a pattern runs on "
                "models whose layers are all full attention"
            )
        count, chunk = text.num_hidden_layers, Chunk()
        return Cache(layers=[PagedLayer(self.program, layer, count, chunk, self.gate) for layer in range(count)])

    @staticmethod
    def density(cache: Cache) -> float | None:
        """Effective density so far, None before the first step after a prompt.

        Tokens read / tokens in the context, mean over layers, KV heads, rows and steps; 1 for steps that the gate made
        dense.
        """
        shares = [float(layer.share) / layer.steps for layer in _layers(cache) if layer.share is not None]
        return sum(shares) / len(shares) if shares else None


def _layers(cache: Cache) -> list[PagedLayer]:
    """Raises `VortexError` when the cache is not one of `Pattern.cache`."""
    layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer)]
    if len(layers) < len(cache.layers):
        raise VortexError("this is not a pattern's cache; make it with pattern.cache(model.config)")
    return layers


def _attention(name: str) -> Callable[..., tuple[Tensor, None]]:
    def forward(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        for argument, what in _REFUSED.items():
            if kwargs.get(argument) is not None:
                raise VortexError(f"the model's attention has {what}, which a pattern cannot express")
        layer: PagedLayer | None = getattr(key, _LAYER, None)
        prompt = query.shape[2] == key.shape[2]
        if layer is None and not prompt:
            raise VortexError(f"attention {name} needs its own cache: pass past_key_values=pattern.cache(model.config)")
        if prompt:
            return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        assert layer is not None
        if attention_mask is not None and not bool(attention_mask[:, :, -1].all()):
            raise VortexError(
                f"attention {name} cannot read padded rows; batch prompts of equal length, or run them one by one"
            )
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return layer.step(query, scale).transpose(1, 2).contiguous(), None

    return forward
