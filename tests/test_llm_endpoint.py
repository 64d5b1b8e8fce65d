"""Endpoints: both APIs, what they refuse and how that is gone without, and errors that say what to do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.llm_server import serving
from tests.test_llm_proposer import PROGRAM, proposer, reply
from vortexlab.agent.proposers import endpoint
from vortexlab.agent.proposers.base import ProposerError
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig, make_models, parse_price, read_table
from vortexlab.dsl.errors import VortexError


def test_what_an_endpoint_refuses_is_left_out_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    record: list[dict[str, Any]] = []
    with serving([400, reply(PROGRAM), reply(PROGRAM)]) as server:
        source = proposer(server.url, record)
        assert source.propose([], random.Random(0), 0) is not None
        assert source.propose([], random.Random(1), 1) is not None
        forms = ["response_format" in request for request in server.requests]
    assert forms == [True, False, False]
    assert [item.get("drop", "") for item in record] == ["response_format", "", ""] and record[0]["tokens"] == 0


@pytest.mark.parametrize("name", ["temperature", "seed", "max_tokens", "response_format"])
def test_a_refusal_names_its_parameter(name: str) -> None:
    request = {"model": "m", "messages": [], "temperature": 1, "max_tokens": 5, "seed": 3}
    sent = endpoint.body(ModelConfig("m"), request, frozenset())
    error = openai.OpenAIError("x")
    error.message = f"Unsupported parameter: '{name}'"  # type: ignore[attr-defined]
    assert endpoint._refused_parameter(error, sent, frozenset()) == name  # type: ignore[arg-type]


def test_the_most_tokens_are_always_sent() -> None:
    request = {"model": "m", "messages": [], "temperature": 1, "max_tokens": 5, "seed": 3}
    every = frozenset(("temperature", "seed", "max_tokens", "response_format"))
    assert endpoint.body(ModelConfig("m"), request, every) == {"model": "m", "messages": [], "max_completion_tokens": 5}
    sent = endpoint.body(ModelConfig("m", api="responses"), request, frozenset())
    assert sent["max_output_tokens"] == 5 and sent["text"]["format"]["type"] == "json_schema" and "seed" not in sent


def test_an_answer_of_either_api_is_read() -> None:
    text = {"type": "message", "content": [{"type": "output_text", "text": "hello"}]}
    data = {"output": [{"type": "reasoning"}, text], "usage": {"input_tokens": 3, "output_tokens": 2}}
    assert endpoint._read("responses", data) == ("hello", (3, 2), "")
    call = {"function": {"arguments": "{}"}}
    chat = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "length"}]}
    assert endpoint._read("chat", chat) == ("{}", None, "length")


@pytest.mark.parametrize(("status", "words"), [(401, "set OPENAI_API_KEY"), (404, "knows no model 'scripted'"),
                                               (402, "no money left")])  # fmt: skip
def test_a_wrong_key_model_or_account_ends_a_model_with_what_to_do(status: int, words: str) -> None:
    with serving([status]) as server:
        with pytest.raises(ProposerError, match=words) as caught:
            proposer(server.url, []).propose([], random.Random(0), 0)
        assert caught.value.permanent and len(server.requests) == 1


def test_an_address_where_nobody_listens_is_named() -> None:
    record: list[dict[str, Any]] = []
    with pytest.raises(ProposerError, match="is --base-url right"):
        proposer("http://127.0.0.1:9/v1", record, deadline=1.0).propose([], random.Random(0), 0)
    assert not any(item["tokens"] for item in record)


def test_models_prices_and_tables(tmp_path: Path) -> None:
    assert parse_price("a=b=1,2.5") == ("a=b", (1.0, 2.5))
    file = tmp_path / "models.toml"
    file.write_text('["a"]\napi = "responses"\ninput_price = 1.0\noutput_price = 2.0\n["b"]\n')
    made = make_models((), read_table(file), ["b=3,4"], base_url="http://x/v1")
    found = [(item.model, item.api, item.price.of(10**6, 0)) for item in made]
    assert found == [("a", "responses", 1), ("b", "chat", 3)]
    config = LLMConfig(made, money=1.0)
    assert LLMConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    old = LLMConfig.from_json({"model": "m", "base_url": None, "calls": 3, "tokens": 9, "label": "authored"})
    assert old.models[0] == ModelConfig("m", label="authored") and old.calls == 3


@pytest.mark.parametrize(("make", "words"), [
    (lambda: LLMConfig((ModelConfig("m"),), money=1.0), "--llm-price m=IN,OUT"),
    (lambda: LLMConfig((ModelConfig("m"), ModelConfig("m"))), "named twice"),
    (lambda: parse_price("m=1"), "MODEL=IN,OUT"), (lambda: parse_price("m=1,-2"), "MODEL=IN,OUT"),
    (lambda: ModelConfig("m", base_url="http://me:pw@host/v1"), "holds a password"),
    (lambda: ModelConfig("m", api="soap"), "chat or responses"), (lambda: read_table("/nowhere.toml"), "cannot read"),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_line(make: Any, words: str) -> None:
    with pytest.raises(VortexError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
