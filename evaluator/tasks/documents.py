"""Texts and questions that a user brings: a file, a folder, or the name of a data set on the Hugging Face hub.

Runs in the controller, through `datasets`. Nothing is downloaded unless a hub name is given.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.ruler.questions import Asked
from vortexlab.evaluator.sources import local_digest

Row = Mapping[str, Any]

#: The parts of a data set that are taken, whichever comes first.
_PARTS = ("test", "validation", "dev", "train")


def source_digest(where: str, config: str = "") -> str:
    """SHA-256 of what a source holds. Raises `VortexError` when it cannot be read."""
    return local_digest(where) if Path(where).exists() else _rows_digest(where, config)


@functools.lru_cache(maxsize=16)
def _rows_digest(where: str, config: str) -> str:
    total = hashlib.sha256()
    for row in read_rows(where, config):
        total.update(json.dumps(row, sort_keys=True, default=str).encode())
    return total.hexdigest()


def read_prose(where: str) -> str:
    """The text of a source: a text file as it is, of rows their `text`. Raises `VortexError` when there is none."""
    if Path(where).is_file() and Path(where).suffix not in (".json", ".jsonl", ".parquet", ".csv"):
        found = _read_text(Path(where))
    else:
        found = "\n".join(str(_field(f"{where}: row {n}", row, "text")) for n, row in enumerate(read_rows(where), 1))
    if not found.strip():
        raise VortexError(f"{where} holds no text; give a text file, or rows with 'text'")
    return found


def read_rows(where: str, config: str = "") -> Sequence[Row]:
    """The rows of a source; of a data set with parts those of test, validation or train, whichever it has.

    `where`: a file (JSON lines, JSON, parquet, CSV), a folder that `datasets` wrote or can read, or the name of a data
    set on the hub, with `:CONFIGURATION` where it has several; `config` is the configuration otherwise. Raises
    `VortexError` when it cannot be read or holds no rows.
    """
    path = Path(where)
    if (path / f"{config}.jsonl").is_file():
        path = path / f"{config}.jsonl"  # one file for each data set, as LongBench is handed out
    rows = _json_rows(path) if path.is_file() and path.suffix in (".jsonl", ".json") else _dataset_rows(where, config)
    if not len(rows):
        raise VortexError(f"{where} holds no rows; give another source")
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise VortexError(f"{path} cannot be read ({error.strerror}); give another source") from error
    except UnicodeDecodeError as error:
        raise VortexError(f"{path} is not UTF-8 text; give another source") from error


def _json_rows(path: Path) -> list[Row]:
    """Rows of a file of JSON lines, or of one JSON document: a list, or SQuAD's own form."""
    text = _read_text(path)
    try:
        whole = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, RecursionError):
        whole = None  # JSON lines under the other name
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        return _squad_rows(str(path), whole["data"])
    rows: list[Any] = whole if isinstance(whole, list) else []
    if whole is None:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise VortexError(f"{path}:{number}: not JSON; each line is an object") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise VortexError(f"{path}: row {number} is no JSON object")
    return rows


def _squad_rows(where: str, articles: list[Any]) -> list[Row]:
    """The rows of SQuAD's own file, as `datasets` has them."""
    try:
        return [
            {"title": article.get("title", ""), "context": paragraph["context"], "question": item["question"],
             "answers": [answer["text"] for answer in item["answers"]]}
            for article in articles for paragraph in article["paragraphs"] for item in paragraph["qas"]
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise VortexError(f"{where} has not SQuAD's form: data, paragraphs, qas, question, answers") from error


def _dataset_rows(where: str, config: str) -> Sequence[Row]:
    """Rows through `datasets`; downloads show their progress, and nothing else does."""
    from vortexlab.evaluator.tasks.dataset import quiet

    try:
        with quiet() if Path(where).exists() else nullcontext():
            found = _load(where, config)
    except Exception as error:  # whatever the hub, a file or a missing network makes of it
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VortexError(
            f"{where!r} cannot be loaded as a data set ({first[:200]}); give a file, a folder, or check the network"
        ) from error
    if isinstance(found, dict):
        part = next((name for name in _PARTS if name in found), next(iter(found)))
        found = found[part]
    rows: Sequence[Row] = found
    return rows


def _load(where: str, config: str) -> Any:
    import datasets

    path = Path(where)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(where)
    if path.is_file():
        kind = path.suffix.lstrip(".")
        return datasets.load_dataset(kind if kind in ("parquet", "csv") else "text", data_files=where)
    if path.exists():
        return datasets.load_dataset(where)
    name, _, chosen = where.partition(":")
    return datasets.load_dataset(name, chosen or config or None)


def _field(where: str, row: Row, *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    has = ", ".join(repr(name) for name in list(row)[:12]) or "nothing"
    raise VortexError(f"{where}: {' or '.join(repr(name) for name in names)} is missing; the row has {has}")


def text_field(where: str, row: Row, *names: str) -> str:
    """The first of some fields that a row has, which must be text."""
    found = _field(where, row, *names)
    if not isinstance(found, str):
        raise VortexError(f"{where}: {names[0]!r} must be text, found {type(found).__name__}")
    return found


def answers_field(where: str, row: Row) -> tuple[str, ...]:
    """The accepted answers: `answers` (texts, or SQuAD's object with `text`) or `answer`; empty where there is none."""
    found = _field(where, row, "answers", "answer")
    if isinstance(found, Mapping):
        found = found.get("text", [])
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise VortexError(f"{where}: 'answers' must be a list of texts, or one text")
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def read_questions(where: str) -> tuple[tuple[str, ...], tuple[Asked, ...]]:
    """Documents and what is asked about them, from rows as SQuAD and HotpotQA have them.

    A row has `question`, `answers` or `answer`, and `context`: one text (with the others of the same `title` near it)
    or titles with sentences. Rows about the same documents are asked together. Raises `VortexError` for a row that
    lacks a field.
    """
    places: dict[str, int] = {}
    articles: dict[str, dict[int, None]] = {}
    asked: dict[tuple[int, ...], list[tuple[str, tuple[str, ...]]]] = {}
    titles: dict[tuple[int, ...], str] = {}
    for number, row in enumerate(read_rows(where), 1):
        place = f"{where}: row {number}"
        question, answers = text_field(place, row, "question"), answers_field(place, row)
        context = _field(place, row, "context")
        texts = [context] if isinstance(context, str) else _titled(place, context)
        documents = tuple(places.setdefault(text, len(places)) for text in texts)
        title = row.get("title") if isinstance(context, str) else None
        if title:
            articles.setdefault(str(title), {}).update(dict.fromkeys(documents))
            titles[documents] = str(title)
        if answers:
            asked.setdefault(documents, []).append((question, answers))
    groups = tuple(
        Asked(documents, tuple(articles.get(titles.get(documents, ""), ())), tuple(questions))
        for documents, questions in asked.items()
    )
    if not groups:
        raise VortexError(f"{where} holds no question with an answer; give another source")
    return tuple(places), groups


def _titled(where: str, context: Any) -> list[str]:
    """HotpotQA's documents: titles and lists of sentences, in either of its two forms."""
    if isinstance(context, Mapping):
        pairs = list(zip(context.get("title", ()), context.get("sentences", ()), strict=False))
    else:
        pairs = list(context)
    try:
        found = [f"{title}\n{''.join(lines)}" for title, lines in pairs]
    except (TypeError, ValueError) as error:
        raise VortexError(f"{where}: 'context' must be a text, or titles with lists of sentences") from error
    if not found:
        raise VortexError(f"{where}: 'context' is empty")
    return found
