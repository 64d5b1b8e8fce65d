"""Compares an executor with the reference over steps, layers and prompts.

Every row of the batch is a request of its own to the reference; the executor sees them together. What must and may be
selected follows from running error bounds that are carried from step to step and from layer to layer, so that an
executor is judged by what a correct one may remember (`vortexlab.dsl.tolerance.judge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.differential import _OUTPUT, Report, make_cache, poisoned, with_idle
from vortexlab.dsl import reference
from vortexlab.dsl.ir import Static
from vortexlab.dsl.reference import Request, Selection
from vortexlab.dsl.reference_memory import Carry, LayerMemory
from vortexlab.dsl.reference_prefill import Prefill, prefill_layers
from vortexlab.dsl.testing import Case, Course
from vortexlab.dsl.tolerance import Judged, attention_tolerance, judge
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.memory import Carry as Handed


def compare_course(executor_class: type[Any], course: Course) -> Report:
    """Prefill, if the program has it, and every step of every layer."""
    report = compare_steps(executor_class, course)
    if course.case.program.pooled is not None:
        report.add(compare_prefill(executor_class, course))
    return report


def layer_case(course: Course, layer: int, lengths: Sequence[int]) -> Case:
    """One layer's context, cut to `lengths`."""
    parts = [[x[:, :n] for x, n in zip(each[layer], lengths, strict=True)] for each in (course.keys, course.values)]
    return replace(course.case, static=course.statics[layer], keys=parts[0], values=parts[1])


def compare_steps(executor_class: type[Any], course: Course, device: str = "cpu") -> Report:
    case, report = course.case, Report()
    first = [n - course.steps + 1 for n in case.lengths]
    # Every other course appends its first step's token too, so a request may begin as an idle row of length 0.
    late = case.seed % 2
    rows = range(len(case.lengths))
    requests = [Request(case.program, case.static) for _ in rows]
    judging = [[LayerMemory() for _ in course.statics] for _ in rows]
    with poisoned():
        begin = [n - late for n in first]
        cases = [layer_case(course, layer, begin) for layer in range(len(course.statics))]
        caches = [make_cache(part, spare=course.steps + late, device=device) for part in cases]
        executors = [executor_class(case.program, static) for static in course.statics]
        states = [executor.new_state(cache) for executor, cache in zip(executors, caches, strict=True)]
        handed = Handed()
        memories = [e.new_memory(cache, carry=handed) for e, cache in zip(executors, caches, strict=True)]
        for executor, state, cache in zip(executors, states, caches, strict=True):
            executor.summarize(state, cache)
    for s in range(course.steps):
        lengths = [n + s for n in first]
        carries = [Carry() for _ in rows]
        wanted = [_row_step(course, requests[b], s, b, lengths[b]) for b in rows]
        for layer, static in enumerate(course.statics):
            cache, keys, values = caches[layer], course.keys[layer], course.values[layer]
            with poisoned():
                if s or late:
                    newest = (torch.stack([x[:, n - 1] for x, n in zip(part, lengths, strict=True)])
                              for part in (keys, values))  # fmt: skip
                    cache.append(*(part.to(device) for part in newest))
                    executors[layer].update(states[layer], cache)
                q = course.q[layer][s].to(device)
                out, lists = executors[layer].decode(q, states[layer], cache, memories[layer])
            out, listed = out.cpu(), lists.to_list()
            for b in rows:
                k, v = (part[b][:, : lengths[b]].double() for part in (keys, values))
                tokens = (course.q[layer][s, b].double(), k, v)
                selection = wanted[b][layer]
                judged = judge(case.program, static, selection.values, lengths[b], keys[b].dtype,
                               memory=judging[b][layer], carry=carries[b], tokens=tokens)  # fmt: skip
                place = f"step {s}, layer {layer}, row {b}: {case}"
                found = listed[b]
                report.add(_lists(place, selection, judged, found))
                if not selection.nan:
                    report.add(_output(place, case, static, selection, judged, tokens, found, out[b]))
    return report


def _row_step(course: Course, request: Request, s: int, b: int, length: int) -> list[Selection]:
    q = [x[s, b].double() for x in course.q]
    k, v = ([x[b][:, :length].double() for x in part] for part in (course.keys, course.values))
    return request.step(q, k, v, cache_dtype=course.keys[0][b].dtype, keep_values=True)


def compare_prefill(executor_class: type[Any], course: Course) -> Report:
    case, report = course.case, Report()
    rows, longest = range(len(case.lengths)), max(case.lengths)
    wanted = [_row_prefill(course, b) for b in rows]
    carries = [[Carry() for _ in wanted[b][0].blocks] for b in rows]
    handed = Handed()
    for layer, static in enumerate(course.statics):
        shape = (len(rows), course.prompt[layer][0].shape[0], longest, static.head_dim)
        q = torch.full(shape, torch.nan, dtype=case.q.dtype)
        for b in rows:
            q[b, :, : case.lengths[b]] = course.prompt[layer][b]
        with poisoned():
            cache: PagedKV = make_cache(layer_case(course, layer, case.lengths))
            if case.seed % 2:  # a row without a prompt changes nothing
                cache = with_idle(cache, [len(rows)])
                q = torch.cat([q, torch.full_like(q[:1], torch.nan)])
            executor = executor_class(case.program, static)
            out, lists = executor.prefill(q, cache, memory=executor.new_memory(cache, carry=handed))
        for b in rows:
            for number, block in enumerate(wanted[b][layer].blocks):
                place = f"prefill block {number}, layer {layer}, row {b}: {case}"
                report.add(_block(course, place, static, wanted[b][layer], number, carries[b][number], b, layer,
                                  lists[number].to_list()[b], out[b, :, block.start : block.stop]))  # fmt: skip
    return report


def _row_prefill(course: Course, b: int) -> list[Prefill]:
    parts = [[x[b].double() for x in part] for part in (course.prompt, course.keys, course.values)]
    options = {"cache_dtype": course.keys[0][b].dtype, "keep_values": True}
    return prefill_layers(course.case.program, course.case.static, *parts, **options)


def _block(
    course: Course, place: str, static: Static, wanted: Prefill, number: int, carry: Carry, b: int, layer: int,
    found: list[list[list[int]]], out: Tensor,
) -> Report:  # fmt: skip
    case, block = course.case, wanted.blocks[number]
    static = replace(static, prefill=True)
    page, dtype = case.program.page_size, course.keys[layer][b].dtype
    own = range(block.start // page, (block.stop - 1) // page + 1)
    judged = judge(case.program, static, block.selection.values, block.start + 1, dtype, carry=carry, own=own)
    report = _lists(place, block.selection, judged, found)
    if block.selection.nan:
        return report
    for t in range(block.start, block.stop):
        seen = t + 1
        k, v = (part[layer][b][:, :seen].double() for part in (course.keys, course.values))
        tokens = (course.prompt[layer][b][:, t].double(), k, v)
        alone = judged
        if block.alone:
            alone = judge(case.program, static, block.alone[t - block.start], block.start + 1, dtype, own=own,
                          tokens=tokens, block=judged)  # fmt: skip
        expected = replace(block.selection, output=wanted.output[:, t] if block.alone else None)
        mine = out[:, t - block.start]
        report.add(_output(f"query {t}, {place}", case, static, expected, alone, tokens, found, mine))
    return report


def _lists(place: str, selection: Selection, judged: Judged, found: list[list[list[int]]]) -> Report:
    report = Report(nan=selection.nan)
    for kv, per_kv in enumerate(found):
        if len(per_kv) != len(judged.open[kv]):
            report.disagreements.append(f"{place}: {len(per_kv)} lists, the reference has {len(judged.open[kv])}")
            continue
        for number, pages in enumerate(per_kv):
            must, may = judged.open[kv][number]
            report.lists += 1
            report.pages += len(may)
            report.open += len(may - must)
            report.determined += must == may
            if selection.nan:
                continue
            report.differing += len(set(pages) ^ set(selection.lists[kv][number]))
            if not must <= set(pages) <= may:
                report.disagreements.append(
                    f"{place}: KV head {kv}, list {number}: {pages[:24]}, the reference "
                    f"{selection.lists[kv][number][:24]}, open {sorted(may - must)[:24]}"
                )
    return report


def _output(
    place: str, case: Case, static: Static, selection: Selection, judged: Judged, tokens: tuple[Tensor, Tensor, Tensor],
    found: list[list[list[int]]], out: Tensor,
) -> Report:  # fmt: skip
    """Plain attention is judged under the executor's own lists, other outputs where no set is open."""
    q, k, v = tokens
    own = [[tuple(pages) for pages in per_kv] for per_kv in found]
    report, page = Report(), case.program.page_size
    if case.program.result is None:
        wanted = reference.attend(page, static, q[None], [k], [v], [own])[0]
        bound = attention_tolerance(page, static, q[None], [k], [v], [own])[0]
    else:
        assert selection.output is not None and judged.output is not None
        wanted, bound = selection.output, judged.output
    relative, least = _OUTPUT[out.dtype]
    bound = bound + relative * wanted.abs().amax(-1) + least
    error = (out.double() - wanted).abs().amax(-1)
    for head in (~(error <= bound) & bound.isfinite() & ~wanted.isnan().any(-1)).nonzero()[:, 0].tolist():
        report.disagreements.append(f"output: {place}: head {head}: error {error[head]:.3g}, allowed {bound[head]:.3g}")
    return report
