"""Needles in a haystack: sentences that give values to keys, among noise, prose, or other such sentences."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vortexlab.evaluator.ruler.recipes import Draft, Growing, Question, Recipe
from vortexlab.evaluator.ruler.words import draw, sentences

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
GENERATED = 128
#: Percentages of prose that may stand before a needle: 40 of them from 0 to 100.
DEPTHS = tuple(round(100 * place / 39) for place in range(40))


@dataclass(frozen=True)
class Needles:
    """What a family hides where. `haystack`: ``repeat`` (one noise line), ``essay`` (prose) or ``needle``.

    `keys` needles are hidden, each with `values` values, and `asked` of the keys are asked for in one question.
    """

    haystack: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    asked: int = 1


@dataclass(frozen=True)
class _Fact:
    key: str
    values: tuple[str, ...]


def _line(kind: str, key: str, value: str) -> str:
    return f"One of the special magic {kind} for {key} is: {value}."


def recipe(needles: Needles, rng: Random, turns: int, prose: list[str]) -> Recipe:
    """A sample of `needles`. `prose` are the words of the essay haystack, from its beginning; they are repeated.

    Where more keys are hidden than one question asks for, there are up to `turns` questions about other ones.
    """
    seen: set[str] = set()

    def fact(source: Random, values: int = needles.values) -> _Fact:
        key = draw(needles.key, source)
        while key in seen:
            key = draw(needles.key, source)
        seen.add(key)
        return _Fact(key, tuple(draw(needles.value, source) for _ in range(values)))

    hidden = [fact(rng) for _ in range(needles.keys)]
    lines = [_line(needles.value, item.key, value) for item in hidden for value in item.values]
    rng.shuffle(lines)
    others: Growing[_Fact] = Growing(rng, fact)
    order = rng.sample(range(needles.keys), needles.keys)
    groups = [order[at : at + needles.asked] for at in range(0, len(order), needles.asked)]
    places, further = rng.getrandbits(64), rng.getrandbits(64)

    def build(size: int) -> Draft:
        asked = [[hidden[i] for i in group] for group in groups][:turns]
        if needles.haystack == "essay":
            text = _in_prose(lines, prose, size, Random(places))
        else:
            hay = [NOISE] * size
            if needles.haystack == "needle":
                known = others.first(size)
                hay = [_line(needles.value, item.key, item.values[0]) for item in known]
                more = Random(further).sample(known, min(size, turns - len(asked)))
                asked += [[item] for item in more]
            text = "\n".join(_in_lines(lines, hay, Random(places)))
        return Draft(_opening(needles) + text, tuple(_question(needles, group) for group in asked))

    return Recipe(build, least=max(5, len(lines)))


def _in_lines(needles: list[str], hay: list[str], rng: Random) -> list[str]:
    """Each needle in front of a line of its own, so that none is the last line."""
    before = dict(zip(rng.sample(range(len(hay)), len(needles)), needles, strict=True))
    found: list[str] = []
    for place, line in enumerate(hay):
        found += [before[place], line] if place in before else [line]
    return found


def _in_prose(needles: list[str], prose: list[str], size: int, rng: Random) -> str:
    """The first `size` words with the needles between sentences, at depths of their own."""
    words = (prose * (size // len(prose) + 1))[:size]
    parts = sentences(" ".join(words))
    cuts = sorted(len(parts) * depth // 100 for depth in rng.sample(DEPTHS, len(needles)))
    found: list[str] = []
    for start, stop, needle in zip([0, *cuts], [*cuts, len(parts)], [*needles, ""], strict=True):
        found += parts[start:stop] + ([needle] if needle else [])
    return " ".join(found)


def _opening(needles: Needles) -> str:
    one = needles.asked * needles.values == 1
    what = f"A special magic {needles.value[:-1]} is" if one else f"Some special magic {needles.value} are"
    about = needles.value[:-1] if one else needles.value
    return (
        f"{what} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {about} afterwards.\n"
    )


def _question(needles: Needles, facts: list[_Fact]) -> Question:
    keys = [item.key for item in facts]
    query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    answers = tuple(value for item in facts for value in item.values)
    if len(answers) == 1:
        what, verb, asks = f"The special magic {needles.value[:-1]}", "is", "What is the special magic"
    else:
        what, verb, asks = f"The special magic {needles.value}", "are", "What are all the special magic"
    kind = needles.value[:-1] if len(answers) == 1 else needles.value
    return Question(
        f"\n{asks} {kind} for {query} mentioned in the provided text?",
        f"{what} for {query} mentioned in the provided text {verb}",
        answers,
    )
