"""What an evaluation measures and under which conditions: one frozen record, JSON in and out."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from vortexlab import __version__
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.architectures import read_config
from vortexlab.evaluator.phases import DECODE, PREFILL
from vortexlab.evaluator.sources import local_digest, parse_sources
from vortexlab.kernels.devices import get_device

#: Raised whenever the way of measuring changes, so that old verdicts are not taken for new ones.
PROTOCOL_VERSION = 3
REFERENCE_MODEL = Path(__file__).resolve().parent / "reference" / "model"
CONTEXT_DENSE, PROMPT_DENSE = "context-dense", "prompt-dense"
#: What an answer is held against: the task's, or what dense attention itself answered.
TASK, AGREEMENT = "task", "agreement"
SPLITS = ("search", "validation", "sealed")
#: Whether tasks in words are put into the model's chat template: where it has one, always (it must have one), or never.
TEMPLATES = ("auto", "chat", "none")
#: dtypes of a model by the names of the language.
DTYPE_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
CHOICES = {
    "split": SPLITS,
    "device": ("cpu", "cuda"),
    "dtype": ("auto", *DTYPE_NAMES),
    "speed": ("measured", "predicted"),
    "protocol": (CONTEXT_DENSE, PROMPT_DENSE),
    "phase": (DECODE, PREFILL),
    "template": TEMPLATES,
    "score": (TASK, AGREEMENT),
}
#: Groups of tasks that are asked in words of any model (`evaluator.catalogue`); `ruler/vt` is one of the first.
#: What numbers may be at most: far beyond any use, and within what the system's calls take.
MOST = {
    "contexts": 100_000, "turns": 10_000, "screen_contexts": 100_000, "seconds": 1e7, "memory_mb": 10**8,
    "threads": 4096, "seed": 2**63 - 1, "batch_tokens": 2**40, "max_state": 1e12, "context_cache": 1e9,
}  # fmt: skip
MOST_TOKENS = 2**27
WORDED = ("ruler", "longbench", "longbench_v2")


def is_worded(task: str) -> bool:
    """Whether a task is asked in words: one of such a group, or the whole group."""
    return task.split("/")[0] in WORDED


@dataclass(frozen=True)
class EvaluationConfig:
    """The conditions of an evaluation.

    * `model`: folder of a Hugging Face causal LM; the shipped reference model by default.
    * `tasks` (empty: every task of the suite), `lengths` (tokens of context, for accuracy and
      for speed alike), `contexts` per task and length, `turns` asked of each context.
    * `data`: files of JSON lines with a user's own questions (`evaluator.user_data`); their contexts keep their length
      and are timed at the largest of `lengths` that is not above it. With data, empty `tasks` are those of the data.
    * `sources`: ``NAME=WHERE`` texts, documents and data sets that tasks in words take (`evaluator.sources`).
      `template`: whether such tasks are put into the model's chat template, where it has one.
    * `dense_floor`: a task on which dense attention scores less is not judged.
    * `score`: ``task`` holds answers against the expected ones, ``agreement`` against those of dense attention: the
      share of their tokens before the first that differs. The latter needs no model that can solve the tasks.
    * `split` names which seeds are drawn from `seed`: search, validation or sealed.
    * `protocol`: ``context-dense`` reads the context densely, question and answer sparsely; ``prompt-dense`` reads
      the question densely too, as a serving engine with stock prefill does.
    * `phase`: ``decode`` reads contexts densely, once for all programs, and times decode steps; ``prefill`` lets every
      program read the contexts by itself, then answer, and times reading.
    * `speed`: ``measured`` on `device`, or ``predicted`` by the cost model for `predicted_device`.
    * `geometry` names the attention geometry of the speed gate; `batch_tokens` = batch x context there,
      0 for 65,536 on the CPU and 1,048,576 on a GPU (measured or predicted for), where dense attention is no contest
      of overheads.
    * `max_state`: bytes of state (summaries and what is carried on) per token of context, over all layers of
      `geometry`, that a program may keep; 0 for any number.
    * `compile_for`: GPU targets of the compile gate, for example ``("sm_90",)``; empty leaves the gate out.
    * `margin`: how much less of the score than dense attention (mean over tasks, 0..1) still counts as no worse. It is
      declared here, before anything is measured, and every verdict states the decision on it (`sequential`).
    * `stop_below`: accuracy is asked in three parts, and no more is asked of a program that certainly keeps less than
      this share of dense accuracy (error 2.5 %, however often one looks); 0 asks everything of everybody.
    * `screen_contexts` per task. Of the programs that passed the screen so far the better `promoted` share, by Pareto
      layer of predicted speed-up and accuracy there, goes on (1: all); `audit_share` of those that are rejected at the
      screen, drawn by their hash, run on in full.
    * `context_cache`: GB on disk for contexts that were read, over all of a user's runs (`evaluator.context_cache`); 0
      keeps none.
    * `threads`: CPU threads of the worker, 0 for all. `seconds` of wall clock for one gate, `memory_mb` of memory.
    """

    model: str = str(REFERENCE_MODEL)
    tasks: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    template: str = "auto"
    dense_floor: float = 0.5
    score: str = TASK
    lengths: tuple[int, ...] = (4096,)
    contexts: int = 6
    turns: int = 4
    seed: int = 0
    split: str = "search"
    device: str = "cpu"
    dtype: str = "auto"
    protocol: str = CONTEXT_DENSE
    phase: str = DECODE
    speed: str = "measured"
    predicted_device: str = "h200"
    geometry: str = "qwen3-8b"
    batch_tokens: int = 0
    max_state: float = 0.0
    compile_for: tuple[str, ...] = ("sm_90",)
    margin: float = 0.02
    stop_below: float = 0.5
    screen_contexts: int = 2
    promoted: float = 0.75
    audit_share: float = 0.05
    context_cache: float = 20.0
    threads: int = 0
    seconds: float = 180.0
    memory_mb: int = 12288

    def __post_init__(self) -> None:
        if self.phase == PREFILL and self.speed != "measured":
            raise VortexError("the speed of sparse prefill is measured, not predicted: leave out --speed")
        for name in ("tasks", "data", "sources", "lengths", "compile_for"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise VortexError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        positive = ("contexts", "turns", "screen_contexts", "seconds", "memory_mb")
        for name in positive:
            if getattr(self, name) <= 0:
                raise VortexError(f"{name} must be above 0, found {getattr(self, name)!r}")
        for name, most in MOST.items():
            if not getattr(self, name) <= most:
                raise VortexError(f"{name} must be at most {most}, found {getattr(self, name)}")
        if not self.lengths or any(length < 64 for length in self.lengths):
            raise VortexError(f"lengths must be one or more numbers of at least 64 tokens, found {self.lengths}")
        if any(length > MOST_TOKENS for length in self.lengths):
            raise VortexError(f"lengths must be at most {MOST_TOKENS} tokens, found {max(self.lengths)}")
        if len(set(self.lengths)) < len(self.lengths):
            raise VortexError(f"lengths must differ, found {self.lengths}")
        for name in ("audit_share", "dense_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise VortexError(f"{name} must lie in 0..1, found {getattr(self, name)}")
        if not 0 < self.promoted <= 1:
            raise VortexError(f"promoted must lie in 0..1, above 0, found {self.promoted}")
        if not 0 < self.margin < 1:
            raise VortexError(f"margin must lie between 0 and 1, found {self.margin}")
        if not 0 <= self.stop_below < 1:
            raise VortexError(f"stop_below must lie in 0..1, below 1, found {self.stop_below}")
        parse_sources(self.sources)
        for name in ("threads", "seed", "batch_tokens", "max_state", "context_cache"):
            if getattr(self, name) < 0:
                raise VortexError(f"{name} must not be negative, found {getattr(self, name)}")

    @property
    def resolved_dtype(self) -> str:
        """The dtype of weights, dense attention and every KV cache whose program wants no other: bfloat16 on a GPU,
        float32 on the CPU, unless given."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def resolved_batch_tokens(self) -> int:
        """Tokens of all requests together in the speed gate, on the device that speed is measured or predicted for."""
        device = self.predicted_device if self.speed == "predicted" else self.device
        return self.batch_tokens or (1 << 16 if device == "cpu" else 1 << 20)

    def with_split(self, split: str) -> EvaluationConfig:
        return replace(self, split=split)

    def split_seed(self) -> int:
        """A seed for what the evaluator draws beside samples; splits never share one."""
        return int(digest(["split", self.seed, self.split])[:12], 16)

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EvaluationConfig:
        """Raises `VortexError` for a key that is not ours."""
        known = {item.name for item in fields(EvaluationConfig)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise VortexError(f"evaluation setting {unknown[0]!r} is unknown; known: {', '.join(sorted(known))}")
        return EvaluationConfig(**data)

    def environment_key(self) -> str:
        """64 hex digits over everything that a measurement depends on besides the program.

        Model, data and source files by content, this configuration, versions, the device, the tuned tables of its
        kernels, and the rates of the cost model where speed is predicted. Two runs with the same key may share
        verdicts. Raises `VortexError` when the model folder holds no model, data or tables cannot be read, or the
        device to predict for is unknown.
        """
        settings = self.to_json()
        for irrelevant in ("model", "data", "sources", "seconds", "memory_mb", "context_cache"):
            settings.pop(irrelevant)
        if self.sources:
            settings["sources"] = {name: local_digest(where) for name, where in parse_sources(self.sources).items()}
        if self.data:
            settings["data"] = data_digests(self.data)
        if self.speed == "measured" and (tables := tuned_tables(self.device)):
            settings["tables"] = tables
        if self.speed == "predicted":
            settings["rates"] = get_device(self.predicted_device).to_json()
        return digest(
            {
                "protocol": PROTOCOL_VERSION,
                "model": model_digest(self.model),
                "settings": settings,
                "versions": versions(),
                "device": device_name(self.device),
            }
        )


def data_digests(paths: Sequence[str]) -> list[dict[str, str]]:
    """Name (which names the task) and SHA-256 of every data file. Raises `VortexError` for one that cannot be read."""
    found = []
    for path in map(Path, paths):
        try:
            content = _digest_file(str(path), path.stat().st_mtime_ns)
        except OSError as error:
            raise VortexError(f"{path} cannot be read ({error.strerror}); give a file of JSON lines") from error
        found.append({"name": path.stem, "sha256": content})
    return found


def model_digest(folder: str) -> str:
    """SHA-256 over names and contents of the files that make a model: weights, configuration, tokenizer.

    Raises `VortexError` when the folder holds no config that can be read.
    """
    root = Path(folder)
    read_config(root)
    stamps = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(root.iterdir()) if _matters(path))
    return _digest_files(str(root), stamps)


def _matters(path: Path) -> bool:
    return path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja", ".py")


@functools.lru_cache(maxsize=16)
def _digest_files(folder: str, stamps: tuple[tuple[str, int], ...]) -> str:
    total = hashlib.sha256()
    for name, stamp in stamps:
        total.update(f"{name}\0{_digest_file(str(Path(folder) / name), stamp)}\n".encode())
    return total.hexdigest()


@functools.lru_cache(maxsize=256)
def _digest_file(path: str, stamp: int) -> str:
    """`stamp`, the time of the last change, tells contents apart."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions that a measurement depends on; `absent` where a package is not installed."""
    found = {"python": platform.python_version(), "vortexlab": __version__}
    for package in ("torch", "triton", "transformers", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def tuned_tables(device: str) -> list[dict[str, Any]]:
    """The tables that give attention its tiles and splits on a device, in dense and sparse steps alike: origin, content
    hash, entries that hold and stale ones (`kernels.gpu.tuning`). Raises `VortexError` for one that cannot be used."""
    if device != "cuda":
        return []
    from vortexlab.kernels.gpu import tuning  # imports Triton, which CPUs do without

    return tuning.in_force(device_name(device))


@functools.cache
def device_name(device: str) -> str:
    """The model name of the CPU, with its logical cores, or of the first GPU."""
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        try:
            return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            raise VortexError("device 'cuda' was asked for but nvidia-smi finds no GPU; use --device cpu") from error
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        return f"{name} x{sum(line.startswith('processor') for line in lines)}"
    return name
