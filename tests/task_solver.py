"""Answers to the tasks' questions from the text alone: plain Python that shares nothing with the generators."""

from __future__ import annotations

from collections import Counter

from vortexlab.evaluator.tasks import to_text

NUMBERS = ("first", "second", "third")
Words = list[str]
Pair = tuple[str, str]


def is_key(word: str) -> bool:
    return len(word) == 4 and word[1] == "a" and word[3] == "o"


def is_value(word: str) -> bool:
    return len(word) == 4 and word[1] == "e" and word[3] == "i"


def is_noise(word: str) -> bool:
    return len(word) == 5 and word[1] == "o" and word[3:] in ("un", "ar")


def after(words: Words, key: Pair) -> list[Words]:
    """What follows each place where ``key`` stands, to the end of the text."""
    return [words[i + 2 :] for i in range(len(words) - 1) if (words[i], words[i + 1]) == key]


def values(words: Words, key: Pair) -> list[Words]:
    """The values of ``key`` in order of appearance."""
    return [rest[:2] for rest in after(words, key) if len(rest) > 1 and all(map(is_value, rest[:2]))]


def only(found: list[Words]) -> Words:
    if len(found) != 1:
        raise AssertionError(f"the answer is not unique: {found}")
    return found[0]


def follow(words: Words, key: Pair) -> Words:
    """Every link of a chain that starts at ``key``, and the value at its end."""
    (rest,) = (rest for rest in after(words, key) if all(map(is_key, rest[:2])) or all(map(is_value, rest[:2])))
    step = rest[:2]
    return step if is_value(step[0]) else step + follow(words, (step[0], step[1]))


def solve(context: list[int], question: list[int]) -> str:
    """The answer to a question, as text; raises AssertionError where the context gives none or more than one."""
    words, asked = to_text(context).split(), to_text(question).split()
    mark, rest = asked[0], asked[1:]
    if is_noise(mark) or is_key(mark):  # the question states its fact itself and asks at its end
        if asked[-3] != "?" or after(words, (asked[-2], asked[-1])):
            raise AssertionError("the fact must stand in the question alone")
        return " ".join(only(values(asked[:-3], (asked[-2], asked[-1]))))
    if mark == "most":
        first, second = Counter(words[1:]).most_common(2)
        if first[1] == second[1]:
            raise AssertionError(f"two words are the most frequent: {first}, {second}")
        return first[0]
    keys = [(rest[i], rest[i + 1]) for i in range(0, len(rest) - 1, 2)]
    if mark in ("?", "each"):
        return " ".join(word for key in keys for word in only(values(words, key)))
    if mark == "all":
        return " ".join(word for value in values(words, keys[0]) for word in value)
    if mark == "list":
        return " ".join(word for rest in after(words, keys[0]) if rest[0] in NUMBERS for word in rest[:3])
    if mark == "trace":
        return " ".join(follow(words, keys[0]))
    raise AssertionError(f"unknown question: {' '.join(asked)}")
