"""Samples as datasets, and a user's own questions from JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.tasks import TASKS, Sample, make_samples, to_ids, to_text
from vortexlab.evaluator.tasks.dataset import IDS, SCORING, TEXT, from_dataset, load_jsonl, to_dataset

GOOD = {"context": "<s> bokun bado bafo beki bevi bozar", "question": "? bado bafo", "answer": "beki bevi"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    return loaded


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [sample for task in TASKS for sample in make_samples(task, 512, 2, seed=2)]


def write(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_tokenizer_round_trips_the_text_of_every_task(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    for sample in samples:
        for ids in (sample.context, *(part for turn in sample.turns for part in (turn.question, turn.answer))):
            text = to_text(ids)
            assert tokenizer.encode(text) == to_ids(text) == ids
            assert tokenizer.decode(ids) == text


def test_tokenizer_round_trips_every_word(tokenizer: PreTrainedTokenizerBase) -> None:
    every = list(range(len(tokenizer)))
    assert len(every) == 1024
    assert tokenizer.encode(tokenizer.decode(every)) == every
    assert tokenizer.encode("unheard of") == [tokenizer.unk_token_id] * 2


def test_dataset_has_one_row_per_question_and_converts_back(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    dataset = to_dataset(samples, tokenizer)
    assert dataset.num_rows == sum(len(sample.turns) for sample in samples)
    assert dataset.column_names == ["task", "length", "index", "turn", *TEXT, *IDS, *SCORING]
    assert dataset[1]["context"] == to_text(dataset[1]["context_ids"])
    assert from_dataset(dataset, tokenizer) == samples
    assert from_dataset(dataset.remove_columns(list(IDS)), tokenizer) == samples
    assert from_dataset(to_dataset([], tokenizer), tokenizer) == []


def test_dataset_written_as_json_lines_loads_again(
    tokenizer: PreTrainedTokenizerBase, samples: list[Sample], tmp_path: Path
) -> None:
    path = tmp_path / "saved.jsonl"
    to_dataset(samples, tokenizer).to_json(path)
    assert load_jsonl(path, tokenizer) == samples


def test_rows_with_one_context_are_turns_of_one_sample(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    other = {**GOOD, "context": "<s> bozar", "task": "theirs", "source": "ignored", "index": "ignored"}
    again = {**GOOD, "question": "? bafo bado"}
    path = write(tmp_path, json.dumps(GOOD), "", json.dumps(other), json.dumps(again))
    first, second = load_jsonl(path, tokenizer)
    assert (first.task, first.length, first.index) == ("mine", 7, 0)
    assert [to_text(turn.question) for turn in first.turns] == ["? bado bafo", "? bafo bado"]
    assert to_text(first.context) == GOOD["context"]
    assert (second.task, second.length, second.index) == ("theirs", 2, 0)


def test_special_tokens_lead_the_context_alone(tmp_path: Path) -> None:
    class Leading:
        """A tokenizer of bytes that puts a token in front, as those of most models do."""

        unk_token_id = None

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [256] * add_special_tokens + list(text.encode())

    tokenizer: Any = Leading()
    (sample,) = load_jsonl(write(tmp_path, json.dumps({"context": "a", "question": "b", "answer": "c"})), tokenizer)
    assert (sample.context, sample.turns[0].question, sample.turns[0].answer) == ([256, 97], [98], [99])


BAD_LINES = {
    "{": "not JSON",
    "[" * 100_000: "not JSON",
    "[1]": "expected a JSON object with 'context', 'question', 'answer', found list",
    '{"context": "bokun", "answer": "beki"}': "'question' is missing; a row has 'context', 'question', 'answer'",
    json.dumps({**GOOD, "answer": 7}): "'answer' must be text, found int",
    json.dumps({**GOOD, "question": " "}): "'question' is empty; give at least one word",
    json.dumps({**GOOD, "answer": "Paris"}): "'answer' has words outside the model's vocabulary",
    json.dumps({**GOOD, "context": "\ud800"}): "'context' has half of a surrogate pair",
    json.dumps({**GOOD, "task": 3}): "'task' must be text, found int",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_row_is_named_by_its_line(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, line: str) -> None:
    path = write(tmp_path, json.dumps(GOOD), "", line, "{")
    with pytest.raises(VortexError) as error:
        load_jsonl(path, tokenizer)
    assert str(error.value).startswith(f"{path}:3: {BAD_LINES[line]}")
    assert "\n" not in str(error.value)


def test_files_that_hold_no_rows_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"mine\.jsonl holds no rows"):
        load_jsonl(write(tmp_path, "", " "), tokenizer)
    with pytest.raises(VortexError, match=r"absent\.jsonl cannot be read \(No such file or directory\)"):
        load_jsonl(tmp_path / "absent.jsonl", tokenizer)
    (tmp_path / "mine.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(VortexError, match=r"mine\.jsonl is not UTF-8 text"):
        load_jsonl(tmp_path / "mine.jsonl", tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_ids": []}, "row 2: 'answer_ids' must be a list of token ids that is not empty"),
        ({"question_ids": None}, "row 2: found 'context_ids', 'answer_ids' alone; give all of"),
        ({"index": "x"}, "row 2: 'index' must be a whole number, found 'x'"),
    ],
)
def test_a_bad_row_of_a_dataset_is_named_by_its_number(
    tokenizer: PreTrainedTokenizerBase, change: dict[str, object], message: str
) -> None:
    rows = to_dataset(make_samples("needle", 128, 2), tokenizer).to_list()
    with pytest.raises(VortexError, match=message):
        from_dataset([rows[0], {**rows[1], **change}], tokenizer)


def test_any_dataset_with_the_three_texts_will_do(tokenizer: PreTrainedTokenizerBase) -> None:
    (sample,) = from_dataset(Dataset.from_list([GOOD]), tokenizer, task="theirs")
    assert (sample.task, to_text(sample.turns[0].answer)) == ("theirs", GOOD["answer"])
