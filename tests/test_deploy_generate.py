"""`generate` with a pattern in the model: padded batches, calls that know nothing of patterns, what is refused."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fixtures import CARRIES, EVERYTHING, PER_HEAD, QUEST, gate_from, logits, small_model, tiny, tokens, using
from transformers import DynamicCache, GenerationConfig, Qwen3ForCausalLM

from vortexlab.deploy import huggingface
from vortexlab.deploy.huggingface.pattern import Pattern
from vortexlab.dsl.errors import VortexError

LENGTHS = (140, 97, 33, 5, 97)
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture
def model() -> Qwen3ForCausalLM:
    return small_model()


def attached(found: Any, gate: Any = None) -> tuple[Any, Pattern]:
    pattern = Pattern(found, f"attached_{found.name}_{id(found)}", gate)
    return pattern.attach(small_model()), pattern


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows ([1, tokens] each) as one batch; what stands in the padding must not matter, and is no padding token."""
    width = max(row.shape[1] for row in rows)
    ids, mask = tokens(width, rows=len(rows), seed=99), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, width - row.shape[1] :] = row
        mask[i, width - row.shape[1] :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def prompts() -> list[torch.Tensor]:
    return [tokens(length, seed=i) for i, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("found", [QUEST, PER_HEAD, CARRIES])
def test_a_padded_row_gets_what_it_gets_alone(found: Any) -> None:
    """Tokens, logits, keys in pages and density, over page boundaries that the rows reach at different steps."""
    model, pattern = attached(found)
    more = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    batch = left_padded(prompts())
    together = model.generate(**batch, **more)
    densities = []
    for row, prompt in enumerate(prompts()):
        alone = model.generate(prompt, **more)
        length = prompt.shape[1]
        assert together.sequences[row, 140:].tolist() == alone.sequences[0, length:].tolist()
        for step, expected in zip(together.logits, alone.logits, strict=True):
            assert torch.allclose(step[row], expected[0], atol=1e-5)
        layers = zip(together.past_key_values.layers, alone.past_key_values.layers, strict=True)
        for layer, lone in layers:
            held = slice(length + 23)
            assert torch.allclose(layer.keys[row, :, held], lone.keys[0, :, held], atol=1e-5)
            assert torch.allclose(layer.values[row, :, held], lone.values[0, :, held], atol=1e-5)
        densities.append(pattern.density(alone.past_key_values))
    assert pattern.density(together.past_key_values) == pytest.approx(sum(densities) / len(densities))
    assert min(densities) < 0.75 and max(densities) == 1.0  # the row of 5 tokens has nothing to leave out


@pytest.mark.parametrize("gate, found", [(None, EVERYTHING), (gate_from(None), QUEST), (gate_from(None), CARRIES)])
def test_a_padded_batch_read_densely_is_the_model_itself(model: Any, gate: Any, found: Any) -> None:
    expected = model.generate(**left_padded(prompts()), **GREEDY)
    sparse, pattern = attached(found, gate)
    assert torch.equal(sparse.generate(**left_padded(prompts()), **GREEDY), expected)
    assert pattern.density(sparse) == 1.0


def test_a_gate_looks_at_the_longest_row() -> None:
    for opens, is_dense in ((140 + 24, True), (140 + 12, False)):
        model, pattern = attached(QUEST, gate_from(opens, batch=len(LENGTHS)))
        model.generate(**left_padded(prompts()), **GREEDY)
        assert (pattern.density(model) == 1.0) is is_dense


@pytest.mark.parametrize("found", [QUEST, CARRIES])
def test_a_padded_batch_goes_on_and_back(found: Any) -> None:
    """Turns through the same cache in chunks, room that is outgrown, and a crop to the end of the first turn."""
    model, pattern = attached(found)
    first, second = prompts()[:3], tokens(130, rows=3, seed=7)
    batch = left_padded(first)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 130, dtype=torch.int64)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = pattern.cache(model.config)

    def turn() -> torch.Tensor:
        return logits(model, cache, second, attention_mask=mask, position_ids=positions[:, 140:])

    logits(model, cache, batch["input_ids"], attention_mask=mask[:, :140], position_ids=positions[:, :140])
    found_first = turn()
    for row, prompt in enumerate(first):
        alone = logits(model, pattern.cache(model.config), prompt, second[row : row + 1])
        assert torch.allclose(found_first[row], alone[0], atol=1e-4)
    cache.crop(-130)
    assert torch.allclose(turn(), found_first, atol=1e-5)
    with pytest.raises(VortexError, match="leave nothing of its row with 107 columns of padding"):
        cache.crop(-200)
    cache.reset()
    logits(model, cache, batch["input_ids"], attention_mask=mask[:, :140], position_ids=positions[:, :140])
    assert torch.allclose(turn(), found_first, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda mask: mask.flip(1), "padding behind or between its tokens"),
        (lambda mask: mask.index_fill(1, torch.tensor([120]), 0), "padding behind or between its tokens"),
        (lambda mask: mask.index_fill(0, torch.tensor([1]), 0), "row 1 of the attention_mask has no token"),
        (lambda mask: mask[:, 3:], "has 137 columns and the sequence 140"),
        (lambda mask: torch.ones(5, 1, 140, 140).tril(), "no other mask"),
    ],
)
def test_masks_that_are_not_padding_on_the_left_are_refused(change: Callable[..., Any], message: str) -> None:
    model, _ = attached(QUEST)
    batch = left_padded(prompts())
    with pytest.raises(VortexError, match=message):
        model(batch["input_ids"], attention_mask=change(batch["attention_mask"]))


def test_padding_may_not_be_forgotten_on_the_way() -> None:
    model, pattern = attached(QUEST)
    batch, cache = left_padded(prompts()[:2]), pattern.cache(model.config)
    logits(model, cache, batch["input_ids"], attention_mask=batch["attention_mask"])
    said = "begun with 0, 43 columns of padding, and this mask says no padding"
    with pytest.raises(VortexError, match=said):
        logits(model, cache, tokens(1, rows=2))
    with pytest.raises(VortexError, match=said):
        logits(model, cache, tokens(1, rows=2), attention_mask=torch.ones(2, 141))
    assert cache.get_seq_length() == 140  # what is refused leaves the cache as it was


def test_generate_needs_no_cache_from_its_caller() -> None:
    model, pattern = attached(QUEST)
    prompt = tokens(140, rows=2)
    assert pattern.density(model) is None
    expected = model.generate(prompt, past_key_values=(cache := pattern.cache(model.config)), **GREEDY)
    assert pattern.density(model) is None  # a cache of the caller's is the caller's to count
    for call in (
        lambda: model.generate(prompt, **GREEDY),
        lambda: model.generate(prompt, GenerationConfig(**GREEDY)),
        lambda: model.generate(inputs=prompt, past_key_values=None, use_cache=True, **GREEDY),
        lambda: copy.deepcopy(model).generate(prompt, **GREEDY),
        lambda: pattern.attach(pattern.attach(model)).generate(prompt, **GREEDY),
    ):
        assert torch.equal(call(), expected)
    assert pattern.density(model) == pytest.approx(pattern.density(cache)) and 0 < pattern.density(cache) < 0.75
    dense = small_model().generate(prompt, **GREEDY)
    assert not torch.equal(dense, expected)
    name = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    assert torch.equal(model.generate(prompt, **GREEDY), dense)
    model.set_attn_implementation(name)
    assert torch.equal(model.generate(prompt, **GREEDY), expected)


def test_another_pattern_takes_the_place_of_the_first() -> None:
    model, first = attached(QUEST)
    prompt = tokens(140)
    model.generate(prompt, **GREEDY)
    second = Pattern(EVERYTHING, "attached_second")
    assert torch.equal(second.attach(model).generate(prompt, **GREEDY), small_model().generate(prompt, **GREEDY))
    assert second.density(model) == 1.0
    assert torch.equal(first.attach(model).generate(prompt, **GREEDY), attached(QUEST)[0].generate(prompt, **GREEDY))


def test_a_cache_goes_from_inference_mode_to_generate() -> None:
    model, pattern = attached(QUEST)
    prompt = tokens(140)
    caches = [pattern.cache(model.config) for _ in range(2)]
    with torch.inference_mode():
        model(prompt[:, :130], past_key_values=caches[0])
    model(prompt[:, :130], past_key_values=caches[1])  # in neither mode: gradients are not kept
    found = [model.generate(prompt, past_key_values=cache, **GREEDY) for cache in caches]
    assert torch.equal(*found) and not caches[1].layers[0].keys.requires_grad


@torch.inference_mode()
def test_a_loop_over_forward_passes_is_sparse_too() -> None:
    model, _ = attached(QUEST)
    prompt = tokens(140)
    expected = model.generate(prompt, **GREEDY)[0, 140:].tolist()
    out, answer = model(prompt), []
    for _ in range(24):
        answer.append(int(out.logits[0, -1].argmax()))
        out = model(torch.tensor([answer[-1:]]), None, None, out.past_key_values)
    assert answer == expected
    assert torch.equal(model(prompt, None, None, None).logits, small_model()(prompt).logits)  # a prompt of its own


def test_several_samples_of_a_prompt() -> None:
    model, _ = attached(QUEST)
    torch.manual_seed(1)
    samples = model.generate(tokens(140), max_new_tokens=8, do_sample=True, num_return_sequences=3)
    assert samples.shape == (3, 148) and len({tuple(row) for row in samples.tolist()}) == 3


def test_calls_that_would_run_densely_or_wrongly_are_refused() -> None:
    model, pattern = attached(QUEST)
    prompt = tokens(40)
    for settings, message in (
        ({"num_beams": 2}, "beam search"),
        ({"use_cache": False}, "use_cache=False would read everything densely"),
        ({"cache_implementation": "static"}, "cache_implementation='static' is not a pattern's cache"),
        ({"prefill_chunk_size": 16}, "leave prefill_chunk_size out"),
        ({"prompt_lookup_num_tokens": 3}, "speculative decoding reads its first candidates"),
    ):
        with pytest.raises(VortexError, match=message):
            model.generate(prompt, **GREEDY, **settings)
        with pytest.raises(VortexError, match=message):
            model.generate(prompt, GenerationConfig(**GREEDY, **settings))
    with pytest.raises(VortexError, match="speculative decoding"):
        model.generate(prompt, assistant_model=small_model(), **GREEDY)
    for call in (
        lambda: model.generate(prompt, past_key_values=DynamicCache(config=model.config), **GREEDY),
        lambda: model(prompt, past_key_values=DynamicCache(config=model.config)),
        lambda: model.model(prompt),
    ):
        with pytest.raises(VortexError, match="needs its own cache"):
            call()
    with pytest.raises(VortexError, match="use_cache=False"):
        model(prompt, use_cache=False)
    with pytest.raises(VortexError, match="continuous batching"):
        model.generate_batch([[1, 2, 3]])
    with pytest.raises(VortexError, match="continuous batching"):
        model.init_continuous_batching()
    alone, unattached = using(small_model(), QUEST)
    for call in (lambda: alone.generate(prompt, **GREEDY), lambda: alone(prompt, use_cache=False)):
        with pytest.raises(VortexError, match=f"attention {unattached.name} needs its own cache"):
            call()
    assert pattern.density(model) is None


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True},
            "kind sliding_attention",
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, "kind linear_attention"),
        ({"kv_lora_rank": 64}, r"latent attention \(MLA\)"),
        ({"attn_logit_softcapping": 50.0}, "soft capping"),
        ({"num_kv_shared_layers": 1}, "layers that share a cache"),
    ],
)
def test_architectures_are_refused_before_weights_are_read(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """There are no weights in the folder."""
    config = tiny()
    for name, value in change.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path)
    with pytest.raises(VortexError, match=message):
        Pattern(QUEST, "refused").load(tmp_path)
    with pytest.raises(OSError, match="safetensors"):
        tiny().save_pretrained(tmp_path)
        Pattern(QUEST, "refused").load(tmp_path)


def test_a_model_loads_with_its_pattern(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    pattern = Pattern(QUEST, "loaded")
    model = pattern.load(tmp_path, dtype=torch.float32, local_files_only=True)
    prompt = tokens(140)
    assert torch.equal(model.generate(prompt, **GREEDY), attached(QUEST)[0].generate(prompt, **GREEDY))


@pytest.mark.parametrize("version", ["5.16.1", "6.0.0"])
def test_another_release_of_transformers_is_refused_at_import(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(VortexError, match=f"{version} is installed"):
        importlib.reload(huggingface)
