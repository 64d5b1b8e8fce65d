"""What tests of the command line share: a recorded campaign, and one way to run a command."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign_fakes import FakeEvaluator, config

from vortexlab.agent.campaign import Campaign
from vortexlab.cli.main import run
from vortexlab.cli.schemas import OUTPUTS

#: The programs and knobs of this campaign never change, so tests may name its trials.
NAME, EVALUATIONS = "recorded", 22


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    def json(self, command: str) -> dict[str, Any]:
        """The output, which must have the documented form of `command`."""
        OUTPUTS[command].model_validate_json(self.out)
        return json.loads(self.out)

    def complaint(self) -> str:
        """The one line of bad input: status 2, one line on standard error, no traceback."""
        assert self.status == 2, (self.status, self.out, self.err)
        lines = self.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("vortex: "), self.err
        return lines[0]


def vortex(*arguments: str | Path) -> Done:
    """Runs `vortex` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run([str(argument) for argument in arguments])
    return Done(status, out.getvalue(), err.getvalue())


def record(runs: Path, name: str = NAME, evaluations: int = EVALUATIONS, **changes: Any) -> Path:
    """A finished campaign whose numbers are made up by `FakeEvaluator`; returns its folder."""
    return Campaign(config(runs, name=name, evaluations=evaluations, **changes), evaluator=FakeEvaluator()).run().folder
