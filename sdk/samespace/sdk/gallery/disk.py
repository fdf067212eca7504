"""SQLite files of a client: durable when a write returns, whatever happens to the process; safe for several processes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from samespace.sdk.errors import FormatVersionError, GalleryError, SpaceMismatchError
from samespace.sdk.identity import digest

__all__ = ["DiskFile", "DiskFileError", "name_of"]

#: Of the tables; a file of a newer version is refused.
_VERSION = 1
#: How long a write waits for another process's, in seconds.
_PATIENCE = 30.0


class DiskFileError(GalleryError):
    """A client's own file cannot be read or written: the disk is full, or the file is damaged."""


class DiskFile:
    """One SQLite file in WAL mode, with the identity of what it belongs to. Threads and processes may share it.

    Args:
        path: of the file; missing folders are made.
        kind: what it is, for messages and to be told from other files.
        identity: whose it is; a file with another one is refused.
        tables: SQL that makes the tables if they are not there.

    Raises:
        SpaceMismatchError: the file belongs to another gallery, space or model.
        FormatVersionError: a newer samespace wrote it.
        DiskFileError: it cannot be opened.
    """

    def __init__(self, path: Path, kind: str, identity: Mapping[str, str], tables: str) -> None:
        self.path = path
        self._kind = kind
        self._lock = threading.RLock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                # Whether it is ours is asked before anything is written into it.
                self._check_version(self._connection.execute("PRAGMA user_version").fetchone()[0])
                self._connection.execute("PRAGMA journal_mode = WAL")
                # Not only killed processes: a phone whose battery is taken out keeps what was acknowledged, too.
                self._connection.execute("PRAGMA synchronous = FULL")
                with self.transaction() as connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS identity (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
                    for statement in filter(str.strip, tables.split(";")):
                        connection.execute(statement)
                    for item in {"kind": kind, **identity}.items():
                        connection.execute("INSERT OR IGNORE INTO identity VALUES (?, ?)", item)
                    self._check_identity({"kind": kind, **identity})
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
            except BaseException:
                self._connection.close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection with a transaction around the block: on disk when it ends, undone if it raises.

        Raises:
            DiskFileError: the disk is full, or the file damaged; nothing was changed.
        """
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with; what is read is of one moment."""
        with self._lock, self._explained():
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the file; what was written is there."""
        with self._lock:
            self._connection.close()

    def _check_version(self, version: int) -> None:
        if version > _VERSION:
            raise FormatVersionError(
                f"{self.path}: the {self._kind} was written by a newer samespace (version {version}, this one knows "
                f"{_VERSION}); update samespace"
            )

    def _check_identity(self, wanted: Mapping[str, str]) -> None:
        held = dict(self._connection.execute("SELECT name, value FROM identity").fetchall())
        for name, value in wanted.items():
            if held.get(name) != value:
                raise SpaceMismatchError(
                    f"{self.path} is the {held.get('kind')} of the {name} {held.get(name)}, not of {value}: what it holds does "
                    "not fit; give each gallery, space and model a file of its own"
                )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise DiskFileError(f"{self.path}: the {self._kind} is closed; open it again") from None
        except (sqlite3.Error, OSError) as error:
            raise DiskFileError(
                f"{self.path}: the {self._kind} cannot be used ({error}); nothing of this was kept. Free some space, or, if "
                "the file is damaged, move it away"
            ) from error


def name_of(identity: Mapping[str, str], suffix: str) -> str:
    """A file name for an identity: the same each time, another one for another gallery, space or model."""
    return digest("\n".join(f"{name}={identity[name]}" for name in sorted(identity)).encode())[:24] + suffix
