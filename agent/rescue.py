"""What `vortex doctor RUN` does: examines the record of a campaign, and saves what can be read of a damaged one.

The damaged files are never touched; all is done on a copy. Events are taken where SQLite still finds them and, those
that it does not find, from every page of the file that is a leaf of a table. A campaign can go on from a history
without gaps, so the events up to the first that is lost become a new run. Later verdicts that can be read are kept
beside them by their key (events of kind ``measured``): the search comes by these programs again and does not measure
them again.

A file of SQLite has no checksums: a byte that changed within a text, and left it JSON, goes unseen. Details have them,
and so has the write-ahead log.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from vortexlab.agent import encoding
from vortexlab.agent.config import SETTINGS, write_settings
from vortexlab.agent.events import KINDS, Event
from vortexlab.agent.migrations import APPLICATION_ID, FORM, lay_out, upgraded
from vortexlab.agent.store import FILE, Row, Store, form_of, is_written
from vortexlab.agent.trials import History
from vortexlab.dsl.errors import VortexError, one_line
from vortexlab.evaluator.verdict import Verdict

_PAGE = 4096  # bytes of a page: SQLite's default, which the store leaves as it is
_LEAF = 0x0D  # first byte of a page that holds rows of a table
_WAL_HEADER, _FRAME_HEADER = 32, 24  # bytes; https://sqlite.org/fileformat2.html
_FAULTS = 5  # lines of SQLite's own that are told
_BROKEN = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, VortexError)


@dataclass(frozen=True)
class Found:
    """An event that was read whole, and its row for a new file."""

    event: Event
    row: Row


@dataclass(frozen=True)
class Examination:
    """What a record is worth. `faults` are lines, none for a sound one. `kept`: the events up to the first that is lost
    or does not follow, with `trials` evaluated; `later`: those after it that can be read, and of these `measured` the
    verdicts of programs that `kept` has none of."""

    faults: list[str]
    kept: list[Found]
    trials: int
    later: list[Found]
    measured: list[Found]


def examine(folder: Path) -> Examination:
    """Reads every byte of the record, and changes none.

    Raises `VortexError` for a record of a newer release, and for a damaged one that is being written.
    """
    with tempfile.TemporaryDirectory(prefix="vortex-doctor-") as scratch:
        copy = Path(scratch) / FILE
        written = is_written(folder)
        faults = _snapshot(folder, copy) if written else _copied(folder, copy)
        log = copy.with_name(f"{FILE}-wal")
        frames = _frames(log.read_bytes()) if log.exists() else []
        shutil.copyfile(copy, untouched := copy.with_name("untouched"))
        rows, read = _by_sqlite(copy, folder, faults)
        found = _judged(faults, rows)
        unread = [frame for frame in frames[read:] if frame.commits]
        if found.faults or unread:
            rest = _by_pages(untouched, frames if unread else frames[:read], folder)
            if unread and rest.keys() - rows.keys():
                faults.append(f"SQLite cannot read the last {len(unread)} commits of the log")
            if found.faults or faults:
                found = _judged(faults, {**rest, **rows})
    if found.faults and written:
        raise VortexError(f"run {folder.name!r} is damaged ({found.faults[0]}) and is being written; stop it first")
    return found


def rescue(folder: Path, found: Examination) -> Path:
    """A new run beside the damaged one, of what was found. Raises `VortexError` when that is nothing.

    Where the first event is lost, the campaign begins anew with the verdicts that can be read. Each keeps where it was
    measured, and the settings stand beside the record, so that this can be done again."""
    rows: list[Row] = [item.row for item in found.kept] or [_begun_anew(folder, found)]
    number, target = 1, folder.with_name(f"{folder.name}-rescued")
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}-rescued-{number}")
    when, started = rows[-1][0], json.loads(rows[0][4])  # no time of work has passed
    lost = f"{len(found.later)} later ones have no place"
    text = f"rescued from {folder.name}: its first {len(found.kept)} events; {lost}"
    if any(item.event.kind == "finals_opened" for item in found.later):
        text += "; the sealed contexts were opened after these"
    rows.append((when, "note", None, None, encoding.text({"text": text}), None))
    for item in found.measured:
        key, said = item.row[3], item.event.data
        data = {
            "key": key, "verdict": said["verdict"], "from_run": said.get("from_run", folder.name),
            "environment": said.get("environment", started["environment"]),
        }  # fmt: skip
        rows.append((when, "measured", None, key, encoding.text(data), item.row[5]))
    Store.restore(target, rows).close()
    write_settings(target, {**started["config"], "name": target.name})
    return target


def _begun_anew(folder: Path, found: Examination) -> Row:
    """The first event of a campaign whose own is lost, from later ones and the settings beside the record."""
    configs = [item.event.data["config"] for item in found.later if item.event.kind == "campaign_resumed"]
    environments = [item.event.data["environment"] for item in found.measured if "environment" in item.event.data]
    settings = folder / SETTINGS
    with suppress(OSError, ValueError):
        configs.append(json.loads(settings.read_text()))
    if not configs or not environments:
        anew = f"; the settings are in {settings}: start anew with them" if settings.exists() else ""
        raise VortexError(f"nothing of a campaign is left in {folder / FILE} ({found.faults[0]}){anew}")
    data = {"config": configs[0], "environment": environments[0]}
    return (found.measured[0].event.time, "campaign_started", None, None, encoding.text(data), None)


# --- what SQLite reads ----------------------------------------------------------------------------------------------


def _copied(folder: Path, copy: Path) -> list[str]:
    for suffix in ("", "-wal", "-journal"):
        if (source := folder / f"{FILE}{suffix}").exists():
            shutil.copyfile(source, copy.with_name(f"{FILE}{suffix}"))
    return []


def _snapshot(folder: Path, copy: Path) -> list[str]:
    """Of a file that somebody writes: a copy of its pages at one moment."""
    uri = f"{(folder / FILE).resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=30.0)) as source, closing(sqlite3.connect(copy)) as target:
        try:
            source.backup(target)
        except sqlite3.Error as error:
            return [str(error)]
    return []


def _by_sqlite(copy: Path, folder: Path, faults: list[str]) -> tuple[dict[int, Found], int]:
    """The events as SQLite finds them, from both ends as far as it gets, and how many frames of the log it reads."""
    rows: dict[int, Found] = {}
    read = 0
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        try:
            read = max(0, connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])
            form = connection.execute("PRAGMA user_version").fetchone()[0]
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                faults.append("it does not begin as a campaign of Vortex does")
            elif form > FORM:
                form_of(connection, folder)
            found = connection.execute(f"PRAGMA integrity_check({_FAULTS})").fetchall()
            faults += [" ".join(line.split()) for (line,) in found if line != "ok"]
        except sqlite3.Error as error:
            faults.append(str(error))
        for order in ("ASC", "DESC"):
            try:
                for row in _rows(connection, f"ORDER BY seq {order}"):
                    _take(row, folder, rows, faults)
                break
            except sqlite3.Error as error:
                if str(error) not in faults:
                    faults.append(str(error))
    return rows, read


def _rows(connection: sqlite3.Connection, rest: str, *values: object) -> Iterator[tuple]:
    connection.text_factory = bytes
    known = {bytes(row[1]) for row in connection.execute("PRAGMA table_info(events)")}
    detail = "detail" if b"detail" in known or not known else "NULL"
    return connection.execute(f"SELECT seq, time, kind, slot, key, data, {detail} FROM events {rest}", values)


def _take(row: tuple, folder: Path, rows: dict[int, Found], faults: list[str]) -> None:
    """Adds an event that can be read in full; why it cannot be is a fault."""
    seq, when, kind, slot, key, text, packed = row
    if seq in rows:
        return
    try:
        name, plain = kind.decode(), json.loads(text)
        if name not in KINDS or not isinstance(when, float) or (slot is not None and plain["slot"] != slot):
            raise ValueError("it is none of a campaign")
        data, detail = upgraded(name, plain, packed)
        event = Event(seq, when, name, data, detail, folder)
        if isinstance(data.get("verdict"), dict):
            Verdict.from_json(event.whole()["verdict"])
        row_key = None if key is None else key.decode()
        rows[seq] = Found(event, (when, name, slot, row_key, encoding.text(data), detail))
    except _BROKEN as error:
        reason = one_line(error, 100)
        faults.append(f"event {seq} cannot be read ({type(error).__name__}: {reason})")


def _judged(faults: Iterable[str], rows: dict[int, Found]) -> Examination:
    """Folds the events up to the first that is lost or contradicts those before it."""
    faults, history = list(faults), History()
    kept: list[Found] = []
    seen: set[tuple[str, int | str | None]] = set()
    while (found := rows.get(len(kept) + 1)) is not None:
        event, (_, kind, slot, key, *_) = found.event, found.row
        try:
            marks: set[tuple[str, int | str | None]] = {(kind, slot)} if kind in ("proposal", "verdict") else set()
            marks |= {("key", key)} if kind == "verdict" else set()
            if marks & seen or (not kept) != (kind == "campaign_started"):
                raise ValueError("it was there before" if kept else "it begins no campaign")
            history.add(event)
            seen |= marks
        except _BROKEN as error:
            cause = error.__cause__ or error
            reason = f" ({type(cause).__name__}: {cause})" if str(cause) else ""
            faults.append(f"event {event.seq}, of kind {kind}, does not follow from those before it{reason}")
            break
        kept.append(found)
    later = [found for seq, found in sorted(rows.items()) if seq > len(kept)]
    if later and later[0].event.seq > len(kept) + 1:
        faults.append(f"event {len(kept) + 1} is lost, and {len(later)} later ones are there")
    measured = {
        found.row[3]: found for found in later
        if found.event.kind in ("verdict", "measured") and ("key", found.row[3]) not in seen
    }  # fmt: skip
    return Examination(faults, kept, len(history.trials), later, list(measured.values()))


# --- what is left in the pages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """A page in the write-ahead log; the last one of a transaction `commits`."""

    page: int
    commits: bool
    content: bytes


def _frames(log: bytes) -> list[_Frame]:
    """The frames of the newest generation of a log, damaged ones too where their header is not.

    What a log held before it was begun anew lies behind, with another salt, and is in the file already.
    """
    size = _FRAME_HEADER + _PAGE
    found: list[tuple[bytes, _Frame]] = []
    for start in range(_WAL_HEADER, len(log) - size + 1, size):
        page, pages = struct.unpack(">II", log[start : start + 8])
        found.append((log[start + 8 : start + 16], _Frame(page, pages > 0, log[start + _FRAME_HEADER : start + size])))
    salts = [salt for salt, _ in found]
    newest = log[16:24]  # what the header of the log says; else the first that is no accident
    if newest not in salts:
        newest = next((salt for salt in salts if salts.count(salt) > 1), b"")
    return [frame for salt, frame in found if salt == newest]


def _by_pages(file: Path, frames: list[_Frame], folder: Path) -> dict[int, Found]:
    """Every event on a leaf page, whatever has become of the pages that lead there.

    SQLite itself reads the leaves: each in turn is put where the table has its root, below a first page of a file that
    is whole, and finds the pages that its long rows go on in where they were.
    """
    content = bytearray(file.read_bytes())
    content += bytes(-len(content) % _PAGE)
    for frame in frames:
        end = frame.page * _PAGE
        if 0 < end <= len(content) + len(frames) * _PAGE:
            content += bytes(max(0, end - len(content)))
            content[end - _PAGE : end] = frame.content
    content[:_PAGE] = _first_page(file.with_name("model"), len(content) // _PAGE)
    leaves = [start for start in range(_PAGE, len(content), _PAGE) if content[start] == _LEAF]
    pages = file.with_name("pages")
    pages.write_bytes(content)
    rows: dict[int, Found] = {}
    for start in leaves:
        with pages.open("r+b") as out:
            out.seek(_PAGE)
            out.write(content[start : start + _PAGE])
        uri = f"{pages.as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection, suppress(sqlite3.Error):
            for (seq,) in connection.execute("SELECT seq FROM events").fetchall():
                with suppress(sqlite3.Error):
                    for row in _rows(connection, "WHERE seq = ?", seq):
                        _take(row, folder, rows, [])
    return rows


def _first_page(file: Path, pages: int) -> bytes:
    """The first page of an empty store, for a file of so many pages."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        lay_out(connection)
    page = bytearray(file.read_bytes()[:_PAGE])
    page[28:32] = struct.pack(">I", pages)
    page[92:96] = page[24:28]  # the count of pages holds
    page[32:40] = bytes(8)  # no free pages
    return bytes(page)
