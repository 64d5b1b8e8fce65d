"""Replay on recorded contexts: dense equals the stock model; forks, page sizes and restarts change nothing."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from vortexlab import dsl
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.evaluator import contexts as contexts_module
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.contexts import Context, ContextStore, Fork, Turn
from vortexlab.evaluator.executors import EVERYTHING
from vortexlab.evaluator.models import LoadedModel, load_model
from vortexlab.evaluator.replay import Session, Tally, replay
from vortexlab.evaluator.tasks import make_samples
from vortexlab.kernels.torch_executor import TorchExecutor

WINDOW = """@program(page=16)
class Window:
    def select():
        return first(1) | last(2)
"""
CENTROID = """@program(page={page})
class Centroid:
    def summarize(k):
        return dict(centre=k.mean(token))
    def score(q, s):
        return dot(q, s.centre, channel).max(head)
    def select(score):
        return topk(score, {budget}) | last(1)
"""


def _centroid(page: int, budget: int) -> Program:
    return dsl.parse(CENTROID.format(page=page, budget=budget)).bind()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(str(REFERENCE_MODEL))


def _contexts() -> tuple[list[Context], list[list[int]]]:
    """Contexts of different lengths with questions of different lengths, and the expected answers by fork."""
    found, answers = [], []
    for task, length in (("needles", 300), ("keys", 257), ("late", 320), ("multiquery", 272)):
        for sample in make_samples(task, length, 1):
            turns = sample.turns[:2]
            found.append(Context(tuple(sample.context), tuple(Turn(tuple(t.question), len(t.answer)) for t in turns)))
            answers.extend(list(turn.answer) for turn in turns)
    return found, answers


def _forks(contexts: Sequence[Context]) -> list[Fork]:
    return [Fork(i, turn) for i, context in enumerate(contexts) for turn in range(len(context.turns))]


@pytest.fixture(scope="module")
def store(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ContextStore:
    return ContextStore(model, _contexts()[0], tmp_path_factory.mktemp("contexts"))


def _answers(program: Program, model: LoadedModel, store: ContextStore, forks: Sequence[Fork]) -> list[list[int]]:
    return replay(Session(program, model, store, TorchExecutor), forks, Tally())


def _generated(path: str, contexts: Sequence[Context]) -> list[list[int]]:
    """What the stock model generates greedily with its own SDPA attention and cache."""
    stock = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    found = []
    for context in contexts:
        for turn in context.turns:
            prompt = torch.tensor([[*context.tokens, *turn.question]])
            out = stock.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=turn.answer_length,
                min_new_tokens=turn.answer_length, do_sample=False, pad_token_id=0,
            )  # fmt: skip
            found.append(out[0, prompt.shape[1] :].tolist())
    return found


def test_everything_equals_the_stock_model(model: LoadedModel, store: ContextStore) -> None:
    contexts, expected = _contexts()
    dense = _answers(EVERYTHING, model, store, _forks(contexts))
    assert dense == _generated(str(REFERENCE_MODEL), contexts)
    assert sum(a == b for a, b in zip(dense, expected, strict=True)) >= 7


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_any_causal_model_runs_unedited(family: str, tmp_path: Path) -> None:
    """Random weights; group sizes 1 and 3, a head width that is no power of two."""
    common = {"vocab_size": 1024, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
              "max_position_embeddings": 1024, "eos_token_id": None}  # fmt: skip
    torch.manual_seed(0)
    if family == "llama":
        fresh = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=4, **common))
    else:
        fresh = Qwen3ForCausalLM(Qwen3Config(num_attention_heads=6, num_key_value_heads=2, head_dim=24, **common))
    fresh.save_pretrained(tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert (loaded.kv_heads, loaded.group) == ((4, 1) if family == "llama" else (2, 3))
    contexts = _contexts()[0][:2]
    store = ContextStore(loaded, contexts, tmp_path)
    assert _answers(EVERYTHING, loaded, store, _forks(contexts)) == _generated(str(tmp_path / "model"), contexts)


@pytest.mark.parametrize("page", [8, 16, 24, 80, 128, 256])
def test_every_page_size_reads_the_same_contexts(model: LoadedModel, store: ContextStore, page: int) -> None:
    """With a budget above all pages a scored program is dense, whatever blocks its pages lie in."""
    forks = _forks(store.contexts)
    assert _answers(_centroid(page, 512), model, store, forks) == _answers(EVERYTHING, model, store, forks)


@pytest.mark.parametrize("program", [WINDOW, CENTROID.format(page=16, budget=3)])
def test_forks_neither_see_nor_disturb_each_other(model: LoadedModel, store: ContextStore, program: str) -> None:
    bound = dsl.parse(program).bind()
    forks = _forks(store.contexts)
    together = _answers(bound, model, store, forks)
    backwards = _answers(bound, model, store, forks[::-1])[::-1]
    assert together == backwards
    for row in (0, 2, 6):
        assert _answers(bound, model, store, [forks[row]]) == [together[row]]
    session = Session(bound, model, store, TorchExecutor)
    assert replay(session, forks[3:], Tally()) == together[3:]
    assert replay(session, forks, Tally()) == together


def test_a_restarted_worker_finds_the_contexts_and_computes_nothing(
    model: LoadedModel, store: ContextStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = store.contexts[:2]
    first = ContextStore(model, contexts, tmp_path)
    before = _answers(_centroid(16, 3), model, first, _forks(contexts))
    content = (tmp_path / "contexts.kv").read_bytes()
    monkeypatch.setattr(LoadedModel, "prefill", lambda *_: pytest.fail("the contexts were computed again"))
    again = ContextStore(model, contexts, tmp_path)
    assert _answers(_centroid(16, 3), model, again, _forks(contexts)) == before
    assert (tmp_path / "contexts.kv").read_bytes() == content, "what forks write must stay private"


def test_density_is_what_was_read(model: LoadedModel, store: ContextStore) -> None:
    tally = Tally()
    replay(Session(EVERYTHING, model, store, TorchExecutor), [Fork(0, 0)], tally)
    assert tally.mean_density == pytest.approx(1.0)
    window = Tally()
    replay(Session(dsl.parse(WINDOW).bind(), model, store, TorchExecutor), [Fork(0, 0)], window)
    # 300 tokens; the 4 steps read page 0, the last full page, and 13, 14, 15, 16 tokens of the own page.
    expected = sum((32 + own) / (288 + own) for own in (13, 14, 15, 16)) / 4
    assert window.mean_density == pytest.approx(expected)
    assert set(window.counts) == {300} and set(window.counts[300]) == {3}
    assert len(window.counts[300]) == model.layers * model.kv_heads


def test_prompt_dense_reads_the_question_densely_and_the_answer_sparsely(
    model: LoadedModel, store: ContextStore
) -> None:
    """A window answers nothing about a distant needle, unless the question found it before the window took over."""
    bound, tally = dsl.parse(WINDOW).bind(), Tally()
    forks = [fork for fork in _forks(store.contexts) if fork.context == 1]
    dense = Session(EVERYTHING, model, store, TorchExecutor)
    found = replay(Session(bound, model, store, TorchExecutor), forks, tally, dense=dense)
    truth = _answers(EVERYTHING, model, store, forks)
    assert [answer[0] for answer in found] == [answer[0] for answer in truth]
    assert _answers(bound, model, store, forks) != found
    assert tally.reads == len(forks) * model.layers * model.kv_heads, "only generated tokens that are fed count"


def test_unusable_models_and_samples_are_refused_in_one_line(model: LoadedModel, tmp_path: Path) -> None:
    def refused(call: object) -> str:
        with pytest.raises(VortexError) as error:
            call()  # type: ignore[operator]
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "config.json" in refused(lambda: load_model(str(tmp_path / "nowhere")))
    (tmp_path / "config.json").write_text("{}")
    assert "cannot be loaded" in refused(lambda: load_model(str(tmp_path)))
    long = Context((5,) * (model.max_length + 1), (Turn((3,), 1),))
    assert "exceeds" in refused(lambda: ContextStore(model, [long], tmp_path))
    strange = Context((5, 4000), (Turn((3,), 1),))
    assert "vocabulary" in refused(lambda: ContextStore(model, [strange], tmp_path))
    assert "at least one context" in refused(lambda: ContextStore(model, [], tmp_path))


def test_more_contexts_than_the_worker_may_hold_are_refused_in_one_line(
    model: LoadedModel, store: ContextStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(*_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(contexts_module.os, "posix_fallocate", limited)
    with pytest.raises(VortexError, match="more than the worker may hold; use fewer contexts, or raise --memory-mb"):
        ContextStore(model, store.contexts, tmp_path)
    assert not list(tmp_path.iterdir())


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, use_sliding_window=True, sliding_window=8, max_window_layers=0,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(VortexError, match="sliding window"):
        load_model(str(tmp_path))
