"""A pattern in Hugging Face transformers: what runs is the program, and nothing else about the model changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine_fixtures import (
    CARRIES,
    EVERYTHING,
    LAYERED,
    PAGE,
    PER_HEAD,
    QUEST,
    WINDOW,
    gate_from,
    logits,
    small_model,
    tiny,
    tokens,
    using,
)
from transformers import DynamicCache, Qwen3ForCausalLM

from vortexlab.deploy.huggingface.cache import PagedLayer
from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.gate import Gate


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return small_model()


@torch.inference_mode()
def masked(model: Any, context: torch.Tensor, question: torch.Tensor, windows: tuple[int, ...]) -> torch.Tensor:
    """The question's logits under an explicit mask of first(1) | last(windows[layer]), stock attention otherwise."""
    model.set_attn_implementation("sdpa")
    cache = DynamicCache(config=model.config)
    model(input_ids=context, past_key_values=cache)
    start, end = context.shape[1], context.shape[1] + question.shape[1]
    query, key = torch.arange(start, end)[:, None], torch.arange(end)[None]
    masks = []
    for window in windows:
        recent = key // PAGE > query // PAGE - window
        masks.append(((key <= query) & (recent | (key < PAGE)))[None, None])
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
        for layer, mask in zip(model.model.layers, masks, strict=True)
    ]
    try:
        return model(input_ids=question, past_key_values=cache).logits
    finally:
        for hook in hooks:
            hook.remove()


def test_everything_is_the_model_itself(model: Any) -> None:
    context, question = tokens(100), tokens(30, seed=1)
    model.set_attn_implementation("sdpa")
    expected = logits(model, DynamicCache(config=model.config), context, question)
    _, pattern = using(model, EVERYTHING)
    cache = pattern.cache(model.config)
    assert torch.allclose(logits(model, cache, context, question), expected, atol=1e-4)
    assert pattern.density(cache) == 1.0


@pytest.mark.parametrize("found, windows", [(WINDOW, (3, 3)), (LAYERED, (2, 3))])
def test_a_window_is_the_model_under_that_mask(model: Any, found: Any, windows: tuple[int, ...]) -> None:
    """Page boundaries, the own page and the layer's index, against transformers' own masks."""
    context, question = tokens(121), tokens(40, seed=1)
    expected = masked(model, context, question, windows)
    _, pattern = using(model, found)
    assert torch.allclose(logits(model, pattern.cache(model.config), context, question), expected, atol=1e-4)
    assert not torch.allclose(expected, masked(model, context, question, (4, 4)), atol=1e-3)


@pytest.mark.parametrize("found", [QUEST, PER_HEAD, WINDOW, CARRIES])
def test_a_chunk_equals_one_by_one(model: Any, found: Any) -> None:
    context, question = tokens(150), tokens(21, seed=1)
    _, pattern = using(model, found)
    cache, other = pattern.cache(model.config), pattern.cache(model.config)
    whole = logits(model, cache, context, question)
    single = logits(model, other, context, *question.split(1, dim=1))
    assert torch.allclose(whole[:, -1:], single, atol=1e-4)
    assert pattern.density(cache) == pytest.approx(pattern.density(other))
    assert 0 < pattern.density(cache) < 1


def test_the_cache_grows_past_its_first_room(model: Any) -> None:
    """256 tokens are allocated at first; what was summarised before growing must be found again after."""
    context, question = tokens(250), tokens(20, seed=1)
    _, pattern = using(model, QUEST)
    cache = pattern.cache(model.config)
    grown = logits(model, cache, context, *question.split(4, dim=1))
    roomy = pattern.cache(model.config)
    for layer in roomy.layers:
        layer._grow = lambda k, v, n, layer=layer: PagedLayer._grow(layer, k, v, 1024)  # type: ignore[method-assign]
    assert torch.allclose(grown, logits(model, roomy, context, *question.split(4, dim=1)), atol=1e-5)
    assert cache.layers[0].capacity == 512 and cache.get_seq_length() == 270


def test_a_context_answers_several_questions(model: Any) -> None:
    """By a copy of the cache, by cropping it back, and by starting over."""
    context, first, second = tokens(130), tokens(17, seed=1), tokens(9, seed=2)
    _, pattern = using(model, QUEST)
    expected = logits(model, pattern.cache(model.config), context, second)
    cache = pattern.cache(model.config)
    logits(model, cache, context)
    spare = copy.deepcopy(cache)
    logits(model, cache, first)
    assert torch.equal(logits(model, spare, second), expected)
    cache.crop(torch.tensor(-17))  # as some releases call it
    assert cache.get_seq_length() == 130 and isinstance(cache.get_seq_length(), int)
    assert torch.equal(logits(model, cache, second), expected)
    cache.reset()
    assert torch.equal(logits(model, cache, context, second), expected)


def test_what_is_carried_begins_anew_with_every_sequence(model: Any) -> None:
    context, question, other = tokens(130), tokens(17, seed=1), tokens(90, rows=2, seed=3)
    _, pattern = using(model, CARRIES)
    cache = pattern.cache(model.config)
    expected = logits(model, cache, context, question)
    further = logits(model, cache, question)
    longer = logits(model, pattern.cache(model.config), context, torch.cat([question, question], 1))
    assert torch.allclose(further, longer[:, 17:], atol=1e-4)
    with pytest.raises(VortexError, match="crop its cache back to the 130 tokens that it began after"):
        cache.crop(-20)
    cache.crop(-34)
    assert torch.allclose(logits(model, cache, question), expected, atol=1e-5)
    cache.reset()
    logits(model, cache, other, tokens(9, rows=2))
    cache.crop(-99)
    assert torch.allclose(logits(model, cache, context.repeat(2, 1), question.repeat(2, 1))[1:], expected, atol=1e-4)
    # What is carried is seen: without it the answer is another one.
    forgetful = pattern.cache(model.config)
    logits(model, forgetful, context, question[:, :9])
    for layer in forgetful.layers:
        layer.memory = None
    assert not torch.allclose(logits(model, forgetful, question[:, 9:]), expected[:, 9:], atol=1e-3)


@pytest.mark.parametrize("found", [QUEST, CARRIES])
def test_rows_of_a_batch_do_not_touch_each_other(model: Any, found: Any) -> None:
    context, question = tokens(90, rows=3), tokens(12, rows=3, seed=1)
    _, pattern = using(model, found)
    together = logits(model, pattern.cache(model.config), context, question)
    for row in range(3):
        alone = logits(model, pattern.cache(model.config), context[row : row + 1], question[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_generate_reads_the_prompt_densely_and_the_rest_sparsely(model: Any) -> None:
    prompt = tokens(140)
    _, pattern = using(model, QUEST)
    cache = pattern.cache(model.config)
    more = {"max_new_tokens": 10, "do_sample": False}
    found = model.generate(prompt, past_key_values=cache, attention_mask=torch.ones_like(prompt), **more)
    answer, step = [], prompt
    other = pattern.cache(model.config)
    for _ in range(10):
        step = logits(model, other, step)[:, -1:].argmax(-1)
        answer.append(int(step))
    assert found[0, 140:].tolist() == answer
    assert cache.layers[0].reading.steps == 9 and 0 < pattern.density(cache) < 0.8
    assert Pattern.density(pattern.cache(model.config)) is None


@pytest.mark.parametrize("found", [QUEST, CARRIES])
def test_with_a_gate_that_never_opens_generate_is_the_model_itself(model: Any, found: Any) -> None:
    prompt = tokens(140, rows=2)
    more: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    model.set_attn_implementation("sdpa")
    expected = model.generate(prompt, past_key_values=DynamicCache(config=model.config), **more)
    _, sparse = using(model, found)
    ungated = model.generate(prompt, past_key_values=sparse.cache(model.config), **more)
    assert not torch.equal(ungated, expected)
    _, always = using(model, found, gate_from(1, batch=2))
    assert torch.equal(model.generate(prompt, past_key_values=always.cache(model.config), **more), ungated)
    for gate in (gate_from(None), gate_from(1, batch=3), gate_from(140 + 24)):
        _, pattern = using(model, found, gate)
        cache = pattern.cache(model.config)
        assert torch.equal(model.generate(prompt, past_key_values=cache, **more), expected)
        assert pattern.density(cache) == 1.0 and cache.layers[0].reading.steps == 23


def read_densely(model: Any, found: Any, *pieces: torch.Tensor, after: Gate | None = None) -> Any:
    """A pattern's cache that has read `pieces` without a sparse step, and goes on with the gate `after`."""
    _, pattern = using(model, found, gate_from(None))
    cache = pattern.cache(model.config)
    logits(model, cache, *pieces)
    for layer in cache.layers:
        layer.gate = after
    return cache


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("found", [QUEST, PER_HEAD, CARRIES])
def test_a_gate_that_opens_on_the_way_changes_no_step_after(model: Any, found: Any, chunked: bool) -> None:
    """Dense before and the program after, over the same keys, with the summaries of pages that dense steps filled.

    The room for 256 tokens is outgrown on the dense side, and the program's memory begins at the first sparse step.
    """
    context, before, after = tokens(230, rows=2), tokens(51, rows=2, seed=1), tokens(19, rows=2, seed=2)
    opens = 230 + 51 + 1
    model.set_attn_implementation("sdpa")
    dense = logits(model, DynamicCache(config=model.config), context, before)
    _, pattern = using(model, found, gate_from(opens))
    cache = pattern.cache(model.config)
    pieces = [before] if chunked else before.split(1, dim=1)
    assert torch.allclose(logits(model, cache, context, *pieces)[:, -1:], dense[:, -1:], atol=1e-4)
    assert pattern.density(cache) == 1.0 and all(layer.memory is None for layer in cache.layers)
    # The ungated pattern over the same keys, whose summaries are all made anew.
    ungated = read_densely(model, found, context, before)
    for layer in ungated.layers:
        layer.state = layer.executor = None
    expected = logits(model, ungated, after)
    opened = logits(model, cache, *([after] if chunked else after.split(1, dim=1)))
    assert torch.allclose(opened[:, -1:], expected[:, -1:], atol=1e-5)
    assert pattern.density(cache) == pytest.approx(pattern.density(ungated))
    assert pattern.density(cache) < 1 and cache.layers[0].reading.steps == 51 + 19
    shut = read_densely(model, found, context, before, after=gate_from(None))
    assert not torch.allclose(expected[:, -1:], logits(model, shut, after)[:, -1:], atol=1e-3)


def test_a_gate_may_open_within_a_chunk(model: Any) -> None:
    """What is carried begins at the first sparse token, and a crop may go back to just before it."""
    context, chunk = tokens(130), tokens(30, seed=1)
    _, pattern = using(model, CARRIES, gate_from(141))
    cache = pattern.cache(model.config)
    whole = logits(model, cache, context, chunk)
    other = read_densely(model, CARRIES, context, chunk[:, :10])
    assert torch.allclose(whole[:, 10:], logits(model, other, chunk[:, 10:]), atol=1e-4)
    assert {layer.began for layer in cache.layers} == {140}
    with pytest.raises(VortexError, match="crop its cache back to the 140 tokens"):
        cache.crop(-5)
    cache.crop(-25)
    assert torch.allclose(logits(model, cache, chunk[:, 5:]), whole[:, 5:], atol=1e-4)


def test_bf16_is_the_model_itself_too(model: Any) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    context, question = tokens(100), tokens(8, seed=1)
    half.set_attn_implementation("sdpa")
    expected = logits(half, DynamicCache(config=half.config), context, question)
    _, pattern = using(half, EVERYTHING)
    found = logits(half, pattern.cache(half.config), context, question)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).abs().max()) < 0.05 * float(expected.std())


def test_what_a_pattern_cannot_do_is_refused(model: Any) -> None:
    _, pattern = using(model, QUEST)
    prompt = tokens(40)
    with pytest.raises(VortexError, match="needs its own cache"):
        logits(model, DynamicCache(config=model.config), prompt)
    cache = pattern.cache(model.config)
    logits(model, cache, prompt)
    with pytest.raises(VortexError, match="holds 1 rows and was given 2"):
        logits(model, cache, tokens(3, rows=2))
    with pytest.raises(VortexError, match="beam search"):
        model.generate(prompt, past_key_values=pattern.cache(model.config), num_beams=2, max_new_tokens=3)
    with pytest.raises(VortexError, match="not a pattern's cache"):
        pattern.density(DynamicCache(config=model.config))
    sliding = tiny(use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(VortexError, match="layers of kind sliding_attention"):
        pattern.cache(sliding)
    with pytest.raises(VortexError, match="a sliding window"):
        Qwen3ForCausalLM(sliding).eval().set_attn_implementation(pattern.name)
        other = Qwen3ForCausalLM(sliding).eval()
        other.set_attn_implementation(pattern.name)
        logits(other, DynamicCache(config=sliding), prompt)
