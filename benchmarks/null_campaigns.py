"""False winners and power: campaigns resampled from what programs answered that differ in their seed alone.

    python benchmarks/null_record.py --json benchmarks/results/null-programs.json       # once; about an hour
    python benchmarks/null_campaigns.py --json benchmarks/results/null-campaigns.json   # minutes

A campaign draws contexts anew within every task and, for every context by itself, deals the recorded results out to its
programs at random: in the population that it is drawn from no program is better than another. A *false winner* is a
program that `evaluator.ranking` separates from all others; the plain rule beside it calls a winner where the interval
of the difference between the best program and a fixed one excludes 0. For *power* the other programs lose answers, so
that one is better by a known gap, and must be separated: lost answers are drawn one by one or, which is harder to see,
whole contexts at a time.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from records import RESULTS

from vortexlab.evaluator.config import device_name, versions
from vortexlab.evaluator.ranking import FLIPS, LEVEL, Scores, is_best, shrunk
from vortexlab.evaluator.statistics import wilson_upper

SIZES = (6, 12, 20, 24, 32, 48)
GAPS = (0.02, 0.03, 0.05, 0.08)
RIVALS = 20
_Z = 1.96


@dataclass(frozen=True)
class Recorded:
    """`right`: [contexts, programs]; `answers` and `tasks`: [contexts]."""

    right: np.ndarray
    answers: np.ndarray
    tasks: np.ndarray

    @staticmethod
    def read(path: Path) -> Recorded:
        found = json.loads(path.read_text())
        rows = [row["right"] for row in found["rows"] if "error" not in row]
        tasks, _, answers, _ = zip(*found["contexts"], strict=True)
        return Recorded(np.array(rows).T, np.array(answers), np.array(tasks))

    @property
    def score(self) -> float:
        """Mean over tasks, and over programs, of the share of right answers."""
        return float(np.mean([
            self.right[self.tasks == task].sum(0) / self.answers[self.tasks == task].sum()
            for task in np.unique(self.tasks)
        ]))  # fmt: skip


def campaign(recorded: Recorded, programs: int, contexts: int, rng: np.random.Generator) -> Scores:
    """`contexts` of every task for `programs` programs, none of which is better than another."""
    rows = np.concatenate([
        rng.choice(np.flatnonzero(recorded.tasks == task), contexts) for task in np.unique(recorded.tasks)
    ])  # fmt: skip
    dealt = rng.permuted(recorded.right[rows], axis=1)[:, :programs]
    answers = np.repeat(recorded.answers[rows][:, None], programs, axis=1)
    return Scores(recorded.tasks[rows], answers, dealt)


def planted(scores: Scores, gap: float, score: float, rng: np.random.Generator, whole: bool) -> Scores:
    """All programs but the first lose right answers, `gap` of the score on the average; `whole` contexts at a time or
    one by one."""
    rest = scores.right[:, 1:].astype(int)
    lost = rest * (rng.random(rest.shape) < gap / score) if whole else rng.binomial(rest, gap / score)
    return Scores(scores.tasks, scores.answers, np.column_stack([scores.right[:, :1], rest - lost]))


def means(scores: Scores) -> np.ndarray:
    """[programs]: mean over tasks of the share of right answers."""
    found: np.ndarray = np.mean([
        scores.right[scores.tasks == task].sum(0) / scores.answers[scores.tasks == task].sum(0)
        for task in np.unique(scores.tasks)
    ], axis=0)  # fmt: skip
    return found


def errors(scores: Scores) -> np.ndarray:
    """[programs, contexts]: a factor of the covariance of the programs' mean scores, from contexts as clusters."""
    share, names = scores.right / scores.answers, np.unique(scores.tasks)
    parts = []
    for task in names:
        part = share[scores.tasks == task]
        parts.append((part - part.mean(0)) / np.sqrt(len(part) * (len(part) - 1)) / len(names))
    return np.concatenate(parts).T


def winner(scores: Scores, seed: int) -> bool:
    """Whether the best program is separated from all others."""
    best = int(means(scores).argmax())
    return is_best(scores, best, [n for n in range(scores.right.shape[1]) if n != best], seed=seed)


def plain_winner(scores: Scores) -> bool:
    """Whether the best program's lead over the first one excludes 0 by its own 95 % interval."""
    best = int(means(scores).argmax())
    if best == 0:
        return False
    lead = scores.leads(best, [0])[:, 0]
    return bool(lead.sum() > _Z * np.sqrt((lead**2).sum()))


def share(count: int, total: int) -> dict[str, float | int]:
    return {"count": count, "campaigns": total, "share": count / total, "upper_95": wilson_upper(count, total)}


def false_winners(recorded: Recorded, programs: int, contexts: int, campaigns: int, seed: int) -> dict[str, Any]:
    rng, wrong, plain, raw, moved = np.random.default_rng(seed), 0, 0, [], []
    for number in range(campaigns):
        scores = campaign(recorded, programs, contexts, rng)
        wrong += winner(scores, number)
        plain += plain_winner(scores)
        if number < 100:  # what shrinkage does to the best; the mean over programs tells how easy the contexts were
            values = means(scores)
            raw.append(values.max() - values.mean())
            if programs > 2:
                moved.append(max(item.value for item in shrunk(values, errors(scores))) - values.mean())
    return {
        "programs": programs, "contexts_per_task": contexts, "winners": share(wrong, campaigns),
        "plain_winners": share(plain, campaigns), "best_above_mean": float(np.mean(raw)),
        "best_above_mean_shrunk": float(np.mean(moved)) if moved else None,
    }  # fmt: skip


def power(
    recorded: Recorded, gap: float, contexts: int, campaigns: int, seed: int, *, whole: bool
) -> dict[str, Any]:  # fmt: skip
    rng, found = np.random.default_rng(seed), 0
    answers = 0
    for number in range(campaigns):
        scores = planted(campaign(recorded, RIVALS, contexts, rng), gap, recorded.score, rng, whole)
        answers = int(scores.answers[:, 0].sum())
        found += is_best(scores, 0, range(1, RIVALS), seed=number)
    return {"gap": gap, "contexts_per_task": contexts, "answers": answers, "lost": "contexts" if whole else "answers",
            "programs": RIVALS, "campaigns": campaigns, "found": found / campaigns}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    lines = [
        "| programs, all alike | contexts | campaigns | with a winner | upper bound | plain rule |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["null"]:
        wins, plain = row["winners"], row["plain_winners"]
        lines.append(
            f"| {row['programs']} | {row['contexts_per_task']} a task | {wins['campaigns']} | {wins['share']:.1%} | "
            f"{wins['upper_95']:.1%} | {plain['share']:.0%} |"
        )
    sizes = sorted({(row["contexts_per_task"], row["answers"]) for row in found["power"]})
    lines += ["", "| true gap, what is lost | " + " | ".join(f"{answers} answers" for _, answers in sizes) + " |"]
    lines.append("|---" * (1 + len(sizes)) + "|")
    for gap, lost in sorted({(row["gap"], row["lost"]) for row in found["power"]}):
        rows = [row for row in found["power"] if (row["gap"], row["lost"]) == (gap, lost)]
        cells = {row["contexts_per_task"]: f"{row['found']:.0%}" for row in rows}
        lines.append(f"| {gap * 100:g} points, {lost} | " + " | ".join(cells[size] for size, _ in sizes) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recorded", type=Path, default=RESULTS / "null-programs.json")
    parser.add_argument("--json", type=Path, default=Path("null-campaigns.json"))
    parser.add_argument("--campaigns", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, recorded = time.monotonic(), Recorded.read(options.recorded)
    programs = recorded.right.shape[1]
    found: dict[str, Any] = {
        "conditions": {
            "device": device_name("cpu"), "versions": versions(), "seed": options.seed, "level": LEVEL, "flips": FLIPS,
            "programs": programs, "score": recorded.score,
            "recorded": json.loads(options.recorded.read_text())["conditions"],
        },
    }  # fmt: skip
    most = int((recorded.tasks == recorded.tasks[0]).sum())
    found["null"] = [
        false_winners(recorded, count, contexts, options.campaigns, options.seed)
        for count, contexts in ((programs, most), (programs, 6), (20, most), (5, most), (2, most))
    ]
    found["power"] = [
        power(recorded, gap, contexts, options.campaigns // 2, options.seed, whole=whole)
        for gap in GAPS for whole in (False, True) for contexts in SIZES
    ]  # fmt: skip
    found["seconds"] = time.monotonic() - began
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
