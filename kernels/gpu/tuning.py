"""Tuned tiles and splits of the attention kernels: which entry of which table holds for a launch, if any does.

A table is a JSON file for one GPU. Looked up are the user's own (`user_table`, what `vortex tune` writes), then the one
that is shipped for the GPU; without an entry the kernel's rule decides. An entry holds for the bucket it was measured
in: batches and lengths with the same nearest power of two, all else equal. How many runs fill a GPU depends on the very
batch, so its splits hold only for that one; others of the bucket take its tiles and the rule's splits. An entry counts
only for the kernels that it was measured with: `sources` is the content hash of their text and Triton's version,
`usual` what the rule chose then. One that is out of date is ignored.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

from vortexlab.dsl.errors import VortexError
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.disk import kernel_folder
from vortexlab.kernels.gpu.attention_kernels import attend_combine, attend_split
from vortexlab.kernels.gpu.latent_hopper import latent_split_hopper
from vortexlab.kernels.gpu.latent_kernels import latent_split
from vortexlab.kernels.gpu.modules import replace_text
from vortexlab.kernels.gpu.prefill_kernels import attend_prompt
from vortexlab.kernels.precision import NAMES

S = TypeVar("S", bound=Any)
FORMAT = 1
SHIPPED = Path(__file__).parent / "tables"
#: What is tuned, and the kernels that each launches.
KERNELS: dict[str, tuple[Any, ...]] = {
    "attend": (attend_split, attend_combine),
    "attend_latent": (latent_split, latent_split_hopper, attend_combine),
    "attend_prefill": (attend_prompt,),
}


class Case(NamedTuple):
    """A launch as far as a choice depends on it.

    `heads`: query heads of one list; `lists` of each KV head, 0 where all pages are read; `value_dim`: less than
    `head_dim` in MLA; `query`, `cache`: precisions; `atom`: tokens that lie together, of a page or a block; `block`:
    queries of a block of sparse prefill, else 0; `length`: tokens of the longest list or prompt.
    """

    kernel: str
    heads: int
    lists: int
    kv_heads: int
    head_dim: int
    value_dim: int
    query: str
    cache: str
    atom: int
    block: int
    batch: int
    length: int

    @property
    def bucket(self) -> Case:
        """The case that stands for all that share an entry: batch and length at the nearest power of two."""
        return self._replace(batch=_nearest(self.batch), length=_nearest(self.length))


@dataclass(frozen=True)
class Choice:
    """What is tuned: `tile` tokens at a time, `warps`, `stages`; for decode `splits`, for prefill `rows`."""

    tile: int
    warps: int
    stages: int
    splits: int | None = None
    rows: int | None = None

    @staticmethod
    def of(shape: Any, splits: int | None = None, *, rows: bool = False) -> Choice:
        """That of a kernel's shape; `rows`: whether its rows are tuned too."""
        return Choice(shape.tile, shape.warps, shape.stages, splits, shape.rows if rows else None)

    @property
    def tiles(self) -> dict[str, int]:
        """The fields of a shape that it sets."""
        return {name: value for name, value in asdict(self).items() if name != "splits" and value is not None}

    def to_json(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.to_json().items())


@dataclass(frozen=True)
class Entry:
    """A choice that was faster than the rule's, `usual`, in one case: `us` microseconds a call instead of `usual_us`.

    `noise`: spread of the measured ratio. `conditions`: versions, driver and date. Raises `VortexError` for what no
    kernel can run.
    """

    case: Case
    choice: Choice
    usual: Choice
    sources: str
    us: float
    usual_us: float
    noise: float
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        case = self.case
        if case.kernel not in KERNELS:
            raise VortexError(f"kernel {case.kernel!r} is not one of {', '.join(KERNELS)}")
        for name, value in case._asdict().items():
            if name in ("kernel", "query", "cache"):
                good = isinstance(value, str) and (name == "kernel" or value in NAMES.values())
            else:
                good = _whole(value, 0 if name in ("lists", "block") else 1)
            if not good:
                raise VortexError(f"{name} {value!r} is none")
        for name in ("us", "usual_us"):
            if not isinstance(getattr(self, name), int | float) or not getattr(self, name) > 0:
                raise VortexError(f"{name} {getattr(self, name)!r} is no time")
        for choice in (self.choice, self.usual):
            _check(choice, case)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("sources", "us", "usual_us", "noise")}
        return {
            **self.case._asdict(), "choice": self.choice.to_json(), "usual": self.usual.to_json(), **plain,
            "conditions": dict(self.conditions),
        }  # fmt: skip

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Entry:
        """Raises `VortexError` for fields that are missing or unknown, and for what no kernel can run."""
        own = [item.name for item in fields(Entry) if item.name != "case"]
        _same(data, (*Case._fields, *own), "entry")
        for name in ("choice", "usual"):
            known, given = [item.name for item in fields(Choice)], data[name]
            _same({**dict.fromkeys(known), **given} if isinstance(given, Mapping) else given, known, name)
        case = Case(**{name: data[name] for name in Case._fields})
        choices: dict[str, Any] = {name: Choice(**data[name]) for name in ("choice", "usual")}
        return Entry(case, **{**{name: data[name] for name in own}, **choices})


def _check(choice: Choice, case: Case) -> None:
    """Raises `VortexError` for numbers that the kernel of a case cannot have."""
    powers = {"tile": (16, 512), "warps": (1, 16)}
    if case.kernel == "attend_prefill":
        powers["rows"] = (max(16, triton.next_power_of_2(case.heads)), 256)
    for name, (least, most) in powers.items():
        value = getattr(choice, name)
        if not _whole(value, least) or value > most or value & (value - 1):
            raise VortexError(f"{name} {value!r} is no power of two of {least} to {most}")
    if not _whole(choice.stages, 1) or choice.stages > 8:
        raise VortexError(f"stages {choice.stages!r} are not 1 to 8")
    if case.kernel != "attend_prefill" and (not _whole(choice.splits, 1) or int(choice.splits or 0) > 256):
        raise VortexError(f"splits {choice.splits!r} are not 1 to 256")
    unused = "splits" if case.kernel == "attend_prefill" else "rows"
    if getattr(choice, unused) is not None:
        raise VortexError(f"{case.kernel} has no {unused} to choose")


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _nearest(number: int) -> int:
    """The power of two nearest to a number from 1, by ratio."""
    below = 1 << max(number, 1).bit_length() - 1
    return below if number * number < 2 * below * below else 2 * below


def _same(data: Any, names: Iterable[str], what: str) -> None:
    wanted = set(names)
    if not isinstance(data, Mapping) or set(data) != wanted:
        found = set(data) if isinstance(data, Mapping) else set()
        wrong = ", ".join(sorted(found ^ wanted)) or "everything"
        raise VortexError(f"the {what} lacks or does not know {wrong}")


@dataclass(frozen=True)
class Table:
    """The entries of one file for one device; `digest` is the SHA-256 of the file."""

    device: str
    entries: tuple[Entry, ...]
    origin: str = ""
    digest: str = ""

    @functools.cached_property
    def live(self) -> dict[Case, Entry]:
        """The entries of the kernels as they are, by bucket."""
        return {item.case.bucket: item for item in self.entries if item.sources == sources(item.case.kernel)}

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What a measurement says about the table it ran with; `stale` entries are ignored."""
        live = len(self.live)
        return {"origin": self.origin, "sha256": self.digest, "entries": live, "stale": len(self.entries) - live}

    def with_entries(self, entries: Iterable[Entry], measured: Iterable[Case]) -> Table:
        """The table after `measured` cases were tuned again: their buckets hold `entries` or nothing."""
        gone = {case.bucket for case in measured}
        return Table(self.device, (*(item for item in self.entries if item.case.bucket not in gone), *entries))

    def write(self, path: Path) -> None:
        """Raises `VortexError` when the folder cannot be written."""
        data = {"format": FORMAT, "device": self.device, "entries": [item.to_json() for item in self.entries]}
        replace_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", "the tuner's table")
        forget()

    @staticmethod
    def read(path: Path, device: str, origin: str = "") -> Table:
        """An empty one where there is no file. Raises `VortexError`, in one line that names file and entry, for one
        that cannot be used."""
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return Table(device, (), origin)
        except OSError as error:
            raise VortexError(f"{path} cannot be read ({error.strerror}); mend its permissions or remove it") from error
        where = ""
        try:
            data = json.loads(content)
            _same(data, ("format", "device", "entries"), "table")
            if data["format"] != FORMAT or data["device"] != device or not isinstance(data["entries"], list):
                raise VortexError(f"it is not a list of entries of format {FORMAT} for {device}")
            entries: dict[Case, Entry] = {}
            for number, item in enumerate(data["entries"]):
                where = f"entry {number}: "
                entry = Entry.from_json(item)
                if entry.case.bucket in entries:
                    raise VortexError("its case is that of an entry before it")
                entries[entry.case.bucket] = entry
        except (VortexError, ValueError, TypeError) as error:
            line = " ".join(str(error).split())
            raise VortexError(f"{path}: {where}{line}; remove the file or run `vortex tune` again") from error
        return Table(device, tuple(entries.values()), origin, hashlib.sha256(content).hexdigest())


def choose(
    kernel: str,
    usual: S,
    q: Tensor,
    cache: PagedKV,
    *,
    heads: int,
    lists: int,
    atom: int,
    length: int,
    block: int = 0,
) -> tuple[S, int | None]:
    """The shape and the splits of a launch, the fields as those of `Case`: `usual`, what the rule chose, with the tiles
    of an entry that holds. Splits are None where the rule decides."""
    case = Case(
        kernel, heads, lists, cache.kv_heads, cache.head_dim, cache.value_dim, NAMES[q.dtype], NAMES[cache.k.dtype],
        atom, block, q.shape[0], length,
    )  # fmt: skip
    return _chosen(case, q.device, usual)


@functools.lru_cache(maxsize=4096)
def _chosen(case: Case, device: torch.device, usual: S) -> tuple[S, int | None]:
    bucket = case.bucket
    for table in tables(device_name(device)):
        entry = table.live.get(bucket)
        if entry is not None and all(getattr(usual, name) == value for name, value in entry.usual.tiles.items()):
            same = case.batch == entry.case.batch
            return replace(usual, **entry.choice.tiles), entry.choice.splits if same else None
    return usual, None


@functools.lru_cache(maxsize=64)
def device_name(device: torch.device) -> str:
    """The GPU's name, `interpreter` on the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def file_name(device: str) -> str:
    """`nvidia-h200.json` for NVIDIA H200."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"


def user_table(device: str) -> Path:
    """The user's own table of a GPU, beside the generated kernels (`kernels.disk.kernel_folder`)."""
    return kernel_folder() / "tables" / file_name(device)


@functools.lru_cache(maxsize=64)
def tables(device: str) -> tuple[Table, Table]:
    """The user's table and the shipped one, read once in a process. Raises `VortexError` as `Table.read` does."""
    return Table.read(user_table(device), device, "user"), Table.read(SHIPPED / file_name(device), device, "shipped")


def in_force(device: str) -> list[dict[str, Any]]:
    """Which tables hold on a device: `Table.facts` of those that have a file."""
    return [table.facts for table in tables(device) if table.digest]


def lend(device: str, home: Path) -> None:
    """Copies the user's table to where a process with this home folder looks for it."""
    path = user_table(device)
    if path.is_file():
        replace_text(home / ".cache" / "vortexlab" / path.relative_to(kernel_folder().parent), path.read_text())


def forget() -> None:
    """Tables are read again when they are needed next."""
    for kept in (_chosen, tables):
        kept.cache_clear()


@functools.cache
def sources(kernel: str, version: str = triton.__version__) -> str:
    """Content hash of the kernels that a name of `KERNELS` stands for, of all device functions and numbers that they
    use, and of Triton's version."""
    texts: dict[str, str] = {}
    todo: list[Callable[..., Any]] = [item.fn for item in KERNELS[kernel]]
    while todo:
        function = todo.pop()
        name = f"{function.__module__}.{function.__qualname__}"
        if name in texts:
            continue
        texts[name] = inspect.getsource(function)
        for used in sorted(function.__code__.co_names):
            value = function.__globals__.get(used)
            if inspect.isfunction(getattr(value, "fn", None)):
                todo.append(value.fn)  # type: ignore[union-attr]
            elif isinstance(value, int | float) and not isinstance(value, bool):
                texts[f"{name}:{used}"] = repr(value)
    return hashlib.sha256(json.dumps([version, sorted(texts.items())]).encode()).hexdigest()
