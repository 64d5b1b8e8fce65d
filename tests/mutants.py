"""Does the suite notice when a check of the evaluator is gone? Run by hand; it takes hours on two cores.

    python tests/mutants.py [--module NAME ...] [--sample N] [--minutes M] [--results FILE]

Every comparison and condition of the rooms below is inverted, every ``raise`` and every call made for its effect alone
is dropped, ``and`` and ``or`` change places, one at a time and in random order, so that a run that is cut off has tried
a fair sample. For each, the tests of that room run in a process of their own against a copy of the package that differs
in this one file. A mutant that no test notices survives: write the test, or say in `EQUIVALENT` why nothing could.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: The farm is this process's own, so that several may try different rooms at once.
LINKED, FARM = ROOT / "build" / "linked", ROOT / "build" / f"mutant-{os.getpid()}"
#: Room -> the tests that must notice, the quickest first.
TESTS = {
    "frames": [
        "tests/test_attacks_process.py::test_messages_are_bounded_and_finite",
        "tests/test_attacks_process.py::test_a_stream_ends_between_messages_and_nowhere_else",
        "tests/test_faults.py",
    ],
    "replies": ["tests/test_evaluator_replies.py"],
    "verdict": ["tests/test_evaluator_statements.py", "tests/test_store_forms.py"],
    "statistics": ["tests/test_evaluator_statements.py", "tests/test_ladder_audit.py"],
    "numerics": ["tests/test_evaluator_gates.py", "tests/test_attacks_corpus.py"],
    "fidelity": ["tests/test_evaluator_gates.py", "tests/test_evaluator_precision.py"],
    "speed": [
        "tests/test_evaluator_speed.py",
        "tests/test_evaluator_precision.py",
        "tests/test_evaluator_phases.py",
        "tests/test_attacks_corpus.py",
    ],
    "timing": ["tests/test_evaluator_speed.py", "tests/test_evaluator_worker.py"],
    "evaluator": [
        "tests/test_evaluator_rules.py",
        "--deselect",
        "tests/test_evaluator_rules.py::test_a_package_says_under_which_conditions_its_numbers_hold",
        "tests/test_worded_tasks.py",
    ],
    "workplace": [
        "tests/test_evaluator_rules.py",
        "--deselect",
        "tests/test_evaluator_rules.py::test_a_package_says_under_which_conditions_its_numbers_hold",
        "tests/test_walls.py::test_a_wall_that_keeps_a_gpu_from_working_is_named",
        "tests/test_context_cache.py",
    ],
    "oracle": ["tests/test_oracles.py"],
    "worker": ["tests/test_evaluator_worker.py", "tests/test_evaluator_evaluate.py"],
    "sandbox": [
        "tests/test_sandbox.py",
        "tests/test_faults.py",
        "tests/test_walls.py",
        "tests/test_attacks_process.py",
    ],
    "locks": ["tests/test_locks.py"],
    "scratch": ["tests/test_scratch.py", "tests/test_walls.py", "tests/test_attacks_process.py"],
    "procfs": ["tests/test_sandbox.py", "tests/test_faults.py", "tests/test_walls.py", "tests/test_attacks_process.py"],
    "walls": ["tests/test_walls_kernel.py", "tests/test_walls.py", "tests/test_attacks_process.py"],
    "confine": ["tests/test_walls_kernel.py", "tests/test_walls.py", "tests/test_attacks_process.py"],
}
#: Runs tests among processes of their own: a sandbox that takes others for its own ends every process that it sees.
ALONE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]
#: Mutants that change nothing which could be noticed: room and source line -> why.
EQUIVALENT: dict[tuple[str, str], str] = {}

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    room: str
    line: int
    what: str
    source: str
    number: int


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may be replaced by."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = copy.deepcopy(node)
        other.ops = [_OPPOSITE[type(node.ops[0])]()]
        yield "comparison inverted", other
    elif isinstance(node, ast.Compare):
        yield "comparison inverted", ast.UnaryOp(ast.Not(), copy.deepcopy(node))
    elif isinstance(node, ast.BoolOp):
        other = copy.deepcopy(node)
        other.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "and for or", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", copy.deepcopy(node.operand)
    elif isinstance(node, ast.Raise):
        yield "raise dropped", ast.Pass()
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call dropped", ast.Pass()
    elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
        other = copy.deepcopy(node)
        other.test = ast.UnaryOp(ast.Not(), other.test)
        yield "condition inverted", other


def _replace(tree: ast.AST, target: ast.AST, other: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, other)
                return
            if isinstance(value, list):
                for at, item in enumerate(value):
                    if item is target:
                        value[at] = other
                        return


def _nodes(tree: ast.AST) -> list[ast.AST]:
    """All that may be changed, in a fixed order. `assert` is left alone: it tells the type checker what is known."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.Assert):
            found.append(node)
            todo.extend(ast.iter_child_nodes(node))
    return found


def mutants(room: str) -> list[Mutant]:
    """Every mutant of a room, without its text."""
    source = (ROOT / "evaluator" / f"{room}.py").read_text()
    lines = source.splitlines()
    return [
        Mutant(room, node.lineno, what, lines[node.lineno - 1].strip(), number)
        for number, node in enumerate(_nodes(ast.parse(source)))
        for what, _ in _variants(node)
    ]


def text_of(mutant: Mutant) -> str:
    tree = ast.parse((ROOT / "evaluator" / f"{mutant.room}.py").read_text())
    node = _nodes(tree)[mutant.number]
    ((_, other),) = _variants(node)
    _replace(tree, node, other)
    return ast.unparse(ast.fix_missing_locations(tree))


def run(mutant: Mutant, seconds: float) -> str:
    """``caught``, ``survived`` or ``time`` (caught too: the suite does not come back)."""
    place = FARM / "vortexlab" / "evaluator" / f"{mutant.room}.py"
    place.unlink()
    place.write_text(text_of(mutant))
    try:
        return suite_says(mutant.room, seconds)
    finally:
        place.unlink()
        place.symlink_to(ROOT / "evaluator" / f"{mutant.room}.py")


def suite_says(room: str, seconds: float) -> str:
    """What the tests of a room say of the farm as it is; `-P`, or they would find the checkout before it."""
    tests = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS[room]]
    child = subprocess.Popen(
        [*ALONE, *tests], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(FARM)}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        return "survived" if child.wait(seconds) == 0 else "caught"
    except subprocess.TimeoutExpired:
        return "time"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", choices=list(TESTS), help="only this room; repeatable")
    parser.add_argument("--sample", type=int, default=0, help="at most so many of each room; 0 for all")
    parser.add_argument("--minutes", type=float, default=1e9, help="nothing is begun after these")
    parser.add_argument("--seconds", type=float, default=180.0, help="for the tests of one mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--list", action="store_true", help="only count them")
    words = parser.parse_args()
    rooms = words.module or list(TESTS)
    chosen = {room: mutants(room) for room in rooms}
    if words.list:
        print("\n".join(f"{room:<12}{len(found):>5}" for room, found in chosen.items()))
        return 0
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        sys.exit("mutants need a process namespace of their own (unshare): one of the sandbox may kill all it finds")
    shutil.rmtree(FARM, ignore_errors=True)
    shutil.copytree(LINKED, FARM, symlinks=True)
    for name in rooms:
        if suite_says(name, 4 * words.seconds) != "survived":
            sys.exit(f"the tests of {name} fail without a mutant: {' '.join(TESTS[name])}")
    ends, counts, survivors = time.monotonic() + 60 * words.minutes, {"caught": 0, "survived": 0, "time": 0}, []
    queue = []
    for found in chosen.values():
        random.Random(words.seed).shuffle(found)
        queue += list(enumerate(found[: words.sample or None]))
    done = {tuple(json.loads(line)["key"]) for line in words.results.read_text().splitlines()} if (
        words.results.exists()) else set()  # fmt: skip
    for _, mutant in sorted(queue, key=lambda item: item[0]):
        key = (mutant.room, mutant.line, mutant.what, mutant.source)
        if time.monotonic() > ends:
            break
        if key in done:
            continue
        result = run(mutant, words.seconds)
        with words.results.open("a") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
        counts[result] += 1
        if result == "survived" and not any(
            room == mutant.room and mutant.source.startswith(line) for room, line in EQUIVALENT
        ):
            survivors.append(mutant)
            print(f"SURVIVED {mutant.room}.py:{mutant.line} {mutant.what}: {mutant.source}", flush=True)
    shutil.rmtree(FARM, ignore_errors=True)
    tried, caught = sum(counts.values()), counts["caught"] + counts["time"]
    print(f"{tried} tried, {caught} caught ({counts['time']} by time), {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
