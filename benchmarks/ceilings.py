"""What the machine itself reaches: copying, reading, bf16 products, and the least that a kernel in a CUDA graph takes.

    PYTHONPATH=build/linked python benchmarks/ceilings.py --json ceilings.json

Every other figure is read against these. Rates are the best of the shapes tried, medians over graph replays.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import argparse
import statistics

import records
import torch
import triton
import triton.language as tl
from gpu_times import replay_us
from torch import Tensor

KEYS = ("what", "size", "shape")
#: Bytes that are copied or read, and numbers of elements a program of the reading kernel takes at once.
SIZES = (16 << 20, 128 << 20, 1 << 30, 8 << 30)
TILES = (2048, 4096, 8192)
MATRICES = (4096, 8192, 16384)


@triton.jit
def read_all(source, result, size, programs, TILE: tl.constexpr):
    """Every program adds up its share of `source`; one number is written for each."""
    at = tl.program_id(0)
    total = tl.zeros([TILE], tl.float32)
    for start in range(at * TILE, size, programs * TILE):
        spot = start + tl.arange(0, TILE).to(tl.int64)
        total += tl.load(source + spot, mask=spot < size, other=0.0).to(tl.float32)
    tl.store(result + at, tl.sum(total, 0))


@triton.jit
def nothing(result):
    tl.store(result, 1.0)


def read_us(source: Tensor, tile: int) -> float:
    """Microseconds of reading `source` (bf16) once; parts of it in turn where it is small, so that L2 never has it."""
    units = torch.cuda.get_device_properties(source.device).multi_processor_count
    result = torch.empty(units * 8, dtype=torch.float32, device=source.device)
    rounds = _rounds(source)

    def work() -> None:
        for part in rounds:
            read_all[(units * 8,)](part, result, part.numel(), units * 8, TILE=tile, num_warps=8)

    return replay_us(work) / len(rounds)


def _rounds(source: Tensor) -> list[Tensor]:
    """As many copies of a small tensor as L2 cannot hold; a large one by itself."""
    size = source.numel() * source.element_size()
    return [source] + [torch.randn_like(source) for _ in range(max(0, (512 << 20) // size - 1))]


def copy_row(size: int) -> records.Row:
    """Copying: bytes read and bytes written both count."""
    sources = _rounds(torch.randn(size // 2, dtype=torch.bfloat16, device="cuda"))
    targets = [torch.empty_like(source) for source in sources]

    def work() -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    us = replay_us(work) / len(sources)
    return {"us": us, "tb_per_s": 2 * size / us / 1e6}


def read_row(size: int) -> records.Row:
    source = torch.randn(size // 2, dtype=torch.bfloat16, device="cuda")
    us, tile = min((read_us(source, tile), tile) for tile in TILES)
    return {"us": us, "tb_per_s": size / us / 1e6, "tile": tile}


def product_row(width: int) -> records.Row:
    a, b = (torch.randn(width, width, dtype=torch.bfloat16, device="cuda") for _ in "ab")
    out = torch.empty_like(a)
    us = replay_us(lambda: torch.mm(a, b, out=out))
    return {"us": us, "tflop_per_s": 2 * width**3 / us / 1e6}


def launch_row(count: int) -> records.Row:
    """What a kernel that does nothing takes as one of `count` in a graph, each waiting for the one before."""
    result = torch.empty(1, device="cuda")

    def work() -> None:
        for _ in range(count):
            nothing[(1,)](result)

    return {"us": statistics.median(replay_us(work) / count for _ in range(3))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    records.add_options(parser, "ceilings.json")
    found = records.Records(parser.parse_args(), records.conditions(), KEYS)
    cells = [("copy", size, copy_row) for size in SIZES] + [("read", size, read_row) for size in SIZES]
    cells += [("bf16 product", width, product_row) for width in MATRICES] + [("empty kernel", 100, launch_row)]
    for what, size, work in cells:
        shape = "bytes" if what in ("copy", "read") else "width" if what == "bf16 product" else "in one graph"
        row = found.measure({"what": what, "size": size, "shape": shape}, lambda w=work, s=size: w(s))  # type: ignore[misc]
        if row is not None:
            rate = f"{row['tb_per_s']:.2f} TB/s" if "tb_per_s" in row else ""
            rate = f"{row['tflop_per_s']:.0f} TFLOP/s" if "tflop_per_s" in row else rate
            print(f"{what:13} {size:11,} {shape:13} {row.get('us', float('nan')):10.2f} us  {rate}", flush=True)
        torch.cuda.empty_cache()
    for line in found.errors():
        print("ERROR", line)
    print(", ".join(f"{key} {value}" for key, value in found.conditions.items()))


if __name__ == "__main__":
    main()
