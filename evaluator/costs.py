"""Predicted costs of a verdict: the cost model at the conditions of the speed gate, with live page counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator.geometries import Geometry
from vortexlab.kernels.cost import model, predict
from vortexlab.kernels.devices import get_device


def predictions(
    program: Program,
    geometry: Geometry,
    layers: int,
    lengths: Sequence[int],
    batch_tokens: int,
    device: str,
    counts: Mapping[str, Sequence[int]],
) -> dict[str, dict[str, Any]]:
    """By length, the prediction as JSON. `counts`: pages of lists recorded at a length; without them bounds count.

    `layers` are those of the model that accuracy was measured on, as in the measured speed. The model is in bf16 on a
    GPU and in fp32 on the CPU, and so is every cache whose program wants no other. Raises `VortexError` for an unknown
    device.
    """
    dtype = "fp32" if get_device(device).kind == "cpu" else "bf16"
    static = Static(geometry.kv_heads, geometry.group, geometry.head_dim, geometry.scale, 0, layers)
    result = {}
    for length in lengths:
        seen = counts.get(str(length))
        live = sum(seen) / len(seen) if seen else None
        batch = max(1, batch_tokens // length)
        result[str(length)] = predict(program, static, length, batch, device, live, dtype=dtype).to_json()
    return result


def state(program: Program, geometry: Geometry, lengths: Sequence[int], device: str) -> dict[str, Any]:
    """What a request keeps, in bytes per token of context over all layers and KV heads of the geometry.

    `kv`: keys and values in the precision of the program's cache; `state`: summaries and what is carried on; `batch`:
    by length, how many requests fit the device's memory if it held nothing else (weights and activations take their
    part of it), None where the device's memory is not known. Precisions are those of `predictions`.
    """
    target = get_device(device)
    dtype = "fp32" if target.kind == "cpu" else "bf16"
    found = model(program, geometry.static(), max(lengths), 1, target, dtype)
    heads = geometry.layers * geometry.kv_heads
    kv, kept = float(heads * found.token_bytes()), heads * found.state_bytes() / program.page_size
    batch = {str(n): int(target.memory // ((kv + kept) * n)) if target.memory else None for n in lengths}
    return {"kv": kv, "state": kept, "batch": batch, "device": device}


def speedup(predicted: Mapping[str, Mapping[str, Any]]) -> float:
    """Geometric mean over lengths of the predicted speed-up over dense attention on the same device."""
    logs = [math.log(item["speedup_over_dense"]) for item in predicted.values()]
    return math.exp(sum(logs) / len(logs))
