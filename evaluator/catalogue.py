"""The tasks that are asked of a user's model in words: RULER's families, LongBench and LongBench v2, by name.

Runs in the controller. Samples are kept on disk, by a hash of all that they depend on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator import longbench, ruler
from vortexlab.evaluator.config import EvaluationConfig, is_worded
from vortexlab.evaluator.ruler import Corpus
from vortexlab.evaluator.ruler.families import ESSAYS
from vortexlab.evaluator.ruler.words import novel
from vortexlab.evaluator.sources import SOURCES, parse_sources
from vortexlab.evaluator.tasks import Sample
from vortexlab.evaluator.tasks.cache import cached
from vortexlab.evaluator.tasks.documents import read_prose, read_questions, read_rows, source_digest
from vortexlab.evaluator.tasks.prompts import Encoder
from vortexlab.evaluator.tasks.splits import deal
from vortexlab.evaluator.tasks.tokenizer import load_tokenizer, tokenizer_digest

RULER, LONGBENCH = "ruler", "longbench"


@dataclass(frozen=True)
class Entry:
    """A task by name: how it is scored, how many tokens are generated, and the source it takes (or none)."""

    name: str
    metric: str
    tokens: int
    source: str
    needs_source: bool

    def can_use(self, sources: Collection[str]) -> bool:
        """Whether these sources, by name, are enough to make samples."""
        return not self.needs_source or self.source in sources


def _entries() -> dict[str, Entry]:
    found = [
        Entry(f"{RULER}/{name}", family.metric, family.generated, family.source, family.needs_source)
        for name, family in ruler.FAMILIES.items()
    ]
    found += [
        Entry(f"{LONGBENCH}/{name}", form.metric, form.tokens, LONGBENCH, False)
        for name, form in longbench.FORMS.items()
    ]
    found.append(Entry(longbench.V2, "choice", longbench.V2_TOKENS, longbench.V2, False))
    return {entry.name: entry for entry in found}


ENTRIES = _entries()


def expand(names: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """Names with groups resolved: `ruler` is every family that can be made with these sources.

    Raises `VortexError` for an unknown name.
    """
    given = parse_sources(sources)
    found: list[str] = []
    for name in names:
        if name == RULER:
            found += [entry.name for entry in ENTRIES.values() if entry.name.startswith(RULER) and entry.can_use(given)]
        elif name == LONGBENCH:
            found += [n for n in ENTRIES if n.startswith(f"{LONGBENCH}/")]
        elif is_worded(name) and name not in ENTRIES and name.removesuffix("_e") not in ENTRIES:
            group = name.split("/")[0]
            known = [n for n in ENTRIES if n.split("/")[0] == group]
            raise VortexError(f"unknown task {name!r}; there are {', '.join(known)}")
        else:
            found.append(name)
    return tuple(dict.fromkeys(found))


def load(name: str, config: EvaluationConfig) -> list[Sample]:
    """The samples of one task of the catalogue, in the order of `config.lengths`.

    Raises `VortexError` for a source that is missing or cannot be used, a model that is too short or has no tokenizer
    that will do, and when nothing is left to ask.
    """
    tokenizer, longest = load_tokenizer(config.model)
    given = parse_sources(config.sources)
    entry = ENTRIES.get(name) or ENTRIES[name.removesuffix("_e")]
    if not entry.can_use(given):
        raise VortexError(
            f"task {name!r} takes documents of yours: give --source {entry.source}=FILE (JSON lines with question, "
            "answers, context) or the name of a data set"
        )
    where = given.get(entry.source) or SOURCES.get(entry.source, "")
    group, _, short = name.partition("/")
    too_long = [length for length in config.lengths if length > longest]
    if group == RULER and too_long:
        raise VortexError(
            f"task {name!r} cannot be asked at {too_long[0]} tokens of a model that reads {longest}; choose shorter "
            "--lengths"
        )
    key = {
        "versions": [ruler.VERSION, longbench.VERSION],
        "task": name,
        "settings": [config.lengths, config.contexts, config.turns, config.seed, config.split, config.template],
        "tokenizer": tokenizer_digest(config.model),
        "longest": longest,
        "source": source_digest(where, short if group == LONGBENCH else "") if where else "",
    }

    def make() -> list[Sample]:
        if group == RULER:
            return _ruler(short, where, config, Encoder(tokenizer, config.template))
        plain = short.removesuffix("_e") in longbench.PLAIN
        encoder = Encoder(tokenizer, "none" if plain else config.template)
        rows = read_rows(where, short) if group == LONGBENCH else read_rows(where)
        if group == LONGBENCH:  # a file may hold several of its data sets
            rows = [row for row in rows if row.get("dataset") in (None, short, short.removesuffix("_e"))]
        return longbench.make_samples(
            short or name, rows, config.lengths, encoder, longest, config.split, config.contexts, config.seed
        )

    return cached(key, tokenizer, make)


def _ruler(name: str, where: str, config: EvaluationConfig, encoder: Encoder) -> list[Sample]:
    family = ruler.FAMILIES[name]
    corpus = Corpus()
    if family.source == ESSAYS:
        corpus = Corpus(prose=(read_prose(where) if where else novel()).split())
    elif family.needs_source:
        documents, asked = read_questions(where)
        mine = deal(asked, lambda item: digest([documents[place] for place in item.documents]), config.split)
        mine.sort(key=lambda item: digest([config.seed, item.documents]))
        if not mine:
            raise VortexError(f"{where} has too few questions for the {config.split} split; five or more are needed")
        corpus = Corpus(documents=documents, asked=tuple(mine))
    return [
        sample
        for length in config.lengths
        for sample in ruler.make_samples(
            name, length, config.contexts, encoder, corpus, seed=config.seed, split=config.split, turns=config.turns
        )
    ]
