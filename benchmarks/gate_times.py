"""How many programs an hour go through the gates, and where the time goes: the published decode programs in turn.

    python benchmarks/gate_times.py --json benchmarks/results/gate-times.json

On a CPU speed is predicted, as in a search on the way to a GPU, so what is timed is everything up to and with accuracy:
at 4,096 tokens, with twelve contexts a task (312 paired answers). Opening the worker, which reads the contexts, is told
apart. Nothing is stopped early unless `--stop` is given. The load of the machine stands in the file.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Queue
from typing import Any

import numpy as np
from records import Records, Row, add_options

from vortexlab.evaluator.config import EvaluationConfig, device_name, model_digest, versions
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.search_spaces.library import LIBRARY, source


def measured(idle: Queue[Evaluator], name: str) -> Row:
    evaluator = idle.get()
    began, load = time.monotonic(), os.getloadavg()[0]
    try:
        verdict = evaluator.evaluate(source(name))
    finally:
        idle.put(evaluator)
    if verdict.accuracy is None:
        raise ValueError(verdict.reason)
    return {
        "status": verdict.status, "answers": verdict.answers, "seconds": time.monotonic() - began, "load": load,
        "gates": {gate.name: gate.seconds for gate in verdict.gates},
    }  # fmt: skip


def sums(rows: Sequence[Row], workers: int) -> dict[str, Any]:
    """Programs an hour while all workers are busy, and median and largest seconds of every gate."""
    names = dict.fromkeys(name for row in rows for name in row["gates"])
    times = {name: [row["gates"][name] for row in rows if name in row["gates"]] for name in names}
    return {
        "programs": len(rows),
        "programs_per_hour": 3600 * len(rows) * workers / sum(row["seconds"] for row in rows),
        "gates": {name: {"median": float(np.median(t)), "most": max(t)} for name, t in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=len(LIBRARY["decode"]))
    parser.add_argument("--contexts", type=int, default=12, help="of every task")
    parser.add_argument("--threads", type=int, default=2, help="of every worker")
    parser.add_argument("--workers", type=int, default=1, help="at once on the device, which has one while it is timed")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="on a GPU speed is measured too")
    parser.add_argument("--stop", action="store_true", help="stop where a program certainly keeps too little")
    add_options(parser, "gate-times.json")
    options = parser.parse_args()
    config = EvaluationConfig(
        speed="predicted" if options.device == "cpu" else "measured", device=options.device, contexts=options.contexts,
        threads=options.threads, audit_share=1.0,
    )  # fmt: skip
    if not options.stop:
        config = EvaluationConfig(**{**config.to_json(), "stop_below": 0.0})
    conditions = {
        "device": device_name(options.device), "threads": options.threads, "workers": options.workers,
        "versions": versions(), "lengths": list(config.lengths),
        "contexts_per_task": options.contexts, "model_digest": model_digest(config.model), "seed": config.seed,
        "dtype": config.resolved_dtype, "stop_below": config.stop_below, "speed": config.speed,
    }  # fmt: skip
    with ExitStack() as stack:
        began, idle = time.monotonic(), Queue[Evaluator]()
        evaluators = [stack.enter_context(Evaluator(config)) for _ in range(options.workers)]
        pool = stack.enter_context(ThreadPoolExecutor(options.workers))
        evaluators[0].open()  # keeps the contexts on disk, where the others find them
        for evaluator in evaluators:
            idle.put(evaluator)
        list(pool.map(Evaluator.open, evaluators))
        records = Records(options, conditions, ("program",))
        records.sums["open_seconds"] = time.monotonic() - began
        names = LIBRARY["decode"][: options.programs]
        stack.callback(pool.shutdown, cancel_futures=True)

        def work(name: str) -> Row:
            if records.is_over:
                raise TimeoutError("not begun in the time given")
            return measured(idle, name)

        under_way = {name: pool.submit(work, name) for name in names if records.find(program=name) is None}
        for name in names:
            records.measure({"program": name}, lambda name=name: under_way[name].result())
    records.sums.update(sums([row for row in records.rows if "error" not in row], options.workers))
    records.write()
    print(f"{records.sums['programs_per_hour']:.0f} programs an hour; opened in {records.sums['open_seconds']:.0f} s")
    for name, times in records.sums["gates"].items():
        print(f"{name:9} median {times['median']:.2f} s, at most {times['most']:.2f} s")


if __name__ == "__main__":
    main()
