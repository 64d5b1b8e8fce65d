"""How the tests of the library run a published program: knobs, geometries, inputs and learned parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from library_oracles import Look
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.dsl import parse
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parameters import Parameters, expected_shape
from vortexlab.search_spaces.library import LIBRARY, NAMES, load

Settings = Mapping[str, float | str]


@dataclass(frozen=True)
class Trial:
    """One way to run a program: knobs, page and block, the layers of the model and the steps that are taken."""

    knobs: Settings
    page: int = 8
    block: int = 16
    layers: int = 2
    steps: int = 2
    tokens: int = 107


MANY = {"budget": 4, "sink": 1, "recent": 2}
TOKENS = Trial({"heavy_tokens": 64, "recent_tokens": 3}, page=1, block=4, layers=1, steps=3, tokens=90)
STEPS = Trial(MANY, layers=1, steps=12)
SHARE = {"fraction": 0.3, "sink": 1, "recent": 2}

#: What differs from `Trial(MANY)`.
TRIALS: dict[str, Trial] = {
    "dense": Trial({}),
    "sink_window": Trial({"sink": 2, "recent": 5}),
    "bigbird": Trial({"sink": 2, "recent": 3, "random_pages": 3}),
    "strided": Trial({"stride_pages": 5, "recent": 2}),
    "gqa_quest": Trial({**SHARE, "reduce": "mean"}),
    "top_p": Trial({"mass": 0.6, "fraction": 0.5, "sink": 1, "recent": 1}),
    "quest_heads": Trial({**MANY, "dense_layers": 1}),
    "quest_shared": Trial(SHARE),
    "lserve": replace(STEPS, knobs={**MANY, "every": 4, "sub": 4}),
    "running_average": replace(STEPS, knobs={**MANY, "decay": 0.7}),
    "h2o_tokens": replace(TOKENS, knobs={**TOKENS.knobs, "sink_tokens": 2}),
    "gqa_h2o_tokens": replace(TOKENS, knobs={**TOKENS.knobs, "sink_tokens": 2}),
    "snapkv": replace(STEPS, knobs={**MANY, "every": 5, "near": 3}),
    "tidal": Trial({**MANY, "anchor": 1, "again": 0.6}, layers=6, steps=1),
    "twilight": Trial({**SHARE, "mass": 0.7, "fraction": 0.5}),
    "rocketkv": Trial({**MANY, "channels": 5}),
    "vattention": Trial({**MANY, "random_pages": 3}),
    "a_shape": Trial({"sink": 1, "recent": 3}),
    "local_global": Trial({"span": 4}),
    "bigbird_prefill": Trial({"sink": 1, "recent": 2, "random_pages": 3}),
    "flexprefill": Trial({**MANY, "mass": 0.8}),
    "sparge": Trial({"mass": 0.6, "least": 0.14}),
    "moba": Trial({"blocks": 3}),
    "nsa": Trial({**MANY, "local": 4}, page=64, block=64, layers=1, tokens=600),
    "double_sparsity": Trial(SHARE),
    "loki": Trial(SHARE),
    "seer_attention": Trial({"sink": 1, "recent": 1, "threshold": 0.08}),
    "streaming_heads": Trial({"sink": 1, "recent": 3}),
    "dsa": TOKENS,
}

#: KV heads, query heads of one, channels, latent channels.
PLAIN = {"two_by_three": (2, 3, 24, 0), "one_by_one": (1, 1, 16, 0), "three_by_four": (3, 4, 20, 0)}
LATENT = {"latent": (1, 5, 24, 16), "latent_wide": (1, 2, 40, 32)}


def trial_of(name: str) -> Trial:
    return TRIALS.get(name, Trial(MANY))


def geometries(name: str) -> dict[str, tuple[int, int, int, int]]:
    return LATENT if name in LIBRARY["mla"] or name == "mla_learned" else PLAIN | {"latent": LATENT["latent"]}


PREFILLS = [name for name in NAMES if load(name).pooled is not None]
CASES = [(name, shape) for name in NAMES for shape in geometries(name)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(program: Program, static: Static, folder: Path) -> Parameters | None:
    """Random learned constants of the shapes that the program asks for, in a file."""
    if not program.params:
        return None
    tensors = {}
    for number, (name, param) in enumerate(program.params.items()):
        shape = list(expected_shape(param, static, program.page_size).values())
        if param.kind == "int":
            order = torch.rand(*shape[:-1], static.head_dim, generator=torch.Generator().manual_seed(number))
            tensors[name] = order.argsort(-1)[..., : shape[-1]].to(torch.int32)
            assert list(tensors[name].shape) == shape
        else:
            tensors[name] = draw(100 + number, *shape).float() / math.sqrt(static.head_dim)
    save_file(tensors, folder / "parameters.safetensors")
    return Parameters.open(folder / "parameters.safetensors")


@dataclass
class Run:
    """A bound program, its inputs q [step, layer, query head, channel], k and v by layer, and how to look at them."""

    program: Program
    static: Static
    trial: Trial
    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    knobs: Mapping[str, float]

    def look(self, step: int, layer: int, kv: int) -> Look:
        seen = self.keys[layer].shape[1] - (len(self.q) - 1 - step)
        group = slice(kv * self.static.group, (kv + 1) * self.static.group)
        return self._look(self.q[step, layer, group], layer, kv, seen)

    def _look(self, q: Tensor, layer: int, kv: int, seen: int) -> Look:
        tensors = self.program.parameters.tensors() if self.program.parameters else {}
        return Look(
            q, self.keys[layer][kv, :seen], self.values[layer][kv, :seen], self.program.page_size, kv, layer,
            self.static.layers, self.static.scale, self.static.latent, self.knobs,
            {name: tensor.double() for name, tensor in tensors.items()},
        )  # fmt: skip

    def full_look(self, step: int, layer: int, kv: int) -> Look:
        look = self.look(step, layer, kv)
        look.heads = [self.look(step, layer, head) for head in range(self.static.kv_heads)]
        look.earlier = [self.look(before, layer, kv) for before in range(step)]
        look.below = [self.look(step, lower, kv) for lower in range(layer)]
        return look

    def block_look(self, queries: Tensor, start: int, kv: int, layer: int) -> Look:
        """`queries`: [query head, query, channel] of the block that begins at token `start`."""

        def of_head(number: int) -> Look:
            mine = queries[number * self.static.group : (number + 1) * self.static.group]
            return replace(self._look(mine.mean(1), layer, number, start + 1), block=mine)

        return replace(of_head(kv), heads=[of_head(number) for number in range(self.static.kv_heads)])


def bound_run(name: str, shape: str, folder: Path, *, tokens: int | None = None, text: str = "") -> Run:
    """`text` takes the place of the published program."""
    trial = trial_of(name)
    kv_heads, group, head_dim, latent = geometries(name)[shape]
    static = Static(kv_heads, group, head_dim, head_dim**-0.5, layers=trial.layers, latent=latent)
    program = parse(text) if text else load(name)
    knobs = {key: knob for key, knob in program.knobs.items() if key not in ("page", "block")}
    block = trial.block if program.block is not None else None
    program = replace(program, page=trial.page, block=block, knobs=knobs)
    program = program.bind(trial.knobs, parameters(program, static, folder))
    chosen = {**load(name).defaults, **trial.knobs}
    tokens = tokens or trial.tokens
    q = draw(1, trial.steps, trial.layers, kv_heads * group, head_dim)
    keys = [draw(10 + layer, kv_heads, tokens, head_dim) for layer in range(trial.layers)]
    values = [k[..., :latent] if latent else draw(50 + n, *k.shape) for n, k in enumerate(keys)]
    return Run(program, static, trial, q, keys, values, chosen)  # type: ignore[arg-type]


def prefill_queries(run: Run) -> Tensor:
    """A query for every token: [query head, token, channel].

    They share a direction for 32 tokens, and for the next 32 they do not: some blocks are alike, some are not.
    """
    tokens = run.keys[0].shape[1]
    return draw(3, run.q.shape[2], tokens, run.static.head_dim) + 1.5 * (torch.arange(tokens) // 32 % 2)[:, None]
