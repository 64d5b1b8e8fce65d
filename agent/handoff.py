"""A coding agent in the loop without an endpoint: `ask` gives it the prompt, `tell` takes its reply.

Both use the campaign's own store, memory and budget: what is told counts as one evaluation, and the next prompt
(whoever it is for) shows it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from vortexlab.agent import prompt
from vortexlab.agent.assemble import briefing
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.folders import LATEST
from vortexlab.agent.naming import called
from vortexlab.agent.pool import Evaluation
from vortexlab.agent.progress import OnProgress
from vortexlab.agent.proposers.base import Member, Proposal
from vortexlab.agent.proposers.replies import ReplyError, parse_reply
from vortexlab.agent.run import Run
from vortexlab.agent.trials import HANDOFF
from vortexlab.dsl import check
from vortexlab.dsl.errors import ProgramError, VortexError


def ask(run: str | Path = LATEST, runs: str | Path = "runs") -> dict[str, Any]:
    """The next prompt of a run as JSON: `messages` (a chat), `task`, `slot`, `budget_left` and how to answer.

    Reading changes nothing: the same run gives the same prompt until something is evaluated.
    """
    opened = Run.open(run, runs)
    history = opened.history
    limit = opened.config.evaluations
    slot = history.next_slot
    about = briefing(opened.config)
    return {
        "run": opened.name,
        "slot": slot,
        "task": about.task,
        "budget_left": None if limit is None else max(0, limit - history.evaluated),
        "prompt_version": prompt.version(),
        "messages": prompt.compose(
            history.members(), random.Random(f"{opened.config.seed}/{slot}"), about
        ).messages,
        "answer_with": f"vortex tell {called(opened.folder)} REPLY.json",
    }


def read_reply(text: str, label: str = "") -> Proposal:
    """The proposal in a reply: JSON as the prompt asks for, a fenced program, or the bare program.

    Raises `ProgramError` with every diagnostic when its program is none, `VortexError` when there is no program.
    """
    try:
        reply = parse_reply(text)
    except ReplyError as error:
        raise VortexError(str(error)) from None
    program, findings = check(reply.program)
    if program is None:
        raise ProgramError([finding for finding in findings if finding.severity == "error"])
    return Proposal(
        source=reply.program, name=program.name, proposer=HANDOFF, operator="tell", hypothesis=reply.hypothesis,
        predicted_effect=reply.predicted_effect, label=label,
    )  # fmt: skip


def tell(
    text: str,
    run: str | Path = LATEST,
    runs: str | Path = "runs",
    *,
    label: str = "",
    evaluator: Evaluation | None = None,
    on_progress: OnProgress | None = None,
) -> Member:
    """Evaluates the program of a reply in the run's next slot and returns how it did.

    Raises `VortexError` when the reply holds no program, the budget is spent, or another controller is at work.
    """
    proposal = read_reply(text, label)
    opened = Run.open(run, runs)
    return Campaign.resume(opened.name, opened.folder.parent, evaluator=evaluator).submit(proposal, on_progress)
