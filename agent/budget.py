"""What a campaign may spend on a language model: calls and tokens, reserved before each call."""

from __future__ import annotations

from dataclasses import dataclass, field

from vortexlab.dsl.errors import VortexError


class BudgetExhausted(VortexError):
    """A reservation would pass the limit. Nothing was spent."""


@dataclass
class Budget:
    """Counts calls and tokens against their limits.

    `reserve` books the most that a call can cost and refuses what does not fit, so the limits are never overshot;
    `settle` replaces the booking by what the call did cost. A call that failed keeps its booking's prompt tokens,
    since an endpoint may charge for them.
    """

    calls: int
    tokens: int
    used_calls: int = 0
    used_tokens: int = 0
    _reserved: int = field(default=0, repr=False)

    def reserve(self, tokens: int) -> None:
        if self.used_calls + 1 > self.calls:
            raise BudgetExhausted(f"the budget of {self.calls} model calls is spent; raise --llm-calls to go on")
        if self.used_tokens + tokens > self.tokens:
            raise BudgetExhausted(
                f"a call may need {tokens} tokens and {self.tokens - self.used_tokens} of {self.tokens} are left; "
                "raise --llm-tokens to go on"
            )
        self.used_calls += 1
        self._reserved = tokens

    def settle(self, tokens: int) -> None:
        self.used_tokens += min(max(tokens, 0), self._reserved) if self._reserved else max(tokens, 0)
        self._reserved = 0
