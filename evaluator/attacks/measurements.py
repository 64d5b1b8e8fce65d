"""Attacks 33 to 45 and those of S1 to S14 that an executor would carry out: kernels that cheat, clocks that lie.

No program can say such a thing; a fault of ours or of a compiler could do it. Each is an executor that is wrong in one
way and goes through the gates. Those that mean the timing recognise it by its batch and are honest before.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache as once
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vortexlab import dsl
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator import frames, numerics, speed, worker
from vortexlab.evaluator.attacks import processes
from vortexlab.evaluator.attacks.attack import NO_GAIN, Attack, lost, rejected
from vortexlab.evaluator.geometries import Geometry
from vortexlab.evaluator.timing import Clock, Workload
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.torch_executor import TorchExecutor

_BATCH = 4
_STATIC = Static(2, 2, 16, 0.25, 0, 2)
_SOURCE = """@program(page=8)
class Example:
    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))
    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)
    def select(score, ctx):
        return topk(score, 3) | first(1) | last(2)
"""


@once
def _program() -> Program:
    return dsl.parse(_SOURCE).bind()


def workload() -> Workload:
    return Workload.make(Geometry("small", 4, 2, 2, 32), 256, 256 * _BATCH, "cpu", torch.float32, 0)


def through_the_gates(kind: type[Any], clock: Clock | None = None) -> str:
    """What the gates of numerics and speed say of an executor."""
    if clock is None and numerics.check(_program(), _STATIC, "cpu", 0, kind)["failure"]:
        return rejected("numerics")
    try:
        speed.measure(_program(), kind, workload(), layers=2, counts=[], seed=0, pairs=3, most_pairs=3, clock=clock)
    except speed.SpeedError:
        return rejected("speed")
    return "accepted"


class _Timed(TorchExecutor):
    """Honest but where it is timed."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        out = super().attend(q, cache, lists)
        return self.cheat(q, cache, lists, out) if cache.batch == _BATCH else out

    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        return out


class Stale(_Timed):
    """The output of the call before."""

    kept: Tensor | None = None

    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        before, self.kept = self.kept, out
        return out if before is None else before


class Uninitialised(_Timed):
    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        out[0, 0] = float("nan")
        return out


class ZeroesTheQuery(_Timed):
    """Then the mean of the values is the right answer."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        if cache.batch == _BATCH:
            q.zero_()
        return super().attend(q, cache, lists)


class ZeroesTheValues(_Timed):
    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        cache.v.zero_()
        return torch.zeros_like(out)


class InTheBackground(_Timed):
    """Returns at once; the output comes when the clock has stopped."""

    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        empty = torch.zeros_like(out)

        def fill() -> None:
            with torch.inference_mode():
                empty.copy_(out)

        threading.Timer(0.05, fill).start()
        return empty


class Lazy(Tensor):
    """Would compute when it is looked at."""


class AfterReturn(_Timed):
    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        return out.as_subclass(Lazy)


class AllAtOnce(_Timed):
    """Does the work of all calls in the first one."""

    kept: Tensor | None = None

    def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
        self.kept = out if self.kept is None else self.kept
        return self.kept


def _keyed(key: Callable[[Tensor, PagedKV], object]) -> type[_Timed]:
    class Keyed(_Timed):
        def cheat(self, q: Tensor, cache: PagedKV, lists: PageLists, out: Tensor) -> Tensor:
            return self.__dict__.setdefault("kept", {}).setdefault(key(q, cache), out)

    return Keyed


class StalePointers(TorchExecutor):
    """A graph that goes on reading the query it was captured with."""

    captured: Tensor | None = None

    def select(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> PageLists:
        if cache.batch != _BATCH:
            return super().select(q, state, cache)
        self.captured = q.clone() if self.captured is None else self.captured
        return super().select(self.captured, state, cache)

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q if self.captured is None else self.captured, cache, lists)


class ReadsBeyond(TorchExecutor):
    """Attends one token past the newest, which happens to be there."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        longer = torch.minimum(cache.lengths + 1, (cache.lengths + 7) // 8 * 8).int()
        return super().attend(q, PagedKV(cache.k, cache.v, cache.table, longer, cache.block), lists)


class WritesBeyond(TorchExecutor):
    """Leaves a mark in memory that belongs to nobody."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        out = super().attend(q, cache, lists)
        cache.v[-1, :, -1] = 7.0
        return out


class Remembers(TorchExecutor):
    """Selects for every request what it selected for the first."""

    first: PageLists | None = None

    def select(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> PageLists:
        found = super().select(q, state, cache)
        if self.first is None or self.first.pages.shape != found.pages.shape:
            self.first = found
        return self.first


class WrongMerge(TorchExecutor):
    """Softmax over each half of the pages, the own one in both, then their mean."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        mask = lists.to_mask(int(cache.lengths.max() - 1) // self.program.page_size + 1)
        even = torch.arange(mask.shape[-1]) % 2 == 0
        own = torch.nn.functional.one_hot((cache.lengths.long() - 1) // self.program.page_size, len(even)).bool()
        halves = [PageLists.from_mask(mask & half | own[:, None, None]) for half in (even, ~even)]
        first, second = (super(WrongMerge, self).attend(q, cache, half) for half in halves)
        return (first + second) / 2


class OnlyOneRequest(TorchExecutor):
    """Right for a batch of one."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q[:1].expand_as(q).contiguous(), cache, lists)


class SmallerCache(TorchExecutor):
    """Reads keys and values in fp8 and says nothing."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        k, v = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (cache.k, cache.v))
        return super().attend(q, PagedKV(k, v, cache.table, cache.lengths, cache.block), lists)


def _constant(make: Callable[[Tensor, PagedKV], Tensor]) -> type[TorchExecutor]:
    class Constant(TorchExecutor):
        def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
            return make(super().attend(q, cache, lists), cache)

    return Constant


class ChargedClock(Clock):
    """Counts what is charged to it, by a rate that changes from call to call."""

    def __init__(self, growth: float = 0.0):
        super().__init__(torch.device("cpu"))
        self.growth, self.calls, self.spent = growth, 0, 0.0

    def charge(self, milliseconds: float) -> None:
        self.spent += milliseconds

    def __call__(self, call: Callable[[], Any]) -> tuple[float, Any]:
        before, self.calls = self.spent, self.calls + 1
        result = call()
        return (self.spent - before) * (1 + self.growth) ** self.calls, result


def _ratio(clock: ChargedClock, step: float, update: float = 0.0) -> speed.Timing:
    """A run in which dense attention costs 10 ms, a step `step` and an update of a full page `update`."""

    class Charging(TorchExecutor):
        def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> tuple[Tensor, PageLists]:
            clock.charge(step)
            return super().decode(q, state, cache)

        def update(self, state: Any, cache: PagedKV) -> None:
            if int(cache.lengths[0]) % self.program.page_size == 0:
                clock.charge(update)
            super().update(state, cache)

    def charged(path: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*arguments: Any) -> Tensor:
            clock.charge(10.0)
            return path(*arguments)

        return call

    usual = dict(speed.DENSE_PATHS)
    speed.DENSE_PATHS.update({name: charged(path) for name, path in usual.items()})
    try:
        return speed.measure(
            _program(), Charging, workload(), layers=2, counts=[], seed=0, pairs=5, most_pairs=5, clock=clock
        )
    finally:
        speed.DENSE_PATHS.update(usual)


def _drifting() -> Iterator[tuple[str, str]]:
    """A clock that slows down or speeds up by 3 % a call: in a comparison one after the other dense pays for it."""
    for growth in (0.03, -0.03):
        found = sorted(_ratio(ChargedClock(growth), 5.0).ratios)[2]
        yield f"{growth:+.0%} a call", NO_GAIN if abs(found - 2) < 0.02 else f"accepted: ratio {found:.3f} for 2"


def _lying() -> Iterator[tuple[str, str]]:
    for name, seen in (("events see half", 0.5), ("events see nothing", 0.0), ("events see twice as much", 2.0)):

        class Lying(Clock):
            def __call__(self, call: Callable[[], Any], seen: float = seen) -> tuple[float, Any]:
                spent, result = super().__call__(call)
                self.pairs.append((10 * seen, 10.0))
                return spent, result

        yield name, through_the_gates(TorchExecutor, Lying(torch.device("cpu")))


def _shifted() -> Iterator[tuple[str, str]]:
    found = _ratio(ChargedClock(), 5.0, update=40.0)
    told = abs(found.summary_ms - 5.0) < 1e-6 and abs(sorted(found.ratios)[2] - 1.0) < 1e-6
    yield "work in the summaries", NO_GAIN if told else f"accepted: {found.ratios}"


def _only_synthetic() -> Iterator[tuple[str, str]]:
    found = speed.worse({"synthetic": _ratio(ChargedClock(), 2.0), "recorded": _ratio(ChargedClock(), 8.0)})
    worst = found.inputs == "recorded" and abs(sorted(found.ratios)[2] - 1.25) < 1e-6
    yield "slow on recorded contexts", NO_GAIN if worst else f"accepted: {found.inputs}"


def _after_an_error(*errors: BaseException) -> Callable[[], Iterable[tuple[str, str]]]:
    """Whether the worker ends after an error of the GPU, instead of going on with what is left of it."""

    def run() -> Iterator[tuple[str, str]]:
        for error in errors:

            class Broken(worker.Worker):
                def work(self, error: BaseException = error) -> dict[str, Any]:
                    raise error

            request = frames.encode({"nonce": "n", "op": "work"}, frames.REQUEST_LIMIT)
            try:
                worker.serve(Broken(Path()), io.BytesIO(request), lambda _: None)
                yield str(error), "accepted: the worker goes on"
            except MemoryError:
                yield str(error), lost("memory")
            except Exception:
                yield str(error), lost("crash")

    return run


def _never_ends() -> Iterator[tuple[str, str]]:
    """A native call that does not come back; afterwards a new worker answers within seconds."""
    with processes.current() as place:
        began = time.monotonic()
        verdict = place.attack("hold the lock")
        yield "a call that never returns", verdict if time.monotonic() - began < 60 else "accepted: the next waits"


def _gates(*kinds: tuple[str, type[Any]]) -> Callable[[], Iterable[tuple[str, str]]]:
    return lambda: ((name, through_the_gates(kind)) for name, kind in kinds)


def _attack(line: str, tries: str, expected: str, wall: str, run: Callable[[], Iterable[tuple[str, str]]]) -> Attack:
    return Attack(line, "measurement", tries, expected, wall, run)


_SPEED, _NUMERICS = rejected("speed"), rejected("numerics")
ATTACKS = (
    _attack("A33", "old or uninitialised memory as output", _SPEED, "timed outputs are computed again",
            _gates(("stale", Stale), ("uninitialised", Uninitialised))),
    _attack("A34", "inputs changed to suit the output", _SPEED, "prints of the inputs",
            _gates(("query", ZeroesTheQuery), ("values", ZeroesTheValues))),
    _attack("A35", "work beside the timed stream", _SPEED, "outputs are copied when the clock stops",
            _gates(("thread", InTheBackground))),
    _attack("A36", "work after return, in a lazy tensor", _SPEED, "plain tensors only",
            _gates(("lazy", AfterReturn))),
    _attack("A37", "the work of all calls in one", _SPEED, "fresh inputs in every call",
            _gates(("batched", AllAtOnce))),
    _attack("A38", "outputs kept by pointer, shape or a sample of the content", _SPEED, "fresh inputs in every call",
            _gates(("pointer", _keyed(lambda q, cache: cache.k.data_ptr())),
                   ("shape", _keyed(lambda q, cache: q.shape)),
                   ("content", _keyed(lambda q, cache: float(cache.k.flatten()[0]))))),
    _attack("A39", "a graph replayed with the pointers of its capture", _SPEED, "timed calls are made again",
            _gates(("captured query", StalePointers))),
    _attack("A40", "the next candidate after a sticky CUDA error", lost("crash"), "the worker ends",
            _after_an_error(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
                            RuntimeError("CUDA error: misaligned address"))),
    _attack("A41", "a kernel that never ends", lost("time"), "deadline, SIGKILL, a new worker", _never_ends),
    _attack("A42", "GPU memory used up for the next candidate", lost("memory"), "the worker ends",
            _after_an_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"))),
    _attack("A43", "reads and writes out of bounds that happen to work", _NUMERICS, "poisoned memory, prints",
            _gates(("reads", ReadsBeyond), ("writes", WritesBeyond))),
    _attack("A44", "a clock that changes during the run", NO_GAIN, "sparse calls between dense ones", _drifting),
    _attack("A45", "events that disagree with the wall clock", _SPEED, "both are read", _lying),
    _attack("A46", "zeros, the mean of V or the last V as output", _NUMERICS, "compared with the reference",
            _gates(("zeros", _constant(lambda out, cache: torch.zeros_like(out))),
                   ("mean", _constant(lambda out, cache: out.mean(1, keepdim=True).expand_as(out).contiguous())),
                   ("half", _constant(lambda out, cache: out * 0.5)))),
    _attack("A47", "keys later than the query", _NUMERICS, "poisoned memory behind the newest token",
            _gates(("one token", ReadsBeyond))),
    _attack("S1", "keys later than the query, found by changing them", _NUMERICS, "causality",
            _gates(("one token", ReadsBeyond))),
    _attack("S6", "cost moved into summaries", NO_GAIN, "summaries are part of the step", _shifted),
    _attack("S7", "state carried from request to request", _NUMERICS, "request isolation",
            _gates(("lists", Remembers))),
    _attack("S8", "fast on random inputs, slow on real ones", NO_GAIN, "the worse of both counts", _only_synthetic),
    _attack("S11", "softmax over parts, merged wrongly", _NUMERICS, "compared with the reference",
            _gates(("halves", WrongMerge))),
    _attack("S13", "right for one request alone", _NUMERICS, "ragged batches",
            _gates(("batch of one", OnlyOneRequest))),
    _attack("S14", "a smaller cache than is said", _NUMERICS, "compared in the declared precision",
            _gates(("fp8", SmallerCache))),
)  # fmt: skip
