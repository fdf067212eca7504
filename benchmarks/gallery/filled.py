"""A database with ``n`` vectors in it, kept for the next part, and the two services that search it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from dataset import BLOCK, DIM, Dataset, facts, item_id

from samespace.cloud.gallery.embedded import EmbeddedPostgres
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.base import StoredItem
from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
from samespace.cloud.gallery.postgres import Database
from samespace.cloud.gallery.recall import state_recall
from samespace.cloud.gallery.stores import open_stores

#: Seconds within which a service must answer.
_LIMIT = 90
_MAIN = "from samespace.sdk.cli import main; main()"


@dataclass(frozen=True)
class Filled:
    """A running database.

    Attributes:
        url: of the database.
        model_id: what the vectors lie under.
        facts: seconds of loading and building, bytes on disk, stated recall.
    """

    url: str
    model_id: str
    facts: dict[str, Any]


@contextmanager
def filled(folder: Path, world: Any, data: Dataset, n: int) -> Iterator[Filled]:
    """The database with the first ``n`` vectors; filled at the first time, found again afterwards."""
    done = folder / "filled.json"
    with EmbeddedPostgres(folder / "data") as server:
        if not done.exists():
            done.write_text(json.dumps(_fill(server.url, world, data, n)))
        told = json.loads(done.read_text())
        yield Filled(server.url, world.records["cloud"].model_id, told)


def _fill(url: str, world: Any, data: Dataset, n: int) -> dict[str, Any]:
    with open_stores(database=url) as stores, Gallery(stores.registry, stores.index) as gallery:
        if not gallery.spaces():
            world.founded(gallery)
        (model_id,) = (summary.serving_model_id for summary in gallery.spaces())
        database = Database(url)
        with database.transaction() as connection:
            # An index that is built over all rows at once takes a fraction of the time.
            connection.execute(f'DROP INDEX IF EXISTS samespace."items_{model_id}"')
        begin = time.perf_counter()
        for number in range(-(-n // BLOCK)):
            rows = data.block(number)[: n - number * BLOCK]
            items = [StoredItem(item_id(i), row, facts(i)) for i, row in enumerate(rows, start=number * BLOCK)]
            PgVectorIndex(database).upsert(model_id, items)
        loaded = time.perf_counter() - begin
        with database.transaction() as connection:
            connection.execute("SET LOCAL maintenance_work_mem = '1GB'")
            PgVectorIndex(database).prepare(model_id, DIM)
        built = time.perf_counter() - begin - loaded
        with database.transaction() as connection:
            connection.execute("ANALYZE items")
        stated = state_recall(stores.index, gallery.shelf, model_id)
        with database.transaction() as connection:
            statement = f"SELECT pg_table_size('items'), pg_relation_size('samespace.\"items_{model_id}\"')"
            row = connection.execute(statement).fetchone()
        database.close()
        assert row is not None
        return {
            "load_s": loaded,
            "build_s": built,
            "table_bytes": row[0],
            "index_bytes": row[1],
            "stated": None if stated is None else stated.model_dump(),
        }


@contextmanager
def service(url: str, bundle: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``samespace gallery serve`` on a database: its URL and its process."""
    command = [sys.executable, "-c", _MAIN, "gallery", "serve", "--json", "--port", "0", "--database", url]
    process = subprocess.Popen([*command, "--bundle", str(bundle)], stdout=subprocess.PIPE, text=True)
    with _stopped(process):
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process


@contextmanager
def bare_service(url: str, model_id: str) -> Iterator[str]:
    """The bare route on the same database: its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("bare.py")), url, model_id, str(port)])
    with _stopped(process):
        begin = time.monotonic()
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/openapi.json", timeout=2)
                break
            except httpx.TransportError:
                if time.monotonic() > begin + _LIMIT or process.poll() is not None:
                    raise RuntimeError("the bare service does not start") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"


def size_of(url: str, model_id: str) -> tuple[int, int]:
    """Bytes of the table and of the model's index."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            f"SELECT pg_table_size('samespace.items'), pg_relation_size('samespace.\"items_{model_id}\"')"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


@contextmanager
def _stopped(process: subprocess.Popen[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
