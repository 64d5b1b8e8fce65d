"""What each operation on values means, against whole-tensor formulas: none of the project's code on their side.

A formula takes the complete pages' keys and values [page, token, channel] and the query heads [head, channel] of one
KV head and gives the scores [page] that the program's selector must have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vortexlab.dsl import parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Static
from vortexlab.dsl.parameters import Parameters, check_parameters, parameter
from vortexlab.dsl.reference import run
from vortexlab.dsl.reference_ops import rounded
from vortexlab.dsl.scalars import round_to

PAGE, WIDTH, PAGES = 4, 8, 7
STATIC = Static(kv_heads=2, group=3, head_dim=WIDTH, scale=0.4, layer=1, layers=3)
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def program(score: str, summary: str = "c=k.mean(token)", body: str = "", options: str = "") -> str:
    """`score` may be several lines, the last one an expression."""
    *lines, last = score.split("\n")
    text = f'@program(page={PAGE}, summaries="fp32"{options})\nclass P:\n'
    text += "".join(f"    {line}\n" for line in body.split("\n") if line)
    text += f"    def summarize(k, v):\n        return dict({summary})\n    def score(q, s, ctx):\n"
    text += "".join(f"        {line}\n" for line in lines)
    return text + f"        return {last}\n    def select(score):\n        return topk(score, 1)\n"


def context(seed: int = 0, pages: int = PAGES) -> tuple[Tensor, Tensor, Tensor]:
    """q [1, heads, channel], k and v [KV heads, tokens, channel] of whole numbers, and one token of the own page."""
    made = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=made).float()

    tokens = pages * PAGE + 1
    return draw(1, 6, WIDTH), draw(2, tokens, WIDTH), draw(2, tokens, WIDTH)


def scores(text: str, seed: int = 0, pages: int = PAGES, parameters: Parameters | None = None) -> Tensor:
    """The scores that the reference's selector saw: [kv head, page]."""
    q, k, v = context(seed, pages)
    bound = parse(text).bind(parameters=parameters)
    found = run(bound, STATIC, q, [k], [v]).scores[bound.output]
    return torch.tensor([[of_kv[0][p] for p in range(pages)] for of_kv in found[0]], dtype=torch.float64)


def check(text: str, formula: Formula, parameters: Parameters | None = None) -> None:
    for pages in (1, 2, PAGES):
        q, k, v = (x.double() for x in context(0, pages))
        found = scores(text, 0, pages, parameters)
        for kv in range(2):
            split = [x[kv, : pages * PAGE].view(pages, PAGE, WIDTH) for x in (k, v)]
            wanted = formula(split[0], split[1], q[0, kv * 3 : kv * 3 + 3]).double()
            assert torch.allclose(found[kv], wanted, atol=1e-6), (pages, kv, found[kv], wanted)


def mean(k: Tensor) -> Tensor:
    return k.mean(1)


def shifted(x: Tensor, by: int, fill: float) -> Tensor:
    out = torch.full_like(x, fill)
    for i in range(x.shape[0]):
        if 0 <= i - by < x.shape[0]:
            out[i] = x[i - by]
    return out


FORMULAS: dict[str, tuple[str, Formula]] = {
    "index of pages and channels": (
        program("(s.c * index(channel)).sum(channel) + 100 * index(page)"),
        lambda k, v, q: (mean(k) * torch.arange(WIDTH)).sum(1) + 100 * torch.arange(len(k)),
    ),
    "index of heads and tokens": (
        program("(s.c * index(head)).sum(head) + s.t.sum(channel)",
                "c=k.mean(token).sum(channel), t=(k * index(token)).sum(token)"),
        lambda k, v, q: 3 * mean(k).sum(1) + (k * torch.arange(PAGE)[:, None]).sum((1, 2)),
    ),
    "slice from the end": (
        program("s.c.slice(channel, 1, 4).sum(channel) - s.c.slice(channel, -2).sum(channel)"),
        lambda k, v, q: mean(k)[:, 1:4].sum(1) - mean(k)[:, -2:].sum(1),
    ),
    "concat": (
        program("x = concat(s.c.slice(channel, 6), s.c, channel)\n(x * x.index(channel)).sum(channel)"),
        lambda k, v, q: (torch.cat([mean(k)[:, 6:], mean(k)], 1) * torch.arange(WIDTH + 2)).sum(1),
    ),
    "merge undoes split": (
        program("x = s.c.split(channel, part=4).merge(part, channel, into=flat)\n(x * x.index(flat)).sum(flat)"),
        lambda k, v, q: (mean(k) * torch.arange(WIDTH)).sum(1),
    ),
    "merge the other way round": (
        program("x = s.c.split(channel, part=4).merge(channel, part, into=flat)\n(x * x.index(flat)).sum(flat)"),
        lambda k, v, q: (mean(k).view(-1, 4, 2).transpose(1, 2).flatten(1) * torch.arange(WIDTH)).sum(1),
    ),
    "gather one channel per head": (
        program("(q.take(channel, q.argmax(channel)) * s.c.take(channel, q.argmax(channel))).sum(head)"),
        lambda k, v, q: sum(q[h, int(q[h].argmax())] * mean(k)[:, int(q[h].argmax())] for h in range(3)),  # type: ignore[return-value, misc]
    ),
    "gather beyond the ends": (
        program("s.c.take(channel, index(channel) + 6, fill=-9.0).sum(channel)"),
        lambda k, v, q: mean(k)[:, 6:].sum(1) - 9 * (WIDTH - 2),
    ),
    "gather the page before": (
        program("x = s.c.sum(channel)\nx.take(page, index(page) - 1, fill=0.5)"),
        lambda k, v, q: shifted(mean(k).sum(1), 1, 0.5),
    ),
    "gather the best page": (
        program("x = s.c.sum(channel)\nx - x.take(page, x.argmax(page))"),
        lambda k, v, q: mean(k).sum(1) - mean(k).sum(1).max(),
    ),
    "shift of pages": (
        program("x = s.c.sum(channel)\nx.shift(page, 2, fill=-1.0) + 10 * x.shift(page, -1)"),
        lambda k, v, q: shifted(mean(k).sum(1), 2, -1.0) + 10 * shifted(mean(k).sum(1), -1, 0.0),
    ),
    "shift of tokens": (
        program("s.c", "c=(k - k.shift(token, 1)).max(token).sum(channel)"),
        lambda k, v, q: (k - torch.cat([torch.zeros_like(k[:, :1]), k[:, :-1]], 1)).amax(1).sum(1),
    ),
    "window: a smoothed score": (
        program("x = s.c.sum(channel)\nx.window(page, near=3, fill=0.0).mean(near)"),
        lambda k, v, q: (shifted(mean(k).sum(1), 1, 0) + mean(k).sum(1) + shifted(mean(k).sum(1), -1, 0)) / 3,
    ),
    "window of an even size looks back": (
        program("x = s.c.sum(channel)\ny = x.window(page, near=2, fill=-1.0)\n(y * (y.index(near) + 1)).sum(near)"),
        lambda k, v, q: shifted(mean(k).sum(1), 1, -1.0) + 2 * mean(k).sum(1),
    ),
    "overlapping pools of tokens": (
        program("s.c", "c=k.window(token, near=3, fill=0.0).sum(near).max(token).sum(channel)"),
        lambda k, v, q: torch.nn.functional.pad(k, (0, 0, 1, 1)).unfold(1, 3, 1).sum(-1).amax(1).sum(1),
    ),
    "running sum": (
        program("s.c.sum(channel).cumsum(page) + s.c.cummax(channel).sum(channel)"),
        lambda k, v, q: mean(k).sum(1).cumsum(0) + mean(k).cummax(1).values.sum(1),
    ),
    "running minimum": (
        program("s.c.sum(channel).cummin(page)"),
        lambda k, v, q: mean(k).sum(1).cummin(0).values,
    ),
    "sort channels": (
        program('x = s.c.sort(channel, "up")\ns.c.sort(channel).slice(channel, 0, 3).sum(channel)'
                " + x.slice(channel, 0, 1).sum(channel)"),
        lambda k, v, q: mean(k).topk(3, 1).values.sum(1) + mean(k).amin(1),
    ),
    "sort pages: distance to the second best": (
        program("x = s.c.sum(channel)\nx - x.sort(page).take(page, 1, fill=0.0)"),
        lambda k, v, q: mean(k).sum(1) - (mean(k).sum(1).sort(descending=True).values[1] if len(k) > 1 else 0.0),
    ),
    "argmax is the first of equals": (
        program("float(s.c.argmax(channel))", "c=clamp(k.max(token), 0.0, 1.0)"),
        lambda k, v, q: torch.tensor([float((x >= x.max()).nonzero()[0, 0]) for x in k.amax(1).clamp(0, 1)]),
    ),
    "truth values of sets": (
        program("x = s.c.sum(channel)\nwhere(member(topk(x, 2)), x, 0.0)"),
        lambda k, v, q: torch.where(torch.zeros(len(k)).index_fill(0, mean(k).sum(1).sort(
            descending=True, stable=True).indices[:2], 1.0) > 0, mean(k).sum(1), 0.0),
    ),
    "fp8 casts saturate": (
        program('(s.c * 200).to("fp8_e4m3").sum(channel) + (s.c * 0.13).to("fp8_e5m2").sum(channel)'),
        lambda k, v, q: (mean(k) * 200).float().clamp(-448, 448).to(torch.float8_e4m3fn).double().sum(1)
        + (mean(k).float() * torch.tensor(0.13)).to(torch.float8_e5m2).double().sum(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_operations_equal_their_formulas(name: str) -> None:
    check(*FORMULAS[name])


def test_rule_10_fp8_summaries_have_one_scale_per_page_head_and_field() -> None:
    for dtype, stored in (("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)):
        text = program("s.c.sum(channel) + 1000 * s.n").replace('"fp32"', f'"{dtype}"')
        text = text.replace("c=k.mean(token)", "c=k.mean(token) * 3e4, n=v.max(token).max(channel) * 0")

        def formula(k: Tensor, v: Tensor, q: Tensor, stored: torch.dtype = stored) -> Tensor:
            x = (mean(k) * 3e4).float()
            scale = x.abs().amax(1, keepdim=True) / torch.finfo(stored).max
            return ((x / scale).to(stored).float() * scale).double().sum(1)

        check(text, formula)


def test_exact_scalars_are_rounded_to_fp8_like_tensors() -> None:
    numbers = [0.0, 1.0, -1.0, 447.0, 465.0, 1e9, -1e9, 2.0**-10, 0.001, 0.3, -0.07, 57344.0, 6e4, 2.0**-17, 3e-5]
    for name, stored in (("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)):
        tensor = rounded(torch.tensor(numbers, dtype=torch.float64), stored)
        assert [round_to(x, name) for x in numbers] == tensor.tolist()
        assert math.isnan(round_to(math.nan, name)) and rounded(torch.tensor(math.nan), stored).isnan()
        assert round_to(math.inf, name) == torch.finfo(stored).max == rounded(torch.tensor(math.inf), stored).item()


# ---- parameters

GATED = program(
    "(s.c * gate).sum(channel) + s.c.take(channel, chosen).sum(rank) + bias * 0",
    body='gate = param("g", channel, per_kv_head=True)\nchosen = param(rank=2, kind="int", per_layer=False)\n'
    "bias = param(per_layer=True)",
)


def saved(path: Path, **changes: Tensor) -> Parameters:
    tensors = {
        "g": torch.arange(3 * 2 * WIDTH).view(3, 2, WIDTH).float(), "chosen": torch.tensor([5, 1], dtype=torch.int32),
        "bias": torch.zeros(3), **changes,
    }  # fmt: skip
    save_file(tensors, path)
    return Parameters.open(path)


def test_parameters_have_rows_per_layer_and_kv_head(tmp_path: Path) -> None:
    file = saved(tmp_path / "p.safetensors")
    k = context()[1].double()
    found = scores(GATED, parameters=file)
    gate = torch.arange(3 * 2 * WIDTH).view(3, 2, WIDTH).double()
    for kv in range(2):
        c = mean(k[kv, : PAGES * PAGE].view(PAGES, PAGE, WIDTH))
        assert torch.allclose(found[kv], (c * gate[STATIC.layer, kv]).sum(1) + c[:, 5] + c[:, 1], atol=1e-6)
    bound = parse(GATED).bind(parameters=file)
    assert parameter(bound, "gate", STATIC, 1).tolist() == gate[1, 1].tolist()
    assert parameter(bound, "chosen", STATIC, 0).dtype == torch.int64
    check_parameters(bound, STATIC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g": torch.zeros(3, WIDTH)}, r"\[3, 8\]; expected \[3, 2, 8\]: \[layer 3, kv_head 2, channel 8\]"),
        ({"g": torch.full((3, 2, WIDTH), math.nan)}, "48 numbers that are not finite"),
        ({"g": torch.zeros(3, 2, WIDTH, dtype=torch.int32)}, "is of int32; expected floats"),
        ({"chosen": torch.tensor([0.0, 1.0])}, "is of float32; expected whole numbers"),
        ({"chosen": torch.tensor([0, 2**40])}, "beyond"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_in_one_line(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    bound = parse(GATED).bind(parameters=saved(tmp_path / "p.safetensors", **changes))
    with pytest.raises(VortexError, match=message) as caught:
        check_parameters(bound, STATIC)
    assert "\n" not in str(caught.value)


def test_missing_parameters_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="give --parameters"):
        scores(GATED)
    save_file({"other": torch.zeros(1)}, tmp_path / "p.safetensors")
    with pytest.raises(VortexError, match="no tensor 'bias'; they have other"):
        check_parameters(parse(GATED).bind(parameters=Parameters.open(tmp_path / "p.safetensors")), STATIC)
    with pytest.raises(VortexError, match="cannot read the parameters"):
        Parameters.open(tmp_path / "absent.safetensors")
