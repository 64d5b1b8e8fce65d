"""What transformers calls: the attention function and the mask function of a pattern.

Tokens that meet an empty cache are a prompt and are read densely, row by row where rows are padded, so that a row gets
what it gets alone. Later tokens go through the program. There is no third way: without a pattern's cache nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function

from vortexlab.deploy.huggingface.cache import LAYER, PagedLayer
from vortexlab.dsl.errors import VortexError

#: Where a mask of `masking` keeps the padding of each row, so that layers need not look for it.
_PADDING = "_vortex_padding"
#: Arguments of attention functions that change its meaning.
_REFUSED = {
    "sliding_window": "a sliding window",
    "softcap": "soft capping",
    "s_aux": "sinks",
    "position_bias": "a bias of positions",
}


def attention(name: str) -> Callable[..., tuple[Tensor, None]]:
    """The function behind ``attn_implementation=name``."""

    def forward(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        for argument, what in _REFUSED.items():
            if kwargs.get(argument) is not None:
                raise VortexError(f"the model's attention has {what}, which a pattern cannot express")
        if kwargs.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise VortexError("the model's attention looks ahead, which a pattern cannot express")
        layer: PagedLayer | None = getattr(key, LAYER, None)
        if layer is None:
            raise VortexError(
                f"attention {name} needs its own cache: load the model with pattern.load(path), or pass "
                "past_key_values=pattern.cache(model.config)"
            )
        padding = [0] * query.shape[0] if attention_mask is None else padding_of(attention_mask)
        if layer.length == 0:
            layer.begin(key, value, padding)
            return _prompt(layer, module, query, key, value, scaling, kwargs), None
        if padding != layer.padding:
            raise VortexError(
                f"the cache was begun with {_said(layer.padding)}, and this mask says {_said(padding)}; give the "
                "attention_mask of the whole sequence, its padding included"
            )
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return layer.step(query, key, value, scale).transpose(1, 2).contiguous(), None

    return forward


def _prompt(
    layer: PagedLayer,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """Dense causal attention, [batch, tokens, heads, channel]; 0 where a row is padded, which nobody reads."""
    parts = []
    for rows, padding in layer.runs():
        q, k, v = (states[rows, :, padding:] for states in (query, key, value))
        found = sdpa_attention_forward(module, q, k, v, None, scaling=scaling, **kwargs)[0]
        parts.append(pad(found, (0, 0, 0, 0, padding, 0)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def masking(
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask function: None where nothing is padded, else bool [batch, 1, 1, columns], True at tokens.

    Raises `VortexError` for masks that are not causal, and for padding that is not on the left.
    """
    if mask_function is not causal_mask_function:
        raise VortexError(
            "the model asks for a mask that is not plainly causal (a sliding window, chunks, packed sequences, parts "
            "that look ahead), which a pattern cannot express"
        )
    if attention_mask is None:
        return None
    if attention_mask.shape[-1] != kv_length:
        raise VortexError(
            f"the attention_mask has {attention_mask.shape[-1]} columns and the sequence {kv_length}; give that of the "
            "whole sequence, tokens in the cache included"
        )
    mask = attention_mask.bool()[:, None, None]
    padding = padding_of(mask)
    if not any(padding):
        return None
    setattr(mask, _PADDING, padding)
    return mask


def padding_of(mask: Tensor) -> list[int]:
    """Columns before each row's first token. `mask`: [batch, 1, 1, columns], as `masking` makes it.

    Raises `VortexError` for anything but rows of tokens that are padded on the left.
    """
    found: list[int] | None = getattr(mask, _PADDING, None)
    if found is not None:
        return found
    if mask.dim() != 4 or mask.shape[1:3] != (1, 1) or mask.dtype != torch.bool:
        raise VortexError("a pattern takes the attention_mask [batch, tokens] of padded rows, and no other mask")
    seen = mask[:, 0, 0]
    starts, counts = torch.stack([seen.int().argmax(1), seen.sum(1)]).tolist()
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        if count == 0:
            raise VortexError(f"row {row} of the attention_mask has no token; leave empty prompts out")
        if start + count != seen.shape[1]:
            raise VortexError(
                f"row {row} of the attention_mask has padding behind or between its tokens; a pattern reads rows that "
                "are padded on the left (tokenizer.padding_side = 'left')"
            )
    return list(starts)


def _said(padding: list[int]) -> str:
    return f"{', '.join(map(str, padding))} columns of padding" if any(padding) else "no padding"
