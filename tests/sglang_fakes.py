"""SGLang's objects as far as our backend touches them, and a server small enough to follow.

It has paged slots, a table of them per request, prefixes that requests share, prompts in chunks and decode steps.
`tests/test_sglang_contract.py` holds that the real ones have what these have.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class ForwardMode(IntEnum):
    EXTEND = auto()
    DECODE = auto()
    MIXED = auto()

    def is_extend(self) -> bool:
        return self in (ForwardMode.EXTEND, ForwardMode.MIXED)

    def is_decode(self) -> bool:
        return self == ForwardMode.DECODE

    def is_mixed(self) -> bool:
        return self == ForwardMode.MIXED


class AttentionType(Enum):
    DECODER = "decoder"
    ENCODER_ONLY = "encoder_only"


class RadixAttention(nn.Module):
    def __init__(self, heads: int, kv_heads: int, channel: int, layer: int, **changes: Any):
        super().__init__()
        self.tp_q_head_num, self.tp_k_head_num, self.qk_head_dim, self.v_head_dim = heads, kv_heads, channel, channel
        self.scaling, self.layer_id, self.logit_cap, self.sliding_window_size = channel**-0.5, layer, 0.0, -1
        self.is_cross_attention, self.use_irope, self.attn_type = False, False, AttentionType.DECODER
        self.k_scale, self.v_scale, self.xai_temperature_len = None, None, -1
        for name, value in changes.items():
            setattr(self, name, value)


@dataclass
class KVWriteLoc:
    loc: Tensor

    @classmethod
    def for_batch(cls, forward_batch: Any) -> KVWriteLoc:
        return cls(forward_batch.out_cache_loc)


class MHATokenToKVPool:
    kv_cache_layout, post_capture_active = "nhd", False

    def __init__(self, size: int, page_size: int, layers: int, kv_heads: int, channel: int, device: str = "cpu"):
        self.dtype = self.store_dtype = torch.float32
        # What no request has written is not a number, so that reading it cannot pass unseen.
        empty = torch.full((size + page_size, kv_heads, channel), math.nan, device=device)
        self.buffers = [(empty.clone(), empty.clone()) for _ in range(layers)]

    def get_kv_buffer(self, layer_id: int) -> tuple[Tensor, Tensor]:
        return self.buffers[layer_id]

    def set_kv_buffer(
        self, layer: Any, loc_info: Any, k: Tensor, v: Tensor, k_scale: Any = None, v_scale: Any = None
    ) -> None:
        keys, values = self.buffers[layer.layer_id]
        keys[loc_info.loc], values[loc_info.loc] = k, v


class TritonAttnBackend:
    """Dense attention, in plain torch."""

    def __init__(self, runner: Any):
        self.req_to_token = runner.req_to_token_pool.req_to_token
        self.stock_pool = runner.token_to_kv_pool
        self.dense_steps = 0

    def init_forward_metadata(self, forward_batch: Any) -> None:
        pass

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        pass

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        pass

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool = True, sinks: Any = None
    ) -> Tensor:
        if save_kv_cache:
            self.stock_pool.set_kv_buffer(layer, KVWriteLoc.for_batch(batch), k, v)
        out, at = torch.empty_like(q), 0
        for row, count in enumerate(batch.extend_seq_lens_cpu):
            for i in range(count):
                length = batch.extend_prefix_lens_cpu[row] + i + 1
                out[at] = self._attend(q[at], layer, int(batch.req_pool_indices[row]), length)
                at += 1
        return out

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save_kv_cache: bool = True, sinks: Any = None
    ) -> Tensor:
        self.dense_steps += 1
        if save_kv_cache:
            self.stock_pool.set_kv_buffer(layer, KVWriteLoc.for_batch(batch), k, v)
        rows = zip(batch.req_pool_indices.tolist(), batch.seq_lens.tolist(), strict=True)
        return torch.stack([self._attend(q[i], layer, *row) for i, row in enumerate(rows)])

    def _attend(self, q: Tensor, layer: Any, request: int, length: int) -> Tensor:
        keys, values = self.stock_pool.get_kv_buffer(layer.layer_id)
        slots = self.req_to_token[request, :length].long()
        group = layer.tp_q_head_num // layer.tp_k_head_num
        k, v = (x[slots].transpose(0, 1).repeat_interleave(group, 0) for x in (keys, values))
        scores = torch.einsum("hd,htd->ht", q.view(layer.tp_q_head_num, -1), k) * layer.scaling
        return torch.einsum("ht,htd->hd", scores.softmax(-1), v).flatten()


class HookType(Enum):
    AFTER = "after"


class HookRegistry:
    hooks: ClassVar[list[tuple[str, Callable[..., Any], HookType]]] = []

    @classmethod
    def register(cls, target: str, hook: Callable[..., Any], hook_type: HookType = HookType.AFTER) -> None:
        cls.hooks.append((target, hook, hook_type))


BACKENDS: dict[str, Any] = {}
CHOICES: list[str] = ["triton"]


def register_attention_backend(name: str) -> Callable[[Any], Any]:
    return lambda make: BACKENDS.setdefault(name, make)


#: What our code imports from SGLang, by module.
MODULES: Mapping[str, Mapping[str, Any]] = {
    "sglang": {"__version__": "0.5.23"},
    "sglang.srt.arg_groups.overrides": {"resolved_view": lambda given: given.resolved},
    "sglang.srt.layers.attention.attention_registry": {"register_attention_backend": register_attention_backend},
    "sglang.srt.layers.attention.triton_backend": {"TritonAttnBackend": TritonAttnBackend},
    "sglang.srt.layers.radix_attention": {"AttentionType": AttentionType, "RadixAttention": RadixAttention},
    "sglang.srt.mem_cache.memory_pool": {"KVWriteLoc": KVWriteLoc, "MHATokenToKVPool": MHATokenToKVPool},
    "sglang.srt.plugins.hook_registry": {"HookRegistry": HookRegistry, "HookType": HookType},
    "sglang.srt.server_args": {"add_attention_backend_choices": CHOICES.extend},
}


def install(monkeypatch: Any) -> None:
    """Puts the fakes where `import sglang...` finds them, and forgets our modules that hold on to others."""
    BACKENDS.clear()
    HookRegistry.hooks.clear()
    CHOICES[:] = ["triton"]
    for name in [name for name in sys.modules if name.startswith("vortexlab.deploy.sglang")]:
        monkeypatch.delitem(sys.modules, name)
    for name, held in MODULES.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            parent = ".".join(parts[:end])
            if parent not in MODULES and parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        module = types.ModuleType(name)
        vars(module).update(held)
        monkeypatch.setitem(sys.modules, name, module)


def arguments(name: str, **changes: Any) -> SimpleNamespace:
    """Server arguments as they were asked, with what they resolve to."""
    phase = {phase: SimpleNamespace(backend=changes.pop(phase, "disabled")) for phase in ("prefill", "decode")}
    resolved = {
        "speculative_algorithm": None, "attn_dp_size": 1, "tp_size": 1, "pp_size": 1, "enable_mixed_chunk": False,
        "dllm_algorithm": None, "enable_two_batch_overlap": False, "enable_pdmux": False, "disaggregation_mode": "null",
        "enable_hierarchical_cache": False, "enable_lmcache": False, "enable_flexkv": False,
        "enable_unified_memory": False, "enable_torch_compile": False, "cuda_graph_config": SimpleNamespace(**phase),
        **changes,
    }  # fmt: skip
    return SimpleNamespace(
        attention_backend=name, prefill_attention_backend=None, decode_attention_backend=None,
        resolved=SimpleNamespace(**resolved),
    )  # fmt: skip


@dataclass
class Server:
    """`tables`: the pages of each request; `history`: the tokens of each layer and request, as they were given."""

    name: str = "vortex_test"
    page: int = 16
    layers: int = 2
    kv_heads: int = 2
    group: int = 2
    channel: int = 8
    pages: int = 40
    context: int = 320
    device: str = "cpu"
    tables: dict[int, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    history: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(5)
        # Page 0 is SGLang's, for rows that pad; a freed page is handed out last.
        self.free = list(torch.randperm(self.pages - 1, generator=self.random).add(1).tolist())

    def runner(self, **changes: Any) -> SimpleNamespace:
        """SGLang's ModelRunner."""
        given = {
            name: changes.pop(name) for name in list(changes) if name not in ("page_size", "device", "use_mla_backend")
        }
        heads = self.kv_heads * self.group
        attention = [RadixAttention(heads, self.kv_heads, self.channel, i) for i in range(self.layers)]
        size = (self.pages - 1) * self.page
        table = torch.zeros(9, self.context, dtype=torch.int32, device=self.device)
        pool = MHATokenToKVPool(size, self.page, self.layers, self.kv_heads, self.channel, self.device)
        return SimpleNamespace(**{
            "server_args": arguments(self.name, **given), "prefill_attention_backend_str": self.name,
            "decode_attention_backend_str": self.name, "is_draft_worker": False, "device": "cuda",
            "page_size": self.page, "use_mla_backend": False, "sliding_window_size": None, "is_hybrid_swa": False,
            "dtype": torch.float32, "model": nn.ModuleList(attention),
            "model_config": SimpleNamespace(num_hidden_layers=self.layers),
            "token_to_kv_pool": pool, "req_to_token_pool": SimpleNamespace(req_to_token=table),
            **changes,
        })  # fmt: skip

    def start(self, backend: Any, runner: Any) -> None:
        self.backend, self.run = backend, runner

    def admit(self, request: int, like: int | None = None, pages: int = 0) -> int:
        """A new request, with the first `pages` pages of another; returns how many tokens it has already."""
        found = pages * self.page
        self.tables[request] = [] if like is None else self.tables[like][:pages]
        self.lengths[request] = found
        for layer in range(self.layers):
            empty = torch.empty(self.kv_heads, 0, self.channel)
            old = self.history[layer, like] if like is not None else (empty, empty)
            self.history[layer, request] = (old[0][:, :found], old[1][:, :found])
        return found

    def release(self, request: int, keep: int = 0) -> None:
        """Gives the pages of a request back, but the first `keep`, which others hold."""
        self.free += self.tables.pop(request)[keep:]

    def _grow(self, request: int, count: int) -> list[int]:
        """Slots for some more tokens of a request."""
        table, first = self.tables[request], self.lengths[request]
        while len(table) * self.page < first + count:
            table.append(self.free.pop(0))
        slots = [table[at // self.page] * self.page + at % self.page for at in range(first, first + count)]
        self.run.req_to_token_pool.req_to_token[request, first : first + count] = torch.tensor(slots)
        return slots

    def extend(self, fresh: Mapping[int, int]) -> list[Tensor]:
        """Reads some more tokens of prompts; the output of each layer [tokens, query_heads * channel]."""
        prefixes = [self.lengths[request] for request in fresh]
        for request, length in zip(fresh, prefixes, strict=True):  # a prefix that was found is in the table, too
            row = [self.tables[request][at // self.page] * self.page + at % self.page for at in range(length)]
            self.run.req_to_token_pool.req_to_token[request, :length] = torch.tensor(row, dtype=torch.int32)
        slots = [slot for request, count in fresh.items() for slot in self._grow(request, count)]
        batch = self._batch(ForwardMode.EXTEND, list(fresh), list(fresh.values()), slots)
        batch.extend_prefix_lens_cpu, batch.extend_seq_lens_cpu = prefixes, list(fresh.values())
        self.backend.init_forward_metadata(batch)
        return [self._layer(layer, batch, list(fresh), list(fresh.values()))[1] for layer in range(self.layers)]

    def decode(self, requests: Sequence[int], padded: int = 0) -> list[tuple[Tensor, Tensor]]:
        """A decode step, in the static buffers of a graph of `padded` rows where that is given: queries [rows,
        query_heads, channel] and outputs of each layer."""
        batch = self.batch(requests, padded)
        if padded:
            self.backend.init_forward_metadata_out_graph(batch)
        else:
            self.backend.init_forward_metadata(batch)
        return [self._layer(layer, batch, list(requests), [1] * len(requests)) for layer in range(self.layers)]

    def batch(self, requests: Sequence[int], padded: int = 0) -> SimpleNamespace:
        """The next decode step of some requests, perhaps with rows that pad."""
        slots = [slot for request in requests for slot in self._grow(request, 1)]
        rows = [*requests, *[0] * max(0, padded - len(requests))]
        return self._batch(ForwardMode.DECODE, rows, [1] * len(requests), slots)

    def _batch(self, mode: ForwardMode, rows: list[int], fresh: list[int], slots: list[int]) -> SimpleNamespace:
        for request, count in zip(rows, fresh, strict=False):
            self.lengths[request] += count
        lengths = [self.lengths.get(row, 1) if i < len(fresh) else 1 for i, row in enumerate(rows)]
        idle = [0] * (len(rows) - len(fresh))
        return SimpleNamespace(
            forward_mode=mode, batch_size=len(rows), req_pool_indices=torch.tensor(rows, device=self.device),
            seq_lens=torch.tensor(lengths, device=self.device), seq_lens_cpu=torch.tensor(lengths),
            out_cache_loc=torch.tensor([*slots, *idle], device=self.device), extend_prefix_lens=None,
            extend_seq_lens=None, extend_prefix_lens_cpu=None, extend_seq_lens_cpu=None,
        )  # fmt: skip

    def tokens(self, number: int, requests: Sequence[int], fresh: Sequence[int], total: int) -> list[Tensor]:
        """Random q, k, v of a step's tokens in one layer, row by row and `total` with those that pad, which the
        requests' histories take on."""
        heads = self.run.model[number].tp_q_head_num
        q = torch.randn(total, heads, self.channel, generator=self.random)
        k, v = torch.randn(2, total, self.kv_heads, self.channel, generator=self.random)
        at = 0
        for request, count in zip(requests, fresh, strict=True):
            new = [x[at : at + count].transpose(0, 1) for x in (k, v)]
            old = self.history[number, request]
            self.history[number, request] = (torch.cat((old[0], new[0]), 1), torch.cat((old[1], new[1]), 1))
            at += count
        return [q, k, v]

    def _layer(self, number: int, batch: Any, requests: list[int], fresh: list[int]) -> tuple[Tensor, Tensor]:
        q, k, v = self.tokens(number, requests, fresh, len(batch.out_cache_loc))
        forward = self.backend.forward_decode if batch.forward_mode.is_decode() else self.backend.forward_extend
        given = [x.to(self.device) for x in (q.flatten(1), k, v)]
        return q, forward(*given, self.run.model[number], batch).cpu()
