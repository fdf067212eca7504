"""What was done to a gallery: changes of items with their cursors, and answers to requests that may be repeated.

A journal is where the registry is: in its PostgreSQL database, or in memory. What is written within :meth:`Journal.atomic` is
one transaction, the vectors of an index in the same database included; so nothing is there without its change, and no
request is done without being remembered. With an index elsewhere the vectors come first: a crash then leaves at most what
nobody was told of.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from samespace.cloud.gallery.postgres import Database
    from samespace.cloud.gallery.registry import Registry

__all__ = ["Entry", "Journal", "MemoryJournal", "PostgresJournal", "Remembered", "journal_beside"]

Kind = Literal["put", "delete"]
#: Seconds between two looks for answers that have expired.
_SWEEP = 600.0
#: Any number: with a partition's hash, the lock that gives cursors in the order of commits.
_LOCK = 0x53414D46

_TABLES = """
CREATE SEQUENCE IF NOT EXISTS samespace.change_cursor;
CREATE TABLE IF NOT EXISTS samespace.changes (
    model_id text COLLATE "C" NOT NULL,
    item_id text COLLATE "C" NOT NULL,
    cursor bigint NOT NULL,
    kind text NOT NULL,
    PRIMARY KEY (model_id, item_id));
CREATE INDEX IF NOT EXISTS changes_cursor ON samespace.changes (model_id, cursor);
CREATE TABLE IF NOT EXISTS samespace.answers (
    key text COLLATE "C" PRIMARY KEY,
    digest text NOT NULL,
    answer text,
    expires timestamptz NOT NULL);
"""


@dataclass(frozen=True)
class Entry:
    """The latest change of an item; of equal items there is one entry."""

    cursor: int
    item_id: str
    kind: Kind


@dataclass(frozen=True)
class Remembered:
    """What a request was (its digest), and how it was answered."""

    digest: str
    answer: str


class Journal(Protocol):
    """Keeps changes by partition (:func:`~samespace.cloud.gallery.browsing.partition_of`), and answers by key."""

    @property
    def feed(self) -> str:
        """Which store the cursors are of: another one after it was replaced."""
        ...

    def atomic(self) -> AbstractContextManager[None]:
        """All that this thread writes inside is committed together when the block ends, or not at all when it raises."""
        ...

    def write(self, partition: str, ids: Sequence[str], kind: Kind) -> None:
        """Note a change of items, after all before it. Only within :meth:`atomic`, and after the items were written."""
        ...

    def hold(self, partition: str) -> None:
        """Let nobody else write changes of a partition until the transaction ends. Only within :meth:`atomic`.

        Who holds several takes them in the order of their names, before anything is written.
        """
        ...

    def share(self, name: str) -> None:
        """Let nobody :meth:`hold` a name until the transaction ends; many may share it. Only within :meth:`atomic`."""
        ...

    def read(self, partition: str, after: int, limit: int) -> list[Entry]:
        """Up to ``limit`` changes after a cursor, in order. None that is committed later comes before them."""
        ...

    def recall(self, key: str, digest: str, seconds: float) -> Remembered | None:
        """How the request with this key was answered; None for the first, whose key then waits for :meth:`remember`.

        Only within :meth:`atomic`. Of two requests at once with one key, the second waits for the first.
        """
        ...

    def remember(self, key: str, answer: str) -> None:
        """Keep an answer until the seconds that :meth:`recall` was told are over."""
        ...


class MemoryJournal:
    """A journal in this process; safe to share between threads.

    Args:
        clock: for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.feed = secrets.token_hex(8)
        self._lock = threading.RLock()
        self._clock = clock
        self._depth = 0
        self._cursor = 0
        self._changes: dict[str, dict[str, Entry]] = {}
        self._answers: dict[str, tuple[float, Remembered]] = {}
        self._open: dict[str, tuple[float, str]] = {}

    @contextmanager
    def atomic(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    self._open.clear()

    def write(self, partition: str, ids: Sequence[str], kind: Kind) -> None:
        with self._lock:
            entries = self._changes.setdefault(partition, {})
            for item_id in dict.fromkeys(ids):
                self._cursor += 1
                # Taken out first, so that the dictionary stays in the order of cursors.
                entries.pop(item_id, None)
                entries[item_id] = Entry(self._cursor, item_id, kind)

    def hold(self, partition: str) -> None:
        """Whoever is inside :meth:`atomic` is there alone."""

    def share(self, name: str) -> None:
        """Whoever is inside :meth:`atomic` is there alone."""

    def read(self, partition: str, after: int, limit: int) -> list[Entry]:
        with self._lock:
            found: list[Entry] = []
            for entry in reversed(self._changes.get(partition, {}).values()):
                if entry.cursor <= after:
                    break
                found.append(entry)
            return found[::-1][:limit]

    def recall(self, key: str, digest: str, seconds: float) -> Remembered | None:
        now = self._clock()
        if key in self._answers and self._answers[key][0] > now:
            return self._answers[key][1]
        self._answers = {key: kept for key, kept in self._answers.items() if kept[0] > now}
        self._open[key] = (now + seconds, digest)
        return None

    def remember(self, key: str, answer: str) -> None:
        expires, digest = self._open[key]
        self._answers[key] = (expires, Remembered(digest, answer))


class PostgresJournal:
    """A journal in tables of the gallery's database, which are made if they are not there."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._swept = 0.0
        with database.transaction() as connection:
            # Two services that start at once must not both make the tables.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('samespace.changes'))")
            old = connection.execute("SELECT to_regclass('samespace.changes') IS NOT NULL").fetchone()
            connection.execute(_TABLES)
            if not (old and old[0]):
                # Of a gallery that was filled before there was a journal.
                connection.execute(
                    "INSERT INTO samespace.changes SELECT model_id, item_id, nextval('samespace.change_cursor'), 'put' "
                    "FROM samespace.items"
                )
            connection.execute("INSERT INTO samespace.meta VALUES ('feed', %s) ON CONFLICT DO NOTHING", (secrets.token_hex(8),))
            row = connection.execute("SELECT value FROM samespace.meta WHERE key = 'feed'").fetchone()
            assert row is not None
            self.feed: str = row[0]

    @contextmanager
    def atomic(self) -> Iterator[None]:
        with self._database.transaction():
            yield

    def hold(self, partition: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_LOCK, partition))

    def share(self, name: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock_shared(%s, hashtext(%s))", (_LOCK, name))

    def write(self, partition: str, ids: Sequence[str], kind: Kind) -> None:
        with self._database.transaction() as connection:
            # Held until the commit, so that cursors become visible in their order: a reader that saw 7 has seen 6. Taken
            # last in a transaction, so that nobody who holds it waits for anybody.
            self.hold(partition)
            connection.execute(
                "INSERT INTO changes (model_id, item_id, cursor, kind) "
                "SELECT %s, item_id, nextval('samespace.change_cursor'), %s FROM unnest(%s::text[]) AS item_id "
                "ON CONFLICT (model_id, item_id) DO UPDATE SET cursor = EXCLUDED.cursor, kind = EXCLUDED.kind",
                (partition, kind, list(dict.fromkeys(ids))),
            )

    def read(self, partition: str, after: int, limit: int) -> list[Entry]:
        with self._database.transaction() as connection:
            statement = "SELECT cursor, item_id, kind FROM changes WHERE model_id = %s AND cursor > %s ORDER BY cursor LIMIT %s"
            return [Entry(*row) for row in connection.execute(statement, (partition, after, limit)).fetchall()]

    def recall(self, key: str, digest: str, seconds: float) -> Remembered | None:
        with self._database.transaction() as connection:
            if time.monotonic() - self._swept > _SWEEP:
                self._swept = time.monotonic()
                connection.execute("DELETE FROM answers WHERE expires < now()")
            # A request with the same key that is still being done holds its row: this waits until that one ends.
            claimed = connection.execute(
                "INSERT INTO answers (key, digest, expires) VALUES (%s, %s, now() + make_interval(secs => %s)) "
                "ON CONFLICT (key) DO UPDATE SET digest = EXCLUDED.digest, answer = NULL, expires = EXCLUDED.expires "
                "WHERE answers.expires < now()",
                (key, digest, seconds),
            ).rowcount
            if claimed:
                return None
            row = connection.execute("SELECT digest, answer FROM answers WHERE key = %s", (key,)).fetchone()
            assert row is not None
            assert row[1] is not None
            return Remembered(row[0], row[1])

    def remember(self, key: str, answer: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("UPDATE answers SET answer = %s WHERE key = %s", (answer, key))


def journal_beside(registry: Registry) -> Journal:
    """The journal of the store that a registry is in; for a registry of another kind, one in memory."""
    database = getattr(registry, "database", None) or getattr(registry, "_database", None)
    return MemoryJournal() if database is None else PostgresJournal(database)
