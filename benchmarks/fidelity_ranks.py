"""Which cheap measure predicts accuracy: rank correlations over the published decode programs.

    python benchmarks/fidelity_ranks.py --json benchmarks/results/fidelity-ranks.json

Every program that needs no learned parameters, with the share `--budget` of the pages by score where it has such a
knob, goes through all gates, whatever the screen says. One row is one program: what the fidelity gate and the screen
found, and the accuracy that it keeps of dense attention. The sums are Spearman's correlation of each measure with
accuracy, with a 95 % interval (bootstrap over programs), and what a gate that killed the worst quarter by that measure
would have lost: members of the frontier of (density, accuracy), and the most accurate program among the killed.
`--table` prints them as Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from records import Records, add_options

from vortexlab.dsl import parse
from vortexlab.dsl.ir import Attr
from vortexlab.evaluator.config import EvaluationConfig, device_name, model_digest, versions
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.fronts import non_dominated
from vortexlab.evaluator.statistics import rank_correlation
from vortexlab.search_spaces.library import LIBRARY, source

#: Measure -> whether more of it is better, and what it is.
MEASURES = {
    "error_mean": (False, "output error, mean over heads"),
    "error_p95": (False, "output error, 95th percentile"),
    "error_worst_head": (False, "output error, worst head"),
    "mass": (True, "mass kept on candidate pages"),
    "mass_of_best": (True, "mass over what as many pages hold at best"),
    "needle_hits": (True, "pages with the needle read"),
    "divergence": (False, "KL divergence on answer tokens"),
    "density": (True, "effective density"),
    "screen": (True, "accuracy kept, upper bound on the screen"),
}
KILLED = 0.25


def knobs(name: str, share: float, tokens: int) -> dict[str, Attr]:
    """The page budget that is `share` of the context, within the knob's range."""
    program = parse(source(name))
    page = int(program.bind().page_size)
    wanted: dict[str, float] = {"budget": max(1, round(share * tokens / page)), "fraction": share}
    found: dict[str, Attr] = {}
    for key, value in wanted.items():
        knob = program.knobs.get(key)
        if knob is not None and knob.low is not None and knob.high is not None:
            found[key] = type(knob.default)(min(max(value, knob.low), knob.high))  # type: ignore[call-arg, arg-type]
    return found


def measured(evaluator: Evaluator, name: str, values: Mapping[str, Attr]) -> dict[str, Any]:
    began = time.monotonic()
    verdict = evaluator.evaluate(source(name), dict(values))
    fidelity, screen = verdict.gate_result("fidelity"), verdict.gate_result("screen")
    if verdict.accuracy is None or fidelity is None or screen is None:
        raise ValueError(f"stopped at {verdict.gate}: {verdict.reason}")
    found = {key: fidelity.details[key] for key in MEASURES if key in fidelity.details}
    return {
        **found, "screen": screen.details["kept_upper"], "accuracy": verdict.accuracy.to_json(),
        "read": verdict.density, "answers": verdict.answers, "knobs": dict(verdict.knobs),
        "seconds": time.monotonic() - began, "gates": {gate.name: gate.seconds for gate in verdict.gates},
    }  # fmt: skip


def correlations(rows: Sequence[Mapping[str, Any]], *, seed: int = 0, draws: int = 2000) -> list[dict[str, Any]]:
    """A row for every measure, the best predictor first."""
    accuracy = np.array([row["accuracy"]["value"] for row in rows])
    read = np.array([row["read"] for row in rows])
    front = non_dominated(-read, accuracy)
    found = []
    for name, (more_is_better, about) in MEASURES.items():
        values = np.array([row[name] for row in rows], float) * (1 if more_is_better else -1)
        rng = np.random.default_rng(seed)
        picks = rng.integers(0, len(rows), (draws, len(rows)))
        low, high = np.quantile([rank_correlation(values[pick], accuracy[pick]) for pick in picks], [0.025, 0.975])
        killed = np.argsort(values, kind="stable")[: int(KILLED * len(rows))]
        found.append({
            "measure": name, "about": about, "spearman": rank_correlation(values, accuracy), "low": float(low),
            "high": float(high), "programs": len(rows), "killed": len(killed),
            "frontier": int(front.sum()), "frontier_lost": int(front[killed].sum()),
            "best_killed": float(accuracy[killed].max()) if len(killed) else None,
        })  # fmt: skip
    return sorted(found, key=lambda row: -row["spearman"])


def table(sums: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"| measure | Spearman with accuracy kept | frontier members in the worst {KILLED:.0%} | best accuracy there |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['about']} | {row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}] | "
        f"{row['frontier_lost']} of {row['frontier']} | {row['best_killed']:.2f} |"
        for row in sums
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=2048, help="tokens of a context")
    parser.add_argument("--contexts", type=int, default=6, help="of every task")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the pages chosen by score")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the sums of the file, measure nothing")
    add_options(parser, "fidelity-ranks.json")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.json.read_text())["correlations"]))
        return
    config = EvaluationConfig(
        speed="predicted", lengths=(options.length,), contexts=options.contexts, compile_for=(), audit_share=1.0,
        stop_below=0.0, promoted=1.0, threads=options.threads,
    )  # fmt: skip
    conditions = {
        "device": device_name("cpu"), "threads": options.threads, "versions": versions(), "seed": config.seed,
        "model_digest": model_digest(config.model), "length": options.length, "contexts_per_task": options.contexts,
        "budget": options.budget, "split": config.split, "dtype": config.resolved_dtype, "protocol": config.protocol,
    }  # fmt: skip
    records = Records(options, conditions, ("program",))
    with Evaluator(config) as evaluator:
        for name in LIBRARY["decode"]:
            values = knobs(name, options.budget, options.length)
            records.measure(
                {"program": name}, lambda name=name, values=values: measured(evaluator, name, values)
            )  # fmt: skip
    rows = [row for row in records.rows if "error" not in row]
    records.sums["correlations"] = correlations(rows)
    records.write()
    for line in records.errors():
        print(line)
    print(table(records.sums["correlations"]))


if __name__ == "__main__":
    main()
