"""From the texts of a prompt to token ids, with the model's chat template around them where it has one.

A prompt is cut where its context ends, so that the context is read once and every question continues it. The parts are
encoded one by one: the context with the tokenizer's leading special tokens, or with what the chat template puts in
front of a user's message; a question with what the template puts behind it, and the words that begin the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.tasks.samples import Reference
from vortexlab.evaluator.tasks.scoring import METRICS, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "<<prompt>>"


class Encoder:
    """Encodes prompts for one model, and decodes what it generates; `template` as in `EvaluationConfig`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "auto"):
        """Raises `VortexError` for a chat template that does not hold the user's message as it is, and where one is
        asked for that the tokenizer has not."""
        self.tokenizer = tokenizer
        self.chat = template != "none" and bool(getattr(tokenizer, "chat_template", None))
        if template == "chat" and not self.chat:
            raise VortexError("the model's tokenizer has no chat template; leave --template chat out for a base model")
        self._before, self._after = _around(tokenizer) if self.chat else ("", "")

    def context(self, text: str) -> list[int]:
        """Token ids of the beginning of a prompt."""
        if self.chat:
            return self._ids(self._before + text, special=False)
        return self._ids(text, special=True)

    def question(self, text: str, begun: str) -> list[int]:
        """Token ids of the rest of a prompt; `begun` are the first words of the answer, which are given."""
        joint = self._after if self.chat else " " if begun else ""
        return self._ids(text + joint + begun, special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The generated text, up to the end-of-text token."""
        end = self.tokenizer.eos_token_id
        kept = list(ids)
        if end is not None and end in kept:
            kept = kept[: kept.index(end)]
        return str(self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def score(self, reference: Reference, ids: Sequence[int]) -> float:
        """The score of what was generated, from 0 to 1."""
        text = self.decode(ids)
        if reference.until:
            text = text.lstrip().split(reference.until)[0]
        return score(reference.metric, text, reference.texts, reference.classes)

    def check(self, task: str, ids: Sequence[int], reference: Reference) -> None:
        """Raises `VortexError` where the tokenizer lacks tokens for a prompt, or for an answer that is to be found."""
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise VortexError(
                f"the model's tokenizer has no tokens for some text of task {task!r}; choose another task or model"
            )
        assert reference.metric in METRICS
        if reference.metric in ("match_all", "match_any"):
            said = self._ids(" ".join(reference.texts), special=False)
            if self.score(reference, said) < 1 or (unknown is not None and unknown in said):
                raise VortexError(
                    f"the model's tokenizer cannot spell an answer of task {task!r} ({reference.texts[0][:40]!r}); "
                    "choose another task or model"
                )

    def _ids(self, text: str, special: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=special))


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template puts before and behind a user's message, up to where the answer begins."""
    message = [{"role": "user", "content": _MARK}]
    try:
        # Models that think aloud are told not to where their template knows the switch: the answers are short.
        whole = str(
            tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    except Exception as error:  # whatever a template of somebody else's makes of it
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VortexError(f"the model's chat template fails ({first[:200]}); give --template none") from error
    before, mark, after = whole.partition(_MARK)
    if not mark or _MARK in after:
        raise VortexError("the model's chat template changes the user's message; give --template none")
    return before, after
