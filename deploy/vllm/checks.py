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
    parallel, model = config.parallel_config, getattr(config, "model_config", None)
    refused = {
        "a KV connector, whose blocks arrive without their summaries": config.kv_transfer_config is not None,
        "speculative decoding": config.speculative_config is not None,
        "context parallelism, which divides a request's tokens": _more_than_one(
            parallel, "decode_context_parallel_size", "prefill_context_parallel_size"
        ),
        "parts of a batch that run beside each other": bool(getattr(parallel, "enable_dbo", False)),
        "attention over prefixes that look ahead": bool(getattr(model, "is_mm_prefix_lm", False)),
        "a window over what is generated (R-SWA)": getattr(model, "rswa_window", None) is not None,
    }
    for what, is_so in refused.items():
        if is_so:
            raise VortexError(f"a sparse pattern does not work with {what} in vLLM; turn it off")
    found = of(asked)
    if parallel.tensor_parallel_size > 1:
        _check_heads(found.program)
    if _more_than_one(parallel, "pipeline_parallel_size") and _hands_upwards(found.program):
        raise VortexError(
            f"program {found.program.name} hands something from layer to layer, and with pipeline parallelism no stage "
            "has all layers; use --pipeline-parallel-size 1, or choose another program"
        )
    return found


def _more_than_one(parallel: Any, *names: str) -> bool:
    return any(getattr(parallel, name, 1) > 1 for name in names)


def _hands_upwards(program: Program) -> bool:
    """Whether layers read what layers below them found in the same step."""
    memories = program.memories.values()
    return any(item.scope == "layer" for item in memories) or any(
        node.op == "reuse" and node.attrs["over"] == "layers" for node in program.nodes
    )


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
