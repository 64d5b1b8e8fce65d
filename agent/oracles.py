"""What the best choice of pages would keep: measured at the end of a campaign, for the programs that lead it.

It says how much of what a program loses is lost by its choice of pages, and how much by reading so few of them.
"""

from __future__ import annotations

from vortexlab.agent.progress import best
from vortexlab.agent.trials import History, Trial
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.traits import without_oracle
from vortexlab.evaluator.verdict import ERROR
from vortexlab.search_spaces.parsed import parsed

ORACLE = "oracle"


def key_of(trial: Trial, environment: str) -> str:
    """What a record finds the measurement by."""
    return digest([trial.hash, ORACLE, environment])


def wanted(history: History, most: int) -> list[Trial]:
    """Members of the frontier whose oracle is not measured yet, fastest first: of the `most` that dominate the largest
    areas among those that have one. A lost worker has said nothing."""
    able = [trial for trial in history.totals.front if not reason_against(trial)]
    leading = {item.id for item in best(able, most)}
    known = {mark for mark, found in history.oracles.items() if found.head.status != ERROR}
    return [trial for trial in able if trial.id in leading and trial.hash not in known]


def reason_against(trial: Trial) -> str:
    """Why the program of an accepted trial has no oracle, in words; empty where it has one."""
    return without_oracle(parsed(trial.proposal.source).bind(trial.knobs))
