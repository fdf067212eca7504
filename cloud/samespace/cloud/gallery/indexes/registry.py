"""Every vector index by name: to add one, write its file in this folder and its line here.

``samespace gallery serve --index NAME`` then uses it, and the congruence suite tests it.
"""

from __future__ import annotations

from collections.abc import Callable

from samespace.cloud.gallery.indexes.base import VectorIndex
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.sdk.errors import ConfigError

__all__ = ["INDEXES", "open_index"]


def _pgvector(url: str) -> VectorIndex:
    from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
    from samespace.cloud.gallery.postgres import Database

    if not url:
        raise ConfigError("the index 'pgvector' needs a PostgreSQL: give --data, --database or --index-url")
    return PgVectorIndex(Database(url))


def _milvus(url: str) -> VectorIndex:
    from samespace.cloud.gallery.indexes.milvus import MilvusIndex

    return MilvusIndex(url)


#: Name -> what opens it, given the URL of its server (or the path of its file; empty where there is none).
INDEXES: dict[str, Callable[[str], VectorIndex]] = {
    "memory": lambda url: MemoryIndex(),
    "milvus": _milvus,
    "pgvector": _pgvector,
}


def open_index(name: str, url: str = "") -> VectorIndex:
    """Open the index called ``name``; its library is imported only now.

    Raises:
        ConfigError: there is no index of that name, or it needs a URL.
    """
    if name not in INDEXES:
        raise ConfigError(f"no vector index is called {name!r}; there are: {', '.join(sorted(INDEXES))}")
    return INDEXES[name](url)
