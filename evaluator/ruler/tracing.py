"""Variable tracking: a chain of assignments among noise; asked are all variables that have its value."""

from __future__ import annotations

import string
from collections.abc import Callable
from itertools import pairwise
from random import Random

from vortexlab.evaluator.ruler.needles import NOISE
from vortexlab.evaluator.ruler.recipes import Draft, Question, Recipe, fork, tokens_of
from vortexlab.evaluator.tasks.prompts import Encoder

GENERATED = 30
HOPS = 4
#: The solved example in front may have this many tokens, and its noise is a multiple of this many lines.
EXAMPLE_TOKENS, EXAMPLE_STEP = 500, 5
_LEAST = HOPS + 2  # more lines than assignments
_TASK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"


def recipe(rng: Random, example_lines: int) -> Recipe:
    """A solved example with `example_lines` of noise, then a chain among as many lines of noise as are asked for."""
    example = _chain(fork(rng), 3)(example_lines)
    front = f"{example.context}{_spoken(example)}\n\n\n\n"
    chain = _chain(fork(rng), 5)

    def build(size: int) -> Draft:
        found = chain(size)
        return Draft(front + found.context, found.questions)

    return Recipe(build, _LEAST)


def example_lines(encoder: Encoder) -> int:
    """Lines of noise that make the solved example about `EXAMPLE_TOKENS` long, and never fewer than it needs."""
    lines = EXAMPLE_STEP
    chain = _chain(Random(0), 3)
    while tokens_of(chain(max(lines + EXAMPLE_STEP, _LEAST)), encoder, GENERATED) <= EXAMPLE_TOKENS:
        lines += EXAMPLE_STEP
    return max(lines, _LEAST)


def _spoken(draft: Draft) -> str:
    (question,) = draft.questions
    return f"{question.text} {question.begun}  {' '.join(question.answers)}"


def _chain(rng: Random, letters: int) -> Callable[[int], Draft]:
    """From lines of noise to a sample with one chain in it, whose variables are the answers."""
    names: list[str] = []
    while len(names) < HOPS + 1:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    value = rng.randint(10000, 99998)
    links = [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(names))]
    places = rng.getrandbits(64)
    question = Question(
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
        # The spelling is the benchmark's, and models have been scored on it.
        f"Answer: According to the chain(s) of variable assignment in the text above, {len(names)} variables are "
        f"assgined the value {value}, they are:",
        tuple(names),
    )

    def build(size: int) -> Draft:
        before = dict(zip(sorted(Random(places).sample(range(size), len(links))), links, strict=True))
        parts: list[str] = []
        for place in range(size):
            parts += [before[place]] if place in before else []
            parts.append(NOISE + "\n")
        return Draft(_TASK + " ".join(parts), (question,))

    return build
