"""The record of one campaign: an append-only list of events in one SQLite file.

Everything else (trials, frontier, study, spend) is computed from the events, so a controller that is killed at any
moment loses at most the evaluations that were running. One process writes, held to that by a lock of the operating
system that dies with it; any number read. The events are described in `agent.events`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from vortexlab import __version__
from vortexlab.agent import encoding
from vortexlab.agent.events import KINDS, Event, Mark, mend
from vortexlab.agent.migrations import APPLICATION_ID, FORM, lay_out, migrate, rows
from vortexlab.agent.naming import called
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.scratch import READING

FILE, LOCK = "campaign.sqlite", "lock"
_PATIENCE = 3  # tries for the lock

_INSERT = "INSERT INTO events (time, kind, slot, key, data, detail) VALUES (?, ?, ?, ?, ?, ?)"
#: What `_INSERT` takes: data and detail as the file has them.
Row = tuple[float, str, int | None, str | None, str, bytes | None]


class NewerForm(VortexError):
    """The record of a newer release."""


class Store:
    """The events of the campaign in `folder`. Make one with `create`, `write` or `read`; close it, or use `with`.

    Any thread may append.
    """

    def __init__(
        self,
        folder: Path,
        connection: sqlite3.Connection,
        lock: int | None,
        copy: Path | None = None,
    ):
        self.folder = folder
        self._connection, self._lock, self._copy, self._version = connection, lock, copy, FORM
        self._turn = threading.RLock()

    @staticmethod
    def create(folder: Path, started: Mapping[str, Any]) -> Store:
        """A new campaign whose first event is `started`. The file appears whole or not at all.

        Raises `VortexError` when the folder holds a campaign already, cannot be written, or another process has it.
        """
        return Store._begun(folder, lambda store: store._insert("campaign_started", started, None, None, None))

    @staticmethod
    def restore(folder: Path, rows: Iterable[Row]) -> Store:
        """A new campaign of events that were read elsewhere, with their times. Raises `VortexError` as `create` does,
        and when the events contradict each other."""
        return Store._begun(folder, lambda store: store._connection.executemany(_INSERT, rows))

    @staticmethod
    def _begun(folder: Path, fill: Callable[[Store], object]) -> Store:
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
            try:
                if exists(folder):
                    again = f"--resume {called(folder)}"
                    raise VortexError(f"run {folder.name!r} exists; go on with {again}, or name another")
                newborn = folder / f".{FILE}.new"
                newborn.unlink(missing_ok=True)
                connection = _connect(newborn)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                lay_out(connection)
                fill(Store(folder, connection, lock))
                connection.execute("COMMIT")
                connection.close()
                newborn.rename(folder / FILE)
                connection = _connect(folder / FILE)
                _begin_wal(connection)
                return Store(folder, connection, lock)
            except BaseException:
                os.close(lock)
                raise

    @staticmethod
    def write(folder: Path) -> Store:
        """Opens an existing campaign as its one writer. Raises `VortexError` as `create` does."""
        _require(folder)
        with _explained(folder):
            lock = _acquire(folder)
            try:
                connection = _connect(folder / FILE)
                version = form_of(connection, folder)
                _begin_wal(connection)
                migrate(connection, version)
                return Store(folder, connection, lock)
            except BaseException:
                os.close(lock)
                raise

    @staticmethod
    def read(folder: Path) -> Store:
        """Opens an existing campaign for reading, whether or not somebody is writing it.

        A folder that we may not write is read through a private copy, since SQLite wants to keep its index of a
        write-ahead log beside the file.
        """
        _require(folder)
        with _explained(folder):
            try:
                connection = _connect(folder / FILE, read_only=True)
                connection.execute("SELECT count(*) FROM events").fetchone()
                copy = None
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
                copy = Path(tempfile.mkdtemp(prefix=READING))
                for suffix in ("", "-wal"):
                    if (source := folder / f"{FILE}{suffix}").exists():
                        shutil.copyfile(source, copy / f"{FILE}{suffix}")
                connection = _connect(copy / FILE)
            store = Store(folder, connection, None, copy)
            try:
                store._version = form_of(connection, folder)
            except BaseException:
                store.close()  # and the copy with it
                raise
            return store

    @property
    def writable(self) -> bool:
        return self._lock is not None

    def append(
        self,
        kind: str,
        data: Mapping[str, Any],
        *,
        slot: int | None = None,
        key: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Event:
        """Commits one event and returns it; when this returns, the event survives a power cut.

        `slot` enters the data too; `detail` is what only `Event.whole` reads. Raises `VortexError` when the disk is
        full or gone (nothing is lost), when `slot` has such an event already, or when `key` was evaluated before.
        """
        with self._turn, _explained(self.folder):
            if not self.writable:
                raise VortexError(f"run {self.folder.name!r} is not open for writing")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                event = self._insert(kind, data, slot, key, detail)
                self._connection.execute("COMMIT")
                return event
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _insert(
        self, kind: str, data: Mapping[str, Any], slot: int | None, key: str | None, detail: Mapping[str, Any] | None
    ) -> Event:
        assert kind in KINDS, kind
        if slot is not None:
            data = {"slot": slot, **data}
        now, plain = time.time(), encoding.finite(data)
        packed = None if detail is None else encoding.pack(detail)
        cursor = self._connection.execute(_INSERT, (now, kind, slot, key, encoding.text(plain), packed))
        return Event(int(cursor.lastrowid or 0), now, kind, plain, packed, self.folder)

    def events(self, *, after: int = 0, kind: str | None = None, lean: bool = False) -> Iterator[Event]:
        """Events with a sequence number above `after`, oldest first, in the form of this release. `lean` ones read
        their detail from this store when they are asked for it: as long as it is open.

        Raises `VortexError` where the file is damaged or, with every `kind`, an event is lost.
        """
        lean = lean and self._version == FORM
        with _explained(self.folder):
            found = rows(self._connection, self._version, after=after, kind=kind, details=not lean)
            for seq, when, name, data, detail in found:
                after += 1
                if kind is None and seq != after:
                    raise self._lost(after)
                yield Event(seq, when, name, data, self if lean and detail else detail, self.folder)

    def latest(self, after: int) -> list[Event]:
        """The same at once and lean, while other threads append."""
        with self._turn:
            return list(self.events(after=after, lean=True))

    def detail(self, seq: int) -> bytes:
        """The packed detail of an event that has one. Raises `VortexError` where it cannot be read any more."""
        with self._turn, _explained(self.folder):
            try:
                found = self._connection.execute("SELECT detail FROM events WHERE seq = ?", (seq,)).fetchone()
            except sqlite3.ProgrammingError as error:
                again = "open the run again to see more of this verdict"
                raise VortexError(f"run {self.folder.name!r} was closed meanwhile; {again}") from error
        if found is None or found[0] is None:
            raise self._lost(seq)
        return bytes(found[0])

    def first(self) -> Event:
        """How the campaign began. Raises `VortexError` where that is lost."""
        for event in self.events():
            return event
        raise self._lost(1)

    def mark(self) -> Mark:
        """How far the record goes at this moment. Raises `VortexError` where an event is lost."""
        with self._turn, _explained(self.folder):
            count, last, when = self._connection.execute("SELECT count(*), max(seq), time FROM events").fetchone()
            if count == last:
                return Mark(last, when)
            found = enumerate(self._connection.execute("SELECT seq FROM events ORDER BY seq"), 1)
            raise self._lost(next((number for number, (seq,) in found if number != seq), 1))

    def _lost(self, seq: int) -> VortexError:
        return VortexError(f"run {self.folder.name!r}: event {seq} is lost; {mend(self.folder)}")

    def check(self) -> None:
        """Reads the whole file. Raises `VortexError` where its pages are damaged."""
        with _explained(self.folder):
            found = str(self._connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise VortexError(f"{self.folder / FILE} is damaged ({' '.join(found.split())}); restore it from a copy")

    def copy(self, target: Path) -> None:
        """Writes all that is recorded at this moment into a new file, also while a campaign is at work on it.

        Raises `VortexError` for a record that is damaged, `OSError` where the file cannot be written.
        """
        self.check()
        try:
            copied = _connect(target)
            try:
                self._connection.backup(copied)
                copied.execute("PRAGMA journal_mode = DELETE")  # one plain file
            finally:
                copied.close()
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(target)) from error

    def close(self) -> None:
        """A writer leaves one plain file behind, without a log beside it, unless somebody is reading. An event that
        another thread is about to append is recorded before that, or refused."""
        with self._turn:
            if self.writable:
                # While a reader is there, or the disk is full, the log stays and is read the next time.
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)
            self._copy = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exists(folder: Path) -> bool:
    """Whether the folder holds a campaign."""
    return (folder / FILE).is_file()


def is_written(folder: Path) -> bool:
    """Whether a process has the campaign open for writing at this moment."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(lock)


def _require(folder: Path) -> None:
    if not exists(folder):
        raise VortexError(f"{folder} holds no campaign ({FILE} is missing); start one with `vortex search`")


def _connect(file: Path, read_only: bool = False) -> sqlite3.Connection:
    uri = f"{file.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30.0, check_same_thread=False)


def _begin_wal(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # every commit reaches the disk before `append` returns


def form_of(connection: sqlite3.Connection, folder: Path) -> int:
    """The form of the file. Raises `VortexError` for one that this release cannot read."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    form = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application != APPLICATION_ID or form < 1:
        raise VortexError(f"{folder / FILE} is no campaign of Vortex, or damaged; {mend(folder)}")
    if form > FORM:
        raise NewerForm(
            f"{folder / FILE} has form {form}, written by {_release(connection)}; this one, {__version__}, reads forms "
            f"up to {FORM}: go on with a release that is as new"
        )
    return form


def _release(connection: sqlite3.Connection) -> str:
    """Which release last opened the campaign for writing, as far as a form that we do not know tells."""
    with suppress(sqlite3.Error, ValueError, KeyError, TypeError):
        query = "SELECT data FROM events WHERE kind IN ('campaign_started', 'campaign_resumed') ORDER BY seq DESC"
        for (data,) in connection.execute(query):
            if "versions" in (found := json.loads(data)):
                return f"release {found['versions']['vortexlab']}"
    return "a newer release"


def _acquire(folder: Path) -> int:
    """The descriptor of the lock file, locked. The lock goes when the process does, however it ends."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for _ in range(_PATIENCE):
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.05)  # `is_written` holds the lock for an instant
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        by = f" by process {owner}" if owner.isdigit() else ""
        raise VortexError(
            f"run {folder.name!r} is being written{by}; wait for it, stop it, or give this campaign another name"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what the disk and SQLite say into one line for the user."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise VortexError(f"run {folder.name!r}: the event contradicts the record ({error})") from error
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            line = (
                f"the disk of {folder} is full or failing ({error}); everything recorded so far is safe: "
                f"free some space and go on with `vortex search --resume {called(folder)}`"
            )
        elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            line = f"run folder {folder} cannot be written ({error}); make it writable or give another with --runs"
        elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            line = f"{folder / FILE} is damaged or no SQLite file ({error}); {mend(folder)}"
        elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            line = f"{folder / FILE} is in use by another program ({error}); try again when it has ended"
        else:
            line = f"{folder / FILE} cannot be read ({error}); {mend(folder)}"
        raise VortexError(line) from error
    except ValueError as error:  # JSON
        raise VortexError(f"{folder / FILE} is damaged ({error}); {mend(folder)}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise VortexError(
            f"run folder {folder} cannot be used ({reason}); make it writable, free some space, or give another folder"
        ) from error
