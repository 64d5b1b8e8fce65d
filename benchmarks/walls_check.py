"""Does a worker do its work on this machine's device behind all of the sandbox's walls? A table, and status 1 if not.

    PYTHONPATH=build/linked python benchmarks/walls_check.py [--device cuda]

Three programs go through every gate with the shipped reference model, which compiles, captures and times kernels in
the worker; then hostile code tries, behind the same walls, what only the kernel can refuse.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time

import torch
import triton

from vortexlab import search_spaces
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.attacks import processes
from vortexlab.evaluator.attacks.attack import LIMITED
from vortexlab.evaluator.config import EvaluationConfig, device_name
from vortexlab.evaluator.evaluator import Evaluator
from vortexlab.evaluator.sandbox import LEFT_OUT, has_bubblewrap, left_out

PROGRAMS = {"quest": {"page": 16, "budget": 8}, "top_p": {}, "centroid": {"page": 16, "budget": 8}}
#: What is refused on every device. A driver keeps memory without a name, and needs address space without end.
HOSTILE = ("kill", "files elsewhere", "orphan", "network", "secrets", "writes outside", "modifies")


def evaluate(device: str) -> bool:
    """Whether each of the programs gets through, or is told apart by what it computes: no worker may be lost."""
    config = EvaluationConfig(tasks=("keys",), lengths=(512,), contexts=4, screen_contexts=2, device=device)
    began, well = time.monotonic(), True
    with Evaluator(config) as evaluator:
        evaluator.open()
        print(f"opened in {time.monotonic() - began:.1f} s; dense attention scores {evaluator.dense_scores()}")
        for name, knobs in PROGRAMS.items():
            verdict = evaluator.evaluate(search_spaces.seeds()[name], knobs)
            speedup = "none" if verdict.speedup is None else f"{verdict.speedup.value:.2f}"
            accuracy = "none" if verdict.accuracy is None else f"{verdict.accuracy.value:.2f}"
            well = well and verdict.status != "error"
            print(f"{name:<10} {verdict.status} {verdict.gate or ''} {verdict.reason} speed-up {speedup} "
                  f"accuracy {accuracy} in {verdict.seconds:.1f} s; alarms: {list(verdict.alarms)}")  # fmt: skip
            for gate in verdict.gates:
                print(f"    {gate.name:<10}{'passed' if gate.passed else 'failed'} in {gate.seconds:.1f} s")
        again = time.monotonic()
        evaluator.open()
        print(f"walls: {', '.join(verdict.conditions['walls']) or 'none'}; network: {verdict.conditions['network']}")
        print(f"starts of the worker: {evaluator._place.sandbox.starts}; contexts kept: {time.monotonic() - again < 1}")
        return well and evaluator._place.sandbox.starts == 1


def attack(device: str) -> bool:
    """Whether hostile code gets nowhere behind the walls of a worker on the device."""
    with processes.Range(cuda=device == "cuda") as place:
        found = {way: place.attack(way) for way in HOSTILE}
    for way, verdict in found.items():
        print(f"{way:<16}{verdict}")
    return set(found.values()) == {LIMITED}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    print(f"{device_name(device)}; Linux {platform.release()}, Python {platform.python_version()}, torch "
          f"{torch.__version__}, triton {triton.__version__}; bubblewrap: {has_bubblewrap(device == 'cuda')}; "
          f"{LEFT_OUT}: {', '.join(left_out()) or 'nothing'}")  # fmt: skip
    try:
        well = evaluate(device)
    except VortexError as error:
        print(f"the worker cannot work: {error}")
        well = False
    return 0 if attack(device) and well else 1


if __name__ == "__main__":
    sys.exit(main())
