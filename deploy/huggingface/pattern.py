"""A program as an attention implementation of Hugging Face transformers.

`Pattern.load` gives a model whose `generate` runs the program. What runs follows from the cache alone: tokens that meet
an empty cache are a prompt and are read densely; every later token, alone or in a chunk, selects pages for itself,
unless a gate says that dense attention is faster at this batch and length: then it is read densely, and summaries are
written all the same. No model code changes.

What a program carries begins with the first sparse token after a prompt, anew for every sequence. In a chunk a layer
reads all tokens before the next layer reads any, so what layers hand upwards is kept for each token of the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.masking_utils import AttentionMaskInterface

from vortexlab.deploy.huggingface import attached
from vortexlab.deploy.huggingface.attention import attention, masking
from vortexlab.deploy.huggingface.cache import Chunk, PagedLayer, Reading
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program
from vortexlab.kernels.gate import Gate

#: Settings of a model that its attention cannot have, and what they mean.
_REFUSED = {
    "kv_lora_rank": "latent attention (MLA)",
    "attn_logit_softcapping": "soft capping",
    "num_kv_shared_layers": "layers that share a cache",
    "layers_block_type": "layers that are no attention",
    "is_encoder_decoder": "an encoder",
}
#: Arguments of `Pattern.load` that the model's configuration is found with, too.
_FINDING = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


@dataclass
class Pattern:
    """A bound program that transformers can run under `name`.

    With a `gate`, caches made from here on read densely where it says that the program would be slower.
    """

    program: Program
    name: str
    gate: Gate | None = None

    def register(self) -> str:
        """Registers attention and mask; returns the name for ``attn_implementation``. Repeating it is harmless."""
        AttentionInterface.register(self.name, attention(self.name))
        AttentionMaskInterface.register(self.name, masking)
        return self.name

    def load(self, path: str | Path, **more: Any) -> Any:
        """The causal LM at `path` with the program in it; `more` goes to ``from_pretrained``.

        Raises `VortexError` for an architecture that a pattern does not run in, before weights are read.
        """
        config = AutoConfig.from_pretrained(path, **{key: more[key] for key in _FINDING if key in more})
        self.check(config)
        return self.attach(AutoModelForCausalLM.from_pretrained(path, attn_implementation=self.register(), **more))

    def attach(self, model: Any) -> Any:
        """The same model; from here on its `generate` and forward pass make the pattern's cache where none is given.

        Whoever calls them (lm-evaluation-harness, pipelines, servers) need not know. Other attention chosen later
        (``set_attn_implementation``) is left alone. Raises `VortexError` for what the model or a call asks that a
        pattern cannot do.
        """
        self.check(model.config)
        if model.config._attn_implementation != self.name:
            model.set_attn_implementation(self.register())
        if model.config._attn_implementation != self.name:
            raise VortexError(f"{type(model).__name__} does not let its attention be chosen, so no pattern runs in it")
        attached.attach(model, self)
        return model

    @staticmethod
    def check(config: Any) -> None:
        """Raises `VortexError` for a model, by its configuration, that a pattern does not run in."""
        text = config.get_text_config(decoder=True)
        for name, what in _REFUSED.items():
            if getattr(text, name, None) or getattr(config, name, None):
                raise VortexError(f"the model has {what} ({name} in its config), which a pattern cannot express")
        kinds = getattr(text, "layer_types", None)
        if kinds is None:  # then every layer is what the config says of all
            sliding, chunked = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
            kinds = ["sliding_attention" if sliding else "chunked_attention" if chunked else "full_attention"]
        others = sorted(set(kinds) - {"full_attention"})
        if others:
            raise VortexError(
                f"the model has layers of kind {', '.join(others)}; a pattern runs on models whose layers are all full "
                "attention"
            )

    def cache(self, config: Any, total: Reading | None = None) -> Cache:
        """A fresh cache for one batch of sequences of the model with this config.

        What its steps read is added to `total`, too. Raises `VortexError` as `check` does.
        """
        self.check(config)
        count, chunk = config.get_text_config(decoder=True).num_hidden_layers, Chunk()
        return Cache(layers=[PagedLayer(self.program, layer, count, chunk, self.gate, total) for layer in range(count)])

    @staticmethod
    def density(of: Any) -> float | None:
        """Effective density so far of a cache, or of all that an attached model did; None before the first step.

        Tokens read / tokens in the context, mean over layers, KV heads, rows and steps; 1 for steps that the gate made
        dense. Raises `VortexError` for anything else.
        """
        if (total := attached.total_of(of)) is not None:
            return total.mean()
        layers = getattr(of, "layers", [])
        if not layers or not all(isinstance(layer, PagedLayer) for layer in layers):
            raise VortexError("this is not a pattern's cache; make it with pattern.cache(model.config)")
        shares = [share for layer in layers if (share := layer.reading.mean()) is not None]
        return sum(shares) / len(shares) if shares else None
