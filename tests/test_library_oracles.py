"""Every published program under the reference executor against an oracle written from its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import library_oracles
import pytest
import torch
from library_oracles import ORACLES, Answer, Look
from library_runs import CASES, PREFILLS, Run, bound_run, geometries, prefill_queries, trial_of
from torch import Tensor

from vortexlab.dsl.bounds import page_bound
from vortexlab.dsl.reference import Selection, decode_steps
from vortexlab.dsl.reference_prefill import prefill
from vortexlab.search_spaces.library import LIBRARY, NAMES, source


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
    trial = trial_of(name)
    tokens = max(trial.steps, trial.page * pages + (pages == 0) + (pages == 2))
    check_decode(name, bound_run(name, next(iter(geometries(name))), tmp_path, tokens=tokens))


def check_prefill(name: str, run: Run, page: int, block: int) -> None:
    """A whole prompt, in the last layer, under another page size and block."""
    run.program = replace(run.program, page=page, block=block)
    layer, tokens = run.static.layers - 1, run.keys[0].shape[1]
    q = prefill_queries(run)
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
    assert set(PREFILLS) >= set(LIBRARY["prefill"])
