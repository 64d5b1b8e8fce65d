"""What a pattern does not run with in SGLang, found when the engine starts and said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.kernels.gate import Gate


@dataclass(frozen=True)
class Pattern:
    """A program as an engine runs it. `name`: its package's, and that of its attention backend. `gate`: None where
    every decode step is sparse."""

    name: str
    program: Program
    gate: Gate | None = None


def check_engine(pattern: Pattern, runner: Any) -> None:
    """Raises `VortexError` for server arguments, a pool or a model that the pattern does not run with.

    `runner` is SGLang's ModelRunner when it makes its attention backend: model and pool are there.
    """
    given = resolved_view(runner.server_args)
    backends = {runner.prefill_attention_backend_str, runner.decode_attention_backend_str}
    _refuse(
        "a sparse pattern does not work with {} in SGLang; turn it off",
        {
            "speculative decoding": given.speculative_algorithm is not None or runner.is_draft_worker,
            "DP attention": given.attn_dp_size > 1,
            "several devices": max(given.tp_size, given.pp_size) > 1,
            "mixed chunks (--enable-mixed-chunk), whose decoding rows would be read densely": given.enable_mixed_chunk,
            "diffusion language models": given.dllm_algorithm is not None,
            "two-batch overlap or PD multiplexing, which make several backends for one pool": (
                given.enable_two_batch_overlap or given.enable_pdmux
            ),
            "prefill and decode on different machines, since pages arrive without their summaries": (
                given.disaggregation_mode != "null"
            ),
            "a hierarchical cache (HiCache, LMCache, FlexKV), since pages return without their summaries": (
                given.enable_hierarchical_cache or given.enable_lmcache or given.enable_flexkv
            ),
            "a unified memory pool": given.enable_unified_memory,
            "torch.compile": given.enable_torch_compile,
            "prefill in one whole CUDA graph (use --cuda-graph-backend-prefill breakable or disabled)": (
                given.cuda_graph_config.prefill.backend not in ("breakable", "disabled")
            ),
            "prefill and decode in different attention backends, since both write pages": len(backends) > 1,
            "another device than a CUDA GPU": runner.device != "cuda",
        },
    )
    if pattern.gate is not None and given.cuda_graph_config.decode.backend != "disabled":
        raise VortexError(
            f"{pattern.name} has a dense gate, which looks at every step's lengths, and a CUDA graph cannot; start "
            "SGLang with --cuda-graph-backend-decode disabled, or with VORTEX_GATE=off, which makes every step sparse"
        )
    page = pattern.program.page_size
    if runner.page_size % page:
        raise VortexError(
            f"program {pattern.program.name} has pages of {page} tokens and SGLang of {runner.page_size}; start it "
            f"with --page-size {page}, or a multiple of it"
        )
    _check_pool(runner)
    _check_layers(runner)


def _refuse(sentence: str, found: Mapping[str, bool]) -> None:
    """Raises `VortexError` for the first thing that is so."""
    for what, is_so in found.items():
        if is_so:
            raise VortexError(sentence.format(what))


def _check_pool(runner: Any) -> None:
    pool = runner.token_to_kv_pool
    _refuse(
        "the KV cache of this model is {}, which a pattern does not read in SGLang",
        {
            "latent (MLA)": runner.use_mla_backend,
            "in part that of a sliding window": (runner.sliding_window_size or 0) > 0 or runner.is_hybrid_swa,
            "quantised": pool.dtype != runner.dtype or pool.store_dtype != pool.dtype,
            # Pools of hybrid models, 4-bit ones and those of other layouts are subclasses, or none.
            f"a {type(pool).__name__}": type(pool) is not MHATokenToKVPool,
            "not laid out token by token (unset SGLANG_USE_HND_KVCACHE)": pool.kv_cache_layout != "nhd",
            "sized after the graphs are captured (unset SGLANG_ENABLE_POST_CAPTURE_KV_SIZING)": (
                pool.post_capture_active
            ),
        },
    )


def layers_of(model: Any) -> list[Any]:
    """The model's attention layers by number."""
    return sorted((part for part in model.modules() if isinstance(part, RadixAttention)), key=lambda x: x.layer_id)


def _check_layers(runner: Any) -> None:
    layers = layers_of(runner.model)
    if [layer.layer_id for layer in layers] != list(range(runner.model_config.num_hidden_layers)):
        raise VortexError(
            "the model has layers without an attention of their own (linear, state-space or shared ones); a pattern "
            "runs on models whose layers are all full attention"
        )
    for layer in layers:
        _refuse(
            f"the attention of layer {layer.layer_id} has {{}}, which a pattern cannot express",
            {
                "a sliding window": layer.sliding_window_size > -1,
                "soft capping": bool(layer.logit_cap),
                "a temperature by length": layer.xai_temperature_len > 0,
                "chunks of its own (iRoPE)": layer.use_irope,
                "cross or encoder attention": layer.is_cross_attention or layer.attn_type != AttentionType.DECODER,
                "keys and values of different widths": layer.qk_head_dim != layer.v_head_dim,
            },
        )
