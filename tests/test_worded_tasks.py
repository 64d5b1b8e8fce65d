"""Tasks in words from the outside: names, cache, versions, bad input, and whole evaluations of a small random model."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
from face_fixtures import vortex
from worded_models import byte_tokenizer, save_model, word_tokenizer

from vortexlab import search_spaces
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import catalogue
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig, is_worded
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.ruler.words import novel
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.tasks import cache
from vortexlab.settings import evaluation_config

QUEST = search_spaces.seeds()["quest"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), byte_tokenizer())


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in the form of SQuAD. Every letter is an accepted answer, so that a random model gives one."""
    words, file = novel().split(), tmp_path_factory.mktemp("documents") / "mine.jsonl"
    rows = [
        {"title": "T", "context": f"Text {n}. " + " ".join(words[60 * n : 60 * n + 60]), "question": f"What is {n}?",
         "answers": list(string.ascii_letters + string.digits + string.punctuation + "\N{REPLACEMENT CHARACTER}")}
        for n in range(20)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config(model: Path, *tasks: str, **more: object) -> EvaluationConfig:
    base = EvaluationConfig(model=str(model), tasks=tasks, lengths=(1024,), contexts=2, threads=1, compile_for=())
    return replace(base, **more)  # type: ignore[arg-type]


def test_names_and_groups() -> None:
    assert catalogue.expand(("ruler", "needle", "ruler/vt"), ())[:2] == ("ruler/niah_single_1", "ruler/niah_single_2")
    assert len(catalogue.expand(("ruler",), ())) == 11 and len(catalogue.expand(("ruler",), ("squad=x",))) == 12
    assert catalogue.expand(("longbench/hotpotqa_e", "mine"), ()) == ("longbench/hotpotqa_e", "mine")
    assert len(catalogue.expand(("longbench",), ())) == 16
    assert all(map(is_worded, catalogue.ENTRIES)) and not is_worded("needle") and not is_worded("longbench_v3")
    for name in ("ruler/niah", "longbench/dureader", "longbench_v2/x"):
        with pytest.raises(VortexError, match=f"unknown task '{name}'; there are "):
            catalogue.expand((name,), ())


def test_samples_are_kept_by_all_that_they_depend_on(
    model: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = config(model, "ruler/qa_1", "ruler/fwe", sources=(f"squad={documents}",))
    first = make_suite(base)
    monkeypatch.setattr(catalogue, "_ruler", lambda *_: pytest.fail("made again"))
    assert make_suite(base).samples == first.samples and make_suite(base).digests == first.digests
    assert set(first.digests) == {"ruler/qa_1", "ruler/fwe"}
    for change in (
        {"seed": 1}, {"split": "sealed"}, {"lengths": (1100,)}, {"contexts": 3}, {"turns": 3}, {"template": "none"},
    ):  # fmt: skip
        with pytest.raises(pytest.fail.Exception):
            make_suite(replace(base, **change))  # type: ignore[arg-type]
    monkeypatch.setattr(catalogue.ruler, "VERSION", 0)
    with pytest.raises(pytest.fail.Exception):
        make_suite(base)


def test_a_broken_cache_is_made_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "kept"))
    base = config(model, "ruler/fwe")
    first = make_suite(base).samples
    (folder,) = (tmp_path / "kept" / "tasks").iterdir()
    for file in folder.glob("*.arrow"):
        file.write_bytes(b"cut off")
    assert make_suite(base).samples == first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VORTEX_CACHE", str(tmp_path / "file"))  # no folder can be made here
    assert make_suite(base).samples == first
    monkeypatch.delenv("VORTEX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "vortex"


def test_the_environment_is_that_of_the_sources(model: Path, documents: Path, tmp_path: Path) -> None:
    base = config(model, "ruler/qa_1", sources=(f"squad={documents}",))
    moved = tmp_path / "mine.jsonl"
    moved.write_bytes(documents.read_bytes())
    assert replace(base, sources=(f"squad={moved}",)).environment_key() == base.environment_key()
    moved.write_text(documents.read_text().replace("Text 1.", "Text one."))
    assert replace(base, sources=(f"squad={moved}",)).environment_key() != base.environment_key()
    assert replace(base, template="none").environment_key() != base.environment_key()
    assert EvaluationConfig.from_json(json.loads(json.dumps(base.to_json()))) == base


def test_a_file_among_the_tasks_is_data(documents: Path, tmp_path: Path, model: Path) -> None:
    rows = [
        {"context": " ".join(novel().split()[n * 60 :][:200]), "question": " What?", "references": ["a", "b"],
         "metric": "match_any", "tokens": 3}
        for n in range(6)
    ]  # fmt: skip
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluation_config(model_dir=model, tasks=[str(file)], device="cpu")
    assert (found.tasks, found.data, found.lengths) == (("own",), (str(file),), (256,))
    (turn,) = make_suite(found).samples[0].turns
    assert turn.reference is not None and (turn.reference.texts, turn.generated) == (("a", "b"), 3)
    for change, message in (
        ({"metric": "bleu"}, ":1: 'metric' must be one of match_all"), ({"references": []}, "'references' is missing"),
        ({"tokens": -1}, "'tokens' must be a whole number above 0"), ({"references": [1]}, "must be a list of texts"),
        ({"tokens": 4090}, "tokens are more than the model's 4096"),
    ):  # fmt: skip
        file.write_text(json.dumps({**rows[0], **change}))
        with pytest.raises(VortexError, match=message):
            evaluation_config(model_dir=model, tasks=[str(file)], device="cpu")


def test_what_cannot_be_asked_is_one_line_before_anything_starts(model: Path, tmp_path: Path) -> None:
    words = save_model(tmp_path / "words", word_tokenizer())
    for given, expected in (
        (("--tasks", "ruler/qa_1"), "task 'ruler/qa_1' takes documents of yours: give --source squad=FILE"),
        (("--tasks", "ruler/qa_2", "--source", f"hotpotqa={tmp_path}/none.jsonl"), "cannot be loaded as a data set"),
        (("--tasks", "ruler/niah"), "unknown task 'ruler/niah'; there are ruler/niah_single_1"),
        (("--tasks", "ruler/vt", "--lengths", "8k"), "cannot be asked at 8192 tokens of a model that reads 4096"),
        (("--tasks", "ruler/vt", "--lengths", "512"), "does not fit into 512 tokens of this model"),
        (("--tasks", "ruler/vt", "--source", "novels=x"), "a source is NAME=WHERE with a name of essays, squad"),
        (("--tasks", "ruler/vt", "--source", "squad=x", "--source", "squad=y"), "the source 'squad' is given twice"),
        (("--tasks", "ruler/vt", "--template", "some"), "template 'some' is not one of auto, chat, none"),
        (("--tasks", "ruler/vt", "--dense-floor", "2"), "dense_floor must lie in 0..1, found 2"),
        (("--tasks", "ruler/fwe", "--lengths", "1k", "--model-dir", words), "tokenizer has no tokens for some text"),
        (("--tasks", "ruler/fwe", "--lengths", "1k", "--model-dir", REFERENCE_MODEL), "tokenizer has no tokens for"),
        (("--tasks", "longbench_v2"), "'zai-org/LongBench-v2' cannot be loaded as a data set"),
    ):  # fmt: skip
        runs = ("--runs", tmp_path / "runs")
        folder = () if "--model-dir" in given else ("--model-dir", model)
        for command in (("eval", "quest"), ("search", *runs)):
            assert expected in vortex(*command, *folder, *given, "--device", "cpu").complaint()
    assert not (tmp_path / "runs").exists()


def test_tasks_are_listed_and_shown(model: Path, documents: Path) -> None:
    listed = vortex("tasks", "--json").json("tasks")
    assert {task["name"] for task in listed["tasks"]} == set(catalogue.ENTRIES) and listed["samples"] == []
    assert "a novel that is shipped" in vortex("tasks").out and "--source squad=..." in vortex("tasks").out
    asked = ("tasks", "ruler/qa_1", "ruler/niah_multikey_2", "--model-dir", model, "--source", f"squad={documents}")
    shown = vortex(*asked, "--lengths", "1k", "--contexts", "2", "--json").json("tasks")
    assert [(item["task"], len(item["questions"])) for item in shown["samples"]] == [
        ("ruler/qa_1", 1), ("ruler/qa_1", 1), ("ruler/niah_multikey_2", 4), ("ruler/niah_multikey_2", 4)
    ]  # fmt: skip
    assert all(item["tokens"] < item["total"] <= 1024 == item["length"] for item in shown["samples"])
    again = make_suite(config(model, "ruler/qa_1", "ruler/niah_multikey_2", sources=(f"squad={documents}",)))
    assert shown["digests"] == again.digests
    text = vortex(*asked, "--lengths", "1k").out
    assert "ruler/niah_multikey_2 1024/0: " in text and "[...]" in text and "special magic number for" in text
    for given, expected in (
        (("tasks", "ruler/vt"), "give --model-dir DIR"),
        (("tasks", "needle", "--model-dir", model), "'needle' is not asked in words; `vortex tasks` lists"),
        (("tasks", "ruler/vt", "--model-dir", model.parent), "has no tokenizer that can be loaded"),
    ):
        assert expected in vortex(*given).complaint()


def test_a_program_is_evaluated_on_tasks_in_words(model: Path, documents: Path) -> None:
    """The random model names a letter and finds no needle: the one task is judged, the other is named as left out."""
    asked = config(
        model, "ruler/qa_1", "ruler/niah_single_1", sources=(f"squad={documents}",), speed="predicted", audit_share=0.0
    )
    with Evaluator(asked) as evaluator:
        verdict = evaluator.evaluate(QUEST, {"page": 16, "budget": 8})
        digests = evaluator.suite.digests
    assert verdict.status == "accepted", verdict.reason
    assert verdict.conditions["dense_scores"] == {"ruler/qa_1": 1.0, "ruler/niah_single_1": 0.0}
    assert verdict.conditions["left_out"] == ["ruler/niah_single_1"] and verdict.conditions["tasks"] == digests
    assert set(verdict.per_task) == {"ruler/qa_1"} and verdict.accuracy is not None and verdict.accuracy.value == 1.0
    assert {outcome.context for outcome in verdict.outcomes} == {f"ruler/qa_1/1024/{n}" for n in range(2)}


def test_a_model_that_answers_nothing_is_one_line(model: Path) -> None:
    words = ("--model-dir", model, "--tasks", "ruler/niah_single_1,ruler/fwe", "--lengths", "1k", "--contexts", "1")
    line = vortex("eval", "quest", *words, "--threads", "1", "--device", "cpu", "--json").complaint()
    assert "dense attention scores below 0.5 on every task (ruler/niah_single_1 0.00, ruler/fwe 0.00)" in line
    assert "lower --dense-floor" in line


@pytest.mark.slow
def test_a_campaign_on_tasks_in_words(model: Path, documents: Path, tmp_path: Path) -> None:
    words = ("--model-dir", model, "--tasks", "ruler/qa_1,ruler/fwe", "--source", f"squad={documents}")
    more = ("--lengths", "1k", "--contexts", "2", "--speed", "predicted", "--evaluations", "3", "--device", "cpu")
    found = vortex("search", "--name", "worded", *words, *more, "--runs", tmp_path, "--json").json("search")
    assert found["entries"]
    rows = vortex("show", "worded", found["entries"][0]["id"], "--runs", tmp_path, "--json").json("show")
    assert set(rows["verdict"]["per_task"]) == {"ruler/qa_1"}
    assert rows["verdict"]["conditions"]["left_out"] == ["ruler/fwe"]
