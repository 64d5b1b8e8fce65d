"""How far a program moves what the model would say: KL divergence from dense attention on the tokens of answers.

Both are fed the question and then dense attention's own answer, so that every token is judged after the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vortexlab.evaluator.contexts import Fork
from vortexlab.evaluator.replay import Session, Step
from vortexlab.kernels.cache import PagedKV


def answer_logs(session: Session, forks: Sequence[Fork], answers: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of the whole vocabulary at every answer token of all forks: [tokens, vocabulary]."""
    session.prepare()
    contexts, model = session.store.contexts, session.model
    questions = [contexts[fork.context].turns[fork.turn].question for fork in forks]
    fed = [[*question, *answer[:-1]] for question, answer in zip(questions, answers, strict=True)]
    order = sorted(range(len(forks)), key=lambda i: -len(fed[i]))
    caches = session.fork([forks[i] for i in order])
    starts = torch.tensor([len(contexts[forks[i].context].tokens) for i in order], device=model.device)
    memories = session.memories(caches)
    logs: list[list[Tensor]] = [[] for _ in forks]
    for step in range(len(fed[order[0]])):
        live = sum(len(row) > step for row in fed)
        current = [PagedKV(c.k, c.v, c.table[:live], c.lengths[:live], c.block) for c in caches]
        tokens = torch.tensor([fed[i][step] for i in order[:live]], device=model.device)
        found = model.step(tokens, starts[:live] + step, Step(session, session, current, memories, None))
        for row, i in enumerate(order[:live]):
            if step >= len(questions[i]) - 1:
                logs[i].append(found[row].float().log_softmax(-1))
    return torch.stack([row for rows in logs for row in rows])


def divergence(dense: Tensor, sparse: Tensor) -> float:
    """Mean over tokens of KL(dense, sparse) in nats; arguments as `answer_logs` gives them."""
    return float((dense.exp() * (dense - sparse)).sum(-1).clamp(min=0).mean())
