"""How a generated text is scored against reference texts, from 0 to 1: the metrics of RULER and LongBench.

Where a metric compares with one reference, the best reference counts. Plain Python; nothing here is language-specific
but `f1`, which leaves out English articles.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

#: (generated text, reference text, all classes of the task)
Pair = Callable[[str, str, Sequence[str]], float]


def _contains(prediction: str, reference: str) -> bool:
    return reference.lower() in prediction.lower()


def match_all(prediction: str, references: Sequence[str]) -> float:
    """The share of the references that occur in the prediction, whatever their case (RULER's `string_match_all`)."""
    return sum(_contains(prediction, text) for text in references) / len(references)


def match_any(prediction: str, references: Sequence[str]) -> float:
    """1 where one of the references occurs in the prediction (RULER's `string_match_part`)."""
    return float(any(_contains(prediction, text) for text in references))


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _harmonic(same: int, found: int, wanted: int) -> float:
    return 2 * same / (found + wanted) if same else 0.0


def f1(prediction: str, reference: str, _: Sequence[str]) -> float:
    """F1 over words, as SQuAD defines it."""
    found, wanted = _words(prediction), _words(reference)
    same = (Counter(found) & Counter(wanted)).total()
    return _harmonic(same, len(found), len(wanted))


def rouge_l(prediction: str, reference: str, _: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words, over the whole texts as one sentence."""
    found, wanted = prediction.split(), reference.split()
    best = [0] * (len(wanted) + 1)
    for word in found:
        before = 0
        for place, other in enumerate(wanted, 1):
            above = best[place]
            best[place] = before + 1 if word == other else max(above, best[place - 1])
            before = above
    return _harmonic(best[-1], len(found), len(wanted))


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """1 / number of the classes that the prediction names, if the right one is among them.

    A class whose name is part of the right one's is no class named in error.
    """
    named = [name for name in classes if name in prediction and (name == reference or name not in reference)]
    return 1 / len(named) if reference in named else 0.0


def _share_of_numbers(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def count(prediction: str, reference: str, _: Sequence[str]) -> float:
    """The share of the numbers in the prediction that are the reference."""
    return _share_of_numbers(prediction, reference.strip())


def retrieval(prediction: str, reference: str, _: Sequence[str]) -> float:
    """The same for a reference `Paragraph 7`."""
    numbers = re.findall(r"\d+", reference)
    return _share_of_numbers(prediction, numbers[0]) if numbers else 0.0


def code(prediction: str, reference: str, _: Sequence[str]) -> float:
    """Edit similarity of the reference and the first line that is neither empty nor a comment or markup."""
    lines = (line for line in prediction.split("\n") if line.strip() and not re.search(r"`|#|//", line))
    return SequenceMatcher(None, next(lines, ""), reference, autojunk=False).ratio()


def choice(prediction: str, reference: str, _: Sequence[str]) -> float:
    """1 where the first of the letters A to D that stands alone in the prediction is the reference."""
    found = re.search(r"(?<![A-Za-z])([A-D])(?![A-Za-z])", prediction)
    return float(found is not None and found[1] == reference)


_WHOLE: dict[str, Callable[[str, Sequence[str]], float]] = {"match_all": match_all, "match_any": match_any}
_PAIRS: dict[str, Pair] = {
    "f1": f1, "rouge_l": rouge_l, "classification": classification, "count": count, "retrieval": retrieval,
    "code": code, "choice": choice,
}  # fmt: skip
METRICS = (*_WHOLE, *_PAIRS)


def score(metric: str, prediction: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """The score of one generated text. Control characters in it count as line breaks, as in RULER."""
    text = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()
    if metric in _WHOLE:
        return _WHOLE[metric](text, references)
    return max(_PAIRS[metric](text, reference, classes) for reference in references)
