"""Checks the generated kernels on a GPU: one command, one JSON file, a short table.

    PYTHONPATH=build/linked python benchmarks/gpu_check.py [--out DIR]

Every seed program on random ragged configurations against the reference (selection, attention, whole steps), with
poisoned memory, and twice for bit-equal results; programs that attend by themselves over steps; and contexts of a
million tokens against the torch executor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
warnings.simplefilter("ignore")

import torch  # noqa: E402
import triton  # noqa: E402

#: Beside the seeds: programs that attend by themselves, and programs with learned constants.
ALSO = ("retroinfer", "vattention", "loki", "seer_decode", "streaming_heads", "dsa")


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
        from differential_course import compare_steps

        from vortexlab.dsl import parse
        from vortexlab.dsl.testing import drawn_course, random_case
        from vortexlab.kernels.compiled import is_plain
        from vortexlab.kernels.gpu import launch
        from vortexlab.kernels.gpu.executor import TritonExecutor

        torch.set_num_threads(1)
        program = parse(text)
        for seed in case_seeds:
            case = random_case(seed, program, max_length=400, max_elements=400_000)
            launch.WHOLE_ROW = 8 if seed % 2 else 8192  # the selection kernel for long rows has its turn too
            try:
                if is_plain(case.program):
                    report = compare(TritonExecutor, case, device="cuda")
                else:
                    report = compare_steps(TritonExecutor, drawn_course(case, 1, 3), device="cuda")
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
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                row["errors"].append(
                    f"{case}: {type(error).__name__}: {str(error)[:300]} ({where.name}:{where.lineno})"
                )
    except Exception as error:
        row["errors"].append(f"{type(error).__name__}: {str(error)[:300]}")
    return row


def check_long(tokens: int) -> dict[str, Any]:
    """A context of a million tokens: selected pages of exact scores equal those that the torch executor finds."""
    from vortexlab.dsl.ir import Static
    from vortexlab.kernels.cache import PagedKV
    from vortexlab.kernels.gpu.executor import TritonExecutor
    from vortexlab.kernels.torch_executor import TorchExecutor
    from vortexlab.search_spaces import load

    row: dict[str, Any] = {"program": f"{tokens} tokens", "cases": 0, "errors": [], "worst": {}}
    row |= {"pages": 0, "open": 0, "differing": 0}
    generator = torch.Generator(device="cuda").manual_seed(7)
    for name in ("centroid", "bigbird"):
        try:
            k = torch.randint(-3, 4, (1, 2, tokens, 64), device="cuda", generator=generator).bfloat16()
            q = torch.randint(-3, 4, (1, 4, 64), device="cuda", generator=generator).bfloat16()
            cache = PagedKV.from_dense(k, k, 16)
            program, static = load(name).bind({"page": 16}), Static(2, 2, 64, 0.125)
            lists, outputs = [], []
            for executor in (TritonExecutor(program, static), TorchExecutor(program, static)):
                state = executor.new_state(cache)
                executor.summarize(state, cache)
                lists.append(executor.select(q, state, cache))
                outputs.append(executor.attend(q, cache, lists[0]).float())
            row["cases"] += 1
            row["pages"] += tokens // 16
            if lists[0].to_list() != lists[1].to_list():
                row["errors"].append(f"{name}: the lists of {tokens} tokens differ from the torch executor's")
            error = float((outputs[0] - outputs[1]).norm() / outputs[1].norm())
            row["worst"]["bfloat16"] = max(error, row["worst"].get("bfloat16", 0.0))
            if not error < 1e-2:
                row["errors"].append(f"{name}: attention over {tokens} tokens is off by {error}")
        except Exception as error:
            row["errors"].append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
    return row


def attending(count: int) -> list[tuple[str, str, list[int]]]:
    """Jobs of so many random programs that attend by themselves and that the kernels cover."""
    import random

    from vortexlab.dsl import parse
    from vortexlab.dsl.ir import Static
    from vortexlab.dsl.testing import random_program
    from vortexlab.kernels.compiled import is_plain
    from vortexlab.kernels.gpu.coverage import uncovered

    jobs: list[tuple[str, str, list[int]]] = []
    number = 60_000
    while len(jobs) < count:
        text = random_program(random.Random(number), whole=True)
        program = parse(text).bind()
        if program.kv_dtype == "auto" and not is_plain(program) and not uncovered(program, Static(2, 2, 64, 0.125)):
            jobs.append((f"random{number}", text, [number]))
        number += 1
    return jobs


def check_all(cases: int, programs: int, workers: int) -> list[dict[str, Any]]:
    from triton_outputs import SETTINGS

    from vortexlab.search_spaces import seeds
    from vortexlab.search_spaces.library import source

    texts = seeds() | {name: source(name) for name in ALSO}
    texts |= {f"output {number}": setting.text for number, setting in enumerate(SETTINGS)}
    jobs = []
    for number, (name, text) in enumerate(texts.items()):
        every = [1000 * number + i for i in range(cases)]
        jobs += [(name, text, every[i : i + 4]) for i in range(0, cases, 4)]
    if programs:
        import random

        from vortexlab.dsl.testing import random_program

        jobs += [(f"random{i}", random_program(random.Random(50_000 + i)), [50_000 + i]) for i in range(programs)]
        jobs += attending(programs)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--cases", type=int, default=12, help="configurations per seed program")
    parser.add_argument("--programs", type=int, default=30, help="random programs")
    parser.add_argument("--workers", type=int, default=12)
    options = parser.parse_args()
    began = time.time()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0), "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(), "seeds": "fixed by case number",
    }  # fmt: skip
    result["checks"] = [*check_all(options.cases, options.programs, options.workers), check_long(1 << 20)]
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
    print(f"{result['device']}, torch {result['torch']}, triton {result['triton']}, {result['seconds']:.0f} s")
    return 1 if any(row["errors"] for row in result["checks"]) else 0


if __name__ == "__main__":
    sys.exit(main())
