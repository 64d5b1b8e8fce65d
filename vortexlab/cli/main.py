"""`vortex`: the commands, and what becomes of errors.

Exit status: 0 done; 1 the answer is no (a program fails a gate, a package fails its verification, a record is
damaged); 2 bad usage or bad input, with one line on standard error that says what is wrong and how to mend it; 130
interrupted. A fault of ours is the only thing that prints a traceback, with status 70.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

import typer

from vortexlab.cli.output import printable
from vortexlab.dsl.errors import VortexError

DONE, NO, BAD_INPUT, FAULT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141
# typer's own base of every complaint about the command line; where its module lies differs between versions.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

#: The commands in the order of their list, and where the function of each is.
COMMANDS = {
    "init": "init.init",
    "search": "search.search",
    "status": "results.status",
    "leaderboard": "results.leaderboard",
    "show": "results.show",
    "compare": "results.compare",
    "report": "results.report",
    "dashboard": "dashboard.dashboard",
    "explain": "explain.explain",
    "finals": "finals.finals",
    "check": "programs.check",
    "eval": "programs.evaluate",
    "bench": "bench.bench",
    "export": "deployment.export",
    "verify": "deployment.verify",
    "ask": "handoff.ask",
    "tell": "handoff.tell",
    "propose": "requests.propose",
    "pin": "requests.pin",
    "pause": "requests.pause",
    "resume": "requests.resume",
    "tune": "tune.tune",
    "runs": "runs.runs",
    "pack": "runs.pack",
    "unpack": "runs.unpack",
    "clean": "clean.clean",
    "tasks": "tasks.tasks",
    "attack": "attack.attack",
    "doctor": "doctor.doctor",
}


def application(words: Sequence[str] = ()) -> typer.Typer:
    """The command that `words` begin with; all where they begin with none, for a list or a hint."""
    made = typer.Typer(
        name="vortex",
        help="Write, search, measure and deploy sparse attention patterns over a paged KV cache.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback(invoke_without_command=True)(version)
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:  # the others would take a while to load
        module, _, function = COMMANDS[name].partition(".")
        made.command(name=name)(getattr(import_module(f"vortexlab.cli.{module}"), function))
    return made


def version(show: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    if show:
        from vortexlab import __version__

        print(f"vortexlab {__version__}")
        raise typer.Exit


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status; nothing but faults of ours is raised or traced."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of runs and programs need not fit the encoding of a terminal
            stream.reconfigure(errors="backslashreplace")
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        status = application(words)(args=words, prog_name="vortex", standalone_mode=False)
        sys.stdout.flush()
        return int(status or DONE)
    except VortexError as error:
        return _complain(str(error))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            return BAD_INPUT  # the help was printed
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "vortex"
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        return _complain(f"{text.rstrip('.')}; see `{path} --help`")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # rich and typer end the process when nobody reads its output any more
        return _unread()
    except OSError as error:
        if error.errno == errno.EIO and not error.filename:  # the terminal was closed
            return _unread()
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or str(error)
        status = _complain(f"cannot read or write{where}: {reason}; check the path, its permissions and free space")
        _forget_output()
        return status
    except Exception:
        traceback.print_exc()
        print("vortex: this is a fault of Vortex, not of your input; please report it", file=sys.stderr)
        return FAULT


def _complain(line: str) -> int:
    with suppress(OSError):  # nobody may be there to read it
        print(f"vortex: {printable(' '.join(line.split()))}", file=sys.stderr)
    return BAD_INPUT


def _unread() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    return BROKEN_PIPE


def _forget_output() -> None:
    """After a write to standard output failed, what is left in its buffer must not fail again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """One command of this process, which ends here (`vortexlab.cli.__main__`)."""
    status = run()
    if "vortexlab.agent.cluster" in sys.modules:
        from vortexlab.agent.cluster import leave

        leave(status)
    sys.exit(status)
