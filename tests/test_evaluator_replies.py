"""The form of the worker's answers: what is agreed passes, anything else is garbage."""

from __future__ import annotations

import pytest

from vortexlab.evaluator import replies
from vortexlab.evaluator.sandbox import WorkerLost


def _reply(**changes: object) -> dict[str, object]:
    """The answer of a worker to the numerics gate."""
    return {"ok": {"failure": "", "cases": 6, "steps": 20, "pages": 100, "open": 0, **changes}}


@pytest.mark.parametrize(
    "changes", [{"accuracy": 1.0}, {"cases": "6"}, {"failure": None}, {"pages": 1.5}, {"failure": "x" * 5000}]
)
def test_answers_of_another_form_are_garbage(changes: dict[str, object]) -> None:
    assert replies.parse(replies.Numerics, _reply()).cases == 6
    with pytest.raises(WorkerLost, match="agreed form") as lost:
        replies.parse(replies.Numerics, _reply(**changes))
    assert lost.value.kind == "garbage" and "\n" not in str(lost.value)


def test_a_failure_is_told_in_one_printable_line() -> None:
    with pytest.raises(replies.Failed) as failed:
        replies.parse(replies.Numerics, {"failed": "a\n\x1b[31mred" + "x" * 9000})
    assert str(failed.value).isprintable() and len(str(failed.value)) <= 400
    with pytest.raises(WorkerLost):
        replies.parse(replies.Numerics, {"failed": ["a"]})


def test_a_refusal_is_a_failure_and_its_first_word_counts() -> None:
    with pytest.raises(replies.Failed, match="no model"):
        replies.parse(replies.Numerics, {"refused": "no model", "ok": _reply()["ok"]})
    with pytest.raises(WorkerLost, match="the answer"):
        replies.parse(replies.Numerics, {})
    with pytest.raises(WorkerLost, match="cases"):
        replies.parse(replies.Numerics, _reply(cases="6"))
