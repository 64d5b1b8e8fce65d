"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.dsl.ir import Attr, Program

ModelDir = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder or downloaded name of the model; by default the shipped one.")
]
Tasks = Annotated[
    list[str] | None, typer.Option(help="Tasks, repeated or with commas; by default all, with --data its own.")
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="FILE", help="Your own questions, JSON lines (docs/data.md); repeatable."),
]
Source = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="NAME=WHERE", help="Documents or a data set of a task (docs/tasks.md)."),
]
Template = Annotated[str | None, typer.Option(metavar="auto|chat|none", help="The model's chat template around tasks.")]
DenseFloor = Annotated[float | None, typer.Option(help="Tasks on which dense attention scores less are not judged.")]
Score = Annotated[
    str | None, typer.Option(metavar="task|agreement", help="What answers are held against: expected, or dense ones.")
]
Lengths = Annotated[list[str] | None, typer.Option(help="Context lengths in tokens, repeated or with commas.")]
Contexts = Annotated[int | None, typer.Option(help="Contexts per task and length.")]
Phase = Annotated[str | None, typer.Option(metavar="decode|prefill", help="What runs sparsely, and is timed.")]
Speed = Annotated[str | None, typer.Option(metavar="measured|predicted", help="Where speed comes from.")]
PredictFor = Annotated[str | None, typer.Option(metavar="DEVICE", help="Device of predicted speed, e.g. h200.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Device to evaluate on.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Geometry = Annotated[str | None, typer.Option(help="Attention geometry of speed, or a config.json.")]
BatchTokens = Annotated[int | None, typer.Option(help="Batch x context length of the speed gate.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; 0 for all.")]
ContextCache = Annotated[
    float | None, typer.Option(metavar="GB", help="Disk for contexts that were read; 0 for none.")
]
MemoryMb = Annotated[
    int | None, typer.Option("--memory-mb", metavar="MB", help="Host memory of the worker; large models need more.")
]
Knobs = Annotated[list[str] | None, typer.Option("--knob", metavar="NAME=VALUE", help="A knob's value; repeatable.")]
Parameters = Annotated[
    str | None, typer.Option("--parameters", metavar="FILE", help="Learned parameters, a safetensors file.")
]
ProgramFile = Annotated[str, typer.Argument(metavar="F.py", help="A program file, or the name of a published program.")]


def given(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line."""
    return {
        name for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }  # fmt: skip


def words(texts: Iterable[str] | None) -> tuple[str, ...]:
    """Repeated or comma-separated words as one list."""
    return tuple(word.strip() for text in texts or () for word in text.split(",") if word.strip())


def numbers(option: str, texts: Iterable[str] | None) -> tuple[int, ...]:
    """The same for whole numbers; `16k` is 16384. Raises `VortexError` for anything else."""
    found = []
    for word in words(texts):
        digits, factor = (word[:-1], 1024) if word[-1] in "kK" else (word, 1)
        if not digits.isascii() or not digits.isdecimal() or len(digits) > 9:
            raise VortexError(f"{option} needs whole numbers such as 4096 or 4k, found {word!r}")
        found.append(int(digits) * factor)
    return tuple(found)


def knob_values(program: Program, texts: Iterable[str] | None) -> dict[str, Attr]:
    """Values of `NAME=VALUE` texts in the knobs' own types. Raises `VortexError` for unknown or impossible ones."""
    values: dict[str, Attr] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise VortexError(f"--knob needs NAME=VALUE, found {text!r}")
        if name in program.knobs:
            values[name] = _read(program, name, value)
        else:
            values[name] = value  # `bind` says which knobs there are
    program.bind(values)
    return values


def _read(program: Program, name: str, text: str) -> Attr:
    knob = program.knobs[name]
    allowed = {"choice": knob.choices, "bool": (False, True)}.get(knob.kind)
    if allowed is not None:
        for item in allowed:
            if text in (str(item), str(item).lower()):
                return item
        raise VortexError(f"knob {name}: {text!r} is not one of {', '.join(map(str, allowed))}")
    try:
        return knob.check(int(text) if knob.kind == "int" else float(text))
    except ValueError:
        expected = "an integer" if knob.kind == "int" else "a number"
        raise VortexError(f"knob {name}: expected {expected}, found {text!r}") from None


def run_and_rest(values: list[str], least: int, most: int | None, what: str) -> tuple[str, list[str]]:
    """Splits `[RUN] WORD...`, where `least` to `most` words (None: any number) follow a run that may be left out.

    Where that leaves it open, the first word is the run unless it looks like an id. Raises `VortexError` when there
    are too few or too many words; `what` says what the command wants.
    """
    from vortexlab.agent.folders import LATEST

    if len(values) == least:
        named = False
    elif most is not None and len(values) == most + 1:
        named = True
    else:
        named = bool(values) and not values[0].removeprefix("t").isdecimal()
    run, rest = (values[0], values[1:]) if named else (LATEST, values)
    if len(rest) < least or (most is not None and len(rest) > most):
        raise VortexError(f"expected {what}, found {' '.join(values) or 'nothing'}")
    return run, rest
