"""Records what programs answer that differ in the seed of `random` alone: nothing tells them apart but luck.

    python benchmarks/null_record.py --programs 100 --json benchmarks/results/null-programs.json

Every program reads the first page, its own, the eight pages that an envelope of the keys (Quest) scores best and eight
drawn pages. All answer the same questions. One row is one program: right answers by context, and the time of every
gate. `benchmarks/null_campaigns.py` resamples campaigns from the file.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from records import Records, add_options

from vortexlab.evaluator.config import EvaluationConfig, device_name, model_digest, versions
from vortexlab.evaluator.evaluator import Evaluator

SOURCE = """@program(page=16, seed={seed})
class Null:
    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))

    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)

    def select(score):
        return first(1) | topk(score, 8) | random(8)
"""


def measured(evaluator: Evaluator, seed: int) -> dict[str, Any]:
    """One program in full, whatever the screen says of it."""
    began = time.monotonic()
    verdict = evaluator.evaluate(SOURCE.format(seed=seed))
    if verdict.accuracy is None or not verdict.accepted:
        raise ValueError(verdict.reason)
    return {
        "right": [outcome.sparse for outcome in verdict.outcomes],
        "kept": verdict.accuracy.to_json(),
        "density": verdict.density,
        "answers": verdict.answers,
        "seconds": time.monotonic() - began,
        "gates": {gate.name: gate.seconds for gate in verdict.gates},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a context")
    parser.add_argument("--contexts", type=int, default=24, help="of every task")
    parser.add_argument("--threads", type=int, default=1)
    add_options(parser, "null-programs.json")
    options = parser.parse_args()
    config = EvaluationConfig(
        speed="predicted", lengths=(options.length,), contexts=options.contexts, compile_for=(), audit_share=1.0,
        stop_below=0.0, promoted=1.0, threads=options.threads,
    )  # fmt: skip
    conditions = {
        "device": device_name("cpu"), "threads": options.threads, "versions": versions(), "source": SOURCE,
        "model_digest": model_digest(config.model), "length": options.length, "contexts_per_task": options.contexts,
        "seed": config.seed, "split": config.split, "dtype": config.resolved_dtype, "protocol": config.protocol,
    }  # fmt: skip
    records = Records(options, conditions, ("program",))
    with Evaluator(config) as evaluator:
        everything = evaluator.dense_row().outcomes
        records.sums["contexts"] = [[item.task, item.context, item.answers, item.dense] for item in everything]
        for seed in range(options.first, options.first + options.programs):
            records.measure({"program": seed}, lambda seed=seed: measured(evaluator, seed))
    for line in records.errors():
        print(line)


if __name__ == "__main__":
    main()
