"""Which documents and data sets a user may bring, and what tells their contents apart. Reading them is the work of
`evaluator.tasks.documents`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from vortexlab.dsl.errors import VortexError

#: What may be brought, and where it comes from when nothing is given (empty: nowhere).
SOURCES = {
    "essays": "",
    "squad": "",
    "hotpotqa": "",
    "longbench": "Xnhyacinth/LongBench",
    "longbench_v2": "zai-org/LongBench-v2",
}


def parse_sources(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=WHERE` texts as a mapping. Raises `VortexError` for a name that is no source, or one given twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, where = text.partition("=")
        if name not in SOURCES or not where:
            raise VortexError(f"a source is NAME=WHERE with a name of {', '.join(SOURCES)}; found {text!r}")
        if name in found:
            raise VortexError(f"the source {name!r} is given twice; leave one out")
        found[name] = where
    return found


def absolute(text: str) -> str:
    """`NAME=WHERE` with the whole path where one is meant."""
    name, equals, where = text.partition("=")
    return f"{name}{equals}{Path(where).absolute()}" if where and Path(where).exists() else text


def local_digest(where: str) -> str:
    """SHA-256 of files on this machine; a name on the hub stands for itself."""
    path = Path(where)
    if not path.exists():
        return where
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file()):
        total.update(f"{file.relative_to(path)}\0{_file_digest(str(file), file.stat().st_mtime_ns)}\n".encode())
    return total.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: str, stamp: int) -> str:
    """`stamp`, the time of the last change, tells contents apart."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VortexError(f"{path} cannot be read ({error.strerror}); give another source") from error
