"""Our RULER samples beside those of lm-evaluation-harness: the six families that need no download.

    pip install "lm-eval[ruler]>=0.4.13,<0.5"
    python benchmarks/ruler_lm_eval.py --json benchmarks/results/ruler-lm-eval.json

Every sample of either side is taken apart by the same code into its *structure*: wording, kinds of keys and values,
what is repeated how often, separators, and whether the answers are those of the text. Structures hold nothing that is
random and no amount of filler, so both sides must give the same ones. Where something
is hidden its depths are compared as distributions; the metric on answers that are whole, partial, in another case, or
wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vortexlab.evaluator.ruler import FAMILIES, VERSION, Corpus, make_samples
from vortexlab.evaluator.ruler.words import all_words, novel
from vortexlab.evaluator.tasks.prompts import Encoder
from vortexlab.evaluator.tasks.scoring import score

TASKS = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
_PACKAGES = ("lm_eval", "wonderwords", "transformers", "tokenizers", "numpy")
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_KINDS = {"uuid": _UUID, "seven digits": r"[1-9]\d{6}", "adjective-noun": r"\D+-\D+"}
Structure = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One sample as text, the answer's first words included."""

    text: str
    answers: tuple[str, ...]
    tokens: int  # with the answer's


def kind(text: str) -> str:
    return next((name for name, pattern in _KINDS.items() if re.fullmatch(pattern, text)), "other")


def structure(task: str, prompt: Prompt) -> Structure:
    """What a sample is made of. Raises `ValueError` when it cannot be taken apart."""
    take: Callable[[Prompt], Structure] = {"vt": _tracking, "cwe": _common, "fwe": _frequent}.get(task, _needles)
    return {"answers": len(prompt.answers), **take(prompt)}


def _parts(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text, re.DOTALL)
    if found is None:
        raise ValueError(f"no sample of this form: {text[:80]!r} ... {text[-300:]!r}")
    return found.groups()


def _needles(prompt: Prompt) -> Structure:
    opening, body, end = _parts(r"(.*? afterwards\.\n)(.*)(\nWhat .*)", prompt.text)
    needle = re.compile(r"One of the special magic (\w+) for (.+) is: (\S+)\.")
    lines = [(line, needle.fullmatch(line)) for line in body.split("\n")]
    facts = [found for _, found in lines if found]
    values = {found[2]: found[3] for found in facts}
    asked = [key for key in values if f" for {key} mentioned" in end]
    noise = {line for line, found in lines if not found}
    return {
        "opening": opening,
        "needle": sorted({found[1] for found in facts}),
        "keys": sorted({kind(found[2]) for found in facts}),
        "values": sorted({kind(found[3]) for found in facts}),
        "noise": sorted(noise),
        "hidden": len(facts) if noise else "every line",
        "asked": len(asked),
        "end": end.replace(asked[0], "KEY"),
        "answered": [values[key] for key in asked] == list(prompt.answers),
        "last line is noise": lines[-1][1] is None if noise else None,
    }


def _tracking(prompt: Prompt) -> Structure:
    example, task = prompt.text.split("\n\n\n\n")
    return {"example": _chain(example, None), "task": _chain(task, prompt.answers)}


def _chain(text: str, answers: tuple[str, ...] | None) -> Structure:
    opening, body, end = _parts(r"(.*?\n\n)(.*)(\nQuestion: .*)", text)
    links = re.findall(r"VAR ([A-Z]+) = (?:VAR ([A-Z]+)|(\d+))", body)
    said = re.search(r"they are:(\s*)([A-Z ]*)$", end)
    assert said is not None
    names = [name for name, _, _ in links]
    marked = re.sub(r"VAR [A-Z]+ = (VAR [A-Z]+|\d+)", "#", body)
    noise = max(re.findall(r"[^\n#]+\.\n", marked), key=len).strip()
    return {
        "opening": opening,
        "links": len(links),
        "chained": [before for _, before, _ in links[1:]] == names[:-1],
        "letters": sorted({len(name) for name in names}),
        "digits": len(links[0][2]),
        "noise": noise,
        "separators": sorted(set(re.split(r"#|" + re.escape(noise), marked))),
        "end": re.sub(r"\d{5}", "VALUE", end[: said.start()]),
        "said": said[1] if answers is None else "",
        "answered": said[2].split() == names if answers is None else list(answers) == names,
    }


def _common(prompt: Prompt) -> Structure:
    example, task = re.split(r"\n(?=Below is)", prompt.text)
    return {"example": _list(example, None), "task": _list(task, prompt.answers)}


def _list(text: str, answers: tuple[str, ...] | None) -> Structure:
    opening, body, end = _parts(r"(.*?\n)(.*)(\nQuestion: .*)", text)
    items = re.findall(r"(\d+)\. (\D+?)(?= \d+\.|$)", body)
    counts = Counter(word for _, word in items)
    most = {word for word, _ in counts.most_common(10)}
    said = re.search(r"list are:(.*)$", end, re.DOTALL)
    assert said is not None
    found = set(re.findall(r"\d+\. (\D+?)(?= \d+\.|$)", said[1])) if answers is None else set(answers)
    repeats = Counter(counts.values())
    return {
        "opening": opening,
        "numbered": [int(number) for number, _ in items] == list(range(1, len(items) + 1)),
        "repeats": sorted(repeats),
        "common": repeats[max(repeats)],
        "other": repeats[min(repeats)] if answers is None else "filler",
        "end": end[: said.start(1)],
        "said": re.sub(r"[A-Za-z][\w' -]*", "word", said[1]) if answers is None else "",
        "answered": found == most,
    }


def _frequent(prompt: Prompt) -> Structure:
    opening, body, end = _parts(r"(.*? coded words\. )(.*)(\nQuestion: .*)", prompt.text)
    counts = Counter(body.split(" ")).most_common()
    words = [word for word, _ in counts if word != "..."]
    zeta = math.pi**2 / 6
    whole = counts[0][1] * zeta  # the first count is that of rank 1, rounded down
    exact = all(
        any(int(size / rank**2 / zeta) == count for size in (whole, whole + zeta / 2, whole + 0.999 * zeta))
        for rank, (_, count) in enumerate(counts[:20], 1)
    )
    return {
        "opening": opening,
        "most": counts[0][0],
        "words": sorted({(len(word), word.isalpha() and word.islower()) for word in words}),
        "falls with the square of the rank": exact,
        "end": end,
        "answered": tuple(words[:3]) == prompt.answers,
    }


def ours(task: str, length: int, count: int, encoder: Encoder, seed: int) -> Iterator[Prompt]:
    """Our samples."""
    for sample in make_samples(task, length, count, encoder, Corpus(), seed=seed):
        (turn,) = sample.turns
        assert turn.reference is not None
        text = str(encoder.tokenizer.decode([*sample.context, *turn.question]))
        tokens = len(sample.context) + len(turn.question) + turn.reference.tokens
        yield Prompt(text, turn.reference.texts, tokens)


def theirs(task: str, length: int, count: int, folder: str, encoder: Encoder, seed: int) -> Iterator[Prompt]:
    """Those of lm-evaluation-harness, with the same separator before the answer's first words.

    Its `cwe` makes a solved example, as RULER does, but leaves it out of the prompt; here it is put in front.
    """
    import numpy as np
    from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, vt_utils

    random.seed(seed)
    np.random.seed(seed)
    make = {"vt": vt_utils.get_vt_dataset, "cwe": cwe_utils.get_cw_dataset, "fwe": fwe_utils.fwe_download}.get(task)
    made = (make or getattr(niah_utils, task))(tokenizer=folder, max_seq_lengths=[length])["test"]
    for row in made.select(range(count)):
        front = f"{row['input_example']}\n" if row.get("input_example") else ""
        text = f"{front}{row['input']} {row['gen_prefix']}"
        tokens = len(encoder.tokenizer.encode(text)) + FAMILIES[task].generated
        yield Prompt(text, tuple(row["outputs"]), tokens)


def depth(prompt: Prompt) -> float:
    """Where in the text the first answer stands first, from 0 to 1."""
    return prompt.text.index(prompt.answers[0]) / len(prompt.text)


def apart(first: list[float], second: list[float]) -> float:
    """The Kolmogorov-Smirnov statistic of two samples; for 200 each, 0.136 is the 5 % point."""
    return max(
        abs(sum(item <= at for item in first) / len(first) - sum(item <= at for item in second) / len(second))
        for at in {*first, *second}
    )


def _depths(sides: dict[str, list[Prompt]]) -> dict[str, Any]:
    found = {name: list(map(depth, prompts)) for name, prompts in sides.items()}
    return {
        "depth": {name: round(statistics.fmean(depths), 3) for name, depths in found.items()},
        "depths_apart": round(apart(*found.values()), 3),
    }


def answers_to_score(prompt: Prompt) -> Iterator[str]:
    """Right, partly right, wrong and odd answers."""
    found = prompt.answers
    yield " ".join(found)
    yield f" {found[0].upper()}\n\tand no other "
    yield ", ".join(text[::-1] for text in found)
    yield "\x00".join(found[: len(found) // 2 + 1])
    yield ""


def scored_apart(prompts: list[Prompt]) -> float:
    """The largest difference of the two scores over some answers to every prompt."""
    from lm_eval.tasks.ruler import common_utils

    worst = 0.0
    for prompt in prompts:
        for text in answers_to_score(prompt):
            row = {"max_length": 4096, "outputs": list(prompt.answers)}
            other = common_utils.process_results(row, [text])["4096"]
            worst = max(worst, abs(other - score("match_all", text, prompt.answers)))
    return worst


def compare(task: str, length: int, count: int, folder: str, seed: int = 0) -> dict[str, Any]:
    """One family: both structures, how long the samples are, and by how much scores differ."""
    from transformers import AutoTokenizer

    encoder = Encoder(AutoTokenizer.from_pretrained(folder), "none")
    sides = {
        "ours": list(ours(task, length, count, encoder, seed)),
        "theirs": list(theirs(task, length, count, folder, encoder, seed)),
    }
    structures = {
        name: sorted({json.dumps(structure(task, prompt), sort_keys=True) for prompt in prompts})
        for name, prompts in sides.items()
    }
    return {
        "task": task,
        "samples": {name: len(prompts) for name, prompts in sides.items()},
        "same_structure": structures["ours"] == structures["theirs"],
        "structures": {name: [json.loads(text) for text in found] for name, found in structures.items()},
        **(_depths(sides) if task not in ("cwe", "fwe") else {}),
        "score_difference": scored_apart(sides["ours"] + sides["theirs"]),
        "tokens": {
            name: {
                "mean": round(statistics.fmean(prompt.tokens for prompt in prompts), 1),
                "most": max(prompt.tokens for prompt in prompts),
                "too_long": sum(prompt.tokens > length for prompt in prompts),
            }
            for name, prompts in sides.items()
        },
    }


def train_tokenizer(folder: str, vocabulary: int = 8000) -> None:
    """A byte-level BPE tokenizer of the shipped novel and words: nothing is downloaded, and both sides use it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([novel(), " ".join(all_words())], trainer)
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="what to write")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", metavar="DIR", help="by default one that is trained on the shipped texts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.tokenizer:
            train_tokenizer(folder)
        rows = [
            compare(task, options.length, options.samples, options.tokenizer or folder, options.seed) for task in TASKS
        ]
    for row in rows:
        print(row["task"], "same" if row["same_structure"] else "DIFFERS", row["score_difference"], row["tokens"])
    found = {
        "benchmark": "ruler_lm_eval",
        "conditions": {
            "length": options.length, "seed": options.seed, "generator": VERSION,
            "tokenizer": options.tokenizer or "byte-level BPE of 8000 tokens, trained on the shipped texts",
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        },
        "rows": rows,
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
