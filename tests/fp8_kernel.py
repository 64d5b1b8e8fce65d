"""A kernel that reads, writes and rounds fp8 numbers, for `triton_runs`."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from vortexlab.kernels.gpu.fp8 import fp8_code, round_fp8, widened


@triton.jit
def convert(every, read, x, code, near, FORMAT: tl.constexpr, N: tl.constexpr):
    """`every` [256] as fp32 in `read`; `x` [N] as bytes in `code` and rounded in `near`."""
    byte = tl.arange(0, 256)
    tl.store(read + byte, widened(tl.load(every + byte)))
    place = tl.arange(0, N)
    numbers = tl.load(x + place)
    tl.store(code + place, fp8_code(numbers, FORMAT))
    tl.store(near + place, round_fp8(numbers, FORMAT))
