"""Faults planted in the Triton executor: each is a change of one expression in copies of its kernels.

Imported where Triton runs in its interpreter; see `triton_runs`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from differential import Expected, compare

import vortexlab.kernels.gpu.attention as attention
import vortexlab.kernels.gpu.executor as executor_module
from vortexlab.dsl import parse
from vortexlab.dsl.testing import random_case
from vortexlab.kernels.gpu import attention_kernels, device
from vortexlab.kernels.gpu.codegen import Kernels, generate
from vortexlab.kernels.gpu.executor import TritonExecutor

#: Where (``generated``, ``device`` or ``attention``), what stands there, what is planted, what that breaks, and the
#: number of the program in `_BODIES` that shows it.
FAULTS = (
    ("generated", "live = page < own", "live = page <= own", "the own page is a candidate", 1),
    ("generated", "page > own - ", "page >= own - ", "last(n) names n + 1 pages", 0),
    ("generated", "| (page == own)) & (page <= own)", ") & (page <= own)", "the own page is not forced", 1),
    ("generated", "tl.maximum(length - 1, 0)", "tl.maximum(length, 0)", "a full own page is no own page any more", 1),
    ("generated", "* q_head +", "* 0 +", "every query head is the first", 1),
    ("generated", "kv_head * GROUP", "0 * GROUP", "every KV head is asked by the queries of the first", 1),
    ("generated", "* q_row", "* 0", "every request has the query of the first", 1),
    ("device", "rank <= need", "rank < need", "one page too few among ties", 2),
    ("device", "page < edge", "page <= edge", "one page too many among ties", 2),
    ("device", "tl.where(score == 0.0, 0.0, score)", "score", "-0 is less than 0", 2),
    ("device", '(score > float("-inf"))', "(score == score)", "-inf may be chosen", 3),
    ("device", "+ page % (BLOCK // PAGE)", "", "pages of one block share one number", 1),
    ("device", "(page + 1) * (PAGE // BLOCK) - 1", "0 * page", "pages of several blocks share one number", 1),
    ("device", "x ^ (x >> 15)", "x ^ (x >> 14)", "another hash behind random", 5),
    ("device", "(bits + 0x7FFF + ((bits >> 16) & 1))", "bits", "bf16 is cut off, not rounded", 8),
    ("device", "tl.ceil((p - above_mass) / weight)", "0.0 * weight", "a mass choice stops a page early", 4),
    ("generated", "* PAGE + length - own * PAGE", "* PAGE + PAGE", "tokens past the end are attended", 5),
    ("device", "return ((counts & 0xFFFFF) == n)", "return ((counts & 0xFFFFF) >= n)", "a cut is settled too early", 0),
    ("attention", "tile_entries(entries, start, end", "tile_entries(entries, begin, end", "a tile reads the first", 6),
    ("attention", "total = total * fade", "total = total", "the softmax does not rescale its mass", 6),
    ("attention", "tl.exp2(top - tl.max(top, 0))", "tl.exp2(top - top)", "runs are joined without rescaling", 7),
    ("attention", "row // LISTS % KV_HEADS", "row % KV_HEADS", "lists of heads read another KV head", 1),
)

_HEAD = "@program(page=knob.choice(4, 8, 16, default=8), summaries={storage!r})\nclass P:\n"
_BODIES = (
    # an envelope, forced pages beside scored ones
    "    def summarize(k):\n        return dict(lo=k.min(token), hi=k.max(token))\n"
    "    def score(q, s):\n        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)\n"
    "    def select(score):\n        return topk(score, 2, among=~(first(1) | last(2))) | first(1) | last(2)\n",
    # a list per query head
    "    def summarize(k):\n        return dict(c=k.mean(token))\n"
    "    def score(q, s):\n        return dot(q, s.c, channel)\n"
    "    def select(score):\n        return topk(score, 3)\n",
    # scores that are all zeros of either sign
    "    def summarize(k):\n        return dict(c=k.sum(token))\n"
    "    def score(q, s):\n        return dot(q, s.c, channel).max(head) * 0\n"
    "    def select(score):\n        return topk(score, 3)\n",
    # scores that are -inf
    "    def summarize(k):\n        return dict(c=k.sum(token))\n"
    "    def score(q, s):\n        return log(relu(dot(q, s.c, channel).max(head)))\n"
    "    def select(score):\n        return topk(score, 30)\n",
    # a mass choice
    "    def summarize(k):\n        return dict(c=k.mean(token))\n"
    "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
    "    def select(score):\n        return topp(score, 0.8, scale=0.05)\n",
    # a random one
    "    def select():\n        return random(3, salt=5)\n",
    # every page, in a batch of many rows (one run each, of several tiles) and in one of few (several runs)
    "    def select():\n        return everything()\n",
    "    def select():\n        return everything() | first(1)\n",
    # what bf16 has to round away from numbers that fp32 holds exactly
    "    def summarize(k):\n        x = (k * 37).sum(token)\n        return dict(r=(x - x.to('bf16')).sum(channel))\n"
    "    def score(s):\n        return s.r\n"
    "    def select(score):\n        return topk(score, 3)\n",
)


#: Programs that need more than two configurations, for instance one of every relation of page and block.
_CASES = {1: 4, 2: 3}


def cases(number: int) -> list[Expected]:
    """Small configurations of one of the programs, with the reference's answers."""
    program = parse(_HEAD.format(storage="fp32" if number == 8 else "kv") + _BODIES[number])
    kinds = ("integers",) if number in (2, 3, 8) else ("integers", "normal")
    blocks = itertools.cycle((1, 4, 0.5, 0.25))
    found: list[Expected] = []
    for seed in itertools.count(100 * number):
        case = random_case(seed, program, max_length=100, max_elements=40_000, kinds=kinds)
        heads, rows = case.static.kv_heads * case.static.group, case.static.kv_heads * len(case.lengths)
        wanted = {6: rows >= 8, 7: rows <= 2}.get(number, True)
        if wanted and 2 <= heads <= 8 and case.static.head_dim <= 96 and max(case.lengths) > 70:
            found.append(Expected.of(replace(case, block=int(next(blocks) * case.program.page_size))))
        if len(found) == _CASES.get(number, 2):
            break
    return found


@contextlib.contextmanager
def planted(where: str, old: str, new: str) -> Iterator[list[int]]:
    """The executor with one fault; yields a list that grows by one whenever the fault was really planted."""
    count: list[int] = []

    def faulty(module: ModuleType) -> ModuleType:
        text = Path(str(module.__file__)).read_text()
        assert old in text, f"{old!r} is not in {module.__name__}"
        count.append(1)
        return imported(text.replace(old, new))

    def generate_faulty(*arguments: Any) -> Kernels:
        kernels = generate(*arguments)
        if where == "generated":
            count.extend([1] * (old in kernels.text))
            return replace(kernels, text=kernels.text.replace(old, new))
        return replace(kernels, text=kernels.text.replace(device.__name__, faulty(device).__name__))

    with contextlib.ExitStack() as patches:
        if where == "attention":
            copy = faulty(attention_kernels)
            for name in ("attend_split", "attend_combine"):
                patches.enter_context(mock.patch.object(attention, name, getattr(copy, name)))
        else:
            patches.enter_context(mock.patch.object(executor_module, "generate", generate_faulty))
        yield count


_numbers = itertools.count()


def imported(text: str) -> ModuleType:
    """A module of the given text, under a name of its own, where generated kernels can import it from."""
    name = f"faulty_kernels_{next(_numbers)}"
    folder = Path(tempfile.mkdtemp(prefix="vortex-faults-"))
    (folder / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def find_all() -> dict[str, str | None]:
    """For each fault by what it breaks: the first disagreement that it caused, or None.

    A configuration on which the sound executor disagrees as well shows nothing; it counts as no find.
    """
    every = {number: cases(number) for number in {fault[4] for fault in FAULTS}}
    sound: dict[int, list[str]] = {}
    found: dict[str, str | None] = {}
    for where, old, new, breaks, number in FAULTS:
        found[breaks] = None
        for expected in every[number]:
            with planted(where, old, new) as count:
                wrong = _disagreements(expected)
            assert count, f"fault {old!r} was never planted"
            if wrong:
                if id(expected) not in sound:
                    sound[id(expected)] = _disagreements(expected)
                found[breaks] = None if sound[id(expected)] else wrong[0][:300]
                break
    return found


def _disagreements(expected: Expected) -> list[str]:
    try:
        return compare(TritonExecutor, expected.case, expected=expected).disagreements
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
