"""Every vector index by name: to add one, write its file in this folder and its line here."""

from __future__ import annotations

from collections.abc import Callable

from samespace.cloud.gallery.indexes.base import VectorIndex
from samespace.cloud.gallery.indexes.memory import MemoryIndex

__all__ = ["INDEXES", "open_index"]


def _pgvector(url: str) -> VectorIndex:
    from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
    from samespace.cloud.gallery.postgres import Database

    return PgVectorIndex(Database(url))


#: Name -> what opens it, given the URL of its server (unused where there is none).
INDEXES: dict[str, Callable[[str], VectorIndex]] = {
    "memory": lambda url: MemoryIndex(),
    "pgvector": _pgvector,
}


def open_index(name: str, url: str = "") -> VectorIndex:
    """Open the index called ``name``.

    Raises:
        ConfigError: there is no index of that name.
    """
    if name not in INDEXES:
        from samespace.sdk.errors import ConfigError

        raise ConfigError(f"no vector index is called {name!r}; there are: {', '.join(sorted(INDEXES))}")
    return INDEXES[name](url)
