"""The shipped reference model: its files, its figures, and that it answers."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.reference.card import model_card
from vortexlab.evaluator.reference.decoder import Decoder, DecoderConfig
from vortexlab.evaluator.reference.measure import Cell, table
from vortexlab.evaluator.tasks import TASKS, make_samples, to_text

LARGEST_FILE = 16 << 20
CLAIMED = 16384


@cache
def model(dtype: torch.dtype) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(REFERENCE_MODEL, dtype=dtype)
    return loaded.eval()


@pytest.fixture(scope="module")
def record(repo_root: Path) -> dict[str, object]:
    path = repo_root / "benchmarks" / "results" / "reference-model-training-h200.json"
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def cells(record: dict[str, object]) -> list[Cell]:
    assert isinstance(record["cells"], list)
    return [cell for cell in (Cell(**fields) for fields in record["cells"]) if cell.task in TASKS]


@torch.inference_mode()
def share_right(task: str, length: int, contexts: int, dtype: torch.dtype = torch.float32) -> float:
    """Exact matches of greedy `generate`: a context is read once, then all its turns at a time."""
    right = asked = 0
    for sample in make_samples(task, length, contexts, split="validation"):
        ids = torch.tensor([sample.context + turn.question for turn in sample.turns])
        answers = torch.tensor([turn.answer for turn in sample.turns])
        cache = model(dtype)(torch.tensor([sample.context]), use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(sample.turns))
        given = model(dtype).generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=answers.shape[1]
        )
        right += int((given[:, ids.shape[1] :] == answers).all(dim=1).sum())
        asked += len(sample.turns)
    return right / asked


def test_every_shipped_file_is_small() -> None:
    files = sorted(path.name for path in REFERENCE_MODEL.iterdir())
    config = ["config.json", "generation_config.json"]
    assert files == ["README.md", *config, "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert max(path.stat().st_size for path in REFERENCE_MODEL.iterdir()) <= LARGEST_FILE


@pytest.mark.parametrize("task", TASKS)
def test_model_answers_with_full_attention(task: str) -> None:
    contexts = 10 if TASKS[task].turns == 1 else 3
    assert share_right(task, 512, contexts) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_model_answers_at_4096(task: str, dtype: torch.dtype) -> None:
    contexts = 10 if TASKS[task].turns == 1 else 3
    assert share_right(task, 4096, contexts, dtype) >= 0.9


def test_text_in_text_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE_MODEL)
    (sample,) = make_samples("chain", 512, 1)
    prompt = tokenizer(to_text(sample.context + sample.turns[0].question), return_tensors="pt")
    answer = sample.turns[0].answer
    given = model(torch.float32).generate(**prompt, max_new_tokens=len(answer))
    assert tokenizer.decode(given[0, -len(answer) :]) == to_text(answer)


@torch.inference_mode()
def test_transformers_computes_what_was_trained() -> None:
    decoder = Decoder(DecoderConfig())
    decoder.load_state_dict(load_file(REFERENCE_MODEL / "model.safetensors"))
    ids = torch.tensor([make_samples("needles", 512, 1)[0].context])
    hidden, _ = decoder.hidden(ids, torch.arange(ids.shape[1])[None])
    theirs = model(torch.float32)(ids).logits
    torch.testing.assert_close(decoder.logits(hidden), theirs, rtol=2e-3, atol=2e-3)


def test_config_is_the_decoders() -> None:
    shipped = json.loads((REFERENCE_MODEL / "config.json").read_text(encoding="utf-8"))
    assert shipped == DecoderConfig().to_hugging_face()
    assert shipped["max_position_embeddings"] >= CLAIMED + max(family.turn_tokens for family in TASKS.values())


def test_model_is_the_one_that_the_record_is_about(record: dict[str, object]) -> None:
    weights = (REFERENCE_MODEL / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record["model_sha256"]


def test_record_supports_the_claim(record: dict[str, object]) -> None:
    """At least 0.95 on every task at every length that is claimed, and nothing claimed that was not measured."""
    measured = {(cell.task, cell.length): cell.accuracy for cell in cells(record)}
    lengths = {length for _, length in measured}
    assert max(lengths) == CLAIMED
    assert set(measured) == {(task, length) for task in TASKS for length in lengths}
    assert min(measured.values()) >= 0.95


def test_card_and_documentation_show_the_recorded_figures(record: dict[str, object], repo_root: Path) -> None:
    figures = table(cells(record))
    card = (REFERENCE_MODEL / "README.md").read_text(encoding="utf-8")
    page = (repo_root / "docs" / "reference-model.md").read_text(encoding="utf-8")
    assert figures in card
    assert figures in page
    parameters = sum(weight.numel() for weight in load_file(REFERENCE_MODEL / "model.safetensors").values())
    training, measurement = record["training"], record["measurement"]
    assert isinstance(training, dict) and isinstance(measurement, dict)
    accuracy = {
        **{key: record[key] for key in ("device", "torch", "python", "cells")},
        **{key: training[key] for key in ("seed", "steps", "tokens")},
        **{key: measurement[key] for key in ("dtype", "split")},
        "train_seconds": training["seconds"],
        "measure_seconds": measurement["seconds"],
    }
    assert card == model_card(DecoderConfig(), parameters, accuracy)
