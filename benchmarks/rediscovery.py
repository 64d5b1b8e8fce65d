"""How many evaluations until a withheld published program is found again, by the search and by simpler methods.

    FILE=benchmarks/results/rediscovery.json; python benchmarks/rediscovery.py --json $FILE --resume $FILE

A case withholds a program and every seed of the library that contains its scoring expression. Found is a program of the
same structure, or one at least as accurate (within 1 point) and as fast (within 2 %) as the withheld one with its tuned
numbers; these are the point, of `--draws` random draws of its knobs, that adds most hypervolume to what the remaining
seeds reach with as many draws each. Where the seeds reach every such point the case is made harder: seeds that do are
withheld too. Every program is evaluated on recorded traces (`evaluator.traces`), speed predicted for an H200. The
hypervolume after `--hypervolume` evaluations is that of searches with every seed. One row is one case, method and seed;
`--table` prints the sums of a file.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from fidelity_ranks import knobs as budget_knobs
from records import Records, add_options

from vortexlab.agent import study
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.pareto import Point, frontier, hypervolume
from vortexlab.agent.proposers.grammar import GrammarProposer
from vortexlab.dsl import parse, structure_hash
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr
from vortexlab.dsl.testing import random_program
from vortexlab.evaluator.config import EvaluationConfig, device_name, versions
from vortexlab.evaluator.statistics import rank_correlation
from vortexlab.evaluator.traces import TraceConfig, TraceEvaluator
from vortexlab.evaluator.verdict import Verdict
from vortexlab.search_spaces.genome import Genome, expression, is_attribute
from vortexlab.search_spaces.library import SEEDS, source

#: Case -> the withheld program. `static`: every seed that scores pages is withheld, so that a scored selector must come
#: from nothing; otherwise a seed of the same score would match the withheld program at the start.
CASES = {
    "centroid": "centroid", "quest": "quest", "hierarchical": "subpage_quest", "top-p": "top_p",
    "sink + window + top-k": "block_topk", "reuse over steps": "lserve",
}  # fmt: skip
STATIC = ("sink + window + top-k",)
METHODS = ("grammar", "random", "tpe", "nsga2")
ALL = "every seed"
#: What a program must keep to be of use: campaigns stop evaluating what certainly keeps less.
USEFUL = EvaluationConfig.stop_below
MEASURES = {"hypervolume": "hypervolume", "useful": f"hypervolume above {USEFUL:g} kept"}


def score_of(name: str) -> str:
    """The scoring expression of a program below the reduction over heads, summaries written out; empty without one."""
    genome = Genome.of(source(name))
    if not genome.scores:
        return ""
    tree = next(iter(genome.scores.values()))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and "'head'" in ast.dump(tree.args[-1]):
        tree = tree.func.value

    class Write(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.expr:  # the name is ast's
            if is_attribute(node, "s"):
                return genome.fields[node.attr]
            self.generic_visit(node)
            return node

    return ast.unparse(Write().visit(tree))


def without_parts(text: str) -> str:
    """The expression with pages that are not cut into parts."""
    tree = expression(text)

    class Whole(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:  # the name is ast's
            self.generic_visit(node)
            cut = isinstance(node.func, ast.Attribute) and node.func.attr == "split"
            return node.func.value if cut else node  # type: ignore[union-attr]

    return ast.unparse(Whole().visit(tree))


def remaining(case: str) -> tuple[str, ...]:
    """The seeds that a case leaves."""
    wanted = score_of(CASES[case])
    found = []
    for name in SEEDS:
        held = score_of(name)
        if name == CASES[case] or (held and (case in STATIC or wanted in held or wanted in without_parts(held))):
            continue
        found.append(name)
    return tuple(found)


class Found(Exception):
    """The withheld program, or its equal, was evaluated."""


class Watch:
    """Passes programs on to the evaluator, counts them, and raises `Found` at the first that `is_found` says of."""

    def __init__(self, evaluator: TraceEvaluator, is_found: Callable[[Verdict], bool]):
        self.evaluator, self.is_found = evaluator, is_found
        self.verdicts: list[Verdict] = []
        self.environment = evaluator.environment

    def evaluate(self, text: str, knobs: Mapping[str, Attr] | None = None, *, fidelity: str = "full") -> Verdict:
        verdict = self.evaluator.evaluate(text, knobs)
        self.verdicts.append(verdict)
        if self.is_found(verdict):
            raise Found
        return verdict

    def rank_among(self, points: Any) -> None:
        pass

    def close(self) -> None:
        pass


def point_of(verdict: Verdict) -> Point | None:
    if verdict.speedup is None or verdict.accuracy is None:
        return None
    return verdict.speedup.value, verdict.accuracy.value


def reaches(point: Point | None, target: Point) -> bool:
    return point is not None and point[0] >= 0.98 * target[0] and point[1] >= target[1] - 0.01


def tuned(evaluator: TraceEvaluator, name: str, draws: int) -> list[Point]:
    """What a published program reaches with its defaults, its budget points, and `draws` random draws of its knobs."""
    text, rng = source(name), random.Random(name)
    program, tokens = parse(text), evaluator.config.length
    settings = [{}, budget_knobs(name, 0.05, tokens), budget_knobs(name, 0.1, tokens)]
    settings += [study.draw(program, rng, tokens=tokens) for _ in range(draws)]
    points = []
    for values in settings:
        try:
            points.append(point_of(evaluator.evaluate(text, values)))
        except VortexError:  # knobs that do not go together
            continue
    return [point for point in points if point]


def target_of(own: Sequence[Point], seeds: Sequence[Point]) -> Point | None:
    """The withheld program's point that adds most to what the seeds reach; None if they reach every one."""
    open_points = [point for point in own if not any(reaches(seed, point) for seed in seeds)]
    return max(open_points, key=lambda point: hypervolume([*seeds, point]), default=None)


def case_of(case: str, reached: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The seeds that a case begins with and the point to reach.

    `harder`: seeds withheld beside those of the same score, because with tuned knobs they reach every point of the
    withheld program; the one that reaches most goes first.
    """
    own, left = reached[CASES[case]], list(remaining(case))
    harder: list[str] = []
    while (target := target_of(own, [point for name in left for point in reached[name]])) is None:
        counts = {
            name: sum(any(reaches(seed, point) for seed in reached[name]) for point in own)
            for name in left if name != "dense"
        }  # fmt: skip
        harder.append(max(counts, key=lambda name: counts[name]))
        left.remove(harder[-1])
    return {"withheld": CASES[case], "seeds": left, "harder": harder, "target": target}


def grammar(watch: Watch, seeds: Sequence[str], count: int, seed: int, tokens: int) -> None:
    library = {name: source(name) for name in seeds}
    with tempfile.TemporaryDirectory() as folder:
        config = CampaignConfig(name="run", runs=folder, seed=seed, evaluations=count, seeds=tuple(seeds), mirror=False)
        config = replace(config, evaluation=replace(config.evaluation, lengths=(tokens,)))
        Campaign(config, evaluator=watch, proposers=lambda *_: [GrammarProposer(library)]).run()


def random_typed(watch: Watch, seeds: Sequence[str], count: int, seed: int, tokens: int) -> None:
    """The seeds with their defaults, then random programs with random knobs."""
    rng = random.Random(seed)
    for name in seeds:
        watch.evaluate(source(name))
    while len(watch.verdicts) < count:
        text = random_program(rng)
        try:
            watch.evaluate(text, study.draw(parse(text), rng, tokens=tokens))
        except VortexError:
            continue


def knobs_only(kind: str) -> Callable[[Watch, Sequence[str], int, int, int], None]:
    def run(watch: Watch, seeds: Sequence[str], count: int, seed: int, tokens: int) -> None:
        """The seeds with their defaults, then new knobs; which seed is a choice of the sampler's."""
        sampler: Any = optuna.samplers.TPESampler(seed=seed) if kind == "tpe" else optuna.samplers.NSGAIISampler(
            seed=seed, population_size=30
        )
        made = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        for name in seeds:
            watch.evaluate(source(name))
        for _ in range(20 * count):
            if len(watch.verdicts) >= count:
                return
            trial = made.ask()
            name = trial.suggest_categorical("program", list(seeds))
            program = parse(source(name))
            values = study.suggested(trial, program, structure_hash(program), tokens=tokens)
            try:
                verdict = watch.evaluate(source(name), values)
            except VortexError:
                trial.set_constraint("rejected", 1.0)
                made.tell(trial, [0.0, 0.0])
                continue
            point = point_of(verdict)
            trial.set_constraint("rejected", 0.0 if point else 1.0)
            made.tell(trial, list(point or (0.0, 0.0)))

    return run


RUNS = {"grammar": grammar, "random": random_typed, "tpe": knobs_only("tpe"), "nsga2": knobs_only("nsga2")}


def search(
    evaluator: TraceEvaluator, method: str, seeds: Sequence[str], count: int, seed: int,
    is_found: Callable[[Verdict], bool],
) -> dict[str, Any]:  # fmt: skip
    """Evaluations to the find (None: not within `count`), the hypervolume at the end, and what was found."""
    watch, began, found = Watch(evaluator, is_found), time.monotonic(), None
    try:
        RUNS[method](watch, seeds, count, seed, evaluator.config.length)
    except Found:
        found = len(watch.verdicts)
    points = [point for point in map(point_of, watch.verdicts) if point]
    row: dict[str, Any] = {
        "found": found, "evaluations": len(watch.verdicts), "hypervolume": hypervolume(points),
        "useful": hypervolume([(speed, kept - USEFUL) for speed, kept in points]),
        "front": [points[i] for i in frontier(points)], "seconds": time.monotonic() - began,
    }  # fmt: skip
    if found:
        last = watch.verdicts[-1]
        row |= {"program": last.program, "structure": last.structure, "point": point_of(last)}
    return row


def ranks(evaluator: TraceEvaluator) -> dict[str, Any]:
    """Spearman's correlation of needle mass with the accuracy in `fidelity-ranks.json`, at its length and knobs."""
    path = Path(__file__).resolve().parent / "results" / "fidelity-ranks.json"
    data = json.loads(path.read_text())
    rows = [row for row in data["rows"] if "error" not in row]
    pairs = []
    for row in rows:
        verdict = evaluator.evaluate(source(row["program"]), row["knobs"])
        if verdict.accuracy is not None:
            pairs.append((verdict.accuracy.value, row["accuracy"]["value"]))
    mine, real = np.array(pairs).T
    return {"spearman": rank_correlation(mine, real), "programs": len(pairs), "length": data["conditions"]["length"]}


def table(data: Mapping[str, Any]) -> str:
    rows, lines = [row for row in data["rows"] if "error" not in row], []
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    lines += [f"| withheld | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for case in CASES:
        cells = []
        for method in methods:
            mine = [row for row in rows if (row["case"], row["method"]) == (case, method)]
            hits = sorted(row["found"] for row in mine if row["found"])
            middle = f"{statistics.median(hits):g} [{hits[0]}, {hits[-1]}], " if hits else ""
            cells.append(f"{middle}{len(hits)} of {len(mine)}" if mine else "")
        lines.append(f"| {case} | {' | '.join(cells)} |")
    for measure in MEASURES:
        whole = {name: {row["seed"]: row[measure] for row in rows if (row["case"], row["method"]) == (ALL, name)}
                 for name in methods}  # fmt: skip
        lines += ["", f"| method | {MEASURES[measure]}, mean | grammar less it [95 %] | seeds |", "|---|---|---|---|"]
        lines += [_compared(name, whole) for name in methods if whole[name]]
    return "\n".join(lines)


def _compared(name: str, whole: Mapping[str, Mapping[int, float]]) -> str:
    """A line of the table: the mean over campaigns, and what those of the grammar have more, seed by seed."""
    mine, text = whole[name], ""
    shared = [whole["grammar"][seed] - value for seed, value in mine.items() if seed in whole.get("grammar", {})]
    if name != "grammar" and len(shared) > 1:
        middle, low, high = mean_of(shared)
        text = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
    return f"| {name} | {statistics.mean(mine.values()):.3f} | {text} | {len(mine)} |"


def mean_of(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval by Student's t."""
    half = _T[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    middle = statistics.mean(values)
    return middle, middle - half, middle + half


#: Two-sided 97.5 % quantiles of Student's t by degrees of freedom.
_T = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201,
    12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=[*CASES, ALL], default=[*CASES, ALL])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 21), metavar="N", help="of a campaign; 5")
    parser.add_argument("--evaluations", type=int, default=300, help="until a case counts as not found")
    parser.add_argument("--hypervolume", type=int, default=200, help="evaluations of the campaigns with every seed")
    parser.add_argument("--draws", type=int, default=40, help="of the knobs of each published program")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a recorded context")
    parser.add_argument("--contexts", type=int, default=1, help="recorded for each task")
    parser.add_argument("--traces", type=Path, help="folder that keeps the recorded traces for the next time")
    parser.add_argument("--table", action="store_true", help="print the sums of the file, measure nothing")
    add_options(parser, "rediscovery.json")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.json.read_text())))
        return
    torch.set_num_threads(1)
    config = TraceConfig(length=options.length, contexts=options.contexts)
    conditions = {
        "device": device_name("cpu"), "threads": 1, "versions": versions() | {"optuna": optuna.__version__},
        "traces": config.to_json(), "evaluations": options.evaluations, "hypervolume_at": options.hypervolume,
        "draws": options.draws,
    }  # fmt: skip
    records = Records(options, conditions, ("case", "method", "seed"))
    with torch.inference_mode():
        evaluator = TraceEvaluator(config, folder=options.traces)
    kept = json.loads(options.resume.read_text()) if options.resume and options.resume.exists() else {}
    records.sums["ranks"] = kept.get("ranks") or ranks(evaluator)
    print("needle mass against accuracy", records.sums["ranks"], flush=True)
    names = dict.fromkeys((*SEEDS, *CASES.values()))
    reached = kept.get("published") or {name: tuned(evaluator, name, options.draws) for name in names}
    records.sums["published"] = reached
    targets = {case: case_of(case, reached) for case in CASES}
    for case, found in targets.items():
        print(case, found, flush=True)
    records.sums["cases"] = targets
    for seed in range(options.seeds):
        for method in options.methods:
            for case in options.cases:
                if case == ALL:
                    seeds, count, is_found = SEEDS, options.hypervolume, lambda _: False
                else:
                    seeds, count, target = targets[case]["seeds"], options.evaluations, targets[case]["target"]
                    form = structure_hash(parse(source(CASES[case])))
                    is_found = lambda verdict, target=target, form=form: (  # noqa: E731
                        verdict.structure == form or reaches(point_of(verdict), target)
                    )
                row = records.measure(
                    {"case": case, "method": method, "seed": seed},
                    lambda method=method, seeds=seeds, count=count, seed=seed, is_found=is_found: search(
                        evaluator, method, seeds, count, seed, is_found
                    ),
                )  # fmt: skip
                if row is not None:
                    print({key: row[key] for key in row if key not in ("structure", "program")}, flush=True)
    for line in records.errors():
        print(line)
    records.write()
    print(table({"rows": records.rows}))


if __name__ == "__main__":
    main()
