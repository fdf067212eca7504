"""Vectors in PostgreSQL with pgvector: one table, and for each model an HNSW index over just its rows.

A partial index per model keeps recall where a filter over a common index would lose it, lets models of several
dimensions share the table, and lets a switch of models be one transaction with the registry's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import sql
from psycopg.types.json import Jsonb

from samespace.cloud.gallery.indexes.base import Hit, StoredItem, cosine_scores, ranked
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

    def search(self, model_id: str, queries: npt.NDArray[np.float32], k: int, *, exact: bool = False) -> list[list[Hit]]:
        dim = queries.shape[1]
        exact = exact or dim > _MAX_INDEXED
        with self._database.transaction() as connection:
            if not exact:
                connection.execute("SET LOCAL hnsw.iterative_scan = strict_order")
                effort = sql.Literal(min(1000, max(100, 2 * (k + _SPARE))))
                connection.execute(sql.SQL("SET LOCAL hnsw.ef_search = {}").format(effort))
            statement = _nearest(_checked(model_id), dim, exact=exact)
            return [self._ranked(connection, statement, query, k) for query in queries]

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

    def count(self, model_id: str) -> int:
        return self._read("SELECT count(*) FROM items WHERE model_id = %s", model_id)[0][0]

    def close(self) -> None:
        self._database.close()

    def _read(self, statement: Any, model_id: str, ids: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        arguments = (model_id,) if ids is None else (model_id, list(ids))
        with self._database.transaction() as connection:
            return connection.cursor(binary=True).execute(statement, arguments).fetchall()

    @staticmethod
    def _ranked(connection: Connection, statement: sql.Composed, query: npt.NDArray[np.float32], k: int) -> list[Hit]:
        rows = connection.cursor(binary=True).execute(statement, (query, k + _SPARE)).fetchall()
        if not rows:
            return []
        ids = [row[0] for row in rows]
        scores = cosine_scores(query, np.stack([row[1].to_numpy() for row in rows]))
        return [Hit(ids[position], float(scores[position]), rows[position][2]) for position in ranked(scores, ids, k)]


def _nearest(model_id: str, dim: int, *, exact: bool) -> sql.Composed:
    # Written out, not passed as a parameter: only then does the planner know which partial index fits. Without the cast
    # no index fits, and every row is compared. pgvector's <#> is the negative inner product, so ascending is nearest
    # first.
    column = sql.SQL("embedding") if exact else sql.SQL("(embedding::vector({}))").format(sql.Literal(dim))
    return sql.SQL(
        "SELECT item_id, embedding, metadata FROM items WHERE model_id = {model} ORDER BY {column} <#> %b{tie} LIMIT %s"
    ).format(model=sql.Literal(model_id), column=column, tie=sql.SQL(", item_id") if exact else sql.SQL(""))


def _checked(model_id: str) -> str:
    if not re.fullmatch(r"m-[0-9a-f]{32}", model_id):
        raise GalleryError(f"{model_id!r} is no model id; it is 'm-' and 32 hexadecimal digits")
    return model_id
