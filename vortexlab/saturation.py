"""What `vortex check` measures of a program's narrow precisions: how much saturates on numbers that have a name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl import saturation
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parameters import check_parameters
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.geometries import Geometry, find_geometry
from vortexlab.evaluator.reference.recorded import TASK, TOKENS, recorded

_PAGES, _OUTLIERS, _FACTOR, _SEED = 16, 4, 30.0, 0
#: The geometry of a layer, a query, keys and values.
Layer = tuple[Static, Tensor, Tensor, Tensor]
#: What numbers are, and the numbers.
Input = tuple[str, list[Layer]]


def report(program: Program, geometry: Geometry, cache: str) -> dict[str, Any] | None:
    """Counts of a bound program over a cache in precision `cache`, as JSON; None where nothing narrow is stored.

    `inputs`: what the numbers of each input are; `rows`: counts by input, as shares; `left_out`: what was not counted,
    and why.
    """
    if not saturation.is_narrow(program, cache):
        return None
    inputs, rows, left_out = {}, [], []
    if pooled := saturation.uncounted(program):
        left_out.append(f"{pooled} cast{'s' * (pooled > 1)} of pool, which run in sparse prefill alone")
    for name, make in (("normal", _drawn), ("outliers", _with_outliers), ("reference model", _recorded)):
        try:
            about, layers = make(program, geometry)
            counts = _sums(program, layers, cache)
        except VortexError as error:
            left_out.append(f"{name}: {error}")
            continue
        inputs[name] = about
        rows += [_row(name, item) for item in counts]
    return {"inputs": inputs, "rows": rows, "left_out": left_out}


def _sums(program: Program, layers: list[Layer], cache: str) -> list[saturation.Count]:
    per_layer = [saturation.measure(program, static, q, k, v, cache) for static, q, k, v in layers]
    return [sum(items[1:], items[0]) for items in zip(*per_layer, strict=True)]


def _row(name: str, item: saturation.Count) -> dict[str, Any]:
    shares = {key: getattr(item, key) / max(1, item.numbers) for key in ("over", "under", "not_finite")}
    return {"input": name, "what": item.what, "dtype": item.dtype, "line": item.line, "numbers": item.numbers, **shares}


def _static(program: Program, geometry: Geometry) -> Static:
    """One KV head tells what all would; learned constants have rows for all of them."""
    static = geometry.static()
    program.axis_sizes(static)
    check_parameters(program, static)
    return static if program.params else replace(static, kv_heads=1)


def _draw(program: Program, geometry: Geometry, factor: float) -> list[Layer]:
    """From the standard normal distribution, some channels times `factor`."""
    static = _static(program, geometry)
    generator = torch.Generator().manual_seed(_SEED)
    heads, tokens = static.kv_heads, _PAGES * program.page_size + 1
    q, k, v = (
        torch.randn(shape, generator=generator)
        for shape in ((heads * static.group, static.head_dim), *[(heads, tokens, static.head_dim)] * 2)
    )
    for x in (q, k, v):
        x[..., :: max(1, static.head_dim // _OUTLIERS)] *= factor
    return [(static, q, k, k[..., : static.latent] if static.latent else v)]


def _drawn(program: Program, geometry: Geometry) -> Input:
    about = f"query, keys and values from the standard normal distribution, {_PAGES} pages, seed {_SEED}"
    return about, _draw(program, geometry, 1.0)


def _with_outliers(program: Program, geometry: Geometry) -> Input:
    return f"the same with {_OUTLIERS} channels times {_FACTOR:g}", _draw(program, geometry, _FACTOR)


def _recorded(program: Program, _: Geometry) -> Input:
    static, tokens = _static(program, find_geometry(str(REFERENCE_MODEL))), _PAGES * program.page_size + 1
    heads, queries = static.kv_heads, static.kv_heads * static.group
    layers = [
        (replace(static, layer=number), q[:queries], k[:heads, -tokens:], v[:heads, -tokens:])
        for number, (q, k, v) in enumerate(recorded(REFERENCE_MODEL))
    ]
    about = f"those of the shipped model in its {len(layers)} layers, on a context of {TOKENS} tokens (task {TASK})"
    return about, layers
