"""Vectors in PostgreSQL with pgvector: one table, and for each model an HNSW index over just its rows, in one of several
storages (:mod:`~samespace.cloud.gallery.indexes.pgvector_storage`).

A partial index per model keeps recall where a filter over a common index would lose it, lets models of several
dimensions share the table, and lets a switch of models be one transaction with the registry's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.types.json import Jsonb

from samespace.cloud.gallery.indexes.base import Filter, Hit, Place, StoredItem, comes_after
from samespace.cloud.gallery.indexes.pgvector_storage import (
    SPARE,
    STORAGES,
    Storage,
    creation,
    index_name,
    nearest,
    storage_of,
)
from samespace.cloud.gallery.postgres import SEARCHING, Connection, Database
from samespace.sdk.errors import GalleryError
from samespace.sdk.gallery.ranking import cosine_scores, ranked, values_of

__all__ = ["PgVectorIndex"]

#: pgvector stores no vector that is longer.
_MAX_STORED = 16_000
#: By how much its scores may be off, at most: float32 sums of products of unit vectors.
_ROUNDING = 1e-5
#: So many rows more than asked for are fetched first; :data:`SPARE` only where these are too close to tell.
_FEW = 2
#: From so many items on, COPY into a temporary table and a merge are faster than one statement with arrays.
_COPY_FROM = 500

_MERGE = (
    "ON CONFLICT (model_id, item_id) DO UPDATE "
    "SET embedding = EXCLUDED.embedding, metadata = EXCLUDED.metadata, stored_at = now()"
)


class PgVectorIndex:
    """Implements :class:`~samespace.cloud.gallery.indexes.base.VectorIndex` in a PostgreSQL database.

    Args:
        storage: of the indexes, one of :data:`~samespace.cloud.gallery.indexes.pgvector_storage.STORAGES`; None leaves each
            index as it is, and makes new ones of float32.

    Raises:
        ConfigError: there is no such storage.
    """

    def __init__(self, database: Database, storage: str | None = None) -> None:
        self._database = database
        self._wanted = None if storage is None else storage_of(storage)
        #: Of the models that were prepared.
        self._storages: dict[str, Storage] = {}

    def describe(self, model_id: str) -> str:
        """Which index this is, and how it keeps a model's vectors."""
        return f"pgvector {self._storage(model_id).name}"

    def prepare(self, model_id: str, dim: int) -> None:
        if dim > _MAX_STORED:
            raise GalleryError(
                f"model {model_id}: pgvector stores vectors of up to {_MAX_STORED} dimensions, not {dim}; "
                "train a smaller embedding"
            )
        with self._database.transaction() as connection:
            there = {row[0] for row in connection.execute("SELECT indexname FROM pg_indexes WHERE schemaname = 'samespace'")}
            kept = (storage for storage in STORAGES.values() if index_name(model_id, storage) in there)
            storage = self._wanted or next(kept, STORAGES["float32"])
            if dim <= storage.longest and index_name(model_id, storage) not in there:
                connection.execute(creation(model_id, dim, storage))
            # Every index costs each insert; those of other storages have no reader any more.
            for other in STORAGES.values():
                if other != storage and (name := index_name(model_id, other)) in there:
                    connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(name)))
        self._storages[model_id] = storage

    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        latest = {item.item_id: item for item in items}
        # In order of ids, so that two writers of the same items wait for each other instead of deadlocking.
        rows = [(i, latest[i].vector, Jsonb(dict(latest[i].metadata))) for i in sorted(latest)]
        if not rows:
            return
        with self._database.transaction() as connection:
            if len(rows) < _COPY_FROM:
                connection.execute(
                    "INSERT INTO items (model_id, item_id, embedding, metadata) "
                    f"SELECT %s, * FROM unnest(%b::text[], %b::vector[], %b::jsonb[]) {_MERGE}",
                    (model_id, *map(list, zip(*rows, strict=True))),
                )
                return
            connection.execute(
                "CREATE TEMPORARY TABLE IF NOT EXISTS incoming "
                '(item_id text COLLATE "C", embedding vector, metadata jsonb) ON COMMIT DELETE ROWS'
            )
            with connection.cursor().copy("COPY pg_temp.incoming FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["text", "vector", "jsonb"])
                for row in rows:
                    copy.write_row(row)
            # Taken out, for there may be another batch in the same transaction.
            connection.execute(
                "WITH moved AS (DELETE FROM pg_temp.incoming RETURNING item_id, embedding, metadata) "
                "INSERT INTO items (model_id, item_id, embedding, metadata) "
                f"SELECT %s, item_id, embedding, metadata FROM moved ORDER BY item_id {_MERGE}",
                (model_id,),
            )

    def search(
        self,
        model_id: str,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        where: Filter | None = None,
        after: Place | None = None,
        without: str | None = None,
    ) -> list[list[Hit]]:
        dim, wanted = queries.shape[1], _wanted(where or {})
        # Rows of a page are found in the order of their scores, which an index of other numbers does not know.
        storage = self._storage(model_id)
        sure = exact or dim > storage.longest or (after is not None and storage.spread > 1)
        names = tuple(wanted)
        every = nearest(model_id, dim, None, names, page=after is not None, without=without)
        quick = every if sure else nearest(model_id, dim, storage, names, page=after is not None, without=without)
        effort = storage.sight(k)
        # One statement of its own in the usual case: the connection is set up for it.
        usual = sure or effort == SEARCHING["hnsw.ef_search"]
        with self._database.statement() if usual else self._database.transaction() as connection:
            if not usual:
                connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(sql.Literal(effort)))
            found = []
            for query in queries:
                hits = self._ranked(connection, quick, query, k, after, wanted, storage.candidates(k))
                # An approximate search gives up after some thousand rows: too early, where few of them match or many stand
                # before the page.
                if len(hits) < k and not sure and (wanted or after or without):
                    hits = self._ranked(connection, every, query, k, after, wanted, 0)
                found.append(hits)
            return found

    def get(self, model_id: str, ids: Sequence[str]) -> dict[str, StoredItem]:
        rows = self._read(
            "SELECT item_id, embedding, metadata FROM items WHERE model_id = %s AND item_id = ANY(%s)", model_id, ids
        )
        return {row[0]: StoredItem(row[0], np.asarray(row[1].to_numpy()), row[2]) for row in rows}

    def known(self, model_id: str, ids: Sequence[str]) -> set[str]:
        rows = self._read("SELECT item_id FROM items WHERE model_id = %s AND item_id = ANY(%s)", model_id, ids)
        return {row[0] for row in rows}

    def delete(self, model_id: str, ids: Sequence[str]) -> int:
        return len(self._read("DELETE FROM items WHERE model_id = %s AND item_id = ANY(%s) RETURNING 1", model_id, ids))

    def scan(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
        with self._database.transaction() as connection:
            statement = (
                "SELECT item_id, embedding, metadata FROM items WHERE model_id = %s AND item_id > %s ORDER BY item_id LIMIT %s"
            )
            rows = connection.cursor(binary=True).execute(statement, (model_id, after, limit)).fetchall()
        return [StoredItem(row[0], np.asarray(row[1].to_numpy()), row[2]) for row in rows]

    def count(self, model_id: str, *, without: str | None = None) -> int:
        if without is None:
            return self._read("SELECT count(*) FROM items WHERE model_id = %s", model_id)[0][0]
        with self._database.transaction() as connection:
            statement = (
                "SELECT count(*) FROM items WHERE model_id = %s AND NOT EXISTS "
                "(SELECT 1 FROM items AS other WHERE other.model_id = %s AND other.item_id = items.item_id)"
            )
            row = connection.execute(statement, (model_id, without)).fetchone()
        assert row is not None
        return row[0]

    def snapshot(self) -> AbstractContextManager[None]:
        return self._database.snapshot()

    def close(self) -> None:
        self._database.close()

    def _read(self, statement: Any, model_id: str, ids: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        arguments = (model_id,) if ids is None else (model_id, list(ids))
        with self._database.transaction() as connection:
            return connection.cursor(binary=True).execute(statement, arguments).fetchall()

    def _storage(self, model_id: str) -> Storage:
        return self._storages.get(model_id) or self._wanted or STORAGES["float32"]

    @staticmethod
    def _ranked(
        connection: Connection,
        statement: LiteralString,
        query: npt.NDArray[np.float32],
        k: int,
        after: Place | None,
        wanted: Mapping[str, list[Jsonb]],
        candidates: int,
    ) -> list[Hit]:
        # A page's rows may stand behind many equal scores; else a few more rows nearly always tell who the nearest are.
        limit = k + (_FEW if after is None else SPARE)
        arguments: dict[str, Any] = {"query": query, **wanted}
        if after is not None:
            # The database's own scores are a little off: a few rows from before the page come along, and are left out below.
            arguments["nearest"] = -after[0] - _ROUNDING
        while True:
            rows = (
                connection.cursor(binary=True)
                .execute(statement, {**arguments, "limit": limit, "candidates": candidates})
                .fetchall()
            )
            if not rows:
                return []
            ids = [row[0] for row in rows]
            scores = cosine_scores(query, _vectors([row[1] for row in rows]))
            order = ranked(scores, ids, k if after is None else len(rows))
            hits = [Hit(ids[position], float(scores[position]), json.loads(rows[position][2])) for position in order]
            if after is None:
                # Whatever was left out has at most the last row's score, give or take how far the database is off.
                if len(rows) < limit or limit == k + SPARE or hits[-1].score - scores.min() > 2 * _ROUNDING:
                    return hits
                limit = k + SPARE
                continue
            page = [hit for hit in hits if comes_after(hit, after)][:k]
            if len(page) == k or len(rows) < limit:
                return page
            limit *= 2  # more equal scores before the page than there was room for


def _vectors(sent: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """``(n, d)`` rows from what pgvector sends of each: two 16-bit numbers, of which one is d, and d floats, all big-endian."""
    return np.frombuffer(b"".join([one[4:] for one in sent]), ">f4").reshape(len(sent), -1).astype(np.float32)


def _wanted(where: Filter) -> dict[str, list[Jsonb]]:
    """For each condition, what the metadata must contain one of."""
    return {f"where{i}": [Jsonb({name: value}) for value in values_of(where[name])] for i, name in enumerate(where)}
