"""`vortex dashboard`: a campaign in optuna-dashboard."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vortexlab.cli.output import AsJson, Runs, print_json, printable

RunName = Annotated[str, typer.Argument(metavar="[RUN]", help="A run's name or folder; by default the newest.")]


def dashboard(
    run: RunName = "latest",
    runs: Runs = "runs",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen at; any other lets others look.")] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Shows a campaign in optuna-dashboard until Ctrl-C; it reads, and changes nothing."""
    from vortexlab.agent.run import Run
    from vortexlab.dashboard import mirror, require, serve, server

    require()
    opened = Run.open(run, runs)
    with mirror(opened) as (file, live), server(file, host, port) as made:
        address = f"http://{f'[{host}]' if ':' in host else host}:{made.server_port}/"

        def tell() -> None:
            if as_json:
                print_json({"run": opened.name, "address": address, "file": str(file), "live": live})
            else:
                what = "as it goes on" if live else f"as it stands, {len(opened.trials)} programs"
                print(printable(f"{opened.name}, {what}: {address} (Ctrl-C ends this)"))
            sys.stdout.flush()

        serve(made, tell)
