"""An exported package in its engine: its self-test, what it selects, its accuracy and its speed.

The package is installed into a folder of its own, as pip does it, and the engine runs in the interpreter that has it.
Every comparison is under the protocol that an engine with stock prefill runs: the whole prompt dense, the answer
sparse.
"""

from __future__ import annotations

import json
import os
import random
import statistics as plain_statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vortexlab.deploy.install import install
from vortexlab.deploy.package import Package
from vortexlab.deploy.selftest import KEPT
from vortexlab.dsl import reference
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.dsl.reference_memory import Carry
from vortexlab.dsl.tolerance import judge
from vortexlab.evaluator import courses
from vortexlab.evaluator.architectures import read_config
from vortexlab.evaluator.config import PROMPT_DENSE, EvaluationConfig
from vortexlab.evaluator.models import LoadedModel
from vortexlab.evaluator.record import answers
from vortexlab.evaluator.samples import Suite, make_suite
from vortexlab.evaluator.statistics import accuracy as paired_accuracy
from vortexlab.evaluator.tasks import TASKS

_SECONDS = 3600.0
_RUNNERS = {"vllm": "vortexlab.deploy.vllm.run", "transformers": "vortexlab.deploy.huggingface.run"}
#: Log-probabilities asked of every step: more than are compared, since both sides order them by their own rounding.
_ASKED = 2 * KEPT
#: Tokens that a timed request generates; the seed of its prompt.
_TIMED, _SEED = 48, 0
_ROOM = 64  # tokens that an engine has room for beyond prompt and answer
_TASKS_FLOOR = 0.5  # of dense attention, below which a task says nothing


class Served:
    """One package in the engine that it was written for; a context manager. `python` is the interpreter that the engine
    and vortexlab are installed in.

    Raises `VortexError` when the package cannot be installed or the engine does not answer.
    """

    def __init__(self, exported: Package, directory: Path, model: str, dtype: str, python: str, device: str = "cpu"):
        self.exported, self.directory, self.model, self.dtype = exported, directory, model, dtype
        self.python = os.path.abspath(python) if os.sep in python else python  # engines run in another folder
        self.engine, self.device = str(exported.manifest["engine"]), device
        self.version, self.threads = "", 0

    def __enter__(self) -> Served:
        self._scratch = tempfile.TemporaryDirectory(prefix="vortex-served-")
        self.folder = Path(self._scratch.name)
        self.site = self.exported.root.absolute()  # where pip has installed it already
        if (self.directory / "pyproject.toml").exists():
            self.site = self.folder / "site"
            install(self.directory, self.site, self.python)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def selftest(self, cases: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Outcomes of cases that were recorded with the whole prompt dense, and whether what was read was right."""
        groups = [
            [{"prompt": [*case["context"], *case["question"]], "count": len(case["logits"]), "logprobs": _ASKED}]
            for case in cases
        ]
        file = self.folder / "selections.pt"
        found = self.answer(groups, gate=False, selections=file)
        outcomes, read, steps = [], 0.0, 0
        for case, group in zip(cases, found, strict=True):
            (row,), stats = group["rows"], group["stats"] or {"read": 0.0, "sparse_steps": 0, "layers": 1}
            share, count = stats["read"] - read, (stats["sparse_steps"] - steps) * stats["layers"]
            read, steps = stats["read"], stats["sparse_steps"]
            logits = [
                {**step, "spread": expected["spread"]}
                for step, expected in zip(row["logprobs"], case["logits"], strict=True)
            ]
            density = share / count if count else float("nan")  # nothing was read sparsely: no case agrees with that
            outcomes.append({"answer": row["tokens"], "logits": logits, "density": density})
        return outcomes, _judge_selections(self.exported.program, torch.load(file, weights_only=True))

    def accuracy(self, loaded: LoadedModel, contexts: int) -> dict[str, Any]:
        """Accuracy kept on sealed contexts, through the engine and through the evaluator.

        `ok`: the engine's value lies within the evaluator's interval.
        """
        suite = self._suite(contexts)
        prompts = [
            {"prompt": [*suite.samples[i].context, *suite.turn(row).question], "count": suite.turn(row).generated,
             "logprobs": 0}
            for row, (i, _) in enumerate(suite.forks)
        ]  # fmt: skip
        ours = {
            "engine": (
                [row["tokens"] for row in self.answer([prompts], pattern=False)[0]["rows"]],
                [row["tokens"] for row in self.answer([prompts], gate=False)[0]["rows"]],
            ),
            "evaluator": answers(self.exported.program, loaded, suite.contexts(), PROMPT_DENSE),
        }
        found: dict[str, Any] = {}
        rows = range(len(suite.forks))
        dense = suite.scores(rows, ours["evaluator"][0])
        tasks = [task for task in suite.digests if _score(suite, dense, task) >= _TASKS_FLOOR]
        if not tasks:
            raise VortexError(f"dense attention scores below {_TASKS_FLOOR:g} on every task; nothing can be compared")
        for side, (whole, sparse) in ours.items():
            outcomes = suite.outcomes(suite.scores(rows, whole), suite.scores(rows, sparse), tasks)
            kept = paired_accuracy(outcomes).kept
            found[side] = {
                "kept": kept and kept.to_json(),
                "dense": sum(item.dense for item in outcomes) / sum(item.answers for item in outcomes),
                "sparse": sum(item.sparse for item in outcomes) / sum(item.answers for item in outcomes),
            }
        same = sum(a == b for a, b in zip(ours["engine"][1], ours["evaluator"][1], strict=True))
        engine, evaluator = found["engine"]["kept"], found["evaluator"]["kept"]
        return {
            **found,
            "split": "sealed", "tasks": tasks, "answers": len(suite.forks), "contexts": len(suite.samples),
            "lengths": sorted({sample.length for sample in suite.samples}),
            "same_answers": same,
            "ok": bool(engine and evaluator and evaluator["low"] <= engine["value"] <= evaluator["high"]),
        }  # fmt: skip

    def speed(self, lengths: Sequence[int] = (), batches: Sequence[int] = ()) -> dict[str, Any]:
        """Seconds to the first token and between later ones, of the engine's own attention, of the pattern without its
        gate, and, where it has one, with it; in one run, each in an engine of its own.

        `ok`: at the longest length and largest batch the pattern, as deployed, is no slower than the engine's own.
        """
        positions = int(read_config(self.model).get("max_position_embeddings", 1 << 20)) - _TIMED - _ROOM
        lengths = sorted(lengths or [max(256, length) for length in (positions // 4, positions // 2, positions)])
        if lengths[-1] > positions:
            raise VortexError(f"the model has room for prompts of {positions} tokens; give shorter --lengths")
        batches = sorted(batches or (1, 2, 4))
        draw = random.Random(_SEED)
        words = int(read_config(self.model)["vocab_size"])
        cells = [(length, batch) for length in lengths for batch in batches]
        groups = [
            [
                {"prompt": [draw.randrange(words) for _ in range(length)], "count": _TIMED, "logprobs": 0}
                for _ in range(batch)
            ]
            for length, batch in cells
        ]
        sides: dict[str, dict[str, Any]] = {"dense": {"pattern": False}, "gate off": {"gate": False}}
        if self.exported.gate is not None:
            sides["gate on"] = {"gate": True}
        # The first cell is timed twice: its first time warms the engine up.
        timed = {side: self.answer([groups[0], *groups], timed=True, **how) for side, how in sides.items()}
        rows = []
        for at, (length, batch) in enumerate(cells):
            row: dict[str, Any] = {"length": length, "batch": batch}
            for side, found in timed.items():
                row[side] = _times(found[at + 1]["rows"])
                if side != "dense":
                    row[side]["sparse_share"] = _sparse_share(found[at + 1]["stats"], found[at]["stats"])
            deployed = row.get("gate on") or row["gate off"]
            row["ratio"] = row["dense"]["between_p50"] / deployed["between_p50"]
            rows.append(row)
        return {
            "rows": rows, "generated": _TIMED, "seed": _SEED, "threads": self.threads,
            "break_even": rows[-1]["ratio"], "ok": rows[-1]["ratio"] >= 1,
        }  # fmt: skip

    # --- running -----------------------------------------------------------------------------------------------

    def _suite(self, contexts: int) -> Suite:
        conditions = self.exported.manifest["measurements"].get("conditions", {})
        asked = [name for name in conditions.get("dense_scores", ()) if name in TASKS] or list(TASKS)
        length = max(min(conditions.get("lengths", [512])), *(TASKS[name].shortest for name in asked))
        config = EvaluationConfig(model=self.model, tasks=tuple(asked), lengths=(length,), contexts=contexts)
        return make_suite(replace(config, split="sealed"))

    def answer(
        self,
        groups: Sequence[Sequence[dict[str, Any]]],
        *,
        pattern: bool = True,
        gate: bool = True,
        selections: Path | None = None,
        timed: bool = False,
    ) -> list[dict[str, Any]]:
        """Groups of requests (as `vortexlab.deploy.vllm.run` has them) through one engine: with the package or with the
        engine's own attention. Returns `rows` and `stats` of every group."""
        stats = self.folder / "stats.json"
        stats.unlink(missing_ok=True)
        settings = {"program": self.exported.module, "gate": gate, "stats": str(stats)}
        job = {
            "engine": self._vllm(groups, timed) if self.engine == "vllm" else {
                "model": self.model, "dtype": self.dtype, "device": self.device,
            },
            "pattern": settings if pattern else None,
            "groups": [list(group) for group in groups],
            "selections": selections and str(selections),
        }  # fmt: skip
        file = self.folder / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        paths = [str(self.site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "VLLM_LOGGING_LEVEL": "ERROR"}
        command = [self.python, "-P", "-m", _RUNNERS[self.engine], str(file)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, env=environment, cwd=self.folder
            )
        except subprocess.TimeoutExpired:
            raise VortexError(f"{self.engine} did not end its answers in {_SECONDS:g} s") from None
        except OSError as error:
            raise VortexError(
                f"cannot run {self.python} ({error.strerror}); name the engine's with --python"
            ) from error
        try:
            answer = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise VortexError(f"{self.engine} does not run ({self.python}): {_last_error(done.stderr)}") from None
        self.version, self.threads = answer["version"], answer["threads"]
        if answer["device"] != self.device:
            raise VortexError(
                f"{self.engine} in {self.python} runs on {answer['device']}, and the package is verified on "
                f"{self.device}; give --device {answer['device']}, or another --python"
            )
        found = list(answer["groups"])
        if pattern and (found[-1]["stats"] is None or not (gate or found[-1]["stats"]["sparse_steps"])):
            raise VortexError(f"{self.engine} answered without a sparse step: the pattern was not used")
        return found

    def _vllm(self, groups: Sequence[Sequence[dict[str, Any]]], timed: bool) -> dict[str, Any]:
        """Arguments of vLLM's engine: room for the largest group; nothing is found again where times count."""
        longest = max(len(item["prompt"]) + item["count"] for group in groups for item in group)
        together = max(sum(len(item["prompt"]) + item["count"] + 128 for item in group) for group in groups)
        return {
            "model": self.model, "dtype": self.dtype, "seed": 0,
            "max_model_len": min(longest + _ROOM, int(read_config(self.model).get("max_position_embeddings", 1 << 20))),
            "max_logprobs": _ASKED, "enable_prefix_caching": not timed, "skip_tokenizer_init": True,
            "kv_cache_memory_bytes": _cache_bytes(self.model, self.dtype, min(together, 1 << 19)),
            "enforce_eager": True,
        }  # fmt: skip


def _last_error(text: str) -> str:
    """The line that says why a process ended: a `VortexError` of ours where there is one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line.partition("VortexError: ")[2] for line in lines if "VortexError: " in line]
    return (own or [line for line in lines if "Error" in line] or lines or ["no message"])[-1][:300]


def _cache_bytes(model: str, dtype: str, tokens: int) -> int:
    config = read_config(model)
    channel = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    each = 2 * config["num_key_value_heads"] * channel * config["num_hidden_layers"]
    return int(each * tokens * torch.empty(0, dtype=getattr(torch, dtype)).element_size() * 1.25) + (64 << 20)


def _judge_selections(program: Program, kept: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lists that the engine read against what the reference allows on the same queries, keys and values.

    `overlap`: mean share of the reference's pages among those read. `ok`: every list is one that it allows.
    """
    wrong, lists, overlap, last = 0, 0, 0.0, -1
    for step in kept:
        static = Static(**step["static"])
        if static.layer <= last:  # another request's first sparse step
            last = -1
        if last < 0:
            carry, judged_carry = Carry(), Carry()
        last = static.layer
        q, k, v = (step[name].double() for name in "qkv")
        stored = step["k"].dtype
        found = reference.select_one(program, static, q, k, v, cache_dtype=stored, keep_values=True, carry=carry)
        allowed = judge(program, static, found.values, k.shape[1], stored, carry=judged_carry).open
        for kv, members in enumerate(allowed):
            for member, (read, must, may) in enumerate(courses.beside(step["pages"][kv], members)):
                expected = set(found.lists[kv][member % len(found.lists[kv])])
                lists += 1
                wrong += not courses.is_open(read, must, may)
                overlap += len(expected & set(read)) / max(1, len(expected))
    return {
        "steps": len(kept), "lists": lists, "wrong": wrong, "overlap": overlap / lists if lists else None,
        "ok": lists > 0 and wrong == 0,
    }  # fmt: skip


def _score(suite: Suite, scores: dict[int, float], task: str) -> float:
    found = [scores[row] for row, (i, _) in enumerate(suite.forks) if suite.samples[i].task == task]
    return sum(found) / len(found)


def _times(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    first, between = [row["first"] for row in rows], [gap for row in rows for gap in row["between"]]
    return {
        "first_p50": _quantile(first, 50), "first_p95": _quantile(first, 95),
        "between_p50": _quantile(between, 50), "between_p95": _quantile(between, 95),
    }  # fmt: skip


def _quantile(values: Sequence[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return plain_statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _sparse_share(stats: dict[str, Any], before: dict[str, Any]) -> float | None:
    sparse = stats["sparse_steps"] - before["sparse_steps"]
    dense = stats["dense_steps"] - before["dense_steps"]
    return sparse / (sparse + dense) if sparse + dense else None
