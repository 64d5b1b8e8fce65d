"""A user's own questions: which rows a split has, where they are timed, what is refused, and a whole evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from face_fixtures import vortex

from vortexlab import search_spaces
from vortexlab.agent.assemble import task_text
from vortexlab.agent.config import CampaignConfig
from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator import replies
from vortexlab.evaluator.config import REFERENCE_MODEL, EvaluationConfig
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.samples import make_suite
from vortexlab.evaluator.tasks import TASKS, Sample, make_samples, to_text
from vortexlab.evaluator.user_data import load_data, own_lengths
from vortexlab.exporting import record_cases
from vortexlab.settings import evaluation_config

MODEL = str(REFERENCE_MODEL)
QUEST = search_spaces.seeds()["quest"]
SPLITS = ("search", "validation", "sealed")


def rows(samples: list[Sample]) -> list[str]:
    return [
        json.dumps({
            "context": to_text(sample.context), "question": to_text(turn.question), "answer": to_text(turn.answer),
        })
        for sample in samples for turn in sample.turns
    ]  # fmt: skip


def write(file: Path, lines: list[str]) -> Path:
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Fifteen contexts of 300 to 700 tokens, four questions each."""
    lengths = (300, 330, 400, 600, 700)
    return rows([sample for length in lengths for sample in make_samples("keys", length, 3, seed=9)])


@pytest.fixture(scope="module")
def file(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "mine.jsonl", lines)


def config(file: Path, **changes: object) -> EvaluationConfig:
    base = EvaluationConfig(
        data=(str(file),), lengths=(256, 512), contexts=20, screen_contexts=2, batch_tokens=1024, compile_for=(),
        geometry="qwen3-1.7b", audit_share=0.0, threads=1,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def contexts(found: EvaluationConfig) -> set[tuple[int, ...]]:
    return {tuple(sample.context) for sample in make_suite(found).samples}


def test_every_context_belongs_to_one_split_whatever_the_order_of_rows_and_the_lengths(
    file: Path, lines: list[str], tmp_path: Path
) -> None:
    parts = [contexts(config(file, split=split)) for split in SPLITS]
    assert [len(part) for part in parts] == [9, 3, 3] and len(set.union(*parts)) == 15
    shuffled = random.Random(4).sample(lines, len(lines))
    other = write(tmp_path / "mine.jsonl", shuffled)
    assert [contexts(config(other, split=split)) for split in SPLITS] == parts
    assert [contexts(config(file, split=split, lengths=(300, 500))) for split in SPLITS] == parts


def test_a_context_keeps_its_tokens_and_is_timed_at_a_length_that_is_not_above_it(file: Path) -> None:
    assert own_lengths(load_data((str(file),), MODEL)) == (256, 512)
    suite = make_suite(config(file))
    assert {(len(sample.context), sample.length) for sample in suite.samples} <= {
        (300, 256), (330, 256), (400, 256), (600, 512), (700, 512)
    }  # fmt: skip
    assert {sample.task for sample in suite.samples} == {"mine"}
    names = [item.context for item in suite.outcomes(*[dict.fromkeys(range(36), True)] * 2, tasks=["mine"])]
    assert len(set(names)) == len(names) == 9


def test_contexts_and_turns_are_limited_as_for_built_in_tasks(file: Path) -> None:
    few = make_suite(config(file, contexts=2, turns=3)).samples
    assert [(sample.length, len(sample.turns)) for sample in few] == [(256, 3), (256, 3), (512, 3), (512, 3)]
    draws = {tuple(sorted(contexts(config(file, contexts=1, seed=seed)))) for seed in range(8)}
    assert len(draws) > 1 and set.union(*map(set, draws)) <= contexts(config(file))


def test_tasks_select_among_the_data_and_the_built_in_ones(file: Path) -> None:
    both = make_suite(config(file, tasks=("needle", "mine"), contexts=1))
    assert [(s.task, s.length) for s in both.samples] == [
        ("needle", 256), ("needle", 512), ("mine", 256), ("mine", 512)
    ]  # fmt: skip
    assert {s.task for s in make_suite(config(file, data=(), contexts=1, lengths=(512,))).samples} == set(TASKS)
    with pytest.raises(VortexError, match=r"unknown task 'other'; the tasks are .*, mine"):
        make_suite(config(file, tasks=("other",)))


def test_the_worker_is_told_how_long_an_answer_is_and_no_more(file: Path) -> None:
    for told in make_suite(config(file)).contexts():
        assert set(told) == {"tokens", "turns"}
        assert all(set(turn) == {"question", "answer"} and type(turn["answer"]) is int for turn in told["turns"])


def test_the_environment_is_that_of_the_content(file: Path, lines: list[str], tmp_path: Path) -> None:
    moved = write(tmp_path / "mine.jsonl", lines)
    key = config(file).environment_key()
    assert config(moved).environment_key() == key
    assert config(write(tmp_path / "ours.jsonl", lines)).environment_key() != key  # another name is another task
    assert config(file, data=()).environment_key() != key
    write(moved, lines[:-1])
    assert config(moved).environment_key() != key
    again = EvaluationConfig.from_json(json.loads(json.dumps(config(file).to_json())))
    assert again == config(file) and again.environment_key() == key


def test_settings_take_their_lengths_from_the_data(file: Path) -> None:
    found = evaluation_config(data=[file], device="cpu")
    assert (found.lengths, found.tasks, found.data) == ((256, 512), (), (str(file.absolute()),))
    assert evaluation_config(data=[file], lengths=[300, 400], device="cpu").lengths == (300, 400)
    told = task_text(CampaignConfig(evaluation=found))
    assert "256, 512 tokens or up to twice as many" in told
    assert "twice" not in task_text(CampaignConfig())


GOOD = rows(make_samples("keys", 300, 1))[0]
SHORT = json.dumps({"context": "<s> bokun bado", "question": "? bado", "answer": "beki"})
LONG = json.dumps({"context": "<s>" + " bado" * 17000, "question": "? bado", "answer": "beki"})
BAD = {
    "": "holds no rows",
    "{": ":1: not JSON",
    json.dumps({"context": "bado"}): "'question' is missing",
    SHORT: ":1: a context of 3 tokens is too short",
    LONG: ":1: 17003 tokens are more than the model's 16640",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("command", ["eval", "search"])
def test_data_that_cannot_be_used_is_one_line(command: str, text: str, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [text])
    words = ("quest",) if command == "eval" else ("--runs", tmp_path / "runs")
    line = vortex(command, *words, "--data", bad, "--device", "cpu").complaint()
    assert str(bad) in line and BAD[text] in line
    assert not (tmp_path / "runs").exists()


def test_settings_that_do_not_go_with_data_are_one_line(file: Path, tmp_path: Path) -> None:
    needle, comma = write(tmp_path / "needle.jsonl", [GOOD]), write(tmp_path / "a,b.jsonl", [GOOD])
    for words, expected in (
        (("--data", tmp_path / "none.jsonl"), "none.jsonl cannot be read (No such file or directory)"),
        (("--data", needle), "there is a task 'needle' already"),
        (("--data", file, "--data", file), "there is a task 'mine' already"),
        (("--data", comma), "'a,b' names no task"),
        (("--data", file, "--tasks", "needle"), "no task of the data is asked; add mine to --tasks"),
        (("--data", file, "--lengths", "512"), "none of the lengths 512 is at most that"),
        (("--data", file, "--lengths", "100,256,512"), "no context to ask at length 100"),
    ):
        assert expected in vortex("eval", "quest", *words, "--device", "cpu").complaint()


def test_a_model_without_a_tokenizer_is_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((REFERENCE_MODEL / "config.json").read_bytes())
    line = vortex("eval", "quest", "--data", file, "--model-dir", tmp_path, "--device", "cpu").complaint()
    assert "has no tokenizer" in line and "tokenizer.json" in line


def test_a_self_test_holds_no_text_of_the_user(file: Path) -> None:
    tests = record_cases(parse(QUEST).bind(), config(file, tasks=("mine", "needle")), 1)
    assert [case["task"] for case in tests["cases"]] == ["needle"]
    assert tuple(tests["cases"][0]["context"]) not in contexts(config(file))


@pytest.fixture(scope="module")
def evaluator(file: Path) -> Iterator[Evaluator]:
    with Evaluator(config(file)) as found:
        yield found


def test_a_program_is_evaluated_on_the_data(evaluator: Evaluator) -> None:
    verdict = evaluator.evaluate(QUEST, {"page": 8, "budget": 6})
    assert verdict.status == "accepted", verdict.reason
    assert (verdict.contexts, verdict.answers, set(verdict.per_task)) == (9, 36, {"mine"})
    assert verdict.per_task["mine"]["dense"] > 0.8
    assert {outcome.length for outcome in verdict.outcomes} == {256, 512} == {int(n) for n in verdict.speed_samples}
    assert verdict.conditions["data"][0]["name"] == "mine" and len(verdict.conditions["data"][0]["sha256"]) == 64
    assert "mine.jsonl" not in json.dumps(verdict.to_json())  # where it lay is nobody's business


def test_live_counts_of_the_data_are_those_that_speed_is_timed_with(evaluator: Evaluator) -> None:
    verdict = evaluator.evaluate(search_spaces.seeds()["top_p"], {"page": 8, "mass": 0.6})
    speed = verdict.gate_result("speed")
    assert verdict.status == "accepted" and speed is not None and verdict.density is not None
    for length in ("256", "512"):
        # Counted in contexts of up to twice the tokens, so what is timed reads no smaller a share.
        assert 0.8 * verdict.density < speed.details[length]["density"] <= 1


def test_counts_of_contexts_that_were_not_asked_are_garbage(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Evaluator._ask_checked

    def lie(self: Evaluator, kind: type, operation: str, **arguments: object) -> object:
        found = real(self, kind, operation, **arguments)
        return found.model_copy(update={"counts": {"999": [1]}}) if isinstance(found, replies.Answered) else found

    monkeypatch.setattr(Evaluator, "_ask_checked", lie)
    verdict = evaluator.evaluate(QUEST, {"page": 8, "budget": 5})
    assert (verdict.status, verdict.gate) == ("error", "screen") and "other lengths than asked" in verdict.reason


def test_data_that_the_model_cannot_answer_is_one_line(lines: list[str], tmp_path: Path) -> None:
    wrong = [json.dumps({**json.loads(line), "answer": "bokun bokun bokun"}) for line in lines]
    file = write(tmp_path / "wrong.jsonl", wrong)
    words = ("--data", file, "--threads", "1", "--device", "cpu", "--json")
    line = vortex("eval", "quest", *words).complaint()
    assert "dense attention scores below 0.5 on every task (wrong 0.00)" in line
