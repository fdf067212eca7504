"""Opening a gallery's stores: an embedded PostgreSQL, any PostgreSQL, or memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samespace.cloud.gallery.indexes.base import VectorIndex
from samespace.cloud.gallery.indexes.registry import open_index
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.registry import Registry
from samespace.sdk.errors import ConfigError, MissingExtraError

__all__ = ["Stores", "open_stores"]


@dataclass(frozen=True)
class Stores:
    """A registry and an index that belong together; ``place`` says where they are, for people."""

    registry: Registry
    index: VectorIndex
    place: str


@contextmanager
def open_stores(
    *,
    data: Path | None = None,
    database: str | None = None,
    memory: bool = False,
    index: str | None = None,
    index_url: str = "",
    storage: str | None = None,
) -> Iterator[Stores]:
    """A registry in exactly one of three places, and an index; closed at the end of the block.

    Args:
        data: folder of an embedded PostgreSQL; made if it is not there, stopped at the end.
        database: URL of a PostgreSQL with pgvector.
        memory: nothing outlives the process.
        index: name of another vector index than the one that fits the place.
        index_url: of that index's own server, if it has one.
        storage: how pgvector's indexes keep vectors: float32, halfvec or binary; by default as they do now, new ones float32.

    Raises:
        ConfigError: none or several places were given, or they cannot be used.
        GalleryError: the folder is owned by a running process, or the database cannot be used.
        GalleryUnavailableError: no server answers at the URL.
    """
    if (data is not None) + (database is not None) + memory != 1:
        raise ConfigError("say where the gallery is kept: one of --data DIR, --database URL and --memory")
    if storage is not None and (index or ("memory" if memory else "pgvector")) != "pgvector":
        raise ConfigError(f"--storage {storage}: only the index 'pgvector' has storages; leave it out")
    if memory:
        vectors = _index(index or "memory", index_url, storage)
        yield Stores(MemoryRegistry(), vectors, "memory (gone when this process ends)")
    elif database is not None:
        with _postgres(database, index, index_url, None, storage) as stores:
            yield stores
    else:
        from samespace.cloud.gallery.embedded import EmbeddedPostgres

        assert data is not None
        place = f"the embedded PostgreSQL in {data}"
        with EmbeddedPostgres(data) as server, _postgres(server.url, index, index_url, place, storage) as stores:
            yield stores


@contextmanager
def _postgres(url: str, index: str | None, index_url: str, place: str | None, storage: str | None) -> Iterator[Stores]:
    try:
        from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
        from samespace.cloud.gallery.postgres import Database
        from samespace.cloud.gallery.registries.postgres import PostgresRegistry
    except ModuleNotFoundError:
        raise MissingExtraError("gallery", "a gallery in PostgreSQL") from None
    database = Database(url)
    try:
        # In the registry's own database and through its connections, unless something else is asked for.
        own = not index and not index_url
        vectors = PgVectorIndex(database, storage) if own else _index(index or "pgvector", index_url, storage)
        yield Stores(PostgresRegistry(database), vectors, place or f"PostgreSQL, {database.place}")
    finally:
        database.close()


def _index(name: str, url: str, storage: str | None) -> VectorIndex:
    """An index in a place of its own; only pgvector has storages."""
    if storage is None or not url:
        return open_index(name, url)
    from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
    from samespace.cloud.gallery.postgres import Database

    return PgVectorIndex(Database(url), storage)
