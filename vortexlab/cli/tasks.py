"""`vortex tasks`: what can be asked of a model in words, and what the questions look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, lines, print_json, printable, table
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.sources import SOURCES

if TYPE_CHECKING:
    from vortexlab.evaluator.samples import Suite

_WIDTH = 300  # characters of a context that are printed, half of them from each end


def tasks(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Tasks whose samples to show.")] = None,
    model_dir: options.ModelDir = None,
    source: options.Source = None,
    template: options.Template = None,
    lengths: options.Lengths = None,
    contexts: Annotated[int, typer.Option(min=1, help="Contexts per task and length.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    as_json: AsJson = False,
) -> int:
    """List the tasks of RULER and LongBench; with names, show samples as a model reads them.

    Samples need the model's folder, for its tokenizer and chat template.
    """
    from vortexlab.evaluator.catalogue import ENTRIES

    if not names:
        _list([vars(entry) for entry in ENTRIES.values()], as_json)
        return 0
    if model_dir is None:
        raise VortexError("samples are made for a model's tokenizer: give --model-dir DIR")
    from vortexlab.evaluator.config import EvaluationConfig, is_worded
    from vortexlab.evaluator.samples import make_suite
    from vortexlab.evaluator.sources import absolute

    asked = options.words(names)
    if strange := [name for name in asked if not is_worded(name)]:
        raise VortexError(f"{strange[0]!r} is not asked in words; `vortex tasks` lists what is")
    suite = make_suite(
        EvaluationConfig(
            model=model_dir,
            tasks=asked,
            sources=tuple(map(absolute, source or ())),
            template=template or "auto",
            lengths=options.numbers("--lengths", lengths) or EvaluationConfig().lengths,
            contexts=contexts,
            seed=seed,
        )
    )
    _show(suite, as_json)
    return 0


def _list(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"tasks": found, "samples": [], "digests": {}})
        return
    rows = [(item["name"], item["metric"], str(item["tokens"]), _takes(item)) for item in found]
    table("", ("task", "scored by", "tokens", "takes"), rows, right=("tokens",))


def _takes(item: dict[str, Any]) -> str:
    """Where a task's texts come from."""
    source = item["source"]
    if not source:
        return "nothing"
    default = SOURCES[source] or ("" if item["needs_source"] else "a novel that is shipped")
    return f"--source {source}=..." + (f", by default {default}" if default else "")


def _show(suite: Suite, as_json: bool) -> None:
    assert suite.encoder is not None
    spell = suite.encoder.tokenizer.decode
    samples = [
        {
            "task": sample.task,
            "length": sample.length,
            "index": sample.index,
            "tokens": len(sample.context),
            "total": len(sample.context) + max(len(turn.question) + turn.generated for turn in sample.turns),
            "context": str(spell(sample.context)),
            "questions": [
                {"question": str(spell(turn.question)), "references": list(turn.reference.texts),
                 "metric": turn.reference.metric, "tokens": turn.generated}
                for turn in sample.turns if turn.reference is not None
            ],
        }
        for sample in suite.samples
    ]  # fmt: skip
    if as_json:
        print_json({"tasks": [], "samples": samples, "digests": suite.digests})
        return
    for item in samples:
        context, half = str(item["context"]), _WIDTH // 2
        shown = context if len(context) <= _WIDTH else f"{context[:half]} [...] {context[-half:]}"
        print(printable(f"{item['task']} {item['length']}/{item['index']}: {item['total']} tokens with the answer"))
        lines({"context": shown.replace("\n", "\\n")}, "  ")
        questions: Any = item["questions"]
        for turn in questions:
            answers = " | ".join(turn["references"])
            lines({"question": turn["question"].replace("\n", "\\n"), turn["metric"]: answers}, "  ")
    for name, found in suite.digests.items():
        print(f"{name}: {found[:12]}")
