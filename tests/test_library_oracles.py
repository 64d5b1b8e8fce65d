"""Every published program under the reference executor against an oracle written from its formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import library_oracles
import pytest
import torch
from library_oracles import ORACLES, Answer, Look
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.dsl import parse
from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.parameters import Parameters, expected_shape
from vortexlab.dsl.reference import Selection, decode_steps
from vortexlab.dsl.reference_prefill import prefill
from vortexlab.search_spaces.library import LIBRARY, NAMES, load, source

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

#: KV heads, query heads of one, channels, latent channels, page and block in proportion to the trial's.
PLAIN = {"two_by_three": (2, 3, 24, 0), "one_by_one": (1, 1, 16, 0), "three_by_four": (3, 4, 20, 0)}
LATENT = {"latent": (1, 5, 24, 16), "latent_wide": (1, 2, 40, 32)}


def geometries(name: str) -> dict[str, tuple[int, int, int, int]]:
    return LATENT if name in LIBRARY["mla"] or name == "mla_learned" else PLAIN | {"latent": LATENT["latent"]}


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
    trial = TRIALS.get(name, Trial(MANY))
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


def plain_attention(look: Look, pages: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    read = library_oracles.tokens_read(look, pages, k)
    return torch.softmax((look.scale * q @ k.T).masked_fill(~read, -math.inf), 1) @ v


def lists_of(mask: Tensor, count: int) -> list[tuple[int, ...]]:
    """The set as `count` page lists; one set may stand for the lists of all query heads."""
    rows = mask if mask.dim() == 2 else mask.expand(count, -1)
    return [tuple(row.nonzero()[:, 0].tolist()) for row in rows]


def check_scores(selection: Selection, kv: int, answer: Answer, what: object) -> None:
    """Each score of the oracle is what some selector of the program saw."""
    for score in answer.scores:
        wanted = score if score.dim() == 2 else score[None]
        rows = [[list(row.values()) for row in node[kv]] for node in selection.scores.values()]
        seen = [torch.tensor(row, dtype=torch.float64) for row in rows]
        same = [x for x in seen if x.shape == wanted.shape and close(x, wanted)]
        assert same or not wanted.numel(), (what, wanted, seen)


def close(found: Tensor, wanted: Tensor) -> bool:
    known = ~wanted.isnan()
    return torch.allclose(found[known], wanted[known], rtol=1e-9, atol=1e-9)


def check_decode(name: str, run: Run) -> None:
    decoded = decode_steps(run.program, run.static, run.q, run.keys, run.values)
    for step, layers in enumerate(decoded):
        for layer, selection in enumerate(layers):
            bound = page_bound(run.program, replace(run.static, layer=layer), run.look(step, layer, 0).length)
            assert max(len(pages) for lists in selection.lists for pages in lists) <= bound, (name, step, layer)
            for kv in range(run.static.kv_heads):
                look = run.full_look(step, layer, kv)
                answer = ORACLES[name](look)
                what = (name, step, layer, kv)
                found = selection.lists[kv]
                assert found == lists_of(library_oracles.with_own(answer.pages), len(found)), what
                check_scores(selection, kv, answer, what)
                heads = slice(kv * run.static.group, (kv + 1) * run.static.group)
                if answer.attend:
                    wanted = answer.attend(look.q, look.k, look.v)
                else:
                    wanted = plain_attention(look, answer.pages, look.q, look.k, look.v)
                torch.testing.assert_close(selection.output[heads], wanted, rtol=1e-9, atol=1e-9, msg=str(what))
            assert not selection.nan


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_decode_is_what_the_formula_says(name: str, shape: str, tmp_path: Path) -> None:
    check_decode(name, bound_run(name, shape, tmp_path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pages", [0, 1, 2])
def test_short_contexts_are_what_the_formula_says(name: str, pages: int, tmp_path: Path) -> None:
    """The last step's own token is the last or the first of its page, or the only complete page is the own one."""
    trial = TRIALS.get(name, Trial(MANY))
    tokens = max(trial.steps, trial.page * pages + (pages == 0) + (pages == 2))
    check_decode(name, bound_run(name, next(iter(geometries(name))), tmp_path, tokens=tokens))


PREFILLS = [name for name in NAMES if load(name).pooled is not None]


def check_prefill(name: str, run: Run, page: int, block: int) -> None:
    """A whole prompt, in the last layer, under another page size and block."""
    run.program = replace(run.program, page=page, block=block)
    layer, tokens = run.static.layers - 1, run.keys[0].shape[1]
    # Queries share a direction for 32 tokens, and for the next 32 they do not: some blocks are alike, some are not.
    q = draw(3, run.q.shape[2], tokens, run.static.head_dim) + 1.5 * (torch.arange(tokens) // 32 % 2)[:, None]
    found = prefill(run.program, replace(run.static, layer=layer), q, run.keys[layer], run.values[layer])
    assert [part.start for part in found.blocks] == list(range(0, tokens, block))
    for part in found.blocks:
        for kv in range(run.static.kv_heads):
            look = run.block_look(q[:, part.start : part.stop], part.start, kv, layer)
            answer = ORACLES[name](look)
            touched = torch.ones((part.stop - 1) // page + 1 - look.own, dtype=torch.bool)
            pages = torch.cat([answer.pages[..., :-1], touched.expand(*answer.pages.shape[:-1], -1)], -1)
            what = (name, part.start, kv)
            assert part.lists[kv] == lists_of(pages, len(part.lists[kv])), what
            check_scores(part.selection, kv, answer, what)
            heads = slice(kv * run.static.group, (kv + 1) * run.static.group)
            for position in range(part.start, part.stop):
                seen = slice(0, position + 1)
                inputs = (q[heads, position], run.keys[layer][kv, seen], run.values[layer][kv, seen])
                wanted = answer.attend(*inputs) if answer.attend else plain_attention(look, answer.pages, *inputs)
                torch.testing.assert_close(found.output[heads, position], wanted, rtol=1e-9, atol=1e-9, msg=str(what))


@pytest.mark.parametrize("name", PREFILLS)
@pytest.mark.parametrize(("page", "block"), [(8, 8), (8, 16), (16, 8)])
def test_prefill_is_what_the_formula_says(name: str, page: int, block: int, tmp_path: Path) -> None:
    if name == "nsa":  # its parameters are for 16 tokens, a quarter of a page
        page, block = {(8, 8): (64, 64), (8, 16): (64, 128), (16, 8): (64, 32)}[page, block]
    shape = "one_by_one" if name == "nsa" else "two_by_three"
    check_prefill(name, bound_run(name, shape, tmp_path, tokens=205 if name == "nsa" else 100), page, block)


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("quest", "k.max(token)", "k.mean(token)"),
        ("quest_shared", '"sum"', '"max"'),
        ("gqa_h2o_blocks", "+ weight", "- weight"),
        ("lserve", "every=every)", "every=1)"),
        ("running_average", "decay * m.running", "m.running"),
        ("tidal", "ctx.layer <= anchor or", "ctx.layer <= 0 or"),
        ("twilight", "fp8_e4m3", "bf16"),
        ("rocketkv", "channels - 1", "channels"),
        ("vattention", "maximum(rest, 1.0) /", "1.0 /"),
        ("retroinfer", "log(float(ctx.page))", "0.0"),
        ("infllm_v2", "maximum(share_of.max(part), before)", "share_of.max(part)"),
        ("nsa", ".max(part) + before", ".max(part)"),
        ("nsa", "where(whole, 0.0, -1e30)", "where(whole, 0.0, 0.0)"),
        ("dsa", "relu(dot(dot(q, query_index, channel), s.index, rank))",
         "dot(dot(q, query_index, channel), s.index, rank)"),
        ("mla_rope_unaware", "ctx.latent)", "ctx.head_dim)"),
    ],
)  # fmt: skip
def test_an_oracle_tells_a_wrong_program_in_decode(name: str, part: str, wrong: str, tmp_path: Path) -> None:
    text = source(name)
    assert part in text
    run = bound_run(name, next(iter(geometries(name))), tmp_path, text=text.replace(part, wrong))
    with pytest.raises(AssertionError):
        check_decode(name, run)


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("a_shape", "last(recent)", "last(recent + 1)"),
        ("local_global", "offset=span - 1", "offset=0"),
        ("vertical", "-16", "-15"),
        ("flexprefill", "scale=ctx.scale", "scale=1.0"),
        ("sparge", "q.norm(channel) == 0.0 or s.alike", "s.alike"),
        ("moba", "q.mean(query)", "q.slice(query, -1).mean(query)"),
        ("seer_attention", "sqrt(64.0)", "64.0"),
    ],
)
def test_an_oracle_tells_a_wrong_program_in_prefill(name: str, part: str, wrong: str, tmp_path: Path) -> None:
    text = source(name)
    assert part in text
    run = bound_run(name, "two_by_three", tmp_path, tokens=100, text=text.replace(part, wrong))
    with pytest.raises(AssertionError):
        check_prefill(name, run, 8, 32)


def test_every_program_has_an_oracle() -> None:
    assert set(ORACLES) == set(NAMES)
    assert {name for name in NAMES if load(name).pooled is not None} >= set(LIBRARY["prefill"])
