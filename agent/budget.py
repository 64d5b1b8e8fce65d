"""What a campaign may spend on language models: calls, tokens, money and time, reserved before each call.

All models of a campaign share one budget. A reservation is the most that a call can cost. Whatever may have been
billed is charged that much, so the limits are never overshot, whatever the endpoint answers or claims; only where a
model's `trust_usage` says that the endpoint's counts are those of the bill is a call charged what it counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vortexlab.dsl.errors import VortexError

#: No tokenizer makes more tokens than bytes; chat templates add a few tokens of their own.
FRAMING = 64
#: Bytes of text that a token has in the mean, cautiously (a call is charged at least that), and at most: an endpoint
#: that counted fewer tokens than that cannot be believed.
_BYTES_PER_TOKEN, _MOST_BYTES_PER_TOKEN = 4, 10


class BudgetExhausted(VortexError):
    """A reservation would pass the limit. Nothing was spent."""


@dataclass(frozen=True)
class Price:
    """Money for a million tokens, read and written, in whatever currency the money budget is in."""

    input: float
    output: float

    def of(self, read: int, written: int) -> float:
        return (read * self.input + written * self.output) / 1e6


@dataclass(frozen=True)
class Cost:
    """What one call costs, or may cost: tokens read and written, money, seconds."""

    read: int = 0
    written: int = 0
    money: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.read + self.written


@dataclass(frozen=True)
class Spent:
    """What was spent on language models so far, calls that a kill cut off included."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0
    seconds: float = 0.0

    def plus(self, exchange: Mapping[str, Any]) -> Spent:
        """With one recorded exchange or reservation; exchanges of older releases have no money and no time."""
        return Spent(
            self.calls + 1,
            self.tokens + int(exchange.get("tokens", 0)),
            self.money + float(exchange.get("money", 0.0)),
            self.seconds + float(exchange.get("seconds", 0.0)) + float(exchange.get("waited", 0.0)),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Budget:
    """Limits and what is left of them; a limit that is None is none.

    `reserve` refuses what does not fit and `settle` replaces the booking by what the call did cost, capped at the
    booking. Time has no booking: a call is cut off when `seconds_left` is over.
    """

    calls: int
    tokens: int
    money: float | None = None
    seconds: float | None = None
    spent: Spent = field(default_factory=Spent)
    _reserved: Cost | None = field(default=None, repr=False)

    @property
    def seconds_left(self) -> float:
        return float("inf") if self.seconds is None else max(0.0, self.seconds - self.spent.seconds)

    def reserve(self, cost: Cost) -> None:
        """Raises `BudgetExhausted`, saying which limit and how to raise it."""
        assert self._reserved is None, "one call at a time"
        if self.spent.calls + 1 > self.calls:
            raise BudgetExhausted(f"the budget of {self.calls} model calls is spent; raise --llm-calls to go on")
        if self.spent.tokens + cost.tokens > self.tokens:
            raise BudgetExhausted(
                f"a call may need {cost.tokens} tokens and {self.tokens - self.spent.tokens} of {self.tokens} are "
                "left; raise --llm-tokens to go on"
            )
        if self.money is not None and self.spent.money + cost.money > self.money:
            raise BudgetExhausted(
                f"a call may cost {cost.money:.4f} and {max(0.0, self.money - self.spent.money):.4f} of the "
                f"{self.money:g} for language models are left; raise --llm-money to go on"
            )
        if self.seconds_left <= 0:
            raise BudgetExhausted(
                f"the {self.seconds or 0:g} seconds for language models are spent; raise --llm-minutes to go on"
            )
        self._reserved = cost

    def settle(self, cost: Cost) -> Cost:
        """Books the cost, capped at the reservation in tokens and money, and returns what was booked."""
        held, self._reserved = self._reserved, None
        assert held is not None, "settled without a reservation"
        read, written = (min(max(getattr(cost, part), 0), getattr(held, part)) for part in ("read", "written"))
        booked = Cost(read, written, min(max(cost.money, 0.0), held.money), max(cost.seconds, 0.0))
        self.spent = Spent(
            self.spent.calls + 1,
            self.spent.tokens + booked.tokens,
            self.spent.money + booked.money,
            self.spent.seconds + booked.seconds,
        )
        return booked

    def wait(self, seconds: float) -> None:
        """Books time in which nothing was asked (the pause before a retry)."""
        self.spent = Spent(self.spent.calls, self.spent.tokens, self.spent.money, self.spent.seconds + seconds)


def most(request_bytes: int, max_tokens: int, price: Price) -> Cost:
    """The most that a call can cost: a token for each byte of the request, and all that may be written."""
    read = request_bytes + FRAMING
    return Cost(read, max_tokens, price.of(read, max_tokens))


def believed(usage: Any, read_bytes: int, written_bytes: int) -> tuple[int, int] | None:
    """(tokens read, tokens written) that a trusted endpoint counted; None where the counts cannot be believed.

    `usage` is (read, written) as the endpoint sent them, of any type. Counts that are missing, no whole numbers,
    negative, or below what the texts must have taken are not believed; others count at least what the texts take in
    the mean, since a count that is half of the truth cannot be told from a good tokenizer.
    """
    if not isinstance(usage, tuple) or any(isinstance(item, bool) or not isinstance(item, int) for item in usage):
        return None
    read, written = usage
    if read * _MOST_BYTES_PER_TOKEN < read_bytes or written * _MOST_BYTES_PER_TOKEN < written_bytes or written < 0:
        return None
    return max(read, -(-read_bytes // _BYTES_PER_TOKEN)), max(written, -(-written_bytes // _BYTES_PER_TOKEN))
