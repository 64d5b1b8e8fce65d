"""Which language models propose, at which endpoints and prices, and what all of them together may cost."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vortexlab.agent.budget import Price
from vortexlab.dsl.errors import VortexError

APIS = ("chat", "responses")
#: Settings of one model that a table of models may give.
_TABLE = (
    "base_url", "key_variable", "api", "temperature", "max_tokens", "input_price", "output_price", "trust_usage",
    "label",
)  # fmt: skip
_LIMITS = ("calls", "tokens", "money", "seconds")


@dataclass(frozen=True)
class ModelConfig:
    """One model.

    `key_variable` names the environment variable with the key. `api`: ``chat`` (Chat Completions) or ``responses``.
    `temperature` None leaves it to the endpoint. `input_price` and `output_price` are for a million tokens.
    `trust_usage`: the endpoint's own counts are those of the bill; else a call is charged the most that it can have
    cost. `label` is shown beside every program of this source: ``authored`` where a person wrote the replies.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    api: str = "chat"
    temperature: float | None = 0.8
    max_tokens: int = 3000
    input_price: float | None = None
    output_price: float | None = None
    trust_usage: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise VortexError("a language model needs a name: give --model NAME")
        for text in (self.base_url or "", self.key_variable, self.label):
            if not isinstance(text, str):
                raise VortexError(f"base_url, key_variable and label of model {self.model!r} are texts, found {text!r}")
        if not isinstance(self.trust_usage, bool):
            raise VortexError(f"trust_usage of model {self.model!r} is true or false, found {self.trust_usage!r}")
        if "@" in urlsplit(self.base_url or "").netloc:
            raise VortexError(
                f"the address of model {self.model!r} holds a password, which would be recorded; put it into an "
                "environment variable and name that as key_variable"
            )
        if self.api not in APIS:
            raise VortexError(f"the api of model {self.model!r} is {APIS[0]} or {APIS[1]}, found {self.api!r}")
        if not _is_number(self.max_tokens, 1) or self.max_tokens != int(self.max_tokens):
            raise VortexError(f"max_tokens of model {self.model!r} must be at least 1, found {self.max_tokens!r}")
        if self.temperature is not None and not _is_number(self.temperature, 0.0):
            raise VortexError(f"temperature of model {self.model!r} must be at least 0, found {self.temperature!r}")
        if (self.input_price is None) != (self.output_price is None):
            raise VortexError(f"model {self.model!r} has one price only; give both, for tokens read and written")
        for price in (self.input_price, self.output_price):
            if price is not None and not _is_number(price, 0.0):
                raise VortexError(f"a price of model {self.model!r} must be a number of at least 0, found {price!r}")

    @property
    def name(self) -> str:
        """The model as a proposer, and as an arm of the bandit."""
        return f"llm:{self.model}"

    @property
    def price(self) -> Price:
        return Price(self.input_price or 0.0, self.output_price or 0.0)


@dataclass(frozen=True)
class LLMConfig:
    """The models of a campaign and their common limits.

    `calls` (requests, retries included), `tokens`, `money` (in the currency of the prices) and `seconds` (waiting for
    answers) are shared by all models; None is no limit. `deadline` is in seconds and stands around everything that one
    slot asks: retries and `repairs`, the rounds in which the errors of a reply go back.
    """

    models: tuple[ModelConfig, ...]
    calls: int = 400
    tokens: int = 20_000_000
    money: float | None = None
    seconds: float | None = None
    deadline: float = 180.0
    repairs: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        names = [item.model for item in self.models]
        if not names:
            raise VortexError("the llm proposer needs a model: give --model NAME (and --base-url for a local endpoint)")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise VortexError(f"model {twice[0]!r} is named twice; name each model once")
        for name in ("calls", "tokens", "repairs"):
            if getattr(self, name) < 0:
                raise VortexError(f"{name} of the language models must not be negative, found {getattr(self, name)}")
        for name in ("money", "seconds", "deadline"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value, 0.0) and value > 0):
                raise VortexError(f"{name} of the language models must be above 0, found {value!r}")
        if self.money is not None:
            free = [item.model for item in self.models if item.input_price is None]
            if free:
                raise VortexError(
                    f"a money budget needs the price of model {free[0]!r}: give --llm-price {free[0]}=IN,OUT "
                    "(for a million tokens read, written)"
                )

    def with_limits(self, limits: Mapping[str, Any]) -> LLMConfig:
        """The same models under other limits; one that is None stays as it is."""
        return replace(self, **{name: value for name, value in limits.items() if value is not None})

    def without_limits(self) -> dict[str, Any]:
        """What makes a campaign another one: everything but the limits."""
        return {name: value for name, value in self.to_json().items() if name not in _LIMITS}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "models": [asdict(item) for item in self.models]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LLMConfig:
        """The inverse of `to_json`. Records of older releases name one model, flat among the limits."""
        settings = dict(data)
        if "models" not in settings:
            own = {item.name for item in fields(ModelConfig)}
            settings["models"] = [{name: settings.pop(name) for name in list(settings) if name in own}]
        models = tuple(ModelConfig(**item) for item in settings.pop("models"))
        return LLMConfig(models, **settings)


def parse_price(text: str) -> tuple[str, tuple[float, float]]:
    """``MODEL=IN,OUT`` as (model, prices for a million tokens read and written)."""
    name, mark, prices = text.rpartition("=")
    parts = prices.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not mark or not name or len(values) != 2 or not all(_is_number(value, 0.0) for value in values):
        raise VortexError(f"price {text!r} is not of the form MODEL=IN,OUT, for a million tokens read and written")
    return name, (values[0], values[1])


def read_table(path: str | Path) -> dict[str, dict[str, Any]]:
    """A table of models, model name -> settings, from a TOML or JSON file.

    In TOML one section a model: ``["some-model"]`` with any of ``base_url``, ``api``, ``input_price``, ... Raises
    `VortexError` for a file that cannot be read or holds something else.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise VortexError(f"cannot read the table of models {file}: {error.strerror}; give TOML or JSON") from None
    except (ValueError, RecursionError) as error:
        raise VortexError(f"the table of models {file} is no TOML or JSON: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not all(isinstance(item, dict) for item in data.values()):
        raise VortexError(f"the table of models {file} must map each model's name to its settings")
    for name, item in data.items():
        unknown = sorted(set(item) - set(_TABLE))
        if unknown:
            known = ", ".join(_TABLE)
            raise VortexError(f"{file}: setting {unknown[0]!r} of model {name!r} is unknown; known: {known}")
    return data


def make_models(
    names: Iterable[str], table: Mapping[str, Mapping[str, Any]], prices: Iterable[str], **common: Any
) -> tuple[ModelConfig, ...]:
    """The models named, or those of the table where none is; what a table says of one beats `common`."""
    chosen = tuple(names) or tuple(table)
    own = dict(map(parse_price, prices))
    for name in own:
        if name not in chosen:
            raise VortexError(f"a price was given for {name!r}, which is no model of this campaign: add --model {name}")
    given = {key: value for key, value in common.items() if value is not None}
    made = []
    for name in chosen:
        settings = {**given, **table.get(name, {})}
        if name in own:
            settings["input_price"], settings["output_price"] = own[name]
        made.append(ModelConfig(name, **settings))
    return tuple(made)


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= least
