"""Precisions of caches, casts and stored summaries.

The fp8 formats saturate: a number beyond the largest finite one becomes that one, and NaN stays NaN. Summaries in fp8
carry one fp32 scale for each page, KV head and field (rule 10 of the language), so that a page's largest number is the
largest that the format holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program

TORCH_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
#: Largest finite numbers of the formats that saturate.
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
#: Bytes of an element, and of the scale that a page, KV head and field of fp8 summaries has beside it.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8_e4m3": 1, "fp8_e5m2": 1}
SCALE_BYTES = 4
_SMALLEST_NORMAL = 2.0**-126


def is_fp8(dtype: torch.dtype) -> bool:
    return dtype in LARGEST


def stored_dtype(program: Program, cache_dtype: torch.dtype) -> torch.dtype:
    """The precision that the program's summaries are stored in, over a cache of this precision."""
    return cache_dtype if program.summary_dtype == "kv" else TORCH_DTYPES[program.summary_dtype]


def cache_dtype(program: Program, model: torch.dtype) -> torch.dtype:
    """The precision that the program's KV cache is kept in, under a model of this precision."""
    return model if program.kv_dtype == "auto" else TORCH_DTYPES[program.kv_dtype]


def cache_name(program: Program, model: str) -> str:
    """The same as `cache_dtype`, by names of the language."""
    return model if program.kv_dtype == "auto" else program.kv_dtype


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` rounded to nearest even in `dtype`; what fp8 cannot hold becomes its largest finite number."""
    if dtype in LARGEST and x.dtype != dtype:
        x = x.float().clamp(-LARGEST[dtype], LARGEST[dtype])
    return x.to(dtype)


def scaled(x: Tensor, dtype: torch.dtype, lead: int) -> tuple[Tensor, Tensor]:
    """`x` in an fp8 format and the fp32 scales to multiply it with: one for each place of the `lead` first axes.

    The scale is 1 where the largest magnitude is 0 (or too small to divide by) or not finite.
    """
    x = x.float()
    largest = x.abs().flatten(lead).amax(-1) if x.dim() > lead else x.abs()
    scale = largest / LARGEST[dtype]
    scale = torch.where(largest.isfinite() & (scale >= _SMALLEST_NORMAL), scale, 1.0)
    return cast(x / scale.view(*scale.shape, *[1] * (x.dim() - lead)), dtype), scale


def check_cache(program: Program, dtype: torch.dtype) -> None:
    """Raises `VortexError` when the program wants its cache in another precision."""
    wanted = program.kv_dtype
    if wanted != "auto" and TORCH_DTYPES[wanted] != dtype:
        raise VortexError(
            f"program {program.name} wants a KV cache in {wanted}, and this one is in {NAMES.get(dtype, dtype)}; "
            f"make the cache in {wanted}"
        )
