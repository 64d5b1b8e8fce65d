"""Checks the generated kernels on a GPU, then times them: one command, one JSON file, a short table last.

    PYTHONPATH=... python3 benchmarks/gpu_check.py [--out DIR] [--skip-checks] [--skip-times] [--tune]

Checks: every seed program on random ragged configurations against the reference (selection, attention, whole steps),
with poisoned memory, and twice for bit-equal results. Times: CUDA-graph replays of a decode step at Qwen3-1.7B's
attention geometry against this project's own dense kernel and torch's SDPA. Every figure in the file stands beside
its conditions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
warnings.simplefilter("ignore")

import torch
import triton

PAGE = 16


# correctness


def check_program(job: tuple[str, str, list[int]]) -> dict[str, Any]:
    """One program on a few random configurations; never raises."""
    name, text, case_seeds = job
    row: dict[str, Any] = {
        "program": name,
        "cases": 0,
        "pages": 0,
        "open": 0,
        "differing": 0,
        "errors": [],
        "worst": {},
    }
    try:
        from differential import compare, make_cache, poisoned, prepared
        from vortexlab.dsl import parse
        from vortexlab.dsl.testing import random_case
        from vortexlab.kernels.gpu.executor import TritonExecutor

        torch.set_num_threads(1)
        program = parse(text)
        for seed in case_seeds:
            case = random_case(seed, program, max_length=400, max_elements=400_000)
            try:
                report = compare(TritonExecutor, case, device="cuda")
                row["errors"] += [item[:400] for item in report.disagreements[:2]]
                kind = str(case.q.dtype).removeprefix("torch.")
                row["worst"][kind] = max(row["worst"].get(kind, 0.0), report.worst_error)
                for field in ("pages", "open", "differing"):
                    row[field] += getattr(report, field)
                with poisoned():
                    cache = make_cache(case, device="cuda")
                    executor, state = prepared(TritonExecutor, case, cache)
                    first, lists = executor.decode(case.q.cuda(), state, cache)
                    first, before = first.clone(), lists.to_list()
                    second, lists = executor.decode(case.q.cuda(), state, cache)
                if not torch.equal(first, second) or before != lists.to_list():
                    row["errors"].append(f"two runs differ: {case}")
                row["cases"] += 1
            except Exception as error:  # noqa: BLE001  (one configuration must not stop the others)
                where = traceback.extract_tb(error.__traceback__)[-1]
                row["errors"].append(
                    f"{case}: {type(error).__name__}: {str(error)[:300]} ({where.name}:{where.lineno})"
                )
    except Exception as error:  # noqa: BLE001
        row["errors"].append(f"{type(error).__name__}: {str(error)[:300]}")
    return row


def check_all(cases: int, programs: int, workers: int) -> list[dict[str, Any]]:
    from vortexlab.search_spaces import seeds

    jobs = []
    for number, (name, text) in enumerate(seeds().items()):
        every = [1000 * number + i for i in range(cases)]
        jobs += [(name, text, every[i : i + 4]) for i in range(0, cases, 4)]
    if programs:
        import random

        from vortexlab.dsl.testing import random_program

        jobs += [(f"random{i}", random_program(random.Random(50_000 + i)), [50_000 + i]) for i in range(programs)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        rows = pool.map(check_program, jobs, chunksize=1)
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = "random programs" if row["program"].startswith("random") else row["program"]
        total = merged.setdefault(
            name, {**row, "program": name, "errors": [], "worst": {}, "cases": 0, "pages": 0, "open": 0, "differing": 0}
        )
        for field in ("cases", "pages", "open", "differing"):
            total[field] += row[field]
        total["errors"] += row["errors"]
        for kind, worst in row["worst"].items():
            total["worst"][kind] = max(total["worst"].get(kind, 0.0), worst)
    return list(merged.values())


# times


def replay_us(work: Callable[[], None], repeats: int = 30) -> float:
    """Median microseconds of one replay of `work`, captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    spans = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spans.append(start.elapsed_time(end) * 1000)
    return statistics.median(spans)


def make_layers(batch: int, length: int, kv_heads: int, head_dim: int, least: float) -> list[Any]:
    """Caches of several layers with shuffled blocks: together at least `least` bytes, so that none stays in L2."""
    from vortexlab.kernels.cache import PagedKV

    size = 4 * batch * length * kv_heads * head_dim
    layers = []
    blocks = -(-length // PAGE)
    for number in range(max(2, min(16, -(-int(least) // size)))):
        generator = torch.Generator(device="cuda").manual_seed(number)
        shape = (batch * blocks, PAGE, kv_heads, head_dim)
        pools = [
            torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator).transpose(1, 2) for _ in "kv"
        ]
        order = torch.randperm(batch * blocks, device="cuda", generator=generator).int()
        lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")
        layers.append(PagedKV(pools[0], pools[1], order.view(batch, blocks), lengths, PAGE))
    return layers


def time_cell(
    batch: int, length: int, heads: int, kv_heads: int, head_dim: int, names: list[str]
) -> list[dict[str, Any]]:
    """Dense and sparse decode steps of one batch and context, microseconds per layer."""
    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.gpu.attention import attend
    from vortexlab.kernels.gpu.executor import TritonExecutor
    from vortexlab.search_spaces import load

    layers = make_layers(batch, length, kv_heads, head_dim, 1.5e9)
    count, scale = len(layers), head_dim**-0.5
    queries = [torch.randn(batch, heads, head_dim, device="cuda", dtype=torch.bfloat16) for _ in layers]
    kv_bytes = 4 * batch * length * kv_heads * head_dim
    rows: list[dict[str, Any]] = []

    def add(name: str, us: float, **more: Any) -> None:
        rows.append({
            "what": name, "us": us, "batch": batch, "context": length, "heads": heads, "kv_heads": kv_heads,
            "head_dim": head_dim, "page": PAGE, "dtype": "bf16", "layers_rotated": count, **more,
        })  # fmt: skip

    def timed(work: Callable[[int], Any]) -> float:
        return replay_us(lambda: [work(i) for i in range(count)] and None) / count

    dense = timed(lambda i: attend(queries[i], layers[i], None, PAGE, scale))
    add("dense (ours)", dense, tb_per_s=kv_bytes / dense / 1e6)
    try:
        flat = [
            [
                pool.reshape(batch, -1, kv_heads, PAGE, head_dim).transpose(1, 2).flatten(2, 3).contiguous()
                for pool in (c.k, c.v)
            ]
            for c in layers[:2]
        ]
        us = replay_us(
            lambda: (
                [
                    torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)
                    for q, (k, v) in zip(queries, flat, strict=False)
                ]
                and None
            )
        ) / len(flat)
        add("dense (torch SDPA, contiguous)", us, tb_per_s=kv_bytes / us / 1e6)
        del flat
    except Exception as error:  # noqa: BLE001
        add("dense (torch SDPA, contiguous)", float("nan"), error=str(error)[:200])
    for name in names:
        try:
            program = load(name)
            values = {key: value for key, value in {"page": PAGE, "budget": 64}.items() if key in program.knobs}
            executor = TritonExecutor(program.bind(values), Static(kv_heads, heads // kv_heads, head_dim, scale))
            states = [executor.new_state(cache) for cache in layers]
            for state, cache in zip(states, layers, strict=True):
                executor.summarize(state, cache)
            lists = [executor.select(q, s, c) for q, s, c in zip(queries, states, layers, strict=True)]
            tokens = (
                sum(float(x.tokens(c.lengths, PAGE).double().mean()) for x, c in zip(lists, layers, strict=True))
                / count
            )

            def step(i: int) -> None:
                executor.update(states[i], layers[i])
                executor.decode(queries[i], states[i], layers[i])

            whole = timed(step)
            stages = {
                "update": timed(lambda i: executor.update(states[i], layers[i])),
                "select": timed(lambda i: executor._select(queries[i], states[i], layers[i], lists[i])),
                "attend": timed(lambda i: executor.attend(queries[i], layers[i], lists[i])),
            }
            add(name, whole, stages=stages, density=tokens / length, speedup=dense / whole)
        except Exception as error:  # noqa: BLE001
            add(name, float("nan"), error=f"{type(error).__name__}: {str(error)[:300]}")
    return rows


def tune(batch: int, length: int, heads: int, kv_heads: int, head_dim: int) -> list[dict[str, Any]]:
    """The dense kernel under other tile sizes, warps, stages and splits."""
    from vortexlab.kernels.gpu.attention import AttentionShape, attend

    layers = make_layers(batch, length, kv_heads, head_dim, 1.5e9)
    q = [torch.randn(batch, heads, head_dim, device="cuda", dtype=torch.bfloat16) for _ in layers]
    found = []
    for tile, warps, stages, precise in (
        (64, 4, 3, True), (64, 4, 3, False), (64, 4, 4, True), (64, 4, 5, True), (128, 4, 3, True), (128, 4, 4, True),
        (128, 8, 3, True), (32, 4, 5, True), (64, 8, 4, True), (32, 2, 4, True), (64, 2, 4, True), (128, 4, 3, False),
    ):  # fmt: skip
        for target in (2, 4, 8):
            splits = max(1, min(-(-target * 132 // (batch * kv_heads)), -(-length // tile), 128))
            shape = AttentionShape(16, triton.next_power_of_2(head_dim), tile, warps, stages, precise)
            try:
                us = replay_us(
                    lambda: (
                        [
                            attend(q[i], c, None, PAGE, head_dim**-0.5, splits=splits, shape=shape)
                            for i, c in enumerate(layers)
                        ]
                        and None
                    ),
                    15,
                ) / len(layers)
            except Exception as error:  # noqa: BLE001
                found.append({"tile": tile, "warps": warps, "stages": stages, "error": str(error)[:100]})
                break
            found.append(
                {
                    "tile": tile,
                    "warps": warps,
                    "stages": stages,
                    "precise": precise,
                    "splits": splits,
                    "us": us,
                    "batch": batch,
                    "context": length,
                }
            )
    return sorted(found, key=lambda row: row.get("us", 1e9))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--cases", type=int, default=12, help="configurations per seed program")
    parser.add_argument("--programs", type=int, default=30, help="random programs")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--skip-checks", action="store_true")
    parser.add_argument("--skip-times", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    began = time.time()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(), "seeds": "fixed by case number", "table": [],
    }  # fmt: skip
    result["checks"] = [] if options.skip_checks else check_all(options.cases, options.programs, options.workers)
    print(f"checks took {time.time() - began:.0f} s", flush=True)
    torch.manual_seed(0)
    if not options.skip_times:
        for length in (32768, 8192):
            for batch in (1, 8, 32):
                if time.time() - began > 270:
                    print(f"out of time: batch {batch} x {length} not measured")
                    continue
                try:
                    names = ["quest", "centroid"] + (["top_p", "sink_window"] if batch == 8 else [])
                    result["table"] += time_cell(batch, length, 16, 8, 128, names)
                except Exception as error:  # noqa: BLE001
                    print(f"batch {batch} x {length}: {type(error).__name__}: {str(error)[:300]}")
                torch.cuda.empty_cache()
    if options.tune:
        result["tune"] = []
        for batch in (1, 8, 32):
            if time.time() - began < 320:
                result["tune"].append(tune(batch, 32768, 16, 8, 128))
                torch.cuda.empty_cache()
    result["seconds"] = time.time() - began
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_check.json").write_text(json.dumps(result, indent=1))
    for row in result["checks"]:
        for error in row["errors"][:3]:
            print("ERROR", row["program"], error)
    for row in result["checks"]:
        worst = " ".join(f"{kind} {value:.1e}" for kind, value in sorted(row["worst"].items()))
        print(f"{row['program']:16} {row['cases']:4} cases, {len(row['errors']):3} errors; differing pages "
              f"{row['differing']}/{row['pages']} (open {row['open']}); worst error {worst}")  # fmt: skip
    for found in result.get("tune", []):
        for row in found[:4]:
            print("tune", row)
    for row in result["table"]:
        more = f"{row['tb_per_s']:.2f} TB/s" if "tb_per_s" in row else ""
        if "stages" in row:
            more = f"{row['speedup']:.2f}x dense, density {row['density']:.3f}, " + ", ".join(
                f"{k} {v:.1f}" for k, v in row["stages"].items()
            )
        print(f"{row['context']:6} x {row['batch']:3} {row['what']:31} {row['us']:8.1f} us {row.get('error', more)}")
    print(f"{result['device']}, torch {result['torch']}, triton {result['triton']}, {result['seconds']:.0f} s")
    return 1 if any(row["errors"] for row in result["checks"]) else 0


if __name__ == "__main__":
    sys.exit(main())
