"""A run as one file, to move it between machines: `vortex pack` and `vortex unpack`.

The file is a plain tar: first ``manifest.json``, which has size and SHA-256 of every other member and a digest of
itself, then the record (a consistent copy, taken while a campaign may be at work on it), the settings, and the report
where there is one. Nothing of it is believed before it was checked, and a run appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vortexlab.agent.config import SETTINGS, CampaignConfig, check_new_name
from vortexlab.agent.events import mend
from vortexlab.agent.folders import LATEST, resolve
from vortexlab.agent.run import Run
from vortexlab.agent.store import FILE, Store
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import digest
from vortexlab.evaluator.config import versions

MANIFEST, FORM = "manifest.json", 1
#: What a pack may hold beside the manifest; the record must be there.
MEMBERS = (FILE, SETTINGS, "report.html")
_MANIFEST_LIMIT = 1 << 20
_CHUNK = 1 << 20


def pack(run: str | Path = LATEST, runs: str | Path = "runs", out: Path | None = None) -> dict[str, Any]:
    """Writes a run into one file, whole or not at all: {run, file, bytes, files}, of `files` {name, bytes, sha256}.

    By default ``NAME.tar`` in the current folder. Raises `VortexError` for an unknown or damaged run, a file that is
    there already, and one that cannot be written.
    """
    folder = resolve(run, runs)
    target = Path(f"{folder.name}.tar") if out is None else out
    if target.exists():
        raise VortexError(f"{target} exists; give another file with --out, or remove it")
    with _written(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        part = Path(scratch) / folder.name
        part.mkdir()
        with Store.read(folder) as store:
            store.copy(part / FILE)
            started = store.first().data
        _check_run(part, f"run {folder.name!r} cannot be packed", mend(folder))
        for name in MEMBERS[1:]:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, part / name)
        files = [_facts(part / name) for name in MEMBERS if (part / name).is_file()]
        manifest = {
            "form": FORM, "run": folder.name, "packed": time.time(), "versions": versions(),
            "environment": started.get("environment", ""), "measured_with": started.get("versions", {}), "files": files,
        }  # fmt: skip
        text = json.dumps({**manifest, "sha256": digest(manifest)}, indent=1).encode()
        with open(part / "whole", "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                _add(archive, MANIFEST, len(text), io.BytesIO(text))
                for item in files:
                    with open(part / item["name"], "rb") as content:
                        _add(archive, item["name"], item["bytes"], content)
            file.flush()
            os.fsync(file.fileno())
        _place(part / "whole", target)
    return {"run": folder.name, "file": str(target), "bytes": target.stat().st_size, "files": files}


def unpack(file: str | Path, runs: str | Path = "runs", name: str = "") -> dict[str, Any]:
    """Checks a packed run and puts it into `runs`, under its own name or another: {run, folder, bytes, files}.

    Raises `VortexError`, and leaves nothing behind, where the file is damaged or holds anything else, where the run
    exists, and where the folder cannot be written.
    """
    path, root = Path(file), Path(runs)
    if path.exists() and not path.is_file():  # a pipe would have us wait
        raise VortexError(f"{path} is no file; `vortex pack RUN` writes one")
    if root.exists() and not root.is_dir():
        raise VortexError(f"{root} is a file; give the folder of your runs with --runs")
    with _opened(path) as archive:
        manifest = _manifest(archive, path)
        given, name = bool(name), name or manifest["run"]
        if not name:
            raise VortexError(f"{path} names no run; give one with --name")
        if given:
            check_new_name(name)
        CampaignConfig(name=name)  # complains of a name that no run can have
        folder = root / name
        if os.path.lexists(folder):
            raise VortexError(f"run {name!r} exists in {root}; give this one another name with --name")
        members = _members(archive, manifest, path)
        need, made = sum(item["bytes"] for item in manifest["files"]), not root.exists()
        for item in manifest["files"]:  # before anything is written
            _copied(archive, members[item["name"]], item, None, path)
        with _written(folder):
            root.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(root).free < need:
                raise VortexError(f"{root} has no room for the {need} bytes of {path}; free some space")
            try:
                with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as scratch:
                    part = Path(scratch) / name
                    part.mkdir()
                    for item in manifest["files"]:
                        with open(part / item["name"], "xb") as target:
                            _copied(archive, members[item["name"]], item, target, path)
                            os.fsync(target.fileno())
                    _check_run(part, f"{path} holds no run that this release can read")
                    os.rename(part, folder)
            except BaseException:
                if made:
                    _remove_if_empty(root)
                raise
    return {"run": name, "folder": str(folder), "bytes": need, "files": manifest["files"]}


def _check_run(folder: Path, complaint: str, how: str = "") -> None:
    """That the record in `folder` can be read: checksums say that it arrives, not that it is sound."""
    try:
        with Store.read(folder) as store:
            store.check()
            Run(store)
    except VortexError as error:
        reason = str(error).replace(f"{folder}{os.sep}", "").split("; see what is left")[0]
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
        reason = f"its events cannot be read: {error!r}"
    else:
        return
    raise VortexError(f"{complaint} ({reason})" + (f"; {how}" if how else ""))


def _manifest(archive: tarfile.TarFile, path: Path) -> dict[str, Any]:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.issparse() or first.size > _MANIFEST_LIMIT:
        raise VortexError(f"{path} is no packed run: it does not begin with a manifest; `vortex pack RUN` writes one")
    content = archive.extractfile(first)
    assert content is not None
    try:
        found = json.loads(content.read())
        said = found.pop("sha256")
        form, files = found["form"], found["files"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise VortexError(f"the manifest of {path} cannot be read; pack the run again") from None
    if form != FORM:
        raise VortexError(f"{path} has form {form!r}; this release reads {FORM}")
    if said != digest(found):
        raise VortexError(f"{path} is damaged: its manifest has another checksum than it names; pack the run again")
    well = isinstance(found.get("run"), str) and isinstance(files, list) and all(map(_is_entry, files))
    names = [item["name"] for item in files] if well else []
    if FILE not in names or len(set(names)) < len(names):
        raise VortexError(f"the manifest of {path} does not describe a run; pack the run again")
    return dict(found)


def _is_entry(item: Any) -> bool:
    return (
        isinstance(item, dict) and item.get("name") in MEMBERS and type(item.get("bytes")) is int
        and item["bytes"] >= 0 and isinstance(item.get("sha256"), str)
    )  # fmt: skip


def _members(archive: tarfile.TarFile, manifest: dict[str, Any], path: Path) -> dict[str, tarfile.TarInfo]:
    """The members by name: those of the manifest and no others, plain files of the sizes that it names."""
    sizes = {item["name"]: item["bytes"] for item in manifest["files"]}
    found: dict[str, tarfile.TarInfo] = {}
    while (member := archive.next()) is not None:
        if len(found) > len(sizes) or member.name not in sizes or member.name in found:
            raise VortexError(f"{path} is refused: it holds {member.name[:80]!r}, which its manifest does not name")
        try:
            tarfile.data_filter(member, "/nowhere")
        except tarfile.FilterError as error:
            raise VortexError(f"{path} is refused: {error}") from None
        if not member.isreg() or member.issparse():
            raise VortexError(f"{path} is refused: {member.name!r} is a link or something else that is no plain file")
        if member.size != sizes[member.name]:
            raise VortexError(
                f"{path} is damaged: {member.name} has {member.size} bytes where the manifest says "
                f"{sizes[member.name]}; pack the run again"
            )
        found[member.name] = member
    _require_end(archive, path)
    missing = sorted(sizes.keys() - found.keys())
    if missing:
        raise VortexError(f"{path} is damaged: {missing[0]} is missing; pack the run again")
    return found


def _require_end(archive: tarfile.TarFile, path: Path) -> None:
    """The two empty blocks that end a tar, and nothing behind them."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    empty = 0
    while chunk := archive.fileobj.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise VortexError(f"{path} is refused: it goes on behind its end; pack the run again")
        empty += len(chunk)
    if empty < 2 * tarfile.BLOCKSIZE:
        raise VortexError(f"{path} was cut off; pack the run again, or copy the file once more")


def _copied(
    archive: tarfile.TarFile, member: tarfile.TarInfo, item: dict[str, Any], target: IO[bytes] | None, path: Path
) -> None:
    """Reads a member, into `target` if there is one. Raises `VortexError` where it is not what the manifest says."""
    content, total = archive.extractfile(member), hashlib.sha256()
    assert content is not None
    while chunk := content.read(_CHUNK):
        total.update(chunk)
        if target is not None:
            target.write(chunk)
    if total.hexdigest() != item["sha256"]:
        raise VortexError(
            f"{path} is damaged: {member.name} has SHA-256 {total.hexdigest()[:12]}... where the manifest says "
            f"{item['sha256'][:12]}...; pack the run again, or copy the file once more"
        )
    if target is not None:
        target.flush()


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    archive.addfile(member, content)


def _place(part: Path, target: Path) -> None:
    """Gives a finished file its name; what appeared there meanwhile is not replaced, where the disk has links."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        os.replace(part, target)


def _facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": found}


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive
    except VortexError:
        raise
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise VortexError(
            f"{path} is no packed run, or it was cut off ({error}); `vortex pack RUN` writes one"
        ) from error
    except OSError as error:
        raise VortexError(f"{path} cannot be read ({error.strerror or error}); give a file of `vortex pack`") from error


@contextmanager
def _written(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VortexError(
            f"{target} cannot be written ({error.strerror or error}); check the folder, its permissions and free space"
        ) from error
