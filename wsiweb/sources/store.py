"""``DiskStore``: values by key that survive the process, verified when read, within a budget of bytes on disk.

Knows no DICOM. Nothing that goes wrong on the disk reaches the caller: a value is then not there, or not kept.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from wsiweb.sources.database import PAGE_BYTES, shared_database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from wsiweb.sources.database import Database

logger = logging.getLogger("wsiweb")

_CONTENT_BYTES = 4092
"""Of a page that holds a part of a value (SQLite file format, 1.6)."""
_MAX_JOURNAL_PAGES = 1024
_MIN_JOURNAL_PAGES = 96
_TOUCHES_AT_ONCE = 1000
_VICTIMS_AT_ONCE = 256
_SHRUNK_AT_ONCE = 4096
_MAX_ROUNDS = 16
"""Of eviction in one transaction: a budget that was lowered is come down to in several."""
_MAX_TRANSACTION_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A value."""

    data: bytes
    label: str = ""
    """A few words about the data."""
    stored_seconds: float = 0.0
    """When, since the epoch; the store sets it."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A value on its way into the database."""

    id: int
    stored_seconds: float
    label: bytes
    checksum: bytes
    pages: int
    """That it takes, about."""
    data: bytes


class DiskStore:
    """A handle on the values in a folder. Safe to share between threads and, by its folder, processes; pickles.

    Least recently used values go first, approximately: an entry's last use is noted on a clock that counts the bytes
    written to the store, and anew only after an eighth of the budget was written since. So reads write next to nothing.

    Parameters
    ----------
    folder
        Absolute path.
    limit_bytes
        Size of the database on disk, journal included. A value larger than a quarter of it is not kept.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        pages = limit_bytes // PAGE_BYTES
        self._journal_pages = min(max(pages // 32, 1), _MAX_JOURNAL_PAGES)
        # The journal grows past its mark by a transaction, and while somebody reads.
        self._pages = pages - max(2 * self._journal_pages, _MIN_JOURNAL_PAGES)
        self._transaction_pages = min(max(pages // 32, 1), _MAX_TRANSACTION_BYTES // PAGE_BYTES)
        self._database: Database | None = None
        if self._pages > 0:
            self._database = shared_database(folder, self._journal_pages)
        elif limit_bytes > 0:
            logger.warning("Disk cache %s: a budget of %d bytes is too small to keep anything.", folder, limit_bytes)
        self._touched: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder, "limit_bytes": self._limit_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Entry]:
        """Return what is there, by key of 16 bytes; damaged values are dropped."""
        wanted = {_id(key): key for key in keys}
        query = (
            "SELECT id, used, stored_seconds, label, checksum, value, (SELECT clock FROM state) "  # noqa: S608
            f"FROM entries JOIN data USING (id) WHERE id IN ({','.join('?' * len(wanted))})"
        )
        database = self._database
        if database is None:
            return {}
        rows: list[Any] = database.read(lambda connection: connection.execute(query, tuple(wanted)).fetchall(), [])
        found = {}
        damaged = []
        for number, used, stored_seconds, label, checksum, data, clock in rows:
            try:
                key = wanted[number]
                if checksum != _checksum(key, stored_seconds, label, data):
                    damaged.append(number)
                    continue
                found[key] = Entry(data, label.decode(), stored_seconds)
                if clock - used > self._limit_bytes // 8:
                    self._touched.add(number)
            except (KeyError, TypeError, struct.error):  # a damaged row may hold values of any type
                damaged.append(number)
        if damaged:
            database.warn("value", "a value was damaged; it is dropped and fetched anew.")
            database.write(lambda connection: _delete(connection, damaged))
        if len(self._touched) >= _TOUCHES_AT_ONCE:
            database.write(self._note_uses)
        return found

    def put(self, entries: Mapping[bytes, Entry], *, overwrite: bool = True) -> None:
        """Keep values, at the cost of those that were not used for longest.

        Where a key has one already, that gives way, or stays without ``overwrite``.
        """
        database = self._database
        if database is None:
            return
        now = time.time()
        rows: list[_Row] = []
        for key, entry in entries.items():
            pages = len(entry.data) // _CONTENT_BYTES + 1
            if pages > self._pages // 4:
                size = len(entry.data)
                database.warn("size", f"{size} bytes are too many for a budget of {self._limit_bytes} bytes.")
                continue
            label = entry.label.encode()
            rows.append(_Row(_id(key), now, label, _checksum(key, now, label, entry.data), pages, entry.data))
            if sum(row.pages for row in rows) >= self._transaction_pages:
                database.write(partial(self._insert, rows, overwrite))
                rows = []
        if rows:
            database.write(partial(self._insert, rows, overwrite))
        database.read(self._shrink, None)

    def close(self) -> None:
        """Write what is still to be noted, and leave the connection, which ends with its last user."""
        database, self._database = self._database, None
        if database is not None and self._touched:
            database.write(self._note_uses)

    def _insert(self, rows: list[_Row], overwrite: bool, connection: sqlite3.Connection) -> None:  # noqa: FBT001
        insert = f"INSERT OR {'REPLACE' if overwrite else 'IGNORE'} INTO"
        self._make_room(connection, sum(row.pages for row in rows))
        self._note_uses(connection)
        connection.execute("UPDATE state SET clock = clock + ?", (sum(len(row.data) for row in rows),))
        connection.executemany(
            f"{insert} entries VALUES (?, (SELECT clock FROM state), ?, ?, ?, ?)",  # noqa: S608  (REPLACE or IGNORE)
            [(row.id, row.pages, row.stored_seconds, row.label, row.checksum) for row in rows],
        )
        connection.executemany(f"{insert} data VALUES (?, ?)", [(row.id, row.data) for row in rows])

    def _make_room(self, connection: sqlite3.Connection, needed_pages: int) -> None:
        """Delete what was not used for longest, until so many pages are free within the budget."""
        for _ in range(_MAX_ROUNDS):
            excess = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
            excess += needed_pages - self._pages
            victims = connection.execute(
                "SELECT id, CAST(pages AS INTEGER) FROM entries ORDER BY used LIMIT ?",
                (_VICTIMS_AT_ONCE if excess > 0 else 0,),
            ).fetchall()
            numbers = []
            for number, pages in victims:
                if excess <= 0:
                    break
                numbers.append(number)
                excess -= pages
            if not numbers:
                break
            _delete(connection, numbers)

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Give free pages back where the budget was lowered; else new values take the place of old ones."""
        surplus = _pragma(connection, "page_count") - self._pages
        if surplus > 0:  # as a script, or it would stop after one page
            connection.executescript(f"PRAGMA incremental_vacuum({min(surplus, _SHRUNK_AT_ONCE)})")

    def _note_uses(self, connection: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, set()
        connection.executemany(
            "UPDATE entries SET used = (SELECT clock FROM state) WHERE id = ?", [(number,) for number in tuple(touched)]
        )


def _id(key: bytes) -> int:
    """Return the row of a key. Were two to share one, each would find the other's value damaged."""
    return int.from_bytes(key[:8], "big", signed=True)


def _checksum(key: bytes, stored_seconds: float, label: bytes, data: bytes) -> bytes:
    """Return what tells that a value is whole, and where it belongs."""
    state = hashlib.blake2b(key + label, digest_size=16, salt=struct.pack("<d", stored_seconds))
    state.update(data)
    return state.digest()


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _delete(connection: sqlite3.Connection, numbers: list[int]) -> None:
    for table in ("entries", "data"):
        connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(number,) for number in numbers])  # noqa: S608
