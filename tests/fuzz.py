"""Long random comparison of an executor with the reference.

    python -m tests.fuzz programs --count 2000
    python -m tests.fuzz whole --count 20000 --jobs 14
    python -m tests.fuzz seeds --count 200
    python -m tests.fuzz whole --count 1000 --shrink
    python -m tests.fuzz programs --executor vortexlab.kernels.torch_executor:TorchExecutor --first 5000 --count 100

`programs` draws random typed programs, one configuration each; `whole` those of the whole language, over steps, layers
and prompts, on grouped and latent heads, in all precisions; `seeds` takes every published program through random
configurations with pages of 8 to 64 tokens and lengths to 4,096. Each configuration also goes through one of the
changes that must not matter (physical layout, batch, later tokens, growth, shared prefixes). Prints each disagreement
with what makes it again, with --shrink also the least program and configuration that still disagree, then the totals;
the exit status is 1 if there was any disagreement.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from tests.differential import (
    Expected,
    Report,
    check_causality,
    check_growth,
    check_layouts,
    check_rows,
    check_sharing,
    compare,
)
from tests.differential_course import compare_course
from tests.shrink import Setting, Shrunk, shrink
from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.dsl.testing import (
    DTYPES,
    EXACT_KINDS,
    FP8_DTYPES,
    PAGES,
    REAL_KINDS,
    Case,
    Course,
    random_case,
    random_course,
    random_program,
)
from vortexlab.search_spaces import load, seeds

TORCH = "vortexlab.kernels.torch_executor:TorchExecutor"
CHECKS = ("layouts", "rows", "causality", "growth", "sharing", "none")


def executor_class(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def judge(executor: Any, case: Case, check: str) -> Report:
    """One configuration, and one of the changes that must not matter."""
    expected = Expected.of(case)
    report = compare(executor, case, expected=expected)
    changed = {
        "layouts": lambda: check_layouts(executor, case, expected),
        "rows": lambda: check_rows(executor, case, expected),
        "causality": lambda: check_causality(executor, case, expected),
        "growth": lambda: check_growth(executor, case, expected, 6),
        "sharing": lambda: check_sharing(executor, case, 6),
        "none": Report,
    }[check]()
    report.disagreements += changed.disagreements
    return report


def again(executor: Any, program: str | Program, setting: Setting, check: str | None = None) -> Report:
    """Compares a program in one setting: a case under a change that must not matter, or without `check` a course."""
    bound = parse(program).bind() if isinstance(program, str) else program
    if check is None:
        return course_report(executor, setting.course(bound))
    return judge(executor, setting.case(bound), check)


def course_report(executor: Any, course: Course) -> Report:
    try:
        return compare_course(executor, course)
    except Exception as error:  # whatever an executor raises is one more disagreement
        return Report(disagreements=[f"crashed: {type(error).__name__}: {error}"])


def _crash(report: Report) -> str:
    """The kind of a report's first crash, so that shrinking keeps to it; the empty text where it ended well."""
    crashes = [line.split(":")[1] for line in report.disagreements if line.startswith("crashed:")]
    return crashes[0] if crashes else ""


def shrunk(executor: Any, program: Program, setting: Setting, check: str | None, seconds: float) -> Shrunk:
    """The least program and setting that still disagree; raises `VortexError` where these do not."""
    kind = _crash(again(executor, program, setting, check))

    def disagrees(program: Program, setting: Setting) -> bool:
        report = again(executor, program, setting, check)
        return bool(report.disagreements) and _crash(report) == kind

    return shrink(program, setting, disagrees, seconds=seconds)


def print_shrunk(executor: Any, program: Program, setting: Setting, check: str | None, seconds: float) -> None:
    """Prints what `again` takes to make the least disagreement once more."""
    try:
        found = shrunk(executor, program, setting, check, seconds)
    except VortexError as error:
        print(f"not shrunk: {error}", flush=True)
        return
    end = "nothing smaller disagrees" if found.finished else "time is up"
    how = "" if check is None else f', "{check}"'
    print(
        f"shrunk in {found.tried} runs; {end}. tests.fuzz.again(executor, TEXT, {found.setting}{how}) of this TEXT:\n"
    )
    print(found.text, flush=True)


def random_programs(first: int, count: int, only: list[str] | None = None) -> Iterator[tuple[str, Case]]:
    """Seed `first`, `first` + 1, ...: a program and a configuration of it.

    Every other program is smooth; those get no inputs made of ties, which fp32 rounding would leave undecided, unless
    the kinds of inputs are given (`only`).
    """
    for seed in range(first, first + count):
        smooth = seed % 2 == 0
        text = random_program(random.Random(seed), smooth=smooth)
        kinds = ("integers", "dyadic", *REAL_KINDS) if smooth else (*EXACT_KINDS, *REAL_KINDS)
        yield f"program {seed}", random_case(seed, parse(text), max_length=300, kinds=tuple(only or kinds))


def published(first: int, count: int, names: list[str] | None = None) -> Iterator[tuple[str, Case]]:
    """Every published program in `count` configurations; one in eight has lengths to 4,096."""
    for name in names or sorted(seeds()):
        program = load(name)
        for seed in range(first, first + count):
            yield f"{name} {seed}", seed_case(program, seed)


def seed_case(program: Program, seed: int) -> Case:
    rng = random.Random(f"{program.name} {seed}")
    longest = 4096 if seed % 8 == 0 else 500
    page = rng.choice(PAGES)
    while True:
        try:
            return random_case(rng.randrange(2**32), program, page=page, max_length=longest)
        except VortexError:
            page = 16  # the drawn page does not divide as the drawn knobs ask


def total_of(
    executor: Any, cases: Iterator[tuple[str, Case]], *, stop: bool = False, seconds: float = float("inf"),
    shrinking: float = 0.0,
) -> tuple[Report, int, int]:  # fmt: skip
    """The sum of all reports, the number of configurations, and of those in which a NaN occurred.

    With `stop` it ends at the first disagreement. Each is shrunk for `shrinking` seconds, if that is not 0.
    """
    total, count, nan, ends = Report(), 0, 0, time.monotonic() + seconds
    for name, case in cases:
        if time.monotonic() > ends:
            break
        check = CHECKS[count % len(CHECKS)]
        report = judge(executor, case, check)
        for line in report.disagreements[:2]:
            print(f"{name}: {line}", flush=True)
        if report.disagreements and shrinking:
            print_shrunk(executor, case.program, Setting.of(case), check, shrinking)
        nan += report.nan
        total.add(report)
        count += 1
        if stop and report.disagreements:
            break
    return total, count, nan


def whole_programs(
    executor: Any, first: int, count: int, *, stop: bool = False, seconds: float = float("inf"), shrinking: float = 0.0
) -> tuple[Report, int, int]:
    """`total_of` for courses of seed `first`, `first` + 1, ... through the whole language, until time is up."""
    total, nan, done, ends = Report(), 0, 0, time.monotonic() + seconds
    for seed in range(first, first + count):
        if time.monotonic() > ends:
            break
        course = whole_course(seed)
        report = course_report(executor, course)
        for line in report.disagreements[:2]:
            print(f"whole {seed}: {line}", flush=True)
        if report.disagreements and shrinking:
            print_shrunk(executor, course.case.program, Setting.of(course), None, shrinking)
        nan += report.nan
        total.add(report)
        done += 1
        if stop and report.disagreements:
            break
    return total, done, nan


def in_parts(jobs: int, arguments: list[str], count: int, first: int) -> int:
    """Runs this module in `jobs` processes, a part of the seeds each, and adds up their totals."""
    each = -(-count // jobs)
    parts = [range(at, min(at + each, first + count)) for at in range(first, first + count, each)]
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    running = [
        subprocess.Popen([*command, "--first", str(part.start), "--count", str(len(part))], stdout=subprocess.PIPE,
                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for part in parts
    ]  # fmt: skip
    totals: dict[str, Any] = {}
    failed = 0
    for process in running:
        out, _ = process.communicate()
        *lines, last = out.strip().splitlines() or [""]
        for line in lines:
            print(line, flush=True)
        failed |= process.returncode
        if not last.startswith("{"):
            print(f"a part of the seeds ended without totals: {last}", flush=True)
            failed = 1
            continue
        for key, value in ast.literal_eval(last).items():
            totals[key] = max(totals.get(key, 0), value) if key in _LARGEST else totals.get(key, 0) + value
    totals["share_differing"] = totals.get("differing", 0) / max(1, totals.get("pages", 0))
    print(totals)
    return failed


#: Totals of which the largest of all parts is told; the others add up.
_LARGEST = ("worst_error", "seconds")


def whole_course(seed: int) -> Course:
    smooth = seed % 2 == 0
    program = parse(random_program(random.Random(seed), smooth=smooth, whole=True))
    kinds = ("integers", "dyadic", *REAL_KINDS) if smooth else (*EXACT_KINDS, *REAL_KINDS)
    options: dict[str, Any] = {"kinds": kinds, "dtypes": (*FP8_DTYPES, *DTYPES), "latent": True}
    return random_course(seed, program, max_length=70, steps=4, **options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("programs", "whole", "seeds"))
    parser.add_argument("--executor", default=TORCH, help="module:class")
    parser.add_argument("--first", type=int, default=0, help="the first random seed")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--name", action="append", help="one published program; may be given again")
    parser.add_argument(
        "--kind", action="append", choices=EXACT_KINDS + REAL_KINDS, help="one kind of inputs of random programs"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more after so long")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--stop", action="store_true", help="end at the first disagreement")
    parser.add_argument(
        "--shrink", type=float, nargs="?", const=180.0, default=0.0, metavar="SECONDS",
        help="make each disagreement small, for 180 seconds or as many as given",
    )  # fmt: skip
    given = parser.parse_args()
    if given.jobs > 1:
        arguments = [given.what, "--executor", given.executor, "--seconds", str(given.seconds)]
        arguments += [f"--name={name}" for name in given.name or ()] + ["--stop"] * given.stop
        arguments += [f"--kind={kind}" for kind in given.kind or ()]
        arguments += ["--shrink", str(given.shrink)] if given.shrink else []
        return in_parts(given.jobs, arguments, given.count, given.first)
    options = {"stop": given.stop, "seconds": given.seconds, "shrinking": given.shrink}
    torch.set_num_threads(1)
    started = time.perf_counter()
    executor = executor_class(given.executor)
    if given.what == "whole":
        total, count, nan = whole_programs(executor, given.first, given.count, **options)
    else:
        programs = given.what == "programs"
        span = (given.first, given.count)
        cases = random_programs(*span, given.kind) if programs else published(*span, given.name)
        total, count, nan = total_of(executor, cases, **options)
    facts = {key: value for key, value in asdict(total).items() if key not in ("disagreements", "nan")}
    facts |= {"configurations": count, "with_nan": nan, "disagreements": len(total.disagreements)}
    facts |= {"share_differing": total.differing / max(1, total.pages), "seconds": round(time.perf_counter() - started)}
    print(facts)
    return 1 if total.disagreements else 0


if __name__ == "__main__":
    sys.exit(main())
