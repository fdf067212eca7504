"""What a bulk run has done, on disk: so that it can be killed and run again without embedding anything twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from samespace.cloud.gallery.shards import EmbeddedShard, Shard
from samespace.sdk.gallery.disk import DiskFile
from samespace.sdk.identity import digest

__all__ = ["Ledger"]

_TABLES = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, mark TEXT NOT NULL, item_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (key TEXT PRIMARY KEY, ids TEXT NOT NULL, metadata TEXT NOT NULL, vectors BLOB NOT NULL)
"""


class Ledger:
    """Ids of files that were read, and the vectors of shards that are embedded and not yet acknowledged.

    What the gallery holds is asked of the gallery, never of the ledger: an item that was deleted there, or a gallery that was
    replaced, is added again. Several runs may share a ledger.

    Args:
        path: of the file.
        identity: the gallery, space and model that it is for.

    Raises:
        SpaceMismatchError, DiskFileError: as :class:`~samespace.sdk.gallery.disk.DiskFile`.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], dim: int) -> None:
        self._disk = DiskFile(path, "shard ledger", identity, _TABLES)
        self._dim = dim

    def item_ids(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Ids of those files that were read before and not touched since.

        A file that cannot be looked at has none.
        """
        found: dict[Path, str] = {}
        with self._disk.reading() as connection:
            for path in paths:
                row = connection.execute("SELECT mark, item_id FROM files WHERE path = ?", (_name(path),)).fetchone()
                if row is not None and row[0] == _mark(path):
                    found[path] = row[1]
        return found

    def note(self, ids: Mapping[Path, tuple[str, str]]) -> None:
        """Remember files that were read: path -> mark (taken before it was read) and item id."""
        with self._disk.transaction() as connection:
            rows = [(_name(path), mark, item_id) for path, (mark, item_id) in ids.items()]
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)

    def embedded(self, done: EmbeddedShard) -> None:
        """Keep a shard's vectors until the gallery has them."""
        with self._disk.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)",
                (done.shard.key, json.dumps(done.ids), json.dumps(done.metadata), done.vectors.astype("<f4").tobytes()),
            )

    def pending(self) -> list[EmbeddedShard]:
        """Shards that were embedded and not acknowledged when a run ended."""
        with self._disk.reading() as connection:
            rows = connection.execute("SELECT key, ids, metadata, vectors FROM shards").fetchall()
        made = []
        for key, ids, metadata, blob in rows:
            vectors = np.frombuffer(blob, "<f4").astype(np.float32).reshape(-1, self._dim)
            made.append(EmbeddedShard(Shard(key, (), ()), tuple(json.loads(ids)), vectors, tuple(json.loads(metadata)), ()))
        return made

    def acknowledged(self, key: str) -> None:
        """Let go of a shard's vectors: the gallery has them."""
        with self._disk.transaction() as connection:
            connection.execute("DELETE FROM shards WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        self._disk.close()

    @staticmethod
    def mark(path: Path) -> str:
        """Changes when a file does; empty for one that cannot be looked at."""
        return _mark(path)


def _mark(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _name(path: Path) -> str:
    # Names of files may hold bytes that are no text.
    return digest(bytes(path.absolute()))
