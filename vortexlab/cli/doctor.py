"""`vortex doctor`: what this machine can do, and what is missing for the rest; with a run, what its record is worth."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from vortexlab.cli import options
from vortexlab.cli.output import AsJson, NewRuns, print_json, printable, require_runs, table

_PACKAGES = (
    "vortexlab", "torch", "triton", "transformers", "safetensors", "numpy", "optuna", "openai", "datasets", "pandas",
    "pydantic", "plotly",
)  # fmt: skip
_EXTRAS = {
    "ray": "cluster", "optuna_dashboard": "dashboard", "flashinfer": "flashinfer", "vllm": "vllm", "sglang": "",
}  # fmt: skip
_KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN")


def doctor(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="A run, to examine its record instead.")] = "",
    runs: NewRuns = "runs",
    key_variable: Annotated[list[str] | None, typer.Option(help="Another variable that may hold a key.")] = None,
    as_json: AsJson = False,
) -> int:
    """Devices, compilers, versions, engines and keys (whether set, never their values), and what is missing.

    With a run: whether its record is sound. What can be read of a damaged one is written into a new run; exit status 1.
    """
    if run and "runs" in options.given(context):
        require_runs(runs)
    found = examine_run(run, runs) if run else examine(runs, tuple(key_variable or ()))
    status = 1 if found["rescued"] else 0
    if as_json:
        print_json(found)
        return status
    rows = [(item["area"], item["name"], "yes" if item["ok"] else "no", item["detail"]) for item in found["items"]]
    table("", ("area", "what", "works", "detail"), rows)
    print()
    for text in found["missing"] or ["the record is sound" if run else "nothing is missing"]:
        print(printable(text))
    return status


def examine_run(name: str, runs: str) -> dict[str, Any]:
    """The record of a run in the form of `examine`; `rescued` says what a damaged one left, and where it is now."""
    from vortexlab.agent.folders import resolve
    from vortexlab.agent.naming import called
    from vortexlab.agent.rescue import examine, rescue

    folder = resolve(name, runs)
    found = examine(folder)
    kept = f"{len(found.kept)} events, {found.trials} trials"
    items = [{"area": "run", "name": folder.name, "ok": not found.faults, "detail": kept}]
    items += [{"area": "run", "name": "fault", "ok": False, "detail": fault} for fault in found.faults]
    if not found.faults:
        return {"items": items, "missing": [], "rescued": None}
    target = rescue(folder, found)
    again = f"{len(found.measured)} more verdicts need not be measured again" if found.measured else "nothing more"
    return {
        "items": items,
        "missing": [
            f"{folder} is damaged and was left as it is; {kept} are in {target}, and {again}: "
            f"go on with `vortex search --resume {called(target)}`"
        ],
        "rescued": {
            "run": target.name, "folder": str(target), "events": len(found.kept), "trials": found.trials,
            "measured": len(found.measured),
        },
    }  # fmt: skip


def examine(runs: str, variables: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything as JSON: `items` {area, name, ok, detail} and `missing`, one line for each thing to mend; `rescued` is
    of runs alone."""
    items: list[dict[str, Any]] = []
    missing: list[str] = []

    def note(area: str, name: str, ok: bool, detail: str, mend: str = "") -> None:
        items.append({"area": area, "name": name, "ok": ok, "detail": " ".join(detail.split())})
        if not ok and mend:
            missing.append(mend)

    note("python", "version", sys.version_info >= (3, 11), sys.version.split()[0], "Python 3.11 or newer is needed")
    for package in _PACKAGES:
        version = _version(package)
        note("package", package, bool(version), version or "absent", f"install {package}: pip install {package}")
    _devices(note)
    _compilers(note)
    for package, extra in _EXTRAS.items():
        there = find_spec(package) is not None
        how = f"pip install 'vortexlab[{extra}]'" if extra else f"see the documentation of {package}"
        version = _version(package.replace("_", "-")) or "present"
        note("engine", package, there, version if there else f"absent: {how}")
    for name in dict.fromkeys((*_KEYS, *variables)):
        note("key", name, bool(os.environ.get(name)), "set" if os.environ.get(name) else "not set")
    if not any(os.environ.get(name) for name in ("OPENAI_API_KEY", *variables)):
        missing.append(
            "for `--proposer llm`: set OPENAI_API_KEY, or give --base-url of a local endpoint; the grammar proposer "
            "and `vortex ask` need no key"
        )
    _model(note)
    _space(note, runs)
    return {"items": items, "missing": missing, "rescued": None}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _devices(note: Any) -> None:
    from vortexlab.evaluator.config import device_name

    note("device", "cpu", True, f"{device_name('cpu')}, {len(os.sched_getaffinity(0))} usable")
    if not _version("torch"):
        return
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            note("device", f"cuda:{number}", True,
                 f"{facts.name}, {facts.total_memory >> 30} GiB, sm_{facts.major}{facts.minor}")  # fmt: skip
        return
    smi = shutil.which("nvidia-smi")
    why = "torch was built without CUDA" if smi and torch.version.cuda is None else "no GPU that torch can use"
    mend = "for measured GPU speed: run where torch finds a CUDA GPU; here --speed predicted uses the cost model"
    note("device", "cuda", False, why, mend)


def _compilers(note: Any) -> None:
    path = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    mend = "install gcc or clang: Triton needs a C compiler to launch kernels on a GPU"
    note("compiler", "C", path is not None, path or "absent", mend)
    if not _version("triton"):
        note("compiler", "ahead of time", False, "triton is absent", "`vortex check` compiles for GPUs with triton")
        return
    from vortexlab.dsl.errors import VortexError
    from vortexlab.dsl.ir import Static
    from vortexlab.evaluator.executors import EVERYTHING
    from vortexlab.kernels.gpu.report import TARGETS, compile_report

    for target in TARGETS:
        try:
            reports = compile_report(EVERYTHING, Static(8, 4, 128, 128**-0.5), (target,))
            note("compiler", target, True, f"{len(reports)} kernels of dense attention compile")
        except VortexError as error:
            note("compiler", target, False, str(error), f"kernels do not compile for {target}: {error}")


def _model(note: Any) -> None:
    from vortexlab.dsl.errors import VortexError
    from vortexlab.evaluator.config import REFERENCE_MODEL, model_digest

    try:
        note("model", "reference model", True, f"{REFERENCE_MODEL}, content {model_digest(str(REFERENCE_MODEL))[:12]}")
    except VortexError as error:
        note("model", "reference model", False, str(error), "the shipped reference model is missing: reinstall")


def _space(note: Any, runs: str) -> None:
    for name, folder, mend in (
        ("runs", Path(runs), "give a writable folder with --runs"),
        ("scratch", Path(tempfile.gettempdir()), "set TMPDIR to a writable folder"),
    ):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free >> 20
            note("space", name, free >= 1024, f"{folder}: {free} MiB free", f"{name} folder {folder} is short of space")
        except OSError as error:
            why = f"{folder}: {error.strerror}"
            note("space", name, False, why, f"{name} folder cannot be written ({why}): {mend}")
