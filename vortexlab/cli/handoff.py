"""A coding agent in the loop: `vortex ask` prints the prompt, `vortex tell` takes the reply."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, Runs, interval, number, print_json, printable
from vortexlab.cli.results import RunName
from vortexlab.dsl.errors import VortexError

if TYPE_CHECKING:
    from vortexlab.agent.progress import ProgressState

_LIMIT = 1 << 20  # bytes of a reply


def ask(run: RunName = "latest", runs: Runs = "runs", as_json: AsJson = False) -> None:
    """The prompt for the next program, with what was measured so far. Changes nothing."""
    from vortexlab.agent.handoff import ask as prompt

    found = prompt(run, runs)
    if as_json:
        print_json(found)
        return
    for message in found["messages"]:
        print(printable(f"--- {message['role']}\n{message['content'].rstrip()}\n"))
    left = "no limit" if found["budget_left"] is None else f"{found['budget_left']} evaluations left"
    print(printable(f"--- slot {found['slot']} of run {found['run']}, {left}; answer with: {found['answer_with']}"))


def tell(
    values: Annotated[list[str], typer.Argument(metavar="[RUN] REPLY", help="A file with the reply, or - .")],
    runs: Runs = "runs",
    label: Annotated[str, typer.Option(help="Shown beside the program, e.g. `authored`.")] = "",
    as_json: AsJson = False,
) -> int:
    """Evaluate the program of a reply in the run's next slot; status 1 when a gate rejects it.

    REPLY holds the JSON that the prompt asks for, a fenced program, or a bare program.
    """
    from vortexlab.agent.handoff import tell as submit
    from vortexlab.agent.run import Run
    from vortexlab.cli.live import line

    run, (reply,) = options.run_and_rest(values, 1, 1, "[RUN] REPLY")
    text = _text(reply)

    def watch(state: ProgressState) -> None:
        if state.phase == "evaluating":
            print(line(state), file=sys.stderr, flush=True)

    member = submit(text, run, runs, label=label, on_progress=watch)
    found = Run.open(run, runs).member(member.id)
    if as_json:
        print_json(found)
    else:
        verdict = found["verdict"]
        stopped = f" by gate {verdict['gate']}: {verdict['reason']}" if verdict["gate"] else ""
        print(printable(
            f"{member.id} {member.name}: {verdict['status']}{stopped}; speed-up {interval(verdict['speedup'])}, "
            f"accuracy kept {interval(verdict['accuracy'])}, density {number(verdict['density'])}"
            f"{', on the frontier' if member.on_frontier else ''}"
        ))  # fmt: skip
    return 0 if member.status == "accepted" else 1


def _text(reply: str) -> str:
    try:
        if reply == "-":
            data = sys.stdin.buffer.read(_LIMIT + 1)
        else:
            with Path(reply).open("rb") as file:
                data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise VortexError(f"the reply {reply} is larger than {_LIMIT} bytes; give the program alone")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise VortexError(f"the reply {reply} is not UTF-8 text (byte {error.start}); give a text file") from None
    except OSError as error:
        raise VortexError(
            f"cannot read the reply {reply}: {error.strerror}; give a file, or - for standard input"
        ) from None
