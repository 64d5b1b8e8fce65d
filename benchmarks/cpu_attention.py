"""The attention step of a program on the CPU, against the best dense attention.

    python benchmarks/cpu_attention.py --program quest --density 0.1

One step of one layer: summary writes (amortised), score, select, attend. Dense attention runs on contiguous keys and
values, by every path of `vortexlab.kernels.dense`; the fastest one of the run counts. Each round times sparse, every
dense path, and sparse again, with a fresh query for every timed call, and checks every output after the clock has
stopped. The speed-up is the median over rounds of (dense of the round) / (mean of the round's two sparse steps), with a
95 % interval by bootstrap over rounds. The ideal counts bytes alone: 1 / (density + m / (2 P)) for m summary vectors a
page of P tokens. Run it on an idle machine: other work delays many small steps more than one large one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortexlab import search_spaces
from vortexlab.dsl import load
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.cost import predict
from vortexlab.kernels.dense import DENSE_PATHS
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.torch_executor import TorchExecutor

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Largest difference of an output from the same attention in float64, relative to the largest value.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def median_interval(values: Sequence[float], seed: int = 0, draws: int = 2000) -> dict[str, float]:
    """The median and its 95 % interval by bootstrap."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    return {
        "value": statistics.median(values),
        "low": medians[int(0.025 * draws)],
        "high": medians[int(0.975 * draws) - 1],
    }


def timed(step: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = step()
    return time.perf_counter() - begin, result


def bound_program(arguments: argparse.Namespace, pages: int) -> Program:
    """The program with the page size, the density (through its knob `budget` or `fraction`) and the knobs asked for."""
    name = arguments.program
    program = load(name) if name.endswith(".py") else search_spaces.load(name)
    knobs: dict[str, Any] = {"page": arguments.page} if "page" in program.knobs else {}
    for item in arguments.set:
        key, _, value = item.partition("=")
        knobs[key] = json.loads(value)
    if "budget" in program.knobs and "budget" not in knobs:
        forced = [knobs.get(key, program.knobs[key].default) for key in ("sink", "recent") if key in program.knobs]
        knobs["budget"] = max(1, round(arguments.density * pages) - sum(int(n) for n in forced if n is not None))
    elif "fraction" in program.knobs and "fraction" not in knobs:
        knobs["fraction"] = arguments.density
    return program.bind(knobs)


def check(
    out: Tensor, q: Tensor, cache: PagedKV, lists: PageLists | None, page: int, scale: float, limit: float
) -> None:
    """Compares an output with attention in float64 over the listed pages (all of them where `lists` is None)."""
    group = q.shape[1] // cache.kv_heads
    rng = random.Random(0)
    for _ in range(2):
        row, head = rng.randrange(cache.batch), rng.randrange(q.shape[1])
        keys, values = (x[head // group].double() for x in cache.dense(row))
        if lists is not None:
            per_head = lists.to_list()[row][head // group]
            listed = per_head[head % group if len(per_head) > 1 else 0]
            tokens = torch.cat([torch.arange(p * page, min((p + 1) * page, keys.shape[0])) for p in listed])
            keys, values = keys[tokens], values[tokens]
        wanted = torch.softmax(scale * (keys @ q[row, head].double()), 0) @ values
        error = float((out[row, head].double() - wanted).abs().max() / wanted.abs().max())
        if not error < limit:
            sys.exit(f"an output is wrong by {error:.2g} of its largest value")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    batch, heads, group, channel = arguments.batch, arguments.kv_heads, arguments.group, arguments.head_dim
    dtype, limit = DTYPES[arguments.dtype], TOLERANCE[arguments.dtype]
    program = bound_program(arguments, -(-arguments.context // arguments.page))
    page = program.page_size
    context = arguments.context - arguments.context % page  # the last token completes a page: it has a summary to write
    static = Static(heads, group, channel, channel**-0.5)
    k, v = (torch.randn(heads, batch * context, channel).to(dtype) for _ in range(2))
    cache = PagedKV.from_contiguous(k, v, [i * context for i in range(batch)], [context] * batch, page)
    if arguments.shuffle:
        rows = [slice(i * context, (i + 1) * context) for i in range(batch)]
        cache = PagedKV.from_dense([k[:, r] for r in rows], [v[:, r] for r in rows], page, shuffle_seed=arguments.seed)
    dense_k, dense_v = (x.view(heads, batch, context, channel).transpose(0, 1).contiguous() for x in (k, v))
    executor = TorchExecutor(program, static)
    state = executor.new_state(cache)
    executor.summarize(state, cache)

    def query() -> Tensor:
        return torch.randn(batch, heads * group, channel).to(dtype)

    times: dict[str, list[float]] = {name: [] for name in ("sparse", "select", "attend", "summary", *DENSE_PATHS)}
    ratios: dict[str, list[float]] = {name: [] for name in DENSE_PATHS}
    density: list[float] = []

    def sparse() -> float:
        q = query()
        seconds, (out, lists) = timed(lambda: executor.decode(q, state, cache))
        check(out, q, cache, lists, page, static.scale, limit)
        density.append(float((lists.tokens(cache.lengths, page) / cache.lengths[:, None]).mean()))
        return seconds

    for number in range(arguments.rounds + 2):
        write, _ = timed(lambda: executor.update(state, cache))
        first = sparse()
        round_times = {}
        for name, path in DENSE_PATHS.items():
            q = query()
            round_times[name], out = timed(lambda path=path, q=q: path(q, dense_k, dense_v, static.scale))  # type: ignore[misc]
            check(out, q, cache, None, page, static.scale, limit)
        second = sparse()
        q = query()
        select, lists = timed(lambda q=q: executor.select(q, state, cache))  # type: ignore[misc]
        attend, _ = timed(lambda q=q, lists=lists: executor.attend(q, cache, lists))  # type: ignore[misc]
        if number < 2:
            continue  # warm-up
        step = (first + second) / 2 + write / page
        times["sparse"].append(step)
        times["summary"].append(write / page)
        times["select"].append(select)
        times["attend"].append(attend)
        for name, seconds in round_times.items():
            times[name].append(seconds)
            ratios[name].append(seconds / step)
    best = min(DENSE_PATHS, key=lambda name: statistics.median(times[name]))
    predicted = predict(program, static, context, batch, "cpu", dtype=arguments.dtype)
    return {
        "kind": "measured",
        "benchmark": "cpu_attention",
        "conditions": {
            "program": program.name,
            "page": page,
            "knobs": arguments.set,
            "kv_heads": heads,
            "group": group,
            "head_dim": channel,
            "context": context,
            "batch": batch,
            "dtype": arguments.dtype,
            "tables": "shuffled" if arguments.shuffle else "in order",
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "seed": arguments.seed,
            "device": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "density": statistics.fmean(density),
        "seconds": {name: median_interval(values) for name, values in times.items()},
        "dense": best,
        "speedup": median_interval(ratios[best]),
        "ideal": predicted.ideal,
        "predicted": {"speedup": predicted.speedup_over_dense, "seconds": predicted.seconds, "device": "cpu"},
    }


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    c, speedup = result["conditions"], result["speedup"]
    lines = [
        f"{c['program']}, page {c['page']}: {c['kv_heads']} KV heads x {c['head_dim']}, group {c['group']}, "
        f"{c['context']} tokens, batch {c['batch']}, {c['dtype']}, tables {c['tables']}",
        f"{c['device']}, {c['threads']} of {c['cores']} cores, torch {c['torch']}, seed {c['seed']}, "
        f"{c['rounds']} rounds",
        "",
        f"{'':<22}{'median ms':>10}{'95 % interval':>20}",
    ]
    for name, seconds in result["seconds"].items():
        mark = " *" if name == result["dense"] else ""
        interval = f"{seconds['low'] * 1e3:.2f} .. {seconds['high'] * 1e3:.2f}"
        lines.append(f"{name + mark:<22}{seconds['value'] * 1e3:>10.2f}{interval:>20}")
    ideal = result["ideal"]
    lines += [
        "",
        f"density {result['density']:.4f}; * the best dense path",
        f"speed-up {speedup['value']:.2f} ({speedup['low']:.2f} .. {speedup['high']:.2f}) of {ideal:.2f} possible "
        f"({speedup['value'] / ideal:.0%})",
        f"predicted by the cost model: {result['predicted']['speedup']:.2f}",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The attention step of a program on the CPU, against dense attention.")
    parser.add_argument("--program", default="quest", help="a published program's name, or a file")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--density", type=float, default=0.1, help="share of pages that the knob budget is set to")
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--shuffle", action="store_true", help="blocks in random order in the pool")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the result goes; benchmarks/results/ by default")
    arguments = parser.parse_args()
    result = run(arguments)
    print(table(result))
    c = result["conditions"]
    parts = ("cpu_attention", c["program"].lower(), f"{c['context']}x{c['batch']}", c["dtype"], c["tables"])
    path = arguments.json or RESULTS / ("-".join(parts).replace(" ", "-") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
