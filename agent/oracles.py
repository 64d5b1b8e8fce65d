"""What the best choice of pages would keep: measured at the end of a campaign, for the programs that lead it.

It says how much of what a program loses is lost by its choice of pages, and how much by reading so few of them.
"""

from __future__ import annotations

from vortexlab.agent.progress import best
from vortexlab.agent.trials import History, Trial
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.verdict import ERROR

ORACLE = "oracle"


def key_of(trial: Trial, environment: str) -> str:
    """What a record finds the measurement by."""
    return digest([trial.hash, ORACLE, environment])


def wanted(history: History, most: int) -> list[Trial]:
    """Members of the frontier that have no oracle yet, fastest first: of the `most` that dominate the largest areas. A
    lost worker has said nothing."""
    leading = {item.id for item in best(history.totals.front, most)}
    known = {mark for mark, found in history.oracles.items() if found.head.status != ERROR}
    return [trial for trial in history.totals.front if trial.id in leading and trial.hash not in known]
