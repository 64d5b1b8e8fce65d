"""8-bit floating-point numbers in kernels: caches and summaries in e4m3 and e5m2, and casts to them.

Where the machine converts them, tensors are handed to kernels as they are; elsewhere (in the interpreter, before
compute capability 8.9 and on AMD's gfx942, whose own format is another) as bytes, unsigned ones for e4m3 and signed
ones for e5m2, and taken apart with integer arithmetic. Writing always is integer arithmetic: it is rare, and equal
everywhere.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vortexlab.kernels.gpu.device import INTERPRETED
from vortexlab.kernels.precision import is_fp8

_INTERPRETED = tl.constexpr(INTERPRETED)
_BYTES = {torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.int8}


def handed(x: Tensor) -> Tensor:
    """A tensor as kernels load from it: fp8 as bytes where the device does not convert it."""
    if not is_fp8(x.dtype) or _converts(x.device):
        return x
    return x.view(_BYTES[x.dtype])


def _converts(device: torch.device) -> bool:
    if INTERPRETED or device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


@triton.jit
def widened(x):
    """Stored numbers of any precision as fp32, exactly."""
    if x.dtype == tl.uint8:  # e4m3: its exponent and fraction are fp16's, 8 powers of two lower
        rest = (x & 0x7F).to(tl.uint16)
        half = (((x & 0x80).to(tl.uint16) << 8) | (rest << 7)).to(tl.float16, bitcast=True)
        return tl.where(rest == 0x7F, float("nan"), half.to(tl.float32) * 256.0)
    elif x.dtype == tl.int8:  # e5m2: the upper half of an fp16
        return (x.to(tl.uint8, bitcast=True).to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return x.to(tl.float32)


@triton.jit
def stored_operand(x, dtype: tl.constexpr):
    """Stored numbers as operands of a product in `dtype`, which holds them exactly; fp32 in the interpreter."""
    if _INTERPRETED:
        return widened(x)
    elif (x.dtype == tl.uint8) | (x.dtype == tl.int8):
        return widened(x).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def fp8_code(x, FORMAT: tl.constexpr):
    """The byte of fp32 numbers in ``fp8_e4m3`` or ``fp8_e5m2``: to nearest even, saturating; NaN stays NaN."""
    FRACTION: tl.constexpr = 3 if FORMAT == "fp8_e4m3" else 2  # bits
    LARGEST: tl.constexpr = 448.0 if FORMAT == "fp8_e4m3" else 57344.0
    LEAST: tl.constexpr = -6 if FORMAT == "fp8_e4m3" else -14  # exponent of the smallest normal number
    DROPPED: tl.constexpr = 23 - FRACTION
    size = tl.minimum(tl.abs(x), LARGEST)
    bits = size.to(tl.uint32, bitcast=True)
    normal = ((bits + ((1 << (DROPPED - 1)) - 1) + ((bits >> DROPPED) & 1)) >> DROPPED) - ((126 + LEAST) << FRACTION)
    # Below the normal numbers all steps are equal: those of fp32 beside 2**(LEAST + DROPPED).
    OFFSET: tl.constexpr = 2.0 ** (LEAST + DROPPED)
    OFFSET_BITS: tl.constexpr = (127 + LEAST + DROPPED) << 23
    small = (size + OFFSET).to(tl.uint32, bitcast=True) - OFFSET_BITS
    code = tl.where(size < 2.0**LEAST, small, normal)
    code = tl.where(x == x, code, 0x7F) | ((x.to(tl.uint32, bitcast=True) >> 24) & 0x80)
    return code.to(tl.uint8)


@triton.jit
def round_fp8(x, FORMAT: tl.constexpr):
    """fp32 numbers rounded to what an fp8 format holds."""
    code = fp8_code(x, FORMAT)
    return widened(code if FORMAT == "fp8_e4m3" else code.to(tl.int8, bitcast=True))


@triton.jit
def fp8_scale(largest, finite, FORMAT: tl.constexpr):
    """What to multiply stored numbers with: their largest magnitude over the format's; 1 where that is no number to
    divide by."""
    scale = tl.div_rn(largest, 448.0 if FORMAT == "fp8_e4m3" else 57344.0)
    return tl.where(finite & (scale >= 1.1754943508222875e-38) & (scale < float("inf")), scale, 1.0)
