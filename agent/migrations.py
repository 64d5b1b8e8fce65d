"""The form of a campaign's file, the older ones, and how each becomes the next.

The form is the file's `user_version`; `MIGRATIONS[0]` makes form 2 of form 1, and so on. A file that is opened for
reading is never changed: its events are brought to the form of this release as they are read. One that is opened for
writing is brought to it as a whole, in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vortexlab.agent import encoding
from vortexlab.evaluator.verdict import split

APPLICATION_ID = 0x564F5254  # "VORT", so that `file` and we know one of ours
_TABLE = (
    """CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        time REAL NOT NULL,
        kind TEXT NOT NULL,
        slot INTEGER,
        key TEXT,
        data TEXT NOT NULL CHECK (json_valid(data)),
        detail BLOB
    )""",
    "CREATE UNIQUE INDEX one_per_slot ON events (kind, slot) WHERE kind IN ('proposal', 'verdict')",
    "CREATE UNIQUE INDEX never_twice ON events (key) WHERE kind = 'verdict'",
)
_TRIGGERS = (
    "CREATE TRIGGER no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are append-only'); END",
)

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Migration:
    """`schema`: SQL that changes the table; `event`: from kind, data and detail of an event to its new data and detail.
    `detailed` says whether the older form has details."""

    schema: tuple[str, ...]
    event: Callable[[str, Data, Data | None], tuple[Data, Data | None]]
    detailed: bool = True


def _split_verdicts(kind: str, data: Data, detail: Data | None) -> tuple[Data, Data | None]:
    if kind not in ("verdict", "final", "ablation") or data["verdict"] is None or "reached" in data["verdict"]:
        return data, detail
    head, rest = split(data["verdict"])
    return {**data, "verdict": head}, {"verdict": rest}


MIGRATIONS = (Migration(("ALTER TABLE events ADD COLUMN detail BLOB",), _split_verdicts, detailed=False),)
FORM = 1 + len(MIGRATIONS)

Row = tuple[int, float, str, Data, Any]


def rows(
    connection: sqlite3.Connection, form: int, *, after: int = 0, kind: str | None = None, details: bool = True
) -> Iterator[Row]:
    """(seq, time, kind, data, packed detail) of the events above `after`, as this release has them; without `details`,
    which only a file of this release's form can do, whether there is one."""
    older = MIGRATIONS[form - 1 :]
    assert details or not older
    detail = ("detail" if details else "detail IS NOT NULL") if not older or older[0].detailed else "NULL"
    query = f"SELECT seq, time, kind, data, {detail} FROM events WHERE seq > ?" + (" AND kind = ?" if kind else "")
    found = connection.execute(query + " ORDER BY seq", (after, kind) if kind else (after,))
    for seq, when, name, text, packed in found:
        data = json.loads(text)
        yield (seq, when, name, *upgraded(name, data, packed, older)) if older else (seq, when, name, data, packed)


def lay_out(connection: sqlite3.Connection) -> None:
    """Gives an empty file the form of this release."""
    for statement in (*_TABLE, *_TRIGGERS):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORM}")


def migrate(connection: sqlite3.Connection, form: int) -> None:
    """Brings the file to the form of this release; a kill or a full disk leaves it as it was.

    What makes the table append-only is lifted for this and set again.
    """
    if form == FORM:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        events = [(encoding.text(data), detail, seq) for seq, _, _, data, detail in rows(connection, form)]
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for migration in MIGRATIONS[form - 1 :]:
            for statement in migration.schema:
                connection.execute(statement)
        connection.executemany("UPDATE events SET data = ?, detail = ? WHERE seq = ?", events)
        for statement in _TRIGGERS:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {FORM}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def upgraded(
    kind: str, data: Data, packed: bytes | None, older: Iterable[Migration] = MIGRATIONS
) -> tuple[Data, bytes | None]:
    """Data and packed detail of an event after the migrations; an event that has a later form stays as it is. Raises
    `ValueError` for a damaged detail."""
    detail: Data | None = None if packed is None else encoding.unpack(packed)
    for migration in older:
        data, detail = migration.event(kind, data, detail)
    return data, None if detail is None else encoding.pack(detail)
