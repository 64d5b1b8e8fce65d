"""Which families there are, and their samples as token ids, each as long as asked for and no longer.

Wording, kinds and numbers of needles, answer prefixes, generated tokens and metrics are RULER's. A sample depends on
family, length, split, seed, index, tokenizer and source alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.ruler import aggregation, needles, questions, tracing
from vortexlab.evaluator.ruler.needles import Needles
from vortexlab.evaluator.ruler.questions import Asked
from vortexlab.evaluator.ruler.recipes import Recipe, fit
from vortexlab.evaluator.tasks.prompts import Encoder
from vortexlab.evaluator.tasks.samples import Reference, Sample, Turn, sample_seed

#: Raised whenever the same seed gives another sample, so that what is cached is not taken for what would be made.
VERSION = 1
ESSAYS, SQUAD, HOTPOTQA = "essays", "squad", "hotpotqa"


@dataclass(frozen=True)
class Corpus:
    """What a user's source holds: `prose` in words, or `documents` and what is `asked` about them in the split."""

    prose: list[str] = field(default_factory=list)
    documents: tuple[str, ...] = ()
    asked: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Request:
    """What all samples of one call share."""

    length: int
    turns: int
    encoder: Encoder
    corpus: Corpus
    example_lines: int = 0


Maker = Callable[[Random, int, Request], Recipe]


@dataclass(frozen=True)
class Family:
    """`make(random numbers, index, request)` gives a recipe; `generated` tokens are scored by `metric`.

    `source`: the text or documents that it takes from the user; only essays have a default.
    """

    make: Maker
    generated: int
    metric: str = "match_all"
    source: str = ""

    @property
    def needs_source(self) -> bool:
        """Whether nothing can be made without the user's documents."""
        return self.source in (SQUAD, HOTPOTQA)


def _hiding(what: Needles) -> Family:
    def make(rng: Random, _: int, request: Request) -> Recipe:
        return needles.recipe(what, rng, request.turns, request.corpus.prose)

    return Family(make, needles.GENERATED, source=ESSAYS if what.haystack == "essay" else "")


def _answering(source: str) -> Family:
    def make(rng: Random, index: int, request: Request) -> Recipe:
        return questions.recipe(request.corpus.asked[index], request.corpus.documents, rng, request.turns)

    return Family(make, questions.GENERATED, "match_any", source)


FAMILIES: dict[str, Family] = {
    "niah_single_1": _hiding(Needles("repeat")),
    "niah_single_2": _hiding(Needles("essay")),
    "niah_single_3": _hiding(Needles("essay", value="uuids")),
    "niah_multikey_1": _hiding(Needles("essay", keys=4)),
    "niah_multikey_2": _hiding(Needles("needle")),
    "niah_multikey_3": _hiding(Needles("needle", key="uuids", value="uuids")),
    "niah_multivalue": _hiding(Needles("essay", values=4)),
    "niah_multiquery": _hiding(Needles("essay", keys=4, asked=4)),
    "vt": Family(lambda rng, _, request: tracing.recipe(rng, request.example_lines), tracing.GENERATED),
    "cwe": Family(lambda rng, _, request: aggregation.common_words(rng, request.length), aggregation.COMMON_GENERATED),
    "fwe": Family(
        lambda rng, _, request: aggregation.frequent_words(rng, request.length), aggregation.FREQUENT_GENERATED
    ),
    "qa_1": _answering(SQUAD),
    "qa_2": _answering(HOTPOTQA),
}


def make_samples(
    name: str,
    length: int,
    count: int,
    encoder: Encoder,
    corpus: Corpus,
    *,
    seed: int = 0,
    split: str = "search",
    turns: int = 1,
) -> list[Sample]:
    """Samples 0 to `count` - 1 of a family; context, question and answer of each have at most `length` tokens.

    There are fewer where the source is exhausted. A sample's first question is RULER's; where a context allows more,
    up to `turns` are asked. Raises `VortexError` for a length too short for the family, a tokenizer that lacks tokens,
    and a source with nothing that fits.
    """
    family, task = FAMILIES[name], f"ruler/{name}"
    lines = tracing.example_lines(encoder) if name == "vt" else 0
    request = Request(length, turns, encoder, corpus, lines)
    found: list[Sample] = []
    guess: int | None = None
    indices = range(len(corpus.asked) if family.needs_source else count)
    for index in indices:
        state = sample_seed(task, length, index, seed, split).generate_state(4).tolist()
        recipe = family.make(Random(repr(state)), index, request)
        size = fit(recipe, encoder, length, family.generated, guess)
        if size is None and not family.needs_source:
            raise VortexError(f"task {task!r} does not fit into {length} tokens of this model; choose longer --lengths")
        if size is None:
            continue  # the documents of this question are too long; others may do
        guess = size
        found.append(_sample(task, family, recipe, size, length, index, encoder))
        if len(found) == count:
            break
    if not found:
        raise VortexError(f"no question of task {task!r} fits into {length} tokens; choose longer --lengths")
    return found


def _sample(task: str, family: Family, recipe: Recipe, size: int, length: int, index: int, encoder: Encoder) -> Sample:
    draft = recipe.build(size)
    context = encoder.context(draft.context)
    turns = []
    for item in draft.questions:
        reference = Reference(family.metric, item.answers, family.generated)
        question = encoder.question(item.text, item.begun)
        encoder.check(task, [*context, *question], reference)
        turns.append(Turn(question, [], reference))
    return Sample(task, length, index, context, turns)
