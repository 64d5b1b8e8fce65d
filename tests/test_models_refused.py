"""Models that cannot be evaluated: one line that says why and what works, exit status 2, before anything is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SUPPORTED, save, save_supported
from face_fixtures import vortex
from safetensors.torch import load_file, save_file

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.architectures import check_config, model_folder
from vortexlab.evaluator.models import load_model


def folder_with(path: Path, **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt-oss": ({"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}, "has attention sinks"),
    "window": (
        {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, "has a sliding window of 4096 tokens in its"
    ),
    "hybrid": (
        {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]}, "512 tokens in 1 of 2 layers"
    ),
    "linear": ({"layer_types": ["linear_attention", "full_attention"]}, "has layers of kind linear_attention"),
    "encoder": ({"architectures": ["BertForMaskedLM"]}, "is no causal LM but BertForMaskedLM"),
    "both": (
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "is no causal LM but T5"
    ),
    "within": ({"text_config": {"sliding_window": 64}, "architectures": ["XForConditionalGeneration"]}, "64 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_programs_cannot_express_is_refused_before_weights_are_read(kind: str, tmp_path: Path) -> None:
    config, words = REFUSED[kind]
    folder = folder_with(tmp_path / "model", **config)
    for command in (("eval", "quest"), ("search", "--runs", tmp_path / "runs")):
        line = vortex(*command, "--model-dir", folder, "--device", "cpu").complaint()
        assert words in line and "full causal attention in every layer work" in line
    assert not (tmp_path / "runs").exists()


def test_a_window_that_no_layer_uses_is_no_window(tmp_path: Path) -> None:
    for number, config in enumerate((
        {"sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None},
        {"sliding_window": 512, "layer_types": ["full_attention"] * 2},
    )):  # fmt: skip
        check_config(folder_with(tmp_path / str(number), **config))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("Mamba", {"state_size": 8}, "2 of 2 layers without softmax attention"),
        ("GptOss", {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}, "has attention sinks"),
        ("Mistral", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64}, "has a sliding window of 64"),
    ],
)
def test_real_folders_of_other_architectures(name: str, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=words):
        load_model(str(save(tmp_path / "model", name, settings)))


def test_folders_that_are_broken(tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return save_supported(tmp_path / name, "qwen3")

    bare = broken("bare")
    (bare / "model.safetensors").unlink()
    cut = broken("cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    partial = broken("partial")
    weights = load_file(str(partial / "model.safetensors"))
    save_file({k: v for k, v in weights.items() if "layers.1.mlp" not in k}, str(partial / "model.safetensors"),
              metadata={"format": "pt"})  # fmt: skip
    unknown = folder_with(tmp_path / "unknown", model_type="zebra", architectures=["ZebraForCausalLM"])
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    for folder, words in (
        (bare, "cannot be loaded: "), (cut, "cannot be loaded: "), (unknown, "cannot be loaded: .*zebra"),
        (partial, "lacks 3 of its weights, such as model.layers.1.mlp"), (damaged, "its config.json is damaged"),
        (tmp_path, "has no config.json"),
    ):  # fmt: skip
        with pytest.raises(VortexError, match=words) as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["everywhere", "at one token"])
def test_a_model_that_gives_nan(where: str, tmp_path: Path) -> None:
    folder = save_supported(tmp_path / "model", "llama")
    weights = load_file(str(folder / "model.safetensors"))
    if where == "everywhere":
        weights["model.norm.weight"].fill_(torch.nan)
    else:
        weights["model.embed_tokens.weight"][77].fill_(torch.nan)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if where == "everywhere":
        with pytest.raises(VortexError, match="logits that are not finite after 2 tokens in float32; choose another"):
            load_model(str(folder))
    else:
        model = load_model(str(folder))
        with pytest.raises(VortexError, match="not finite after 100 tokens"):
            model.prefill(torch.full((100,), 77))


def test_contexts_longer_than_the_model_reads(tmp_path: Path) -> None:
    folder = save_supported(tmp_path / "model", "llama", tokens=512)
    line = vortex("eval", "quest", "--model-dir", folder, "--tasks", "needles", "--lengths", "1k", "--device", "cpu",
                  "--threads", "1", "--json").complaint()  # fmt: skip
    assert "exceeds the model's 512; choose shorter lengths" in line
    line = vortex("eval", "quest", "--model-dir", folder, "--tasks", "ruler/fwe", "--lengths", "1k").complaint()
    assert "cannot be asked at 1024 tokens of a model that reads 512" in line


def test_a_template_that_is_asked_for_and_not_there(tmp_path: Path) -> None:
    folder = save_supported(tmp_path / "model", "llama")
    asked = ("eval", "quest", "--model-dir", folder, "--tasks", "ruler/fwe", "--lengths", "1k", "--device", "cpu")
    line = vortex(*asked, "--template", "chat").complaint()
    assert "has no chat template; leave --template chat out" in line


def test_every_supported_architecture_is_named() -> None:
    assert set(SUPPORTED) == {"qwen3", "llama", "mistral", "glm", "deepseek"}


def test_a_name_is_looked_up_in_what_was_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    line = vortex("eval", "quest", "--model-dir", "nobody/nothing", "--device", "cpu").complaint()
    assert "is not in Hugging Face's cache" in line and "hf download nobody/nothing" in line
    commit = "0" * 40
    folder = folder_with(tmp_path / "hub" / "models--nobody--nothing" / "snapshots" / commit, model_type="qwen3")
    (tmp_path / "hub" / "models--nobody--nothing" / "refs").mkdir()
    (tmp_path / "hub" / "models--nobody--nothing" / "refs" / "main").write_text(commit)
    assert model_folder("nobody/nothing") == str(folder)
    assert model_folder(tmp_path) == str(tmp_path)
