"""Connections to one PostgreSQL database, and the tables that a gallery keeps in it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from samespace.sdk.errors import ConfigError, GalleryError, GalleryUnavailableError

__all__ = ["SEARCHING", "Connection", "Database"]

Connection = psycopg.Connection[tuple[Any, ...]]

#: Of the tables below; a database of a newer version is refused.
_SCHEMA_VERSION = 1
#: A server that does not even refuse must not hold up a request for minutes.
_CONNECT_SECONDS = 10
#: Settings of every connection, as searches of the usual size want them. Strict order: an index must not say that there are
#: no more rows that match a filter before it has looked.
SEARCHING: dict[LiteralString, int | str] = {"hnsw.iterative_scan": "strict_order", "hnsw.ef_search": 100}
#: Iterative index scans came with it.
_OLDEST_PGVECTOR = (0, 8)
#: Any number: two services that start at once must not both make the tables.
_SETUP_LOCK = 0x53414D45

_TABLES = """
CREATE SCHEMA IF NOT EXISTS samespace;
CREATE TABLE IF NOT EXISTS samespace.meta (key text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS samespace.spaces (
    space_id text COLLATE "C" PRIMARY KEY,
    record jsonb NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS samespace.models (
    model_id text COLLATE "C" PRIMARY KEY,
    space_id text NOT NULL REFERENCES samespace.spaces,
    entry jsonb NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS samespace.records (
    number bigserial PRIMARY KEY,
    query_id text NOT NULL,
    gallery_model_id text NOT NULL,
    measured_at text COLLATE "C" NOT NULL,
    digest text NOT NULL UNIQUE,
    entry jsonb NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX IF NOT EXISTS records_pair ON samespace.records (query_id, gallery_model_id);
CREATE TABLE IF NOT EXISTS samespace.aliases (
    space_id text NOT NULL REFERENCES samespace.spaces,
    name text NOT NULL,
    model_id text NOT NULL REFERENCES samespace.models,
    PRIMARY KEY (space_id, name));
CREATE TABLE IF NOT EXISTS samespace.challenges (
    model_id text NOT NULL REFERENCES samespace.models,
    name text COLLATE "C" NOT NULL,
    image bytea NOT NULL,
    embedding vector NOT NULL,
    PRIMARY KEY (model_id, name));
CREATE TABLE IF NOT EXISTS samespace.items (
    model_id text NOT NULL,
    item_id text COLLATE "C" NOT NULL,
    embedding vector NOT NULL,
    metadata jsonb NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, item_id));
"""


class Database:
    """A small pool of connections; safe to share between threads.

    Args:
        url: ``postgresql://user:password@host:port/database``, or any libpq connection string.
        connections: how many may be open at once.

    Raises:
        ConfigError: the URL cannot be understood.
        GalleryUnavailableError: no server answers there.
        GalleryError: the server has no pgvector, or the database was written by a newer samespace.
    """

    def __init__(self, url: str, *, connections: int = 8) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # Neither the URL nor what psycopg says about it is repeated: there may be a password in it.
            raise ConfigError("--database: not a PostgreSQL URL; it looks like postgresql://user:password@host/name") from None
        self._url = url if "connect_timeout" in parts else make_conninfo(url, connect_timeout=_CONNECT_SECONDS)
        #: For messages: where the database is, without the password.
        self.place = f"{parts.get('dbname') or 'postgres'} at {parts.get('host') or 'localhost'}"
        #: ``connection``: of the transaction that this thread is in.
        self._mine = threading.local()
        self._free: queue.LifoQueue[Connection | None] = queue.LifoQueue()
        for _ in range(connections):
            self._free.put(None)
        with self._connected(psycopg.connect, self._url, autocommit=True) as connection:
            self._set_up(connection)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection with a transaction around the block: committed (to disk) when the block ends, rolled back if it
        raises. Within another such block of the same thread it is a part of that one.

        Raises:
            GalleryUnavailableError: the server does not answer; nothing was changed, or it is not known.
            GalleryError: the server refused a statement.
        """
        if (outer := getattr(self._mine, "connection", None)) is not None:
            with outer.transaction():
                yield outer
            return
        with self._borrowed() as connection, connection.transaction():
            self._mine.connection = connection
            try:
                yield connection
            finally:
                self._mine.connection = None

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read inside is of one moment. Within :meth:`transaction` it is what that one sees."""
        outermost = getattr(self._mine, "connection", None) is None
        with self.transaction() as connection:
            if outermost:
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield

    @contextmanager
    def statement(self) -> Iterator[Connection]:
        """A connection for statements that are a transaction each, which saves two round trips; within :meth:`transaction`
        of the same thread they are parts of that one. Errors as there.
        """
        if (outer := getattr(self._mine, "connection", None)) is not None:
            with outer.transaction():
                yield outer
            return
        with self._borrowed() as connection:
            yield connection

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        connection = self._free.get()
        try:
            if connection is None or connection.closed:
                connection = self._connect()
            yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            # What took this connection took the idle ones too; they must not fail the next callers one by one.
            self.close()
            raise self._unavailable(error) from error
        except psycopg.Error as error:
            raise GalleryError(f"database {self.place}: {str(error).strip()}") from error
        finally:
            broken = connection is not None and (connection.closed or connection.broken)
            self._free.put(None if broken else connection)

    def close(self) -> None:
        """Close the connections that are not in use; the next use opens new ones."""
        idle: list[Connection | None] = []
        with suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for connection in idle:
            if connection is not None:
                connection.close()
            self._free.put(None)

    def _connect(self) -> Connection:
        # Autocommit, because every use is inside an explicit transaction.
        connection = psycopg.connect(self._url, autocommit=True)
        connection.execute("SET search_path TO samespace, public")
        for setting, value in SEARCHING.items():
            connection.execute(sql.SQL("SET {} = {}").format(sql.SQL(setting), sql.Literal(value)))
        register_vector(connection)
        return connection

    def _set_up(self, connection: Connection) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SETUP_LOCK,))
            try:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            except psycopg.Error as error:
                raise GalleryError(
                    f"database {self.place}: pgvector cannot be enabled ({str(error).strip()}); install the extension "
                    "'vector' on that server and let its administrator run CREATE EXTENSION vector, or use --data DIR"
                ) from None
            (version,) = _row(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")
            if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_PGVECTOR:
                raise GalleryError(f"database {self.place}: pgvector {version} is too old; update it to 0.8 or later")
            connection.execute(_TABLES)
            connection.execute(
                "INSERT INTO samespace.meta VALUES ('schema', %s) ON CONFLICT DO NOTHING", (str(_SCHEMA_VERSION),)
            )
            (schema,) = _row(connection, "SELECT value FROM samespace.meta WHERE key = 'schema'")
            if int(schema) > _SCHEMA_VERSION:
                raise GalleryError(
                    f"database {self.place}: its tables have version {schema}, this samespace knows {_SCHEMA_VERSION}; "
                    "install a newer samespace"
                )

    @contextmanager
    def _connected(self, connect: Any, *arguments: Any, **options: Any) -> Iterator[Connection]:
        try:
            with connect(*arguments, **options) as connection:
                yield connection
        except psycopg.OperationalError as error:
            raise self._unavailable(error) from error
        except psycopg.Error as error:
            raise GalleryError(
                f"database {self.place}: the gallery's tables cannot be made ({str(error).strip()}); give its user the "
                "right to create a schema, or another --database"
            ) from error

    def _unavailable(self, error: BaseException) -> GalleryUnavailableError:
        return GalleryUnavailableError(
            f"database {self.place}: no answer ({' '.join(str(error).split())}); start that PostgreSQL server, or "
            "correct --database"
        )


def _row(connection: Connection, statement: Any) -> tuple[Any, ...]:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row
