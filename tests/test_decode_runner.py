"""The decode runner equals transformers step after step, and sparse programs equal the exported attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from triton_runs import interpreted

from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.decode_layers import DecodeModel
from vortexlab.evaluator.decode_models import PUBLISHED, published_config, random_model, step_bytes
from vortexlab.evaluator.decode_runner import Caches, DecodeRunner, DenseReader, ProgramReader
from vortexlab.kernels import experts
from vortexlab.search_spaces import load

ROWS, STEPS = 3, 21
ONE_OF_EACH = ["qwen3-1.7b", "llama-3.1-8b", "qwen3-30b-a3b", "glm-4.7-flash"]


def small(name: str, **changes: Any) -> Any:
    """A tiny random model of the same kind; norm weights differ from one, so that leaving one out shows."""
    model = random_model(published_config(name, small=True, **changes), "cpu", torch.float32, 5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5, generator=generator)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.3, 0.3, generator=generator)
    return model


def tokens_of(model: Any, steps: int = STEPS) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (ROWS, steps), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def stock_logits(model: Any, tokens: Tensor) -> list[Tensor]:
    """Logits of transformers, one token at a time over its own cache: steps of [rows, vocabulary]."""
    cache, found = DynamicCache(config=model.config), []
    for at in range(tokens.shape[1]):
        out = model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
        found.append(out.logits[:, -1])
    return found


def runner_for(model: Any) -> DecodeRunner:
    made = DecodeModel.of(copy.deepcopy(model), 128)
    caches = Caches.empty(made.statics(), ROWS, 128, "cpu", torch.float32, block=16)
    return DecodeRunner(made, caches, DenseReader(made.statics(), caches))


def fed(runner: DecodeRunner, tokens: Tensor) -> list[Tensor]:
    found = []
    for at in range(tokens.shape[1]):
        runner.tokens.copy_(tokens[:, at])
        found.append(runner.step().clone())
    return found


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_step_equals_transformers(name: str) -> None:
    model = small(name)
    tokens = tokens_of(model)
    for mine, stock in zip(fed(runner_for(model), tokens), stock_logits(model, tokens), strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-4, atol=1e-4)


def test_each_step_leaves_the_greedy_token_of_every_row() -> None:
    model = small("qwen3-1.7b")
    tokens = tokens_of(model, 4)
    runner = runner_for(model)
    fed(runner, tokens)
    with torch.no_grad():
        for _ in range(5):
            chosen = model(tokens).logits[:, -1].argmax(-1)
            assert torch.equal(runner.tokens, chosen)
            tokens = torch.cat((tokens, chosen[:, None]), 1)
            runner.step()
    assert runner.caches.lengths.tolist() == [9] * ROWS


@pytest.mark.parametrize("program", ["quest", "centroid", "h2o_blocks"])
def test_a_program_reads_what_the_exported_attention_reads(program: str) -> None:
    """The prompt densely, then every token through the program: logits equal those of the transformers package."""
    bound = load(program)
    bound = bound.bind({k: v for k, v in {"page": 8, "budget": 4, "recent": 1}.items() if k in bound.knobs})
    model = small("qwen3-1.7b")
    tokens = tokens_of(model, 108)
    runner = runner_for(model)
    fed(runner, tokens[:, :96])
    reader = ProgramReader(bound, runner.model.statics(), runner.caches)
    mine = fed(DecodeRunner(runner.model, runner.caches, reader), tokens[:, 96:])
    pattern = Pattern(bound, f"vortex-runner-{program}")
    model.set_attn_implementation(pattern.register())
    cache = pattern.cache(model.config)
    with torch.no_grad():
        model(tokens[:, :96], past_key_values=cache, use_cache=True)
        for at in range(96, 108):
            stock = model(tokens[:, at : at + 1], past_key_values=cache, use_cache=True).logits[:, -1]
            torch.testing.assert_close(mine[at - 96], stock, rtol=1e-4, atol=1e-4)
    assert (Pattern.density(cache) or 1.0) < 0.7
    assert all(lists is not None for lists in reader.lists)


def test_latent_programs_with_room_for_everything_equal_dense() -> None:
    model = small("glm-4.7-flash")
    tokens = tokens_of(model, 40)
    runner = runner_for(model)
    fed(runner, tokens[:, :24])
    reader = ProgramReader(load("mla_block").bind({"page": 8, "budget": 16}), runner.model.statics(), runner.caches)
    mine = fed(DecodeRunner(runner.model, runner.caches, reader), tokens[:, 24:])
    for step, stock in zip(mine, stock_logits(model, tokens)[24:], strict=True):
        torch.testing.assert_close(step, stock, rtol=1e-4, atol=1e-4)


def test_rows_of_different_lengths_are_independent() -> None:
    model = small("llama-3.1-8b")
    tokens = tokens_of(model, 12)
    runner = runner_for(model)
    fed(runner, tokens[:, :8])
    runner.caches.lengths[1] = 3  # row 1 forgets all but its first three tokens
    runner.tokens.copy_(tokens[:, 8])
    mine = runner.step()
    with torch.no_grad():
        for row, context in enumerate((tokens[0, :9], torch.cat((tokens[1, :3], tokens[1, 8:9])), tokens[2, :9])):
            torch.testing.assert_close(mine[row], model(context[None]).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_published_sizes_are_those_of_the_checkpoints() -> None:
    """Parameters and cache bytes a token, counted without making a weight."""
    from transformers import AutoModelForCausalLM

    billions = [("qwen3-1.7b", 1.72), ("qwen3-8b", 8.19), ("llama-3.1-8b", 8.03), ("qwen3-30b-a3b", 30.5),
                ("glm-4.7-flash", 29.9)]  # fmt: skip
    assert {name for name, _ in billions} == set(PUBLISHED)
    for name, expected in billions:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(published_config(name), dtype=torch.bfloat16)
        count = sum(weight.numel() for weight in model.parameters()) / 1e9
        assert count == pytest.approx(expected, rel=0.01), name


def test_bytes_of_a_step_are_those_of_its_weights() -> None:
    model = small("glm-4.7-flash")
    experts = sum(w.numel() for key, w in model.named_parameters() if ".experts." in key) * 4
    norms = sum(w.numel() for w in model.parameters() if w.dim() == 1) * 4
    whole = sum(w.numel() for w in model.parameters()) * 4
    embedding = model.model.embed_tokens.weight.numel() * 4
    counted = step_bytes(DecodeModel.of(model, 8))
    assert counted.weights == whole - experts - norms - embedding
    assert counted.expert * counted.total * counted.expert_layers == experts
    assert counted.read(10_000) == pytest.approx(whole - norms - embedding)
    assert counted.read(1) == pytest.approx(counted.weights + experts * 3 / 8)


@pytest.mark.parametrize("seed", range(4))
def test_choices_are_grouped_by_expert(seed: int) -> None:
    """Few tokens and many experts leave groups empty; equal scores go to the first experts."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 4, (5, 12), generator=generator).float()
    chosen = logits.sort(dim=-1, descending=True, stable=True).indices[:, :3]
    x = torch.randn(5, 8, generator=generator)
    routed = experts.route(logits, None, experts.Routing(12, 3, False, True, 1.5))
    assert torch.equal(routed.experts.long(), chosen)
    to, ends = experts.grouping(routed.experts, 12)
    assert torch.equal(to.argsort(), chosen.flatten().argsort(stable=True))
    assert ends.tolist() == [int((chosen <= e).sum()) for e in range(12)] and len(set(ends.tolist())) < 12
    torch.testing.assert_close(routed.weights, 1.5 * logits.gather(1, chosen).softmax(-1))
    gate, up, down = (torch.randn(12, 4, 8, generator=generator) for _ in range(3))
    middle = experts.gated_product(x, torch.cat((gate, up), 1), routed.experts)
    rows = experts.grouped_product(middle, down.transpose(1, 2).contiguous(), routed.experts)
    found = experts.Mixture(rows, routed.weights, None).summed()
    each = [sum(w * (down[e].T @ (torch.nn.functional.silu(gate[e] @ row) * (up[e] @ row)))
                for e, w in zip(es, ws, strict=True))
            for row, es, ws in zip(x, chosen, routed.weights, strict=True)]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(each))


def test_what_the_runner_does_not_do_is_said() -> None:
    with pytest.raises(VortexError, match="unknown model 'qwen9'"):
        published_config("qwen9")
    with pytest.raises(VortexError, match="has one"):
        DecodeModel.of(random_model(published_config("qwen3-1.7b", small=True, attention_bias=True), "cpu",
                                    torch.float32, 0), 8)  # fmt: skip
    with pytest.raises(VortexError, match="activation gelu"):
        DecodeModel.of(random_model(published_config("llama-3.1-8b", small=True, hidden_act="gelu"), "cpu",
                                    torch.float32, 0), 8)  # fmt: skip
    model = DecodeModel.of(small("qwen3-1.7b"), 8)
    caches = Caches.empty(model.statics(), 1, 16, "cpu", torch.float32, block=16)
    with pytest.raises(VortexError, match="8 positions"):
        DecodeRunner(model, caches, DenseReader(model.statics(), caches))
    with pytest.raises(VortexError, match="do not fit"):
        caches.fill(17, 0)


def test_a_filled_cache_is_random_and_full_to_its_length() -> None:
    model = DecodeModel.of(small("glm-4.7-flash"), 64)
    caches = Caches.empty(model.statics(), 2, 64, "cpu", torch.float32, block=16)
    caches.fill(50, 3)
    assert caches.lengths.tolist() == [50, 50]
    assert all(float(cache.k.std()) == pytest.approx(1, rel=0.1) and cache.is_shared for cache in caches.layers)
    runner = DecodeRunner(model, caches, DenseReader(model.statics(), caches))
    assert runner.room() == 14 and bool(runner.step().isfinite().all())


def test_kernels_that_place_new_tokens_equal_torch() -> None:
    found = interpreted("place")
    assert found["cases"] == 18 and found["worst"] < 1e-5 and found["untouched"]


def test_steps_on_the_triton_executor_equal_those_on_torch() -> None:
    assert interpreted("decode_runner")["worst"] < 1e-4


def test_the_kernels_of_experts_equal_torch() -> None:
    found = interpreted("route")
    assert found["cases"] == 20 and found["same"] and found["worst"] < 1e-5
