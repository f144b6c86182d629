"""The database file of the disk cache: found, made, shared within the process, and begun anew when it is damaged.

Knows nothing of what is kept in it, beyond the schema. SQLite of the standard library is the well-kept library here:
``diskcache`` unpickles what it reads, so that who can write to its folder can run code, and is no longer maintained.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import stat
import tempfile
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wsiweb.locks import module_lock

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("wsiweb")

Result = TypeVar("Result")

PAGE_BYTES = 4096  # as the schema says
_NAME = re.compile(r"wsiweb-1-(\d{1,9})\.sqlite")  # 1 is the version of the schema
_SCHEMA = """
    PRAGMA page_size = 4096;
    PRAGMA auto_vacuum = INCREMENTAL;
    PRAGMA journal_mode = WAL;
    CREATE TABLE state (clock INTEGER NOT NULL);
    INSERT INTO state VALUES (0);
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY, used INTEGER NOT NULL, pages INTEGER NOT NULL, stored_seconds REAL NOT NULL,
        label BLOB NOT NULL, checksum BLOB NOT NULL
    );
    CREATE INDEX entries_by_use ON entries (used);
    CREATE TABLE data (id INTEGER PRIMARY KEY, value BLOB NOT NULL);
"""
_BUSY_SECONDS = 1.0
"""How long one process waits for another to finish writing."""
_REST_SECONDS = 10.0
"""How long nothing is written after a write had to be given up: each would cost its caller the wait."""
_MAX_FAILURES = 3
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})  # the last: no such table
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL})


class Database:
    """One folder's database: one connection a process, under the lock of all. Never raises what goes wrong in it.

    Parameters
    ----------
    folder
        Made where it is missing, for this user alone. On a local disk: SQLite's shared memory does not work on NFS.
    journal_pages
        Size at which the write-ahead log is folded in.
    """

    def __init__(self, folder: str, journal_pages: int) -> None:
        self.folder = Path(folder)
        self._journal_pages = journal_pages
        self._connection: sqlite3.Connection | None = None
        self._closer: weakref.finalize[[], Database] | None = None
        self._generation = 0
        self._failures = 0
        self._resting_until = 0.0
        self._warned: set[str] = set()

    def read(self, work: Callable[[sqlite3.Connection], Result], fallback: Result) -> Result:
        """Return what ``work`` returns, or ``fallback`` where the database fails it."""
        with _lock:
            if self._failures >= _MAX_FAILURES:
                return fallback
            try:
                return work(self._connected())
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                self._fail(error)
                return fallback

    def write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do ``work`` in one transaction, or not at all."""

        def transact(connection: sqlite3.Connection) -> None:
            try:  # a Ctrl-C that comes while another process writes is met behind BEGIN
                connection.execute("BEGIN IMMEDIATE")
                work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

        if time.monotonic() >= self._resting_until:
            self.read(transact, None)

    def warn(self, kind: str, problem: str) -> None:
        """Log a warning, the first of its kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("Disk cache %s: %s", self.folder, problem)

    # Connection -----------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            generations = self._generations()
            self._generation = generations[-1] if generations else self._create(1)
            path = self._path(self._generation)
            _check_owner(path)
            # Not created here: a half-made file would be seen by others.
            connection = sqlite3.connect(
                f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
            self._connection = connection
            self._closer = weakref.finalize(self, connection.close)
            connection.text_factory = bytes  # damaged text shall be found by its checksum
            # After a power failure the file may be damaged. That is found out, and cheaper than to wait for the disk.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA wal_autocheckpoint = {self._journal_pages}")
            connection.execute(f"PRAGMA journal_size_limit = {self._journal_pages * PAGE_BYTES}")
            connection.execute("SELECT clock FROM state").fetchone()
        return self._connection

    def _disconnect(self) -> None:
        self._connection = None
        if self._closer is not None:
            with contextlib.suppress(sqlite3.Error):
                self._closer()
            self._closer = None

    def _create(self, generation: int) -> int:
        """Make an empty database, whole before it has its name; whoever else does so meanwhile may win."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".wsiweb-", suffix=".sqlite", dir=self.folder)  # mode 0600
        os.close(handle)
        try:
            with contextlib.closing(sqlite3.connect(name, isolation_level=None)) as connection:
                connection.executescript(_SCHEMA)
            with contextlib.suppress(FileExistsError):
                os.link(name, self._path(generation))
        finally:
            Path(name).unlink(missing_ok=True)
        return generation

    def _generations(self) -> list[int]:
        if not self.folder.exists():
            return []
        names = (path.name for path in self.folder.iterdir())
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def _path(self, generation: int) -> Path:
        return self.folder / f"wsiweb-1-{generation}.sqlite"

    # Failure --------------------------------------------------------------------------------------

    def _fail(self, error: sqlite3.Error | OSError | UnicodeDecodeError) -> None:
        """Decide what a failure means for those to come. The caller does without the cache."""
        code = getattr(error, "sqlite_errorcode", -1) & 0xFF  # the primary code
        if code in _PASSING:
            self._resting_until = time.monotonic() + _REST_SECONDS
            self.warn("passing", f"nothing is written for {_REST_SECONDS:g} s, because {error}.")
            return
        deleted = self._connection is not None and not self._path(self._generation).exists()
        if deleted:  # by the user: that is how the cache is emptied
            self._disconnect()
            return
        self._failures += 1
        self._disconnect()
        if code in _DAMAGED or isinstance(error, UnicodeDecodeError):  # the message quotes what is damaged
            self.warn("damaged", f"the database is damaged ({error}); it is deleted and begun anew.")
            with contextlib.suppress(OSError, sqlite3.Error):
                self._begin_anew()
        else:
            self.warn("failed", f"it is bypassed, because it failed: {error}. Slides are read without it.")

    def _begin_anew(self) -> None:
        """Leave a damaged file for one of another name.

        Under the same name, processes that still have the old one open would delete the journal of the new one.
        """
        if self._generations()[-1:] == [self._generation]:
            self._create(self._generation + 1)
        old = self._path(self._generation)
        for path in (old, Path(f"{old}-wal"), Path(f"{old}-shm")):
            path.unlink(missing_ok=True)


def _check_owner(path: Path) -> None:
    """Refuse a file that somebody else may have filled with pixels of their own making."""
    status = path.lstat()
    own = not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)
    if not (stat.S_ISREG(status.st_mode) and own):
        raise PermissionError(f"{path} is no file of this user's alone")


def shared_database(folder: str, journal_pages: int) -> Database:
    """Return this process's database in a folder."""
    with _lock:
        database = _known.get((folder, journal_pages))
        if database is None:
            database = _known[folder, journal_pages] = Database(folder, journal_pages)
        return database


def _disconnect_all() -> None:
    """Close the connections before a fork: not even closing them is allowed to a child. All connect anew on demand."""
    for database in tuple(_known.values()):
        database._disconnect()  # noqa: SLF001


_known: weakref.WeakValueDictionary[tuple[str, int], Database] = weakref.WeakValueDictionary()
"""The databases of this process, so that slides that share a folder share a connection, and none crosses a fork."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_disconnect_all)  # what is registered later comes sooner: it has the lock
_lock = module_lock()
"""Of all databases. No Python code takes it or lets go of it around a fork: a Ctrl-C in there would leave it held."""
