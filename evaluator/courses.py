"""The part of the numerics gate for what one step of one layer does not show.

A *course* is a few requests decoded step after step through all layers; a program that remembers, reuses a selection or
makes its own attention output is run over one, and so is the prompt of a program that prefills sparsely. Everything is
compared with the reference, which takes the same course one request, one layer and one step at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vortexlab.dsl import reference, reference_memory
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.reference_memory import LayerMemory
from vortexlab.dsl.reference_prefill import prefill_layers
from vortexlab.dsl.tolerance import Judged, judge
from vortexlab.evaluator.executors import Make
from vortexlab.evaluator.traits import depends_on_layer, period
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.precision import cache_dtype, cast

_STEPS, _LAYERS = 8, 6
#: Pages of the longer request: more than usual budgets choose, fewer where many layers are run.
_PAGES, _PAGES_OF_LAYERS = 96, 24
_OFF = 1e-3


class Disagreement(Exception):
    """Where the executor and the reference part; one line."""


@dataclass(frozen=True)
class Course:
    """`q`: [tokens, layers, rows, query_heads, channel]; `keys[layer][row]`, `values[layer][row]`: [kv_heads, tokens,
    channel]; `begin`: tokens of each row before its first step."""

    statics: tuple[Static, ...]
    q: Tensor
    keys: list[list[Tensor]]
    values: list[list[Tensor]]
    begin: list[int]


def needs_course(program: Program) -> bool:
    """Whether one decode step of one layer tells less than the whole of it."""
    return program.has_memory or program.result is not None or program.pooled is not None


def check(program: Program, model: Static, kind: Make, device: str, generator: torch.Generator) -> int:
    """How many steps and blocks were compared. Raises `Disagreement`."""
    page = program.page_size
    layers = min(model.layers, _LAYERS) if depends_on_layer(program) else 1
    # Learned constants have rows for every KV head and layer; other programs are judged on few KV heads.
    static = replace(model, kv_heads=model.kv_heads if program.params else min(2, model.kv_heads), layer=0)
    steps = min(_STEPS, period(program) + 3)
    # The first request fills a page on the way; the second is far from it.
    pages = _PAGES if layers == 1 else _PAGES_OF_LAYERS
    course = _draw(static, layers, [pages * page - 2, 2 * page + page // 2 + 1], steps, generator)
    compared = 0
    for seen in _decoded(program, course, kind, device, steps):
        compared += 1
        _compare(*seen)
    if program.pooled is not None:
        tokens = min(3 * int(program.block or page) + page + 1, 48 * page)  # type: ignore[arg-type]
        prompt = _draw(static, layers, [tokens], 0, generator)
        for seen in _read(program, prompt, kind, device):
            compared += 1
            _compare(*seen)
    return compared


def _draw(static: Static, layers: int, begin: list[int], steps: int, generator: torch.Generator) -> Course:
    def real(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    statics = tuple(replace(static, layer=layer) for layer in range(layers))
    shape = (static.kv_heads, static.head_dim)
    keys = [[real(shape[0], n + steps, shape[1]) for n in begin] for _ in statics]
    values = [[real(shape[0], n + steps, static.value_dim) for n in begin] for _ in statics]
    if static.latent:
        values = [[k[..., : static.latent] for k in of_layer] for of_layer in keys]
    count = steps or max(begin)
    q = real(count, layers, len(begin), static.kv_heads * static.group, static.head_dim)
    return Course(statics, q, keys, values, begin)


#: Output and lists.
Found = tuple[Tensor, list[list[list[int]]]]
#: What the executor gave a row, what the reference gives, which pages rounding may decide, and where.
Seen = tuple[Found, Found, Judged, str]


def _decoded(program: Program, course: Course, kind: Make, device: str, steps: int) -> Iterator[Seen]:
    """Step by step and layer by layer."""
    rows, carry, dtype = len(course.begin), Carry(), cache_dtype(program, torch.float32)
    executors = [kind(program, static) for static in course.statics]
    caches, states, memories = [], [], []
    for layer, executor in enumerate(executors):
        k, v = (_cut(part[layer], course.begin, device) for part in (course.keys, course.values))
        cache = PagedKV.from_dense(k, v, program.page_size, shuffle_seed=layer, spare=steps)
        fill_unused(cache, float("nan"))  # nothing behind the newest token may be read
        cache = cache.stored_in(dtype)
        state = executor.new_state(cache)
        executor.summarize(state, cache)
        caches.append(cache)
        states.append(state)
        memories.append([executor.new_memory(cache, carry=carry)] if program.has_memory else [])
    requests = [reference.Request(program, course.statics[0], layers=range(len(executors))) for _ in range(rows)]
    judging = [[LayerMemory() for _ in executors] for _ in range(rows)]
    for step in range(steps):
        given = []
        for layer, executor in enumerate(executors):
            new = [
                torch.stack([x[:, n + step] for x, n in zip(part[layer], course.begin, strict=True)]).to(device)
                for part in (course.keys, course.values)
            ]
            caches[layer].append(*new)
            executor.update(states[layer], caches[layer])
            newest = course.q[step, layer].to(device)
            out, lists = executor.decode(newest, states[layer], caches[layer], *memories[layer])
            given.append((out.cpu(), lists.to_list()))
        for row in range(rows):
            seen = course.begin[row] + step + 1
            q = list(course.q[step, :, row].double())
            keys, values = (
                [cast(x[row][:, :seen], dtype).double() for x in part] for part in (course.keys, course.values)
            )
            wanted = requests[row].step(q, keys, values, cache_dtype=dtype, keep_values=True)
            carried = reference_memory.Carry()
            for layer, selection in enumerate(wanted):
                judged = judge(
                    program, course.statics[layer], selection.values, seen, dtype,
                    memory=judging[row][layer], carry=carried,
                )  # fmt: skip
                assert selection.output is not None
                found = (given[layer][0][row], given[layer][1][row])
                place = f"at step {step} of layer {layer}, request of {seen} tokens"
                yield found, (selection.output, _plain(selection.lists)), judged, place


def _read(program: Program, course: Course, kind: Make, device: str) -> Iterator[Seen]:
    """The prompt, layer by layer and block by block."""
    carry, given, dtype = Carry(), [], cache_dtype(program, torch.float32)
    for layer, static in enumerate(course.statics):
        executor = kind(program, static)
        k, v = (_cut(part[layer], course.begin, device) for part in (course.keys, course.values))
        cache = PagedKV.from_dense(k, v, program.page_size).stored_in(dtype)
        memory = executor.new_memory(cache, carry=carry)
        given.append(executor.prefill(course.q[:, layer].permute(1, 2, 0, 3).to(device), cache, memory=memory))
    wanted = prefill_layers(
        program,
        course.statics[0],
        list(course.q[:, :, 0].permute(1, 2, 0, 3).double()),
        [of_layer[0].double() for of_layer in course.keys],
        [of_layer[0].double() for of_layer in course.values],
        cache_dtype=dtype,
        keep_values=True,
    )
    carries = [reference_memory.Carry() for _ in wanted[0].blocks]
    for layer, prompt in enumerate(wanted):
        out, lists = given[layer]
        for number, block in enumerate(prompt.blocks):
            span, page = slice(block.start, block.stop), program.page_size
            judged = judge(
                program, replace(course.statics[layer], prefill=True), block.selection.values, block.start + 1,
                dtype, carry=carries[number], own=range(block.start // page, (block.stop - 1) // page + 1),
            )  # fmt: skip
            found = (out[0, :, span].cpu(), lists[number].to_list()[0])
            expected = (prompt.output[:, span], _plain(block.lists))
            yield found, expected, judged, f"in prefill, block {number} of layer {layer}"


def _compare(found: Found, expected: Found, judged: Judged, place: str) -> None:
    """Raises `Disagreement` for a list that no correct executor may have, and for another output of equal lists."""
    out, lists = found
    if not bool(out.isfinite().all()):
        raise Disagreement(f"the output is not finite {place}")
    for kv, (read, allowed) in enumerate(zip(lists, judged.open, strict=True)):
        for pages, must, may in beside(read, allowed):
            if not is_open(pages, must, may):
                raise Disagreement(
                    f"KV head {kv} reads pages {pages[:12]}, the reference {expected[1][kv][0][:12]}, {place}"
                )
    if lists != expected[1]:
        return
    size = expected[0].square().mean().sqrt().clamp(min=1e-6)
    worst = float(((out.double() - expected[0]).abs() / size).max())
    if worst > _OFF:
        raise Disagreement(f"the output is off by {worst:.2g} of its size {place}")


def beside(
    read: Sequence[list[int]], allowed: Sequence[tuple[frozenset[int], frozenset[int]]]
) -> Iterator[tuple[list[int], frozenset[int], frozenset[int]]]:
    """Every list of a KV head beside the pages that it must and may hold. A single list, or what is allowed to one,
    holds for each query head of the group."""
    for member in range(max(len(read), len(allowed))):
        yield read[member % len(read)], *allowed[member % len(allowed)]


def is_open(pages: list[int], must: frozenset[int], may: frozenset[int]) -> bool:
    """Whether a list is one that a correct executor may have: ascending, no page twice, none missing, none else."""
    return pages == sorted(set(pages)) and must <= set(pages) <= may


def fill_unused(cache: PagedKV, value: float) -> None:
    """Writes `value` to every place of the pool that holds no token of any row."""
    used = torch.zeros(cache.k.shape[0], cache.block, dtype=torch.bool, device=cache.k.device)
    for row, length in enumerate(cache.lengths.tolist()):
        position = torch.arange(length, device=cache.k.device)
        used[cache.table[row].long()[position // cache.block], position % cache.block] = True
    for pool in (cache.k, cache.v):
        pool.masked_fill_(~used[:, None, :, None], value)


def _cut(tensors: Sequence[Tensor], lengths: Sequence[int], device: str) -> list[Tensor]:
    return [x[:, :n].to(device) for x, n in zip(tensors, lengths, strict=True)]


def _plain(lists: Sequence[Sequence[Sequence[int]]]) -> list[list[list[int]]]:
    return [[list(pages) for pages in of_head] for of_head in lists]
