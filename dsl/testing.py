"""Random typed programs and random inputs, for tests that compare executors with the reference.

`random_program` writes source text that uses every operation of the op table; it is typed by construction, and guards
what could give NaN (roots and logarithms of absolute values, divisors above 0). `random_case` draws a geometry, a
ragged batch and inputs; half of the kinds of input are exact: small integers and dyadic fractions, on which fp32 and
float64 agree wherever a program does arithmetic that fp32 can do exactly.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Attr, KnobRef, Program, Static
from vortexlab.dsl.parameters import Parameters, expected_shape
from vortexlab.dsl.program_writer import ProgramWriter
from vortexlab.dsl.reference_ops import SATURATING, rounded

PAGES = (8, 16, 24, 32, 48, 64)
HEAD_DIMS = (32, 48, 64, 80, 96, 128, 256)
GROUPS = (1, 2, 3, 4, 5, 7, 8, 16)
EXACT_KINDS = ("integers", "dyadic", "ties", "equal", "zeros", "one_hot")
#: Precisions of caches; the fp8 ones are asked for.
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
FP8_DTYPES = SATURATING
REAL_KINDS = ("normal", "huge", "tiny", "outliers", "repeated")


def random_program(
    rng: random.Random, *, page: int | None = None, smooth: bool | None = None, size: int = 6, whole: bool = False
) -> str:
    """The text of a random valid program.

    `page`: tokens of a page, drawn from `PAGES` by default. `smooth` lets it use operations that fp32 cannot do
    exactly (exp, softmax, norms, divisions, ...); drawn by default. `size`: about how many operations each of
    `summarize` and `score` does beyond the least. `whole`: of the whole language, with state, parameters, attention
    output, prefill, fp8 and operations along axes, instead of selection alone.
    """
    smooth = rng.random() < 0.5 if smooth is None else smooth
    return ProgramWriter(rng, page or rng.choice(PAGES), smooth, size, whole).text()


@dataclass
class Case:
    """One random configuration of a bound program.

    `q`: [batch, query_heads, channel]; `keys[b]`, `values[b]`: [kv_heads, tokens, channel], all in the cache's
    precision; `block`: tokens of a cache block; `kind`: what the numbers are like; `seed` makes it again,
    and `inputs` its numbers alone.
    """

    program: Program
    static: Static
    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    block: int
    kind: str
    seed: int
    inputs: int

    @property
    def lengths(self) -> list[int]:
        return [k.shape[1] for k in self.keys]

    @property
    def is_exact(self) -> bool:
        return self.kind in EXACT_KINDS

    def __str__(self) -> str:
        s = self.static
        return (
            f"{self.program.name}, page {self.program.page_size}, block {self.block}, {s.kv_heads} KV heads "
            f"x {s.group} x {s.head_dim}, layer {s.layer}/{s.layers}, lengths {self.lengths}, "
            f"{self.q.dtype}, {self.kind}, seed {self.seed}"
        )


def random_case(
    seed: int,
    program: Program,
    *,
    max_length: int = 400,
    page: int | None = None,
    kinds: tuple[str, ...] = EXACT_KINDS + REAL_KINDS,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    max_elements: int = 3_000_000,
    latent: bool = False,
) -> Case:
    """A random configuration: geometry, knob values, ragged lengths in 1..`max_length` and inputs, all from `seed`.

    `page` replaces the program's page size. Lengths favour the edges of pages. `max_elements` bounds the numbers in
    all keys together. `latent`: also the geometries of MLA, where the program allows. Parameters are drawn for the
    program; queries of an fp8 cache are bf16.
    """
    rng = random.Random(seed)
    bound = with_page(program, page).bind(random_knobs(rng, with_page(program, page)))
    p = bound.page_size
    kind = rng.choice(kinds)
    static = _geometry(rng, bound, kind, latent)
    lengths: list[int] = []
    for _ in range(rng.choice((1, 2, 3, 4))):
        length = _random_length(rng, p, max_length)
        if lengths and (sum(lengths) + length) * static.kv_heads * static.head_dim > max_elements:
            break
        lengths.append(length)
    block = rng.choice([b for b in (p, p, 2 * p, 4 * p, p // 2, p // 4, 1) if b >= 1 and (p % b == 0 or b % p == 0)])
    dtype = rng.choice([d for d in dtypes if not (d == torch.float16 and kind == "huge")] or list(dtypes))
    inputs = rng.randrange(2**31)
    return drawn_case(bound, static, lengths, kind=kind, dtype=dtype, block=block, inputs=inputs, seed=seed)


def drawn_case(
    program: Program, static: Static, lengths: list[int], *, kind: str, dtype: torch.dtype, block: int, inputs: int,
    seed: int = 0,
) -> Case:  # fmt: skip
    """A case of given geometry of a bound program; its numbers come from the seed `inputs`."""
    generator = torch.Generator().manual_seed(inputs)
    q, keys, values = _inputs(generator, kind, static, lengths, program.page_size)
    if program.params:
        program = replace(program, parameters=random_parameters(generator, program, static, kind in EXACT_KINDS))
    q = q.to(torch.bfloat16 if dtype in SATURATING else dtype)
    keys, values = ([rounded(x, dtype).to(dtype) for x in part] for part in (keys, values))
    return Case(program, static, q, keys, values, block, kind, seed, inputs)


def _geometry(rng: random.Random, program: Program, kind: str, latent: bool) -> Static:
    head_dim, group = rng.choice(HEAD_DIMS), rng.choice(GROUPS)
    if kind in EXACT_KINDS and rng.random() < 0.5:
        # Means over powers of two are exact, and so is more of what follows from them.
        head_dim, group = rng.choice((32, 64, 128, 256)), rng.choice((1, 2, 4, 8, 16))
    over_layers = any(program.nodes[i].attrs.get("over") == "layers" for i in program.live())
    static = Static(
        kv_heads=rng.choice((1, 2, 2, 3, 4)), group=group, head_dim=head_dim, scale=head_dim**-0.5,
        layer=0 if over_layers else rng.randrange(4), layers=4,
    )  # fmt: skip
    if latent and rng.random() < 0.25:
        width = rng.choice((48, 64, 96))
        narrow = replace(static, kv_heads=1, head_dim=width + 16, latent=width, scale=0.125)
        try:
            program.axis_sizes(narrow)
        except VortexError:
            return static  # keys and values meet, or a split does not divide
        return narrow
    return static


def random_parameters(generator: torch.Generator, program: Program, static: Static, exact: bool) -> Parameters:
    """Values for everything that the program learns: small whole numbers where arithmetic shall be `exact`."""
    tensors = {}
    for param in program.params.values():
        shape = tuple(expected_shape(param, static, program.page_size).values())
        if param.kind == "int":
            tensors[param.tensor] = torch.randint(-1, 40, shape, generator=generator, dtype=torch.int32)
        elif exact:
            tensors[param.tensor] = torch.randint(-2, 3, shape, generator=generator).float()
        else:
            tensors[param.tensor] = torch.randn(shape, generator=generator)
    return Parameters.of(tensors)


@dataclass
class Course:
    """A random request batch over several layers: a prompt, if the program prefills, and decode steps after it.

    `q[layer]`: [steps, batch, query_heads, channel]; `keys[layer][b]`, `values[layer][b]`: [kv_heads, tokens, channel]
    of all tokens up to the last step's own, in the cache's precision; `prompt[layer][b]`: [query_heads, tokens,
    channel], a query for every token. `case` holds the geometry; its tensors are those of layer 0 at the last step.
    """

    case: Case
    q: list[Tensor]
    keys: list[list[Tensor]]
    values: list[list[Tensor]]
    prompt: list[list[Tensor]]

    @property
    def steps(self) -> int:
        return self.q[0].shape[0]

    @property
    def statics(self) -> list[Static]:
        return [replace(self.case.static, layer=layer) for layer in range(self.case.static.layers)]


def random_course(
    seed: int, program: Program, *, layers: int = 2, steps: int = 6, max_length: int = 120, **options: Any
) -> Course:
    """A random `Course` of `layers` layers and at most `steps` steps; `options` as in `random_case`."""
    return drawn_course(random_case(seed, program, max_length=max_length, **options), layers, steps)


def drawn_course(case: Case, layers: int, steps: int) -> Course:
    """A course of the case's geometry; what the case does not hold comes from its `seed`."""
    case = replace(case, static=replace(case.static, layer=0, layers=layers))
    generator = torch.Generator().manual_seed(case.seed)
    if case.program.params:
        drawn = random_parameters(generator, case.program, case.static, case.is_exact)
        case.program = replace(case.program, parameters=drawn)
    page, dtype, lengths = case.program.page_size, case.keys[0].dtype, case.lengths
    steps = min(steps, *lengths)
    q, keys, values, prompt = [], [], [], []
    for layer in range(layers):
        k, v = case.keys, case.values
        if layer:
            _, k, v = _inputs(generator, case.kind, case.static, lengths, page)
        rows = [_inputs(generator, case.kind, case.static, lengths, page)[0] for _ in range(steps)]
        q.append(torch.stack(rows).to(case.q.dtype))
        keys.append([rounded(x, dtype).to(dtype) for x in k])
        values.append([rounded(x, dtype).to(dtype) for x in v])
        each = [_inputs(generator, case.kind, case.static, [n] * n, page, queries=True)[0] for n in lengths]
        prompt.append([x.transpose(0, 1).contiguous().to(case.q.dtype) for x in each])
    case.q = q[0][-1]
    return Course(case, q, keys, values, prompt)


def with_page(program: Program, page: int | None) -> Program:
    """The program with another page size, which is then no knob."""
    if page is None:
        return program
    knobs = {name: knob for name, knob in program.knobs.items() if KnobRef(name) != program.page}
    return replace(program, page=page, knobs=knobs)


def random_knobs(rng: random.Random, program: Program) -> dict[str, Attr]:
    """A value for every knob; numbers mostly near their lower end, so that budgets stay under short contexts."""
    chosen: dict[str, Attr] = {}
    for name, knob in program.knobs.items():
        if knob.kind == "choice":
            chosen[name] = rng.choice(knob.choices)
        elif knob.kind == "bool":
            chosen[name] = rng.random() < 0.5
        elif knob.kind == "int":
            assert knob.low is not None and knob.high is not None
            reach = knob.high if rng.random() < 0.1 else min(knob.high, knob.low + 12)
            chosen[name] = rng.randint(int(knob.low), int(reach))
        else:
            assert knob.low is not None and knob.high is not None
            chosen[name] = rng.uniform(float(knob.low), float(knob.high))
    return chosen


def _random_length(rng: random.Random, page: int, longest: int) -> int:
    draw = rng.random()
    if draw < 0.1:
        return rng.randint(1, min(longest, page))
    if draw < 0.5:
        pages = rng.randint(1, max(1, longest // page))
        return max(1, min(longest, pages * page + rng.choice((-1, 0, 0, 1, 1))))
    return rng.randint(1, longest)


def _inputs(
    generator: torch.Generator, kind: str, static: Static, lengths: list[int], page: int, *, queries: bool = False
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A query for each length, and as many contexts; with `queries` these alone. Latent values are a part of keys."""
    heads, width = static.kv_heads, static.head_dim

    def draw(*shape: int) -> Tensor:
        if kind == "integers":
            return torch.randint(-3, 4, shape, generator=generator).float()
        if kind == "dyadic":
            return torch.randint(-16, 17, shape, generator=generator).float() / 8
        if kind == "ties":
            return torch.randint(0, 2, shape, generator=generator).float()
        if kind == "equal":
            return torch.ones(shape)
        if kind == "zeros":  # of one sign in a page, so that some scores are -0 and others 0
            negative = torch.randint(0, 2, (shape[0], math.ceil(shape[1] / page), 1), generator=generator).bool()
            signs = torch.where(negative, -1.0, 1.0).repeat_interleave(page, 1)[:, : shape[1]]
            return torch.zeros(shape).copysign(signs)
        if kind == "one_hot":
            hot = torch.zeros(shape)
            hot.scatter_(-1, torch.randint(0, shape[-1], (*shape[:-1], 1), generator=generator), 1.0)
            return hot
        real = torch.randn(shape, generator=generator)
        if kind == "outliers":
            real[..., :: max(1, shape[-1] // 4)] *= 30
        return real * {"huge": 1e4, "tiny": 1e-4}.get(kind, 1.0)

    def context(length: int) -> Tensor:
        if kind == "repeated":
            one = draw(heads, page, width)
            return one.repeat(1, math.ceil(length / page), 1)[:, :length].contiguous()
        return draw(heads, length, width)

    q = draw(len(lengths), heads * static.group, width)
    if queries:
        return q, [], []
    keys = [context(n) for n in lengths]
    if static.latent:
        return q, keys, [k[..., : static.latent].contiguous() for k in keys]
    return q, keys, [context(n) for n in lengths]
