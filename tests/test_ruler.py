"""RULER's families: what their samples are made of, how long they are, and what they depend on."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from worded_models import CHAT, byte_tokenizer, word_tokenizer

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.ruler import FAMILIES, Corpus, make_samples
from vortexlab.evaluator.ruler.needles import DEPTHS
from vortexlab.evaluator.ruler.questions import Asked
from vortexlab.evaluator.ruler.recipes import Draft, Question, Recipe, fit
from vortexlab.evaluator.ruler.words import all_words, draw, novel, sentences, word_lists
from vortexlab.evaluator.tasks import Sample
from vortexlab.evaluator.tasks.prompts import Encoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import ruler_lm_eval

DOCUMENTS = tuple(f"Document text {n}: " + " ".join(novel().split()[40 * n : 40 * n + 40]) for n in range(60))
ASKED = tuple(
    Asked((n,), tuple(range(n - n % 3, n - n % 3 + 3)), ((f"Who is {n}?", ("he", f"IT IS {n}")), ("Why?", ("so",))))
    for n in range(20)
)
CORPUS = Corpus(novel().split(), DOCUMENTS, ASKED)
LENGTHS = (1024, 3000)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(byte_tokenizer())


def made(name: str, encoder: Encoder, length: int = 1536, count: int = 3, **more: object) -> list[Sample]:
    return make_samples(name, length, count, encoder, CORPUS, **more)  # type: ignore[arg-type]


def text(encoder: Encoder, sample: Sample, turn: int = 0) -> str:
    return str(encoder.tokenizer.decode([*sample.context, *sample.turns[turn].question]))


def test_there_are_the_thirteen_families() -> None:
    assert list(FAMILIES) == [
        "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
        "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
    ]  # fmt: skip
    assert {name: family.generated for name, family in FAMILIES.items() if not name.startswith("niah")} == {
        "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32
    }  # fmt: skip
    assert {name for name, family in FAMILIES.items() if family.metric == "match_any"} == {"qa_1", "qa_2"}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_samples_fill_their_length_and_are_never_longer(name: str, length: int, encoder: Encoder) -> None:
    if name == "vt" and length < 1100:
        length = 1100  # with this tokenizer the solved example and the least noise are no shorter
    for sample in made(name, encoder, length, turns=4):
        total = len(sample.context) + max(len(turn.question) + turn.generated for turn in sample.turns)
        assert sample.task == f"ruler/{name}" and sample.length == length
        assert length - 130 < total <= length, total  # 130: no unit of filler has more tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_depends_on_its_seed_and_index_alone(name: str, encoder: Encoder) -> None:
    few, more = made(name, encoder, count=2), made(name, encoder, count=3)
    assert few == more[:2] and few[0].context != few[1].context
    assert made(name, encoder, count=1, seed=1)[0] != few[0]
    contexts = {tuple(made(name, encoder, count=1, split=split)[0].context) for split in ("search", "sealed")}
    assert len(contexts) == 2
    assert made(name, encoder, count=1, turns=3)[0].turns[0].question == few[0].turns[0].question


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("niah")])
def test_needles_stand_in_the_text_that_is_asked_about(name: str, encoder: Encoder) -> None:
    hidden = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(name, 1)
    kind = "uuid" if name in ("niah_single_3", "niah_multikey_3") else "number"
    for sample in made(name, encoder, turns=4):
        whole = text(encoder, sample)
        facts = re.findall(rf"One of the special magic {kind}s for (\S+) is: (\S+)\.", whole)
        assert len(facts) == hidden or (name in ("niah_multikey_2", "niah_multikey_3") and len(facts) > 8)
        asked = set()
        for turn in sample.turns:
            reference, question = turn.reference, str(encoder.tokenizer.decode(turn.question))
            keys = [key for key, _ in facts if key in question]
            assert reference is not None and sorted(reference.texts) == sorted(v for key, v in facts if key in keys)
            asked |= {*keys}
        assert len(sample.turns) == (4 if "multikey" in name else 1)
        assert len(asked) == (4 if "multikey" in name or name == "niah_multiquery" else 1)
        plural = name in ("niah_multivalue", "niah_multiquery")
        opening = f"Some special magic {kind}s are" if plural else f"A special magic {kind} is"
        assert whole.startswith(f"{opening} hidden within the following text. Make sure to memorize it. ")
        assert whole.endswith("mentioned in the provided text are" if plural else "mentioned in the provided text is")


def test_needles_lie_at_every_depth(encoder: Encoder) -> None:
    for name in ("niah_single_1", "niah_single_2"):
        depths = []
        for sample in made(name, encoder, 1024, 40):
            whole = text(encoder, sample)
            depths.append(whole.index("One of the special") / len(whole))
        assert min(depths) < 0.25 and max(depths) > 0.7 and 0.3 < sum(depths) / 40 < 0.65
    assert len(set(DEPTHS)) == 40 and (DEPTHS[0], DEPTHS[-1]) == (0, 100)


@pytest.mark.parametrize("name", ruler_lm_eval.TASKS)
def test_structures_are_whole(name: str, encoder: Encoder) -> None:
    """The parts that the comparison with another implementation takes samples apart into."""
    found = {}
    for prompt in ruler_lm_eval.ours(name, 4096, 4, encoder, 0):
        item = ruler_lm_eval.structure(name, prompt)
        found[repr(item)] = item
        for part in [item, item.get("task", item), item.get("example", item)]:
            assert part.get("answered", True) and part.get("chained", True) and part.get("numbered", True)
    (only,) = found.values()
    if name == "cwe":
        assert (only["task"]["repeats"], only["example"]["repeats"], only["example"]["other"]) == ([3, 30], [3, 10], 30)
    if name == "vt":
        assert (only["task"]["letters"], only["example"]["letters"], only["task"]["links"]) == ([5], [3], 5)
    if name == "fwe":
        assert only["falls with the square of the rank"] and only["most"] == "..."


def test_structures_tell_wrong_samples_apart(encoder: Encoder) -> None:
    (prompt,) = ruler_lm_eval.ours("niah_single_1", 1024, 1, encoder, 0)
    right = ruler_lm_eval.structure("niah_single_1", prompt)
    for old, new in (("grass is green", "grass is red"), ("memorize", "hold"), ("One of", "Two of"), ("text is", "is")):
        wrong = ruler_lm_eval.Prompt(prompt.text.replace(old, new), prompt.answers, prompt.tokens)
        try:
            assert ruler_lm_eval.structure("niah_single_1", wrong) != right
        except (ValueError, IndexError):
            continue
    (prompt,) = ruler_lm_eval.ours("fwe", 2048, 1, encoder, 0)
    most = prompt.answers[0]
    skewed = ruler_lm_eval.Prompt(prompt.text.replace(f" {most} {most} ", f" {most} ", 3), prompt.answers, 0)
    assert not ruler_lm_eval.structure("fwe", skewed)["falls with the square of the rank"]


def test_short_lists_repeat_their_words_less(encoder: Encoder) -> None:
    (sample,) = made("cwe", encoder, 2048, 1)
    listed = re.findall(r"\d+\. (\S+)", text(encoder, sample).split("Below is")[2].split("\nQuestion")[0])
    assert set(Counter(listed).values()) == {1, 6}


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_questions_are_asked_about_documents_that_hold_the_answer(name: str, encoder: Encoder) -> None:
    for sample, asked in zip(made(name, encoder, 2048, turns=2), ASKED, strict=False):
        whole = text(encoder, sample)
        assert DOCUMENTS[asked.documents[0]] in whole and len(sample.turns) == 2
        numbers = [int(n) for n in re.findall(r"^Document (\d+):$", whole, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 5
        for place in asked.near:
            assert DOCUMENTS[place] in whole  # those of the same article come first
        assert whole.endswith(f"Question: {asked.questions[0][0]} Answer:")
        assert encoder.score(sample.turns[0].reference, encoder.tokenizer.encode("well, it is 7")) == (  # type: ignore[arg-type]
            float(asked.documents == (7,))
        )


def test_documents_that_do_not_fit_are_left_out(encoder: Encoder) -> None:
    long = Corpus(documents=(novel()[:20000], *DOCUMENTS), asked=(Asked((0,), (), (("q", ("a",)),)), ASKED[3]))
    assert [sample.index for sample in make_samples("qa_1", 1024, 5, encoder, long)] == [1]
    with pytest.raises(VortexError, match="no question of task 'ruler/qa_1' fits into 1024 tokens"):
        make_samples("qa_1", 1024, 5, encoder, Corpus(documents=long.documents, asked=long.asked[:1]))


def test_a_length_that_is_too_short_is_one_line(encoder: Encoder) -> None:
    for name in ("vt", "cwe", "niah_single_1"):
        with pytest.raises(VortexError, match=f"task 'ruler/{name}' does not fit into 256 tokens"):
            made(name, encoder, 256)


def test_a_tokenizer_without_the_tokens_is_one_line() -> None:
    with pytest.raises(VortexError, match="tokenizer has no tokens for some text of task 'ruler/niah_single_1'"):
        made("niah_single_1", Encoder(word_tokenizer()))


def test_a_tokenizer_that_cannot_spell_an_answer_is_one_line(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "decode", lambda self, ids: "")
    with pytest.raises(VortexError, match="tokenizer cannot spell an answer of task 'ruler/fwe'"):
        made("fwe", encoder)


def test_prose_is_repeated_where_it_is_short(encoder: Encoder) -> None:
    short = Corpus(prose=["It", "was", "so.", "Nobody", "knew", "why!"])
    (sample,) = make_samples("niah_single_2", 1024, 1, encoder, short)
    assert text(encoder, sample).count("Nobody knew why!") > 20


def test_a_chat_template_goes_around_the_prompt(encoder: Encoder) -> None:
    chat = Encoder(byte_tokenizer(chat_template=CHAT))
    assert chat.chat and not Encoder(byte_tokenizer(chat_template=CHAT), "none").chat and not encoder.chat
    (sample,) = made("niah_single_1", chat, 1024, 1)
    whole = text(chat, sample)
    assert whole.startswith("<|user|>\nA special magic number is hidden")
    assert re.search(r"provided text\?<\|end\|>\n<\|assistant\|>\n<quiet>The special magic number for \S+ ment", whole)
    assert len(sample.context) + len(sample.turns[0].question) + 128 <= 1024


@pytest.mark.parametrize("template", ["{{ messages[0].content[:3] }}", "{{ nothing.of.that }}", "fixed"])
def test_a_chat_template_that_loses_the_message_is_one_line(template: str) -> None:
    with pytest.raises(VortexError, match=r"the model's chat template .*give --template none"):
        Encoder(byte_tokenizer(chat_template=template))


def test_generated_text_ends_at_the_end_of_text(encoder: Encoder) -> None:
    ids = encoder.tokenizer.encode("one two")
    assert encoder.decode([*ids, encoder.tokenizer.eos_token_id, *ids]) == "one two"


def test_fitting_finds_the_largest_size(encoder: Encoder) -> None:
    question = Question("?", "", ("x",))
    for least, most, words in ((1, None, 1), (3, 50, 1), (1, None, 3), (2, 2, 1)):
        recipe = Recipe(lambda size, n=words: Draft(" the" * (size * n), (question,)), least, most)  # type: ignore[misc]
        for length in (3, 10, 60, 500):
            fits = [
                size for size in range(least, min(most or 600, 600) + 1)
                if len(encoder.context(" the" * (size * words))) + len(encoder.question("?", "")) + 1 <= length
            ]  # fmt: skip
            for guess in (None, 1, 7, 400):
                assert fit(recipe, encoder, length, 1, guess) == (max(fits) if fits else None)


def test_the_shipped_texts() -> None:
    assert len(novel().split()) == 121_439 and novel().isascii()
    assert {name: len(words) for name, words in word_lists().items()} == {
        "adjectives": 908, "nouns": 6765, "verbs": 1038
    }  # fmt: skip
    assert all(re.fullmatch(r"[A-Za-z]+(-[A-Za-z]+)*", word) for word in all_words())
    readme = (Path(__file__).resolve().parents[1] / "evaluator/ruler/data/README.md").read_text()
    assert "121,439 words" in readme and "6,765 nouns, 908 adjectives and 1,038 verbs" in readme
    assert re.fullmatch(r"[a-zA-Z-]+-[a-zA-Z-]+", draw("words", Random(1)))
    assert re.fullmatch(r"[1-9]\d{6}", draw("numbers", Random(1)))
    assert re.fullmatch(ruler_lm_eval._UUID, draw("uuids", Random(1)))


def test_sentences_are_cut_where_they_end() -> None:
    cut = sentences('It is so. "Is it?" asked he. "Yes!" And 3.5 of it. The end')
    assert cut == ["It is so.", '"Is it?" asked he.', '"Yes!"', "And 3.5 of it.", "The end"]
    assert sentences("") == []


@pytest.mark.slow
@pytest.mark.parametrize("task", ruler_lm_eval.TASKS)
def test_samples_and_scores_are_those_of_lm_evaluation_harness(task: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval.tasks.ruler.niah_utils", exc_type=ImportError)
    ruler_lm_eval.train_tokenizer(str(tmp_path))
    row = ruler_lm_eval.compare(task, 4096, 200, str(tmp_path))
    assert row["samples"] == {"ours": 200, "theirs": 200}
    assert row["structures"]["ours"] == row["structures"]["theirs"]
    assert row["score_difference"] == 0.0 and row.get("depths_apart", 0.0) < 0.2
    assert row["tokens"]["ours"]["too_long"] == 0
