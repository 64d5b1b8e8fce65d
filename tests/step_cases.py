"""Runs requests step by step through all layers of a small model, and their prompts, on an executor and the reference.

Queries and keys are small whole numbers, on which scores of sums and products are exact, so that lists must be equal;
outputs are compared within fp32 rounding. A program whose scores are not exact is compared on real numbers, where no
two scores lie close enough for rounding to matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.dsl import reference
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parameters import Parameters, expected_shape
from vortexlab.dsl.reference_prefill import prefill_layers
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.memory import Carry
from vortexlab.kernels.precision import cast
from vortexlab.kernels.torch_executor import TorchExecutor


@dataclass
class Model:
    """`keys[layer][row]`, `values[layer][row]`: [kv_heads, tokens, channel] in the cache's precision; `q`: [steps or
    tokens, layer, row, query_heads, channel]; `begin`: tokens of each row before the first step."""

    program: Program
    static: Static
    begin: list[int]
    q: Tensor
    keys: list[list[Tensor]]
    values: list[list[Tensor]]

    @property
    def statics(self) -> list[Static]:
        return [replace(self.static, layer=layer) for layer in range(self.static.layers)]


def with_parameters(program: Program, static: Static, folder: Path, seed: int = 0) -> Program:
    """The program with a file of random parameters, small whole numbers, in `folder`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for param in program.params.values():
        shape = list(expected_shape(param, static, program.page_size).values())
        low = 0 if param.kind == "int" else -2
        numbers = torch.randint(low, 3, shape, generator=generator)
        tensors[param.tensor] = numbers if param.kind == "int" else numbers.float() / 2
    if not tensors:
        return program
    path = folder / f"{program.name}-{seed}.safetensors"
    save_file(tensors, path)
    return program.bind(parameters=Parameters.open(path))


def model(
    program: Program,
    static: Static,
    begin: Sequence[int],
    steps: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    real: bool = False,
) -> Model:
    """Random inputs; in MLA values are the first channels of the keys."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        if real:
            return torch.randn(shape, generator=generator)
        return torch.randint(-3, 4, shape, generator=generator).float()

    shape = (static.kv_heads, static.head_dim)
    keys = [[cast(draw(shape[0], n + steps, shape[1]), dtype) for n in begin] for _ in range(static.layers)]
    if static.latent:
        values = [[k[..., : static.latent] for k in of_layer] for of_layer in keys]
    else:
        values = [[cast(draw(shape[0], n + steps, shape[1]), dtype) for n in begin] for _ in range(static.layers)]
    q = draw(steps, static.layers, len(begin), static.kv_heads * static.group, static.head_dim)
    return Model(program, static, list(begin), q, keys, values)


def close(found: Tensor, wanted: Tensor, bound: float = 2e-5) -> bool:
    """Within `bound` of the wanted numbers' RMS; NaN is no match."""
    size = wanted.double().square().mean().sqrt().clamp(min=1e-6)
    return bool(((found.double() - wanted.double()).abs() <= bound * size * 8).all())


def check_steps(case: Model, *, block: int = 4, ends: dict[int, int] | None = None) -> list[str]:
    """Disagreements over all steps. `ends[s]`: rows that are left from step s on (a prefix of the batch)."""
    steps, layers, rows = case.q.shape[:3]
    dtype = case.keys[0][0].dtype
    requests = [reference.Request(case.program, case.static) for _ in range(rows)]
    executors = [TorchExecutor(case.program, static) for static in case.statics]
    caches, states, memories, carry = [], [], [], Carry()
    for layer, executor in enumerate(executors):
        short = [[x[:, :n] for x, n in zip(part[layer], case.begin, strict=True)] for part in (case.keys, case.values)]
        cache = PagedKV.from_dense(*short, block, shuffle_seed=layer, spare=steps)
        caches.append(cache)
        states.append(executor.new_state(cache))
        executor.summarize(states[-1], cache)
        memories.append(executor.new_memory(cache, carry=carry))
    found: list[str] = []
    for step in range(steps):
        rows = (ends or {}).get(step, rows)
        outs, lists = [], []
        for layer, executor in enumerate(executors):
            cache = caches[layer] = PagedKV(
                caches[layer].k, caches[layer].v, caches[layer].table[:rows], caches[layer].lengths[:rows], block
            )
            at = [n + step for n in case.begin[:rows]]
            both = (case.keys, case.values)
            cache.append(*(torch.stack([x[:, n] for x, n in zip(part[layer], at, strict=False)]) for part in both))
            executor.update(states[layer], cache)
            out, chosen = executor.decode(case.q[step, layer, :rows], states[layer], cache, memories[layer])
            outs.append(out)
            lists.append(chosen.to_list())
        for row in range(rows):
            seen = case.begin[row] + step + 1
            wanted = requests[row].step(
                list(case.q[step, :, row].double()),
                [k[row][:, :seen].double() for k in case.keys],
                [v[row][:, :seen].double() for v in case.values],
                cache_dtype=dtype,
            )
            for layer in range(layers):
                place = f"{case.program.name}: step {step}, layer {layer}, row {row}"
                want = [[list(pages) for pages in per_kv] for per_kv in wanted[layer].lists]
                if lists[layer][row] != want:
                    found.append(f"{place}: lists {lists[layer][row]}, reference {want}")
                elif not close(outs[layer][row], wanted[layer].output):
                    worst = (outs[layer][row].double() - wanted[layer].output).abs().max()
                    found.append(f"{place}: output differs by {worst:.3g}")
    return found


def check_prefill(case: Model, *, block: int = 4) -> list[str]:
    """Disagreements over the prompts `begin` of all rows; `q` holds a query for each of the longest one's tokens."""
    layers = case.q.shape[1]
    dtype = case.keys[0][0].dtype
    carry, found = Carry(), []
    outs, lists = [], []
    for layer, static in enumerate(case.statics):
        executor = TorchExecutor(case.program, static)
        short = [[x[:, :n] for x, n in zip(part[layer], case.begin, strict=True)] for part in (case.keys, case.values)]
        cache = PagedKV.from_dense(*short, block, shuffle_seed=layer)
        memory = executor.new_memory(cache, carry=carry)
        out, of_blocks = executor.prefill(case.q[:, layer].permute(1, 2, 0, 3), cache, memory=memory)
        outs.append(out)
        lists.append([item.to_list() for item in of_blocks])
    for row, length in enumerate(case.begin):
        wanted = prefill_layers(
            case.program, case.static,
            [case.q[:length, layer, row].transpose(0, 1).double() for layer in range(layers)],
            [k[row][:, :length].double() for k in case.keys], [v[row][:, :length].double() for v in case.values],
            cache_dtype=dtype,
        )  # fmt: skip
        for layer, want in enumerate(wanted):
            place = f"{case.program.name}: prefill of layer {layer}, row {row}"
            mine = [of_block[row] for of_block in lists[layer]][: len(want.blocks)]
            theirs = [[[list(pages) for pages in per_kv] for per_kv in item.lists] for item in want.blocks]
            if mine != theirs:
                at = next(i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1])
                found.append(f"{place}: block {at}: lists {mine[at]}, reference {theirs[at]}")
            elif not close(outs[layer][row, :, :length], want.output):
                worst = (outs[layer][row, :, :length].double() - want.output).abs().amax((0, 2))
                found.append(f"{place}: output differs by {worst.max():.3g}, most at token {int(worst.argmax())}")
    return found
