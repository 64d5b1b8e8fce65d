"""What of vLLM a pattern does not work with: refused in one line, before weights are loaded."""

from __future__ import annotations

from typing import Any

from vortexlab.deploy.vllm.config import KEY, Pattern, of
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program


def pattern_of(config: Any) -> Pattern | None:
    """The pattern that an engine (vLLM's `VllmConfig`) was given by ``additional_config={"vortex": ...}``, or None.

    Raises `VortexError` for what names no package, and for an engine or a program that do not go together.
    """
    given = config.additional_config
    asked = given.get(KEY) if isinstance(given, dict) else None
    if asked is None:
        return None
    parallel = config.parallel_config
    refused = {
        "a KV connector, whose blocks arrive without their summaries": config.kv_transfer_config is not None,
        "speculative decoding": config.speculative_config is not None,
        "context parallelism, which divides a request's tokens": _more_than_one(
            parallel, "decode_context_parallel_size", "prefill_context_parallel_size"
        ),
    }
    for what, is_so in refused.items():
        if is_so:
            raise VortexError(f"a sparse pattern does not work with {what} in vLLM; turn it off")
    found = of(asked)
    if parallel.tensor_parallel_size > 1:
        _check_heads(found.program)
    return found


def _more_than_one(parallel: Any, *names: str) -> bool:
    return any(getattr(parallel, name, 1) > 1 for name in names)


def _check_heads(program: Program) -> None:
    """With tensor parallelism every rank selects for its own KV heads and knows no others."""
    refused = {
        "shares scores between KV heads": any(node.op == "share" for node in program.nodes),
        "draws pages at random by the number of the KV head": any(node.op == "random" for node in program.nodes),
        "has parameters for every KV head": bool(program.params),
    }
    for what, is_so in refused.items():
        if is_so:
            raise VortexError(
                f"program {program.name} {what}, and with tensor parallelism no rank has them all; use "
                "--tensor-parallel-size 1, or choose another program"
            )


def check_layer(layer: Any, decoder: str) -> None:
    """Raises `VortexError` for attention (vLLM's `AttentionImpl`) that means something else than plain softmax over all
    tokens. `decoder`: vLLM's name of decoder attention."""
    window = layer.sliding_window
    refused = {
        "a sliding window": window not in (None, -1, (-1, -1)),
        "soft capping": bool(layer.logits_soft_cap),
        "sinks": layer.sinks is not None,
        "ALiBi": layer.alibi_slopes is not None,
        "layers that share a KV cache": layer.kv_sharing_target_layer_name is not None,
        "a quantised KV cache": str(layer.kv_cache_dtype).startswith(("fp8", "int", "nvfp4", "turboquant")),
        "cross or encoder attention": layer.attn_type != decoder,
    }
    for what, is_so in refused.items():
        if is_so:
            raise VortexError(f"the model's attention has {what}, which a pattern cannot express")
