"""LongBench and LongBench v2 from small local copies of their form, and documents that users bring."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from worded_models import CHAT, byte_tokenizer, save_model

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import catalogue
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.longbench import FORMS, PLAIN
from vortexlab.evaluator.ruler.words import novel
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.tasks.documents import read_prose, read_questions, read_rows, source_digest
from vortexlab.evaluator.tasks.prompts import Encoder

WORDS = novel().split()
SPLITS = ("search", "validation", "sealed")


def context(number: int, words: int) -> str:
    return f"Context {number}. " + " ".join(WORDS[number * 50 : number * 50 + words])


def row(number: int, words: int = 200, **more: Any) -> dict[str, Any]:
    """A row as LongBench has them."""
    return {
        "input": f"Who is {number}?", "context": context(number, words), "answers": [f"Answer {number}"],
        "length": words, "dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": str(number), **more,
    }  # fmt: skip


def second(number: int, words: int = 200, **more: Any) -> dict[str, Any]:
    """A row as LongBench v2 has them."""
    return {
        "_id": str(number), "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short",
        "question": f"Which is {number}?", "choice_A": "one", "choice_B": "two", "choice_C": "three",
        "choice_D": "four", "answer": "ABCD"[number % 4], "context": context(number, words), **more,
    }  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), byte_tokenizer(chat_template=CHAT))


def config(model: Path, task: str, source: str, **more: Any) -> EvaluationConfig:
    return EvaluationConfig(
        **{"model": str(model), "tasks": (task,), "sources": (source,), "lengths": (256,), "contexts": 20, **more}
    )


def encoder(model: Path) -> Encoder:
    suite = make_suite(EvaluationConfig(model=str(model), tasks=("ruler/fwe",), lengths=(1024,), contexts=1))
    assert suite.encoder is not None
    return suite.encoder


@pytest.mark.parametrize("name", FORMS)
def test_every_data_set_is_asked_as_its_authors_do(name: str, model: Path, tmp_path: Path) -> None:
    classes = {"all_classes": ["Food", "Answer 1"]} if name == "trec" else {}
    file = write(tmp_path / "rows.jsonl", [row(n, dataset=name, **classes) for n in range(5)])
    found = catalogue.load(f"longbench/{name}", config(model, f"longbench/{name}", f"longbench={file}"))
    form, spell = FORMS[name], encoder(model).tokenizer.decode
    assert len(found) == 3  # of five, three are those of search
    for sample in found:
        (turn,) = sample.turns
        whole = str(spell([*sample.context, *turn.question]))
        number = int(whole.split("Context ")[1].split(".")[0])
        prompt = form.prompt.replace("{context}", context(number, 200)).replace("{input}", f"Who is {number}?")
        framed = f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n<quiet>"
        assert whole == (prompt if name in PLAIN else framed)
        assert turn.reference is not None and (turn.reference.metric, turn.generated) == (form.metric, form.tokens)
        assert turn.reference.texts == (f"Answer {number}",) and sample.length == 256


def test_splits_share_no_context_whatever_the_lengths(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [row(n, 150 + 20 * n) for n in range(20)])
    base = config(model, "longbench/hotpotqa", f"longbench={file}", lengths=(256, 512))
    parts = {}
    for split in SPLITS:
        for lengths in ((256, 512), (512,), (300,)):
            loaded = catalogue.load("longbench/hotpotqa", replace(base, split=split, lengths=lengths))
            assert all(sample.length <= len(sample.context) < 2 * sample.length for sample in loaded)
            parts[split, lengths] = {tuple(sample.context) for sample in loaded}
    everything = [parts[split, (256, 512)] for split in SPLITS]
    assert sum(map(len, everything)) == len(set.union(*everything))
    for split in SPLITS:
        others = set.union(*(parts[other, lengths] for other, lengths in parts if other != split))
        assert not others & set.union(*(parts[split, lengths] for lengths in ((256, 512), (512,), (300,))))


def test_questions_about_one_context_are_turns_of_it(model: Path, tmp_path: Path) -> None:
    rows = [row(n, input=f"Who is {n} to {m}?") for n in range(5) for m in range(3)]
    file = write(tmp_path / "rows.jsonl", rows)
    suite = make_suite(config(model, "longbench/hotpotqa", f"longbench={file}", turns=2))
    assert [len(sample.turns) for sample in suite.samples] == [2, 2, 2]


def test_second_version(model: Path, tmp_path: Path) -> None:
    listed = [{**second(n), "choices": ["one", "two", "three", "four"], "answer": n % 4} for n in range(5)]
    for item in listed:
        for letter in "ABCD":
            del item[f"choice_{letter}"]
    found = []
    for name, rows in (("own", [second(n) for n in range(5)]), ("listed", listed)):
        file = write(tmp_path / f"{name}.jsonl", rows)
        found.append(catalogue.load("longbench_v2", config(model, "longbench_v2", f"longbench_v2={file}")))
    assert found[0] == found[1] and len(found[0]) == 3
    made = encoder(model)
    for sample in found[0]:
        (turn,) = sample.turns
        whole = str(made.tokenizer.decode([*sample.context, *turn.question]))
        number = int(whole.split("Which is ")[1].split("?")[0])
        assert whole.endswith("<|assistant|>\n<quiet>The correct answer is (") and "(C) three\n(D) four" in whole
        assert turn.reference is not None and turn.reference.texts == ("ABCD"[number % 4],)
        assert made.score(turn.reference, made.tokenizer.encode(f"{'ABCD'[number % 4]}) of")) == 1


def test_sources_that_datasets_reads(model: Path, tmp_path: Path) -> None:
    """A folder that `datasets` wrote, one with parts, parquet, and a folder of one file for each data set."""
    rows = [row(n) for n in range(5)]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(tmp_path / "parts")
    table.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "hotpotqa.jsonl", rows)
    (tmp_path / "hub").mkdir()
    table.to_parquet(tmp_path / "hub" / "test.parquet")
    found = [
        catalogue.load("longbench/hotpotqa", config(model, "longbench/hotpotqa", f"longbench={tmp_path / name}"))
        for name in ("saved", "parts", "rows.parquet", "folder", "hub")
    ]
    assert len(found[0]) == 3 and all(item == found[0] for item in found)


WRONG: list[tuple[str, list[Any], str]] = [
    ("longbench/hotpotqa", [{"input": "a", "answers": ["b"]}], "row 1: 'context' is missing; the row has 'input'"),
    ("longbench/hotpotqa", [row(0), {**row(1), "input": None}], "row 2: 'input' or 'question' is missing"),
    ("longbench/hotpotqa", [{**row(0), "answers": [3]}], "row 1: 'answers' must be a list of texts"),
    ("longbench/hotpotqa", [{**row(0), "context": 3}], "row 1: 'context' must be text, found int"),
    ("longbench/hotpotqa", [row(0), 3], "row 2 is no JSON object"),
    ("longbench/hotpotqa", [], "holds no rows"),
    ("longbench/trec", [row(0, dataset="trec")], "row 1: 'all_classes' is missing"),
    ("longbench/hotpotqa", [row(n, 20) for n in range(5)], "has no context of 256 to 511 tokens in the search split"),
    ("longbench_v2", [{**second(0), "answer": "E"}], "row 1: 'answer' must be one of A, B, C and D, found 'E'"),
    ("longbench_v2", [{**second(0), "choice_D": None}], "row 1: 'choice_D' is missing"),
]


@pytest.mark.parametrize(("task", "rows", "message"), WRONG)
def test_rows_that_cannot_be_used_are_one_line(
    task: str, rows: list[Any], message: str, model: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(VortexError) as error:
        catalogue.load(task, config(model, task, f"{task.split('/')[0]}={file}"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sources_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "half.jsonl").write_text('{"a": 1}\n{"a":')
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "squad.json").write_text('{"data": [{"paragraphs": [{}]}]}')
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "bad.parquet").write_text("no parquet")
    for name, message in (
        ("half.jsonl", r"half.jsonl:2: not JSON"), ("bytes.jsonl", "is not UTF-8 text"),
        ("squad.json", "has not SQuAD's form"), ("bad.parquet", "cannot be loaded as a data set"),
        ("no/such-set", "'no/such-set' cannot be loaded as a data set .*check the network"),
    ):  # fmt: skip
        where = name if name.startswith("no/") else str(tmp_path / name)
        with pytest.raises(VortexError, match=message):
            read_rows(where)
    with pytest.raises(VortexError, match=r"blank\.txt holds no text"):
        read_prose(str(tmp_path / "blank.txt"))
    with pytest.raises(VortexError, match="holds no question with an answer"):
        read_questions(str(write(tmp_path / "none.jsonl", [{"question": "q", "answers": [], "context": "c"}])))
    with pytest.raises(VortexError, match="row 1: 'context' must be a text, or titles with lists of sentences"):
        read_questions(str(write(tmp_path / "odd.jsonl", [{"question": "q", "answer": "a", "context": [[1]]}])))


def test_questions_in_the_forms_of_squad_and_hotpotqa(tmp_path: Path) -> None:
    squad = [
        {"title": "T", "context": "First.", "question": "q1", "answers": {"text": ["a", "a", "b"]}},
        {"title": "T", "context": "Second.", "question": "q2", "answers": {"text": []}},
        {"title": "T", "context": "First.", "question": "q3", "answers": ["c"]},
        {"title": "U", "context": "Third.", "question": "q4", "answer": "d"},
    ]
    documents, asked = read_questions(str(write(tmp_path / "squad.jsonl", squad)))
    assert documents == ("First.", "Second.", "Third.")
    assert [(item.documents, item.near, item.questions) for item in asked] == [
        ((0,), (0, 1), (("q1", ("a", "b")), ("q3", ("c",)))), ((2,), (2,), (("q4", ("d",)),))
    ]  # fmt: skip
    own = {"version": "v2", "data": [{"title": "T", "paragraphs": [
        {"context": "First.", "qas": [{"question": "q1", "answers": [{"text": "a"}, {"text": "b"}]}]},
        {"context": "Second.", "qas": [{"question": "q2", "answers": [], "is_impossible": True}]},
    ]}]}  # fmt: skip
    (tmp_path / "dev.json").write_text(json.dumps(own))
    documents, (only,) = read_questions(str(tmp_path / "dev.json"))
    assert (documents, only.near, only.questions) == (("First.", "Second."), (0, 1), (("q1", ("a", "b")),))
    titles = [["A", ["one. ", "two."]], ["B", ["three."]]]
    first = {"question": "q", "answer": "a", "context": titles}
    hub = {**first, "context": {"title": ["A", "B"], "sentences": [item[1] for item in titles]}}
    (tmp_path / "hotpot.json").write_text(json.dumps([first]))
    for file in (tmp_path / "hotpot.json", write(tmp_path / "hub.jsonl", [hub])):
        documents, (only,) = read_questions(str(file))
        assert documents == ("A\none. two.", "B\nthree.") and only.documents == (0, 1) and only.near == ()


def test_the_digest_of_a_source_is_that_of_its_content(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [row(0)])
    (tmp_path / "other").mkdir()
    again = write(tmp_path / "other" / "a.jsonl", [row(0)])
    assert source_digest(str(first)) == source_digest(str(again))
    write(again, [row(1)])
    assert source_digest(str(first)) != source_digest(str(again))
