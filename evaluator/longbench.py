"""LongBench (Bai et al., arXiv 2308.14508) and LongBench v2 (arXiv 2412.15204) as samples, from rows of their form.

Wording, generated tokens and metrics are the benchmarks'. Contexts are asked whole: one that no cell of lengths holds
is left out, never cut. The Chinese data sets, whose metrics need a segmenter, are not covered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.tasks.documents import Row, answers_field, text_field
from vortexlab.evaluator.tasks.prompts import Encoder
from vortexlab.evaluator.tasks.samples import Reference, Sample, Turn
from vortexlab.evaluator.tasks.splits import deal

#: Raised whenever the same rows give other samples.
VERSION = 1
_CONTEXT, _INPUT = "{context}", "{input}"
#: No tokenizer makes so few tokens of a text; longer ones are not encoded to find that out.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Form:
    """How one data set is asked and scored."""

    prompt: str
    tokens: int
    metric: str
    until: str = ""


_ONLY = "Only give me the answer and do not output any other words."
_PASSAGES = (
    f"Answer the question based on the given passages. {_ONLY}\n\nThe following are given passages.\n{_CONTEXT}\n\n"
    f"Answer the question based on the given passages. {_ONLY}\n\nQuestion: {_INPUT}\nAnswer:"
)
_STORY = (
    "Answer the question asconcisely as you can, using a single phrase if possible. Do not provide any explanation."
)
_PAPER = (
    "as concisely as you can, using a single phrase or sentence if possible. If the question cannot be answered based "
    'on the information in the article, write "unanswerable". If the question is a yes/no question, answer "yes", '
    '"no", or "unanswerable". Do not provide any explanation.'
)
_COUNT = (
    "There are some paragraphs below sourced from Wikipedia. Some of them may be duplicates. Please carefully read "
    "these paragraphs and determine how many unique paragraphs there are after removing duplicates. In other words, "
    f"how many non-repeating paragraphs are there in total?\n\n{_CONTEXT}\n\nPlease enter the final count of unique "
    "paragraphs after removing duplicates. The output format should only contain the number, such as 1, 2, 3, and so "
    "on.\n\nThe final answer is: "
)
_RETRIEVAL = (
    "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract is "
    f"from.\n\n{_CONTEXT}\n\nThe following is an abstract.\n\n{_INPUT}\n\nPlease enter the number of the paragraph "
    'that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: '
)

FORMS: dict[str, Form] = {
    "narrativeqa": Form(
        "You are given a story, which can be either a novel or a movie script, and a question. " + _STORY
        + f"\n\nStory: {_CONTEXT}\n\nNow, answer the question based on the story asconcisely as you can, using a "
        f"single phrase if possible. Do not provide any explanation.\n\nQuestion: {_INPUT}\n\nAnswer:", 128, "f1",
    ),
    "qasper": Form(
        f"You are given a scientific article and a question. Answer the question {_PAPER}\n\nArticle: {_CONTEXT}\n\n "
        f"Answer the question based on the above article {_PAPER}\n\nQuestion: {_INPUT}\n\nAnswer:", 128, "f1",
    ),
    "multifieldqa_en": Form(
        f"Read the following text and answer briefly.\n\n{_CONTEXT}\n\nNow, answer the following question based on the "
        "above text, only give me the answer and do not output any other words.\n\n"
        f"Question: {_INPUT}\nAnswer:", 64, "f1",
    ),
    "hotpotqa": Form(_PASSAGES, 32, "f1"),
    "2wikimqa": Form(_PASSAGES, 32, "f1"),
    "musique": Form(_PASSAGES, 32, "f1"),
    "gov_report": Form(
        "You are given a report by a government agency. Write a one-page summary of the report.\n\n"
        f"Report:\n{_CONTEXT}\n\nNow, write a one-page summary of the report.\n\nSummary:", 512, "rouge_l",
    ),
    "qmsum": Form(
        "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one "
        f"or more sentences.\n\nTranscript:\n{_CONTEXT}\n\nNow, answer the query based on the above meeting transcript "
        f"in one or more sentences.\n\nQuery: {_INPUT}\nAnswer:", 512, "rouge_l",
    ),
    "multi_news": Form(
        "You are given several news passages. Write a one-page summary of all news. \n\n"
        f"News:\n{_CONTEXT}\n\nNow, write a one-page summary of all the news.\n\nSummary:", 512, "rouge_l",
    ),
    "trec": Form(
        "Please determine the type of the question below. Here are some examples of questions.\n\n"
        f"{_CONTEXT}\n{_INPUT}", 64, "classification", "\n",
    ),
    "triviaqa": Form(
        f"Answer the question based on the given passage. {_ONLY} The following are some examples.\n\n"
        f"{_CONTEXT}\n\n{_INPUT}", 32, "f1", "\n",
    ),
    "samsum": Form(
        "Summarize the dialogue into a few short sentences. The following are some examples.\n\n"
        f"{_CONTEXT}\n\n{_INPUT}", 128, "rouge_l", "\n",
    ),
    "passage_count": Form(_COUNT, 32, "count"),
    "passage_retrieval_en": Form(_RETRIEVAL, 32, "retrieval"),
    "lcc": Form(f"Please complete the code given below. \n{_CONTEXT}Next line of code:\n", 64, "code"),
    "repobench-p": Form(
        f"Please complete the code given below. \n{_CONTEXT}{_INPUT}Next line of code:\n", 64, "code",
    ),
}  # fmt: skip
#: Examples and code go to the model as they are, without its chat template.
PLAIN = ("trec", "triviaqa", "samsum", "lcc", "repobench-p")
V2 = "longbench_v2"
V2_TOKENS = 4
_V2_BEGUN = "The correct answer is ("


def form_of(name: str) -> Form | None:
    """The form of a data set; `NAME_e` is the variant of even lengths, asked alike."""
    return FORMS.get(name.removesuffix("_e"))


@dataclass(frozen=True)
class _Asked:
    """A row as text."""

    context: str
    question: str
    begun: str
    reference: Reference


def make_samples(
    name: str,
    rows: Sequence[Row],
    lengths: Sequence[int],
    encoder: Encoder,
    longest: int,
    split: str,
    contexts: int,
    seed: int = 0,
) -> list[Sample]:
    """At most `contexts` samples of a split for each of `lengths`: the largest that is not above the tokens of their
    context, and more than half of them. Which ones depends on `seed`.

    `longest`: tokens that the model reads. Rows with one context are turns of one sample. Raises `VortexError` for a
    row that lacks a field, and when nothing is left.
    """
    task = name if name == V2 else f"longbench/{name}"
    read = _read_v2 if name == V2 else _read
    form = form_of(name)
    groups: dict[str, list[_Asked]] = {}
    for number, row in enumerate(rows, 1):
        asked = read(f"{task}: row {number}", row, form)
        if asked is not None:
            groups.setdefault(asked.context, []).append(asked)
    dealt = list(enumerate(deal(groups.items(), lambda item: _hash(item[0]), split)))
    dealt.sort(key=lambda item: digest([seed, _hash(item[1][0])]))
    found: list[Sample] = []
    room = dict.fromkeys(lengths, contexts)
    for index, (context, asked_of) in dealt:
        if not any(room.values()):
            break
        sample = _sample(task, index, context, asked_of, lengths, encoder, longest)
        if sample is not None and room[sample.length]:
            room[sample.length] -= 1
            found.append(sample)
    found.sort(key=lambda sample: lengths.index(sample.length))
    if not found:
        raise VortexError(
            f"task {task!r} has no context of {' or '.join(f'{n} to {2 * n - 1}' for n in lengths)} tokens in the "
            f"{split} split that the model reads whole ({longest} tokens); choose other --lengths"
        )
    return found


def _hash(context: str) -> str:
    return hashlib.sha256(context.encode(errors="replace")).hexdigest()


def _sample(
    task: str, index: int, context: str, asked: Iterable[_Asked], lengths: Sequence[int], encoder: Encoder, longest: int
) -> Sample | None:
    if len(context) > _CHARACTERS_PER_TOKEN * 2 * max(lengths):
        return None
    ids = encoder.context(context)
    length = max((n for n in lengths if n <= len(ids)), default=0)
    if len(ids) >= 2 * length:
        return None
    turns = []
    for item in asked:
        turn = Turn(encoder.question(item.question, item.begun), [], item.reference)
        if len(ids) + len(turn.question) + turn.generated - 1 <= longest:
            encoder.check(task, [*ids, *turn.question], item.reference)
            turns.append(turn)
    return Sample(task, length, index, ids, turns) if turns else None


def _read(where: str, row: Row, form: Form | None) -> _Asked | None:
    assert form is not None
    front, _, back = form.prompt.partition(_CONTEXT)
    given = text_field(where, row, "input", "question") if _INPUT in back else ""
    answers = answers_field(where, row)
    classes = row.get("all_classes") or ()
    if form.metric == "classification" and not classes:
        raise VortexError(f"{where}: 'all_classes' is missing; a classification names its classes")
    reference = Reference(form.metric, answers, form.tokens, tuple(map(str, classes)), form.until)
    context = front + text_field(where, row, "context")
    return _Asked(context, back.replace(_INPUT, given), "", reference) if answers else None


def _read_v2(where: str, row: Row, _: Form | None) -> _Asked:
    """A question with four choices; the answer is begun so that the letter comes next."""
    choices = [text_field(where, {**row, **_letters(row)}, f"choice_{letter}") for letter in "ABCD"]
    question, answer = text_field(where, row, "question").strip(), row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = "ABCD"[answer] if answer in range(4) else answer
    if answer not in ("A", "B", "C", "D"):
        raise VortexError(f"{where}: 'answer' must be one of A, B, C and D, found {answer!r}")
    listed = "\n".join(f"({letter}) {text.strip()}" for letter, text in zip("ABCD", choices, strict=True))
    return _Asked(
        "Please read the following text and answer the question below.\n\n<text>\n"
        + text_field(where, row, "context").strip(),
        f"\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n{listed}\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".',
        _V2_BEGUN,
        Reference("choice", (str(answer),), V2_TOKENS),
    )


def _letters(row: Row) -> dict[str, Any]:
    """The choices of a row that has them as one list."""
    listed = row.get("choices") or ()
    return {f"choice_{letter}": text for letter, text in zip("ABCD", listed, strict=False)}
