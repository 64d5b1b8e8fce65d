"""Question answering: the documents that hold the answer among others of the same source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from vortexlab.evaluator.ruler.recipes import Draft, Question, Recipe, fork

GENERATED = 32
_TASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


@dataclass(frozen=True)
class Asked:
    """Questions about the same documents: `documents` hold the answers, `near` are others of the same article.

    Both are places in the list of all documents. `questions` are texts with the answers that are accepted.
    """

    documents: tuple[int, ...]
    near: tuple[int, ...]
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def recipe(asked: Asked, documents: Sequence[str], rng: Random, turns: int) -> Recipe:
    """A sample of up to `turns` questions; the size is the number of documents."""
    needed = {*asked.documents}
    near = [place for place in asked.near if place not in needed]
    far = [place for place in range(len(documents)) if place not in needed and place not in {*near}]
    fork(rng).shuffle(near)
    fork(rng).shuffle(far)
    order = [*asked.documents, *near, *far]
    questions = tuple(
        Question(f"\n\n{_TASK}\n\nQuestion: {text}", "Answer:", answers) for text, answers in asked.questions[:turns]
    )
    places = rng.getrandbits(64)

    def build(size: int) -> Draft:
        chosen = order[:size]
        Random(places).shuffle(chosen)
        listed = "\n\n".join(f"Document {n}:\n{documents[place]}" for n, place in enumerate(chosen, 1))
        return Draft(f"{_TASK}\n\nThe following are given documents.\n\n{listed}", questions)

    return Recipe(build, len(asked.documents), len(documents))
