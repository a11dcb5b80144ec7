"""A SQLite file that is a cache and nothing else: damaged, it is made anew without a word; where it cannot be used, it lives in memory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from llmos_cli.core import access
from llmos_cli.core.listing import what_else

_UNUSABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
}

T = TypeVar("T")


class Database:
    """`tables`: SQL that makes them; `schema`: the version of that, another one is made anew."""

    def __init__(self, path: Path, tables: str, schema: int) -> None:
        self._path = path
        self._journal = path.with_name(path.name + "-journal")
        self._tables = tables
        self._schema = schema
        self._guard = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out `work`; on a damaged file with a new one, on one that cannot be used in memory."""
        with self._guard:
            try:
                return _in_transaction(self._connected(self._open), work)
            except sqlite3.DatabaseError as error:
                anew = self._open_aside if _unusable(error) or access.read_only() else self._open_anew
            try:
                return _in_transaction(self._connected(anew, again=True), work)
            except sqlite3.DatabaseError:
                return _in_transaction(self._connected(self._open_in_memory, again=True), work)

    def live_in_memory(self) -> None:
        """From now on, and empty."""
        self._connected(self._open_in_memory, again=True)

    def begin_anew(self) -> None:
        """With an empty file; in memory where nothing may be written, or can be."""
        try:
            self._connected(self._open_in_memory if access.read_only() else self._open_anew, again=True)
        except sqlite3.DatabaseError:
            self.live_in_memory()

    def _connected(self, opened: Callable[[], sqlite3.Connection], *, again: bool = False) -> sqlite3.Connection:
        """The connection of this process: one must not be carried over a fork."""
        if again or self._connection is None or self._owner != os.getpid():
            self._connection = None
            self._connection, self._owner = opened(), os.getpid()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        db = self._connect("ro" if access.read_only() else "rwc")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, self._schema):
            db.close()
            raise sqlite3.DatabaseError("made by another version")
        if version == 0:
            self._create(db)
        return db

    def _connect(self, mode: Literal["ro", "rwc"]) -> sqlite3.Connection:
        if what := next(filter(None, map(what_else, (self._path, self._journal))), ""):
            raise sqlite3.DatabaseError(f"it is {what}, at which SQLite would wait")
        # Threads take turns by `_guard`. IMMEDIATE: a writer waits for its turn at once instead of failing half-way.
        if mode == "rwc" and not self._path.exists():  # SQLite would make it for its user alone, whatever the umask
            with contextlib.suppress(OSError):
                self._path.touch()
        place = f"{self._path.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(place, timeout=10, check_same_thread=False, isolation_level="IMMEDIATE", uri=True)

    def _open_anew(self) -> sqlite3.Connection:
        try:
            self._path.unlink(missing_ok=True)
            self._journal.unlink(missing_ok=True)
        except OSError as error:
            raise sqlite3.OperationalError(str(error)) from error
        return self._open()

    def _open_aside(self) -> sqlite3.Connection:
        """In memory, beginning with what the file knows where it can be read: to learn the rest costs little then."""
        db = self._open_in_memory()
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(self._connect("ro")) as file:
            if file.execute("PRAGMA user_version").fetchone()[0] == self._schema:
                file.backup(db)
        return db

    def _open_in_memory(self) -> sqlite3.Connection:
        db = sqlite3.connect(":memory:", check_same_thread=False)
        self._create(db)
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        db.executescript(f"BEGIN IMMEDIATE;{self._tables}PRAGMA user_version = {self._schema};COMMIT;")


def write(db: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:  # an empty executemany would still begin a transaction, and so take the lock
        db.executemany(statement, rows)


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Committed when it wrote; nothing is locked by reading alone."""
    try:
        result = work(db)
        if db.in_transaction:
            db.commit()
    except BaseException:
        db.rollback()
        raise
    return result


def _unusable(error: sqlite3.DatabaseError) -> bool:
    """Busy for too long, or not to be written or opened here: another file would fare no better."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNUSABLE
