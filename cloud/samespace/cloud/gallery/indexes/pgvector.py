"""Vectors in PostgreSQL with pgvector: one table, and for each model an HNSW index over just its rows.

A partial index per model keeps recall where a filter over a common index would lose it, lets models of several
dimensions share the table, and lets a switch of models be one transaction with the registry's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.types.json import Jsonb

from samespace.cloud.gallery.indexes.base import Filter, Hit, Place, StoredItem, comes_after, cosine_scores, ranked, values_of
from samespace.cloud.gallery.postgres import Connection, Database
from samespace.sdk.errors import GalleryError

__all__ = ["PgVectorIndex"]

#: pgvector stores no vector that is longer.
_MAX_STORED = 16_000
#: pgvector indexes no vector that is longer; longer ones are compared one by one.
_MAX_INDEXED = 2_000
#: The database adds up in float32; a few more rows than asked for are ranked again in float64, so that all indexes
#: agree.
_SPARE = 16
#: By how much its scores may be off, at most: float32 sums of products of unit vectors.
_ROUNDING = 1e-5


class PgVectorIndex:
    """Implements :class:`~samespace.cloud.gallery.indexes.base.VectorIndex` in a PostgreSQL database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prepare(self, model_id: str, dim: int) -> None:
        if dim > _MAX_STORED:
            raise GalleryError(
                f"model {model_id}: pgvector stores vectors of up to {_MAX_STORED} dimensions, not {dim}; "
                "train a smaller embedding"
            )
        if dim > _MAX_INDEXED:
            return
        statement = sql.SQL(
            "CREATE INDEX IF NOT EXISTS {name} ON items USING hnsw ((embedding::vector({dim})) vector_ip_ops) "
            "WHERE model_id = {model}"
        ).format(name=sql.Identifier(f"items_{_checked(model_id)}"), dim=sql.Literal(dim), model=sql.Literal(model_id))
        with self._database.transaction() as connection:
            connection.execute(statement)

    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        with self._database.transaction() as connection, connection.cursor() as cursor:
            # In order of ids, so that two writers of the same items wait for each other instead of deadlocking.
            latest = {item.item_id: item for item in items}
            cursor.executemany(
                "INSERT INTO items (model_id, item_id, embedding, metadata) VALUES (%s, %s, %b, %s) "
                "ON CONFLICT (model_id, item_id) DO UPDATE "
                "SET embedding = EXCLUDED.embedding, metadata = EXCLUDED.metadata, stored_at = now()",
                [
                    (model_id, item_id, latest[item_id].vector, Jsonb(dict(latest[item_id].metadata)))
                    for item_id in sorted(latest)
                ],
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
    ) -> list[list[Hit]]:
        dim = queries.shape[1]
        exact = exact or dim > _MAX_INDEXED
        wanted = _wanted(where or {})
        with self._database.transaction() as connection:
            if not exact:
                connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
                effort = sql.Literal(min(1000, max(100, 2 * (k + _SPARE))))
                connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(effort))
            quick, sure = (
                _nearest(_checked(model_id), dim, exact=compare_all, wanted=wanted, page=after is not None)
                for compare_all in (exact, True)
            )
            found = []
            for query in queries:
                hits = self._ranked(connection, quick, query, k, after, wanted)
                # An approximate search gives up after some thousand rows: too early, where few of them match or many stand
                # before the page.
                if len(hits) < k and not exact and (wanted or after):
                    hits = self._ranked(connection, sure, query, k, after, wanted)
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

    def count(self, model_id: str) -> int:
        return self._read("SELECT count(*) FROM items WHERE model_id = %s", model_id)[0][0]

    def close(self) -> None:
        self._database.close()

    def _read(self, statement: Any, model_id: str, ids: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        arguments = (model_id,) if ids is None else (model_id, list(ids))
        with self._database.transaction() as connection:
            return connection.cursor(binary=True).execute(statement, arguments).fetchall()

    @staticmethod
    def _ranked(
        connection: Connection,
        statement: sql.Composed,
        query: npt.NDArray[np.float32],
        k: int,
        after: Place | None,
        wanted: Mapping[str, list[Jsonb]],
    ) -> list[Hit]:
        limit = k + _SPARE
        arguments: dict[str, Any] = {"query": query, **wanted}
        if after is not None:
            # The database's own scores are a little off: a few rows from before the page come along, and are left out below.
            arguments["nearest"] = -after[0] - _ROUNDING
        while True:
            rows = connection.cursor(binary=True).execute(statement, {**arguments, "limit": limit}).fetchall()
            if not rows:
                return []
            ids = [row[0] for row in rows]
            scores = cosine_scores(query, np.stack([row[1].to_numpy() for row in rows]))
            order = ranked(scores, ids, k if after is None else len(rows))
            hits = [Hit(ids[position], float(scores[position]), rows[position][2]) for position in order]
            page = hits if after is None else [hit for hit in hits if comes_after(hit, after)][:k]
            if after is None or len(page) == k or len(rows) < limit:
                return page
            limit *= 2  # more equal scores before the page than there was room for


def _wanted(where: Filter) -> dict[str, list[Jsonb]]:
    """For each condition, what the metadata must contain one of."""
    return {f"where{i}": [Jsonb({name: value}) for value in values_of(where[name])] for i, name in enumerate(where)}


def _nearest(model_id: str, dim: int, *, exact: bool, wanted: Iterable[str], page: bool) -> sql.Composed:
    # Written out, not passed as a parameter: only then does the planner know which partial index fits. Without the cast
    # no index fits, and every row is compared. pgvector's <#> is the negative inner product, so ascending is nearest
    # first.
    column = sql.SQL("embedding") if exact else sql.SQL("(embedding::vector({}))").format(sql.Literal(dim))
    conditions = [sql.SQL("model_id = {}").format(sql.Literal(model_id))]
    conditions += [sql.SQL("metadata @> ANY({}::jsonb[])").format(sql.Placeholder(name)) for name in wanted]
    if page:
        conditions.append(sql.SQL("{} <#> %(query)b >= %(nearest)s").format(column))
    return sql.SQL(
        "SELECT item_id, embedding, metadata FROM items WHERE {conditions} ORDER BY {column} <#> %(query)b{tie} LIMIT %(limit)s"
    ).format(conditions=sql.SQL(" AND ").join(conditions), column=column, tie=sql.SQL(", item_id") if exact else sql.SQL(""))


def _checked(model_id: str) -> str:
    if not re.fullmatch(r"m-[0-9a-f]{32}", model_id):
        raise GalleryError(f"{model_id!r} is no model id; it is 'm-' and 32 hexadecimal digits")
    return model_id
