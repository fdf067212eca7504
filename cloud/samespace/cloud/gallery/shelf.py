"""Small documents that a service keeps beside its registry: API keys, references of models, answered challenges.

A shelf is where the registry is: in its PostgreSQL database, or in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from samespace.cloud.gallery.postgres import Database
    from samespace.cloud.gallery.registry import Registry

__all__ = ["MemoryShelf", "PostgresShelf", "Shelf", "shelf_beside"]

_TABLE = """
CREATE TABLE IF NOT EXISTS samespace.documents (
    kind text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (kind, key))
"""


class Shelf(Protocol):
    """Keeps bytes by kind and key. What is written is committed when the call returns; every call may be repeated."""

    def put(self, kind: str, key: str, content: bytes) -> None:
        """Keep a document; one that is there is replaced."""
        ...

    def add(self, kind: str, key: str, content: bytes) -> bytes | None:
        """Keep a document if there is none; else give back the one that is there. Of callers at once, one is first."""
        ...

    def get(self, kind: str, key: str) -> bytes | None:
        """A document."""
        ...

    def drop(self, kind: str) -> None:
        """Forget every document of a kind."""
        ...

    def all(self, kind: str) -> Mapping[str, bytes]:
        """Every document of a kind, by key."""
        ...


class MemoryShelf:
    """Documents in this process; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._documents: dict[tuple[str, str], bytes] = {}

    def put(self, kind: str, key: str, content: bytes) -> None:
        with self._lock:
            self._documents[kind, key] = content

    def add(self, kind: str, key: str, content: bytes) -> bytes | None:
        with self._lock:
            there = self._documents.get((kind, key))
            self._documents.setdefault((kind, key), content)
            return there

    def drop(self, kind: str) -> None:
        with self._lock:
            for document in [document for document in self._documents if document[0] == kind]:
                del self._documents[document]

    def get(self, kind: str, key: str) -> bytes | None:
        return self._documents.get((kind, key))

    def all(self, kind: str) -> Mapping[str, bytes]:
        with self._lock:
            return {key: content for (of, key), content in sorted(self._documents.items()) if of == kind}


class PostgresShelf:
    """Documents in a table of the gallery's database, which is made if it is not there."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.transaction() as connection:
            # Two services that start at once must not both make the table.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('samespace.documents'))")
            connection.execute(_TABLE)

    def put(self, kind: str, key: str, content: bytes) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO samespace.documents (kind, key, content) VALUES (%s, %s, %s) "
                "ON CONFLICT (kind, key) DO UPDATE SET content = EXCLUDED.content",
                (kind, key, content),
            )

    def add(self, kind: str, key: str, content: bytes) -> bytes | None:
        with self._database.transaction() as connection:
            statement = "INSERT INTO samespace.documents (kind, key, content) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
            if connection.execute(statement, (kind, key, content)).rowcount:
                return None
        return self.get(kind, key)

    def drop(self, kind: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM samespace.documents WHERE kind = %s", (kind,))

    def get(self, kind: str, key: str) -> bytes | None:
        with self._database.transaction() as connection:
            statement = "SELECT content FROM samespace.documents WHERE kind = %s AND key = %s"
            row = connection.cursor(binary=True).execute(statement, (kind, key)).fetchone()
        return None if row is None else bytes(row[0])

    def all(self, kind: str) -> Mapping[str, bytes]:
        with self._database.transaction() as connection:
            statement = "SELECT key, content FROM samespace.documents WHERE kind = %s ORDER BY key"
            rows = connection.cursor(binary=True).execute(statement, (kind,)).fetchall()
        return {key: bytes(content) for key, content in rows}


def shelf_beside(registry: Registry) -> Shelf:
    """The shelf of the store that a registry is in; for a registry of another kind, one in memory."""
    database = getattr(registry, "database", None) or getattr(registry, "_database", None)
    return MemoryShelf() if database is None else PostgresShelf(database)
