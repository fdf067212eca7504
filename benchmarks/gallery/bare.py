"""What the service is compared with: FastAPI, psycopg and the one query, and nothing that makes it safe.

python benchmarks/gallery/bare.py DATABASE MODEL_ID PORT
"""

from __future__ import annotations

import queue
import sys
from typing import Any

import numpy as np
import psycopg
import uvicorn
from fastapi import FastAPI, Request
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.types.json import Jsonb

DIM = 128
_EFFORT = 100


def connect(url: str) -> psycopg.Connection[Any]:
    """A connection that searches as widely as the service does."""
    connection = psycopg.connect(url, autocommit=True)
    connection.execute("SET search_path TO samespace, public")
    connection.execute("SET hnsw.iterative_scan = strict_order")
    connection.execute(f"SET hnsw.ef_search = {_EFFORT}")
    register_vector(connection)
    return connection


def statement(model_id: str) -> sql.Composed:
    """The one query."""
    return sql.SQL(
        "SELECT item_id, (embedding::vector({dim})) <#> %(query)b, metadata FROM items WHERE model_id = {model} "
        "ORDER BY (embedding::vector({dim})) <#> %(query)b LIMIT %(k)s"
    ).format(dim=sql.Literal(DIM), model=sql.Literal(model_id))


def search(connection: psycopg.Connection[Any], query: sql.Composed, row: np.ndarray, k: int) -> list[tuple[Any, ...]]:
    return connection.cursor(binary=True).execute(query, {"query": row, "k": k}).fetchall()


def merge(connection: psycopg.Connection[Any], model_id: str, rows: list[tuple[str, np.ndarray, dict[str, Any]]]) -> None:
    """COPY into a temporary table and a merge, in one transaction."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE IF NOT EXISTS bare_incoming (item_id text, embedding vector, metadata jsonb) "
            "ON COMMIT DELETE ROWS"
        )
        with cursor.copy("COPY bare_incoming FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["text", "vector", "jsonb"])
            for item_id, vector, metadata in rows:
                copy.write_row((item_id, vector, Jsonb(metadata)))
        cursor.execute(
            "INSERT INTO items (model_id, item_id, embedding, metadata) SELECT %s, * FROM bare_incoming "
            "ON CONFLICT (model_id, item_id) DO UPDATE SET embedding = EXCLUDED.embedding, metadata = EXCLUDED.metadata",
            (model_id,),
        )


def make_app(url: str, model_id: str) -> FastAPI:
    free: queue.LifoQueue[psycopg.Connection[Any] | None] = queue.LifoQueue()
    for _ in range(8):
        free.put(None)
    app, query = FastAPI(), statement(model_id)

    def answer(body: bytes) -> dict[str, Any]:
        connection = free.get() or connect(url)
        try:
            rows = search(connection, query, np.frombuffer(body, np.float32), 10)
        finally:
            free.put(connection)
        return {"hits": [{"item_id": row[0], "score": -row[1], "metadata": row[2]} for row in rows]}

    @app.post("/search")
    async def route(request: Request) -> dict[str, Any]:
        from starlette.concurrency import run_in_threadpool

        return await run_in_threadpool(answer, await request.body())

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1], sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="error")
