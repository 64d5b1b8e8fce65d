"""The metrics of generated texts, on answers whose scores are worked out by hand."""

from __future__ import annotations

import pytest

from vortexlab.evaluator.tasks.scoring import METRICS, score

CASES: list[tuple[str, str, tuple[str, ...], float]] = [
    ("match_all", "they are 12 and 34.", ("12", "34", "56"), 2 / 3),
    ("match_all", "ALPHA\x00beta", ("alpha", "Beta"), 1.0),
    ("match_all", "", ("1",), 0.0),
    ("match_any", "It is Paris, of course", ("paris", "Lutetia"), 1.0),
    ("match_any", "It is Rome", ("paris", "Lutetia"), 0.0),
    ("f1", "The answer, an Answer!", ("answer",), 2 / 3),  # articles and punctuation aside: answer, answer
    ("f1", "red green", ("green blue",), 0.5),
    ("f1", "green", ("red", "green"), 1.0),  # the best reference counts
    ("f1", "the", ("green",), 0.0),
    ("rouge_l", "a b c d", ("a x c y",), 0.5),
    ("rouge_l", "a b c", ("a b c",), 1.0),
    ("rouge_l", "c b a", ("a b c",), 1 / 3),
    ("rouge_l", "", ("a",), 0.0),
    ("classification", "Type: Food", ("Food",), 1.0),
    ("classification", "Food or Sport or both", ("Food",), 1 / 2),
    ("classification", "Sport", ("Food",), 0.0),
    ("classification", "Fast Food", ("Fast Food",), 1.0),  # which names Food too, by necessity
    ("count", "there are 5, or 7", ("5",), 0.5),
    ("count", "The final answer is 5", (" 5",), 1.0),
    ("count", "five", ("5",), 0.0),
    ("retrieval", "Paragraph 3", ("Paragraph 3",), 1.0),
    ("retrieval", "Paragraph 3 or Paragraph 33", ("Paragraph 3",), 0.5),
    ("code", "\n# a remark\n  return x\nmore", ("  return x",), 1.0),
    ("code", "return xy", ("return xz",), 16 / 18),
    ("code", "", ("return",), 0.0),
    ("choice", "B)", ("B",), 1.0),
    ("choice", "The answer is (C).", ("C",), 1.0),
    ("choice", "Because", ("B",), 0.0),  # no letter stands alone
    ("choice", "A or B", ("B",), 0.0),
]


@pytest.mark.parametrize(("metric", "text", "references", "expected"), CASES)
def test_scores(metric: str, text: str, references: tuple[str, ...], expected: float) -> None:
    assert score(metric, text, references, ("Food", "Sport", "Fast Food")) == pytest.approx(expected)


def test_every_metric_has_a_case_that_is_right_and_one_that_is_not() -> None:
    for metric in METRICS:
        found = {expected for name, _, _, expected in CASES if name == metric}
        assert 1.0 in found and min(found) < 1
