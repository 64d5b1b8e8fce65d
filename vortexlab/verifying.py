"""The proof that a deployed package computes, in its engine, what the evaluator measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vortexlab.benching import load_quietly
from vortexlab.deploy import engines, package, selftest
from vortexlab.deploy.package import Package
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import CONTEXT_DENSE, PROMPT_DENSE, REFERENCE_MODEL, model_digest, versions
from vortexlab.evaluator.record import record
from vortexlab.served import Served

_SECONDS = 1800.0


def verify_package(
    directory: Path,
    *,
    model: str | Path | None = None,
    device: str | None = None,
    engine: str | None = None,
    python: str = sys.executable,
    accuracy: int = 0,
    speed: bool = False,
    lengths: tuple[int, ...] = (),
    batches: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Runs the self-test of a package in its engine, in a fresh process, and through the evaluator; compares both.

    Three `comparisons`: `engine` (the deployed package against the evaluator, both now), `recorded` (the package
    against what was recorded at export) and `evaluator` (the evaluator now against then). The last two are None for
    another model than the recorded one. Beside them `selections` (what the engine read against what the reference
    allows), in transformers `served` (the same as `engine` with the whole prompt dense), and, where asked for,
    `accuracy` with so many sealed contexts a task and `speed` against the engine's own attention, at `lengths` and
    `batches`. `engine`: by default the one that the package was written for; `python`: the interpreter that it is
    installed in. `ok` when none fails. Raises `VortexError` when the folder is no package, its program was changed, or
    there is no model.
    """
    exported = package.read(directory)
    tests = exported.selftest
    chosen = _engine(exported, engine)
    kind, protocol = ("cases", CONTEXT_DENSE) if chosen.name == "transformers" else ("served", PROMPT_DENSE)
    try:
        cases, digest, dtype = list(tests[kind]), str(tests["model_digest"]), str(tests["dtype"])
        device = device or str(tests["device"])
        for part in (tests["cases"], tests["served"]):  # finds cases that are damaged, and cases that say nothing
            if not all(case["logits"] for case in part) or not selftest.judge(part, part, dtype)["cases"]:
                raise ValueError("a case without an answer")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise VortexError(f"the self-test of {directory} is damaged ({error!r}); export it again") from error
    folder = _model_folder(model, digest)
    same = model_digest(folder) == digest
    loaded = load_quietly(folder, device, dtype)
    asked = cases if protocol == CONTEXT_DENSE else _asked(cases)
    now = record(exported.program, loaded, asked, selftest.sketch, protocol)
    with Served(exported, directory, folder, dtype, python, device) as served:
        if protocol == CONTEXT_DENSE:  # an engine that can be asked both ways
            answer = _run_package(exported, folder, now, device, dtype)
            outcomes, imported = answer["outcomes"], answer["module"]
            whole = record(exported.program, loaded, _asked(tests["served"]), selftest.sketch, PROMPT_DENSE)
            in_engine, selections = served.selftest(whole)
            more: dict[str, Any] = {"served": selftest.judge(whole, in_engine, dtype)}
        else:
            outcomes, selections = served.selftest(now)
            imported, more = str(served.site), {}
        more |= {"engine_version": served.version, "selections": selections}
        if accuracy:
            more["accuracy"] = served.accuracy(loaded, accuracy)
        if speed:
            more["speed"] = served.speed(lengths, batches)
    comparisons = {
        "engine": selftest.judge(now, outcomes, dtype),
        "recorded": selftest.judge(cases, outcomes, dtype) if same else None,
        "evaluator": selftest.judge(cases, now, dtype) if same else None,
    }
    parts = [found for found in (*comparisons.values(), *more.values()) if isinstance(found, dict) and "ok" in found]
    return {
        "package": exported.module,
        "program_hash": exported.manifest["program_hash"],
        "engine": chosen.name,
        "imported_from": imported,
        "model": folder,
        "device": device,
        "dtype": dtype,
        "protocol": protocol,
        "versions": versions(),
        "density": sum(case["density"] for case in outcomes) / len(outcomes),
        "comparisons": comparisons,
        **more,
        "ok": all(found["ok"] for found in parts),
    }


def _asked(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The questions of cases alone. An engine tells of its likeliest tokens, which are others on another model."""
    return [{"context": case["context"], "question": case["question"], "length": len(case["logits"])} for case in cases]


def _engine(exported: Package, name: str | None) -> engines.Engine:
    """The engine to verify in. Raises `VortexError` where the package is for another, or the engine cannot be run."""
    own = str(exported.manifest["engine"])
    if name not in (None, own):
        raise VortexError(f"this package was written for {own}; export it with --to {name} to verify it there")
    if own == "sglang":
        raise VortexError(
            "packages for sglang cannot be verified: this release has not been run in SGLang; export the program with "
            "--to transformers or --to vllm to verify what it computes"
        )
    return engines.find(own)


def _model_folder(model: str | Path | None, digest: str) -> str:
    """The model to verify on: the given one, or the shipped one where the package was recorded on that."""
    if model is not None:
        model_digest(str(model))
        return str(Path(model).absolute())
    if model_digest(str(REFERENCE_MODEL)) == digest:
        return str(REFERENCE_MODEL)
    raise VortexError("this package was measured on another model than the shipped one; name its folder with --model")


def _run_package(exported: Package, model: str, cases: list[dict[str, Any]], device: str, dtype: str) -> dict[str, Any]:
    """The cases through transformers in a new process. Raises `VortexError` when that does not end with outcomes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory(prefix="vortex-verify-") as scratch:
        file = Path(scratch) / "cases.json"
        file.write_text(json.dumps(cases))
        command = [
            sys.executable, "-m", "vortexlab.deploy.selftest", str(exported.root.absolute()), model, str(file),
            "--module", exported.module, "--device", device, "--dtype", dtype,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, env=environment, cwd=scratch
            )
        except subprocess.TimeoutExpired:
            raise VortexError(f"the package did not end its self-test in {_SECONDS:g} s") from None
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VortexError(f"the package does not run (status {done.returncode}): {last[:300]}") from None
    if "refused" in answer:
        raise VortexError(answer["refused"])
    return dict(answer)
