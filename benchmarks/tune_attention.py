"""The dense kernel under other tile sizes, warps, stages and splits, fastest first.

    PYTHONPATH=build/linked python benchmarks/tune_attention.py --batches 1,8,32

What `AttentionShape.of` and `split_count` choose by themselves should be among the fastest.
"""

from __future__ import annotations

import argparse
from typing import Any

import triton
from gpu_times import Cell, Geometry, Pool

from vortexlab.kernels.gpu import launch
from vortexlab.kernels.gpu.attention import AttentionShape, attend, split_count

PAGE = 16
SHAPES = (
    (64, 4, 3, True), (64, 4, 3, False), (64, 4, 4, True), (128, 4, 3, True), (128, 4, 4, True), (64, 2, 3, True),
    (32, 4, 4, True),
)  # fmt: skip


def tune(cell: Cell) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    width = triton.next_power_of_2(cell.geometry.head_dim)
    caches = [cell.cache(layer, PAGE) for layer in range(cell.layers)]
    for tile, warps, stages, precise in SHAPES:
        tiles = -(-cell.length // tile)
        usual = split_count(cell.batch * cell.geometry.kv_heads, tiles, launch.processors(cell.device))
        shape = AttentionShape(16, width, tile, warps, stages, precise)
        for splits in sorted({usual, max(1, usual // 2), min(128, 2 * usual)}):
            row = {"tile": tile, "warps": warps, "stages": stages, "precise": precise, "splits": splits}

            def work(i: int, splits: int = splits, shape: AttentionShape = shape) -> None:
                attend(cell.queries[i], caches[i], None, PAGE, cell.scale, splits=splits, shape=shape)

            try:
                found.append({**row, "us": cell.timed(work)})
            except Exception as error:  # a shape that the device has no room for
                found.append({**row, "error": str(error)[:100]})
    return sorted(found, key=lambda row: row.get("us", 1e9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--batches", default="1,8,32", help="1,8,32")
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batches.split(",")]
    pool = Pool.make(Geometry(options.heads, options.kv_heads), options.context * max(batches))
    for batch in batches:
        for row in tune(pool.cell(batch, options.context))[:10]:
            print(f"batch {batch}", *(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
