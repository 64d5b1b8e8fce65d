"""Makes the table of tuned tiles and splits that is shipped for a GPU, in pieces of some minutes each.

    PYTHONPATH=build/linked python benchmarks/tune_attention.py --out DIR [--seconds 540] [--resume DIR/tune.json]

DIR/tune.json holds what came of every case, the shipped table's file (DIR/nvidia-h200.json) those that beat the rule:
it belongs in kernels/gpu/tables. Cases that matter most come first. Candidates are compiled first, by all processors.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_times import GEOMETRIES
from records import Records, conditions

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.kernels.gpu import tuning
from vortexlab.kernels.gpu.tune import tune
from vortexlab.kernels.gpu.tune_compile import compile_ahead
from vortexlab.kernels.gpu.tune_trial import Problem

#: Keys of GLM-4.7-Flash.
MLA = Static(1, 20, 576, 256**-0.5, latent=512)
LISTED = 2048
#: Batches and contexts, in rounds: those that matter most first. Lists are read alike at any context.
ROUNDS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((8, 32, 1), (32768,)),
    ((8, 32, 1), (4096, 131072)),
    ((16, 64), (32768, 4096, 131072)),
)


def problems(rehearse: bool = False) -> Iterator[Problem]:
    """Every case once; those of a rehearsal are tiny."""
    if rehearse:
        yield Problem(Static(2, 2, 16, 0.25), "bf16", 2, 64)
        yield Problem(Static(1, 4, 48, 0.2, latent=32), "bf16", 2, 64, 16, 32)
        return
    statics = [*(geometry.static for geometry in GEOMETRIES), MLA]
    for number, (batches, contexts) in enumerate(ROUNDS):
        for batch in batches:
            for static in statics:
                yield from (Problem(static, "bf16", batch, context) for context in contexts)
                if number != 1:
                    yield from (Problem(static, "bf16", batch, 32768, page, LISTED) for page in (16, 64))
    for batch in ROUNDS[0][0]:  # blocks of 64, as serving engines have them
        yield from (Problem(static, "bf16", batch, 32768, 64) for static in statics)


def table(rows: list[dict[str, Any]], device: str) -> tuning.Table:
    """The entries of the rows that have one."""
    return tuning.Table(device, tuple(tuning.Entry.from_json(row["entry"]) for row in rows if row.get("entry")))


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), metavar="DIR")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="the tune.json to go on from")
    parser.add_argument("--seconds", type=float, default=540.0, help="begin nothing new after so many; 540")
    parser.add_argument("--each", type=float, default=6.0, help="seconds that a case may take at most; 6")
    parser.add_argument("--compile-share", type=float, default=0.5, help="most of the time that goes into compiling")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile; one a core")
    parser.add_argument("--rehearse", action="store_true", help="tiny cases, in Triton's interpreter where set")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.rehearse):
        print("benchmarks/tune_attention.py needs a GPU; --rehearse runs tiny cases anywhere", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    name = tuning.device_name(device)
    options.json = options.out / "tune.json"
    records = Records(options, conditions(), ("work",))
    left = [problem for problem in problems(options.rehearse) if records.find(work=str(problem)) is None]

    def say(line: str) -> None:
        print(f"[{options.seconds - records.seconds_left:5.0f} s] {line}", flush=True)

    say(f"{len(left)} cases to tune on {name}")
    seconds = options.compile_share * options.seconds
    failed = compile_ahead(left, device, seconds, options.workers, say) if options.workers > 1 else {}
    for outcome, entry in tune(left, device, records.seconds_left, each=options.each, failed=failed, say=say):
        row = {"work": str(outcome.problem), **outcome.to_json(), "entry": entry and entry.to_json()}
        records.rows.append(row if outcome.us is not None else row | {"error": outcome.reason})
        records.write()
        table(records.rows, name).write(options.out / tuning.file_name(name))
    won = len(table(records.rows, name).entries)
    say(f"{won} of {len(records.rows)} cases beat the rule; {len(list(records.errors()))} without an answer")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VortexError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
