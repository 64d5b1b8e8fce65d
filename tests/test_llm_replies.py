"""Wrong replies of the shapes that language models send, and what becomes of each: read, mended, or replaced."""

from __future__ import annotations

import html
import json
import random
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.campaign_fakes import FakeEvaluator
from tests.llm_server import serving
from tests.test_llm_proposer import BROKEN, PROGRAM, campaign, proposer, reply
from vortexlab.agent.campaign import Campaign
from vortexlab.agent.proposers.base import ProposerError
from vortexlab.agent.proposers.replies import REPLY_LIMIT, parse_reply
from vortexlab.agent.run import Run
from vortexlab.dsl import parse

OTHER = PROGRAM.replace("Loud", "Other").replace("last(4)", "first(2)")
GOOD = reply(PROGRAM)
RAW = '{"hypothesis": "h", "predicted_effect": {"speedup": 2}, "program": "' + PROGRAM.replace('"', '\\"') + '"}'
YAML = 'hypothesis: "loud"\nprogram: |\n' + textwrap.indent(PROGRAM, "  ") + "predicted_effect:\n  speedup: 2\n"
DIFF = "```diff\n--- a/q.py\n+++ b/q.py\n@@ -3,2 +3,2 @@\n-    return topk(score, 4)\n+    return topk(score, 8)\n```"
READ, MENDED = "read as it is", "goes back as a repair"

#: shape -> (reply, what becomes of it when a good reply follows). A shape that is sent again and again costs the slot
#: of the model and no more: a typed mutation takes it.
SHAPES: dict[str, tuple[str, str]] = {
    "prose around": (f"Certainly! Here is {{my}} idea:\n\n{GOOD}\n\nLet me know {{how}} it goes.", READ),
    "two programs": (f"```json\n{GOOD}\n```\nor, instead,\n```json\n{reply(OTHER)}\n```", READ),
    "fenced yaml": (f"```yaml\n{YAML}```", READ),
    "trailing commas": (GOOD[:-1] + ",}", READ),
    "comments": ("{ // an idea\n" + GOOD[1:-1] + " # done\n}", READ),
    "single quotes": (str(json.loads(GOOD)), READ),
    "unescaped newlines": (RAW, READ),
    "smart quotes": ("{“hypothesis”: “h”, “program”: “" + PROGRAM + "”}", READ),
    "truncated": (GOOD[: len(GOOD) - 60], MENDED),
    "bare class": (PROGRAM.replace("@program(page=16)\n", ""), MENDED),
    "bare program": (PROGRAM, READ),
    "json in a string": (json.dumps(GOOD), READ),
    "json in the program": (json.dumps({"program": GOOD}), READ),
    "wrong keys": (json.dumps({"idea": "x", "code": PROGRAM}), READ),
    "empty": ("", MENDED),
    "refusal": ("I'm sorry, but I can't help with that request.", MENDED),
    "tool call": (
        "<tool_call>" + json.dumps({"name": "submit", "arguments": json.loads(GOOD)}) + "</tool_call>", READ
    ),
    "reasoning first": (f"<think>maybe {reply(OTHER)}? No.</think>\n{GOOD}", READ),
    "reasoning without end": (f"<think>maybe {GOOD}", MENDED),
    "10 MB": ("word " * 2_000_000, MENDED),
    "10 MB behind": (GOOD + " word" * 2_000_000, READ),
    "a difference only": (DIFF, MENDED),
    "unknown operation": (reply(PROGRAM.replace("topk(", "bestk(")), MENDED),
    "misused knob": (reply(PROGRAM.replace("knob.int(4, 512, log=True, default=32)", "knob.int(4)")), MENDED),
    "syntax error": (reply(PROGRAM.replace("return topk(score, budget)", "return topk(score, budget")), MENDED),
    "homoglyphs": (reply(PROGRAM.replace("score", "sc\u043ere", 1)), MENDED),
    "html": (html.escape(GOOD), READ),
    "unknown axis": (reply(BROKEN), MENDED),
    "lone surrogate": ('{"program": "\\ud800"}', MENDED),
    "numbers only": ("9" * 5000, MENDED),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_reply_is_read_or_mended(shape: str) -> None:
    text, expected = SHAPES[shape]
    record: list[dict[str, Any]] = []
    with serving([text, GOOD]) as server:
        made = proposer(server.url, record).propose([], random.Random(0), 0)
        assert made is not None and made.name == "Loud"
        assert len(server.requests) == (1 if expected == READ else 2)
    assert parse(made.source) == parse(PROGRAM)
    assert all(len(item["text"]) <= REPLY_LIMIT for item in record)


@pytest.mark.parametrize("shape", [shape for shape, (_, expected) in SHAPES.items() if expected == MENDED])
def test_a_wrong_reply_that_stays_is_given_up(shape: str) -> None:
    with serving([SHAPES[shape][0]]) as server, pytest.raises(ProposerError, match="after 1 repairs"):
        proposer(server.url, [], repairs=1).propose([], random.Random(0), 0)


def test_the_slot_of_a_wrong_reply_goes_to_a_typed_mutation(tmp_path: Path) -> None:
    with serving([SHAPES["refusal"][0]]) as server:
        Campaign(campaign(tmp_path, "wrong", server.url), evaluator=FakeEvaluator()).run()
    run = Run.open("wrong", tmp_path)
    assert run.progress().evaluations == 8 and run.history.failures
    assert {failure["slot"] for failure in run.history.failures} <= {trial.slot for trial in run.trials}
    assert {trial.arm.proposer for trial in run.trials} <= {"seed", "grammar", "knobs"}


def test_what_is_wrong_is_told() -> None:
    told = {"truncated": "ended in the middle", "a difference only": "whole program", "empty": "empty"}
    for shape, words in told.items():
        with pytest.raises(Exception, match=words):
            parse_reply(SHAPES[shape][0])
