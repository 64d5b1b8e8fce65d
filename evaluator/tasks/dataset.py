"""Samples as a `datasets.Dataset` and back, and a user's own questions from JSON lines.

A row is one question: `context`, `question`, `answer` as text, and their token ids where they are known; where a text
is scored by a `metric`, there are `references` instead of an answer. Rows with the same context become the turns of one
sample, so a context is read once and an interval knows which answers share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import (
    Dataset,
    Features,
    List,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.tasks.samples import Reference, Sample, Turn
from vortexlab.evaluator.tasks.scoring import METRICS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = ("context", "question", "answer")
IDS = tuple(f"{name}_ids" for name in TEXT)
SCORING = ("metric", "references", "tokens", "classes", "until")
FEATURES = Features(
    {"task": Value("string"), "length": Value("int32"), "index": Value("int32"), "turn": Value("int32")}
    | {name: Value("string") for name in TEXT}
    | {name: List(Value("int32")) for name in IDS}
    | {"metric": Value("string"), "references": List(Value("string")), "tokens": Value("int32")}  # SCORING
    | {"classes": List(Value("string")), "until": Value("string")}
)
OWN_TASK = "own"

Row = Mapping[str, Any]
#: (place of the row, context and question as token ids, tokens of the answer)
Check = Callable[[str, list[int], list[int], int], None]
#: Tokens that are generated where a metric scores the text and a row does not say how many.
GENERATED = 128


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps `datasets` from drawing progress bars inside the block."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def to_dataset(samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """One row per question: `task`, `length` (tokens of context), `index`, `turn`, the texts and their token ids.

    Texts are what `tokenizer` decodes from the ids; with the reference model's tokenizer they encode to the same ids.
    """
    rows: list[dict[str, Any]] = []
    for sample in samples:
        context = _decode(tokenizer, sample.context)
        for number, turn in enumerate(sample.turns):
            texts = (context, _decode(tokenizer, turn.question), _decode(tokenizer, turn.answer))
            row = {"task": sample.task, "length": sample.length, "index": sample.index, "turn": number}
            ids = (sample.context, turn.question, turn.answer)
            rows.append(
                row | dict(zip(TEXT, texts, strict=True)) | dict(zip(IDS, ids, strict=True)) | _scoring(turn.reference)
            )
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def _scoring(reference: Reference | None) -> dict[str, Any]:
    if reference is None:
        return {"metric": "", "references": [], "tokens": 0, "classes": [], "until": ""}
    return {
        "metric": reference.metric, "references": list(reference.texts), "tokens": reference.tokens,
        "classes": list(reference.classes), "until": reference.until,
    }  # fmt: skip


def _reference(where: str, row: Row) -> Reference | None:
    """How a row wants its text scored; None where exact tokens are asked for."""
    metric = row.get("metric")
    if not metric:
        return None
    if metric not in METRICS:
        raise VortexError(f"{where}: 'metric' must be one of {', '.join(METRICS)}, found {metric!r}")
    texts, classes = _texts(where, row, "references") or _texts(where, row, "answer"), _texts(where, row, "classes")
    tokens = row.get("tokens") or GENERATED
    if not texts:
        raise VortexError(f"{where}: 'references' is missing; a row with a metric has texts that right answers hold")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise VortexError(f"{where}: 'tokens' must be a whole number above 0, found {tokens!r}")
    return Reference(metric, texts, tokens, classes, str(row.get("until") or ""))


def _texts(where: str, row: Row, name: str) -> tuple[str, ...]:
    """A list of texts, or one text; empty where the row has none."""
    found = row.get(name) or ()
    texts = (found,) if isinstance(found, str) else found
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise VortexError(f"{where}: {name!r} must be a list of texts")
    return tuple(texts)


def from_dataset(dataset: Iterable[Row], tokenizer: PreTrainedTokenizerBase, *, task: str = OWN_TASK) -> list[Sample]:
    """Samples from rows with at least `context`, `question` and `answer`; the inverse of :func:`to_dataset`.

    Token ids are taken from the row where it has them, else the texts are encoded as :func:`load_jsonl` does. `task`
    names the samples of rows that name none. Raises :class:`VortexError` with the number of the first bad row, from 1.
    """
    return _group(((f"row {number}", row) for number, row in enumerate(dataset, 1)), tokenizer, task)


def load_jsonl(path: str | Path, tokenizer: PreTrainedTokenizerBase, check: Check | None = None) -> list[Sample]:
    """Samples from a file of JSON lines with `context`, `question` and `answer`; of other fields only those of scoring
    count.

    The three texts are encoded one by one, the context with the tokenizer's leading special tokens, and their ids are
    joined, so blanks and templates between them belong to the texts. An answer is right when greedy generation gives
    exactly its ids; where a row has a `metric` (`evaluator.tasks.scoring`), `tokens` are generated and their text is
    scored against `references`, or `answer`. The samples' task is a row's `task`, else the file's name. `check` is
    called with the place and the token ids of every row, and may raise for one that cannot be used.

    Raises :class:`VortexError` with the line of the first bad row, or if the file cannot be read or holds no row.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise VortexError(f"{path} cannot be read ({error.strerror}); give a file of JSON lines") from error
    except UnicodeDecodeError as error:
        raise VortexError(f"{path} is not UTF-8 text; give a file of JSON lines") from error
    lines = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    samples = _group(((f"{path}:{n}", _parse(f"{path}:{n}", line)) for n, line in lines), tokenizer, path.stem, check)
    if not samples:
        raise VortexError(f"{path} holds no rows; each line is a JSON object with {_list(TEXT)}")
    return samples


def _parse(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise VortexError(f"{where}: not JSON ({reason}); a row is an object with {_list(TEXT)}") from error
    if not isinstance(row, dict):
        raise VortexError(f"{where}: expected a JSON object with {_list(TEXT)}, found {type(row).__name__}")
    return {name: row[name] for name in (*TEXT, "task", *SCORING) if name in row}


def _group(
    placed: Iterable[tuple[str, Row]], tokenizer: PreTrainedTokenizerBase, task: str, check: Check | None = None
) -> list[Sample]:
    """Samples in the order of their first rows; `placed` are rows with their place, for messages."""
    contexts: dict[tuple[Any, ...], Sample] = {}
    counts: dict[tuple[str, int], int] = {}
    for where, row in placed:
        reference = _reference(where, row)
        given = [name for name in IDS if row.get(name) is not None]
        if given and len(given) < len(IDS):
            raise VortexError(f"{where}: found {_list(given)} alone; give all of {_list(IDS)} or none")
        if given:
            context, question = (_ids(where, row, name) for name in IDS[:2])
            answer = [] if reference else _ids(where, row, IDS[2])
        else:
            context, question = (_encode(where, row, name, tokenizer) for name in TEXT[:2])
            answer = [] if reference else _encode(where, row, TEXT[2], tokenizer)
        turn = Turn(question, answer, reference)
        if check is not None:
            check(where, context, question, turn.generated)
        name = row.get("task") or task
        if not isinstance(name, str):
            raise VortexError(f"{where}: 'task' must be text, found {type(name).__name__}")
        index = row.get("index")
        if index is not None and not isinstance(index, int):
            raise VortexError(f"{where}: 'index' must be a whole number, found {index!r}")
        key = (name, index, tuple(context))
        if key not in contexts:
            length = row["length"] if given and isinstance(row.get("length"), int) else len(context)
            number = counts.get((name, length), 0)
            counts[name, length] = number + 1
            contexts[key] = Sample(name, length, number if index is None else index, context, [])
        contexts[key].turns.append(turn)
    return list(contexts.values())


def _ids(where: str, row: Row, name: str) -> list[int]:
    ids = row[name]
    if not isinstance(ids, Sequence) or not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise VortexError(f"{where}: {name!r} must be a list of token ids that is not empty")
    return list(ids)


def _encode(where: str, row: Row, name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if name not in row:
        raise VortexError(f"{where}: {name!r} is missing; a row has {_list(TEXT)}")
    text = row[name]
    if not isinstance(text, str):
        raise VortexError(f"{where}: {name!r} must be text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise VortexError(f"{where}: {name!r} has half of a surrogate pair, which is no text") from error
    ids = list(tokenizer.encode(text, add_special_tokens=name == "context"))
    if not text.strip() or not ids:
        raise VortexError(f"{where}: {name!r} is empty; give at least one word")
    if name == "answer" and tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise VortexError(f"{where}: 'answer' has words outside the model's vocabulary, which it cannot generate")
    return ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
