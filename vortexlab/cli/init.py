"""`vortex init`: a commented configuration file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vortexlab.cli.output import AsJson, Runs, print_json, printable
from vortexlab.dsl.errors import VortexError

STANDARD_OUTPUT = "-"


def init(
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="The file, or - to print it; by default campaign.toml.")
    ] = Path("campaign.toml"),
    preset: Annotated[
        str | None, typer.Option(metavar="quick|night|cluster", help="What to start from; by default quick.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Write the configuration of a recorded run.")
    ] = None,
    runs: Runs = "runs",
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a configuration with every key, its meaning, its default and its alternatives.

    `vortex search --config FILE` runs it.
    """
    from vortexlab.configuration.presets import PRESETS
    from vortexlab.configuration.presets import preset as named
    from vortexlab.configuration.writing import sections_of, text_of, write_file

    if as_json and str(file) == STANDARD_OUTPUT:
        raise VortexError("--json tells about the file, and - prints it instead; leave one out")
    if run is not None:
        from vortexlab.agent.run import Run

        if preset is not None:
            raise VortexError("--preset and --from were given; leave one out")
        opened = Run.open(run, runs)
        origin, text = opened.name, text_of(sections_of(opened.config), f"The settings of run {opened.name}")
    else:
        origin = preset or "quick"
        sections = named(origin)
        text = text_of(sections, f"A campaign of Vortex: {PRESETS[origin][0]} (preset {origin})")
    if str(file) == STANDARD_OUTPUT:
        print(text, end="")
        return
    write_file(file, text, force)
    if as_json:
        print_json({"file": str(file), "preset": "" if run else origin, "run": origin if run else ""})
    else:
        print(printable(str(file)))
