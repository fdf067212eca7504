"""A part of a gallery on disk: which items there are, in the order of their changes, and the vectors of the newest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.gallery.disk import DiskFile
from samespace.sdk.gallery.wire import MAX_BATCH, Item
from samespace.sdk.gallery.wire_sync import ChangePage

__all__ = ["ReplicaFile", "ReplicaState", "Rows"]

_TABLES = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    stale INTEGER NOT NULL,
    vector BLOB,
    metadata TEXT);
CREATE INDEX IF NOT EXISTS newest ON items (cursor)
"""


@dataclass(frozen=True)
class ReplicaState:
    """Up to where a replica is a copy, and of what.

    Attributes:
        feed: which store the cursor is of; empty before the first synchronisation.
        model_id: whose vectors they are.
        where: canonical JSON of the filter.
        cursor: up to where changes were read.
        admitted: artifact that last shook hands, and its runtime.
        empty: whether no item is known.
    """

    feed: str = ""
    model_id: str = ""
    where: str = ""
    cursor: int = 0
    admitted: str = ""
    empty: bool = True


@dataclass(frozen=True)
class Rows:
    """What can be searched: ``(n, d)`` float32 vectors with the ids and metadata of their items."""

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    metadata: list[dict[str, Any]]


class ReplicaFile:
    """A replica's file; arguments and errors as of :class:`~samespace.sdk.gallery.disk.DiskFile`."""

    def __init__(self, path: Path, identity: dict[str, str], dim: int) -> None:
        self.disk = DiskFile(path, "local gallery", identity, _TABLES)
        self._dim = dim
        self._rows: tuple[tuple[int, int], Rows] | None = None
        self._writes = 0

    def state(self) -> ReplicaState:
        """Where it stands."""
        with self.disk.reading() as connection:
            held = dict(connection.execute("SELECT name, value FROM state").fetchall())
            empty = connection.execute("SELECT 1 FROM items LIMIT 1").fetchone() is None
        return ReplicaState(**{**held, "cursor": int(held.get("cursor", 0)), "empty": empty})

    def apply(self, page: ChangePage, where: str, admitted: str) -> bool:
        """Take over a page of changes, with its cursor, in one transaction.

        Returns:
            False when the page is of another store, model or filter: then the replica is empty now, and begins again at 0.
        """
        before = self.state()
        fits = (before.feed, before.model_id, before.where) in (("", "", ""), (page.feed, page.model_id, where))
        state = {"feed": page.feed, "model_id": page.model_id, "where": where, "admitted": admitted}
        with self.disk.transaction() as connection:
            self._writes += 1
            if not fits:
                connection.execute("DELETE FROM items")
            else:
                # What is there stays until its new vector has come: a search meanwhile finds the old item, not none.
                connection.executemany(
                    "INSERT INTO items (item_id, cursor, stale) VALUES (?, ?, 1) "
                    "ON CONFLICT (item_id) DO UPDATE SET cursor = excluded.cursor, stale = 1",
                    [(change.item_id, change.cursor) for change in page.changes if change.kind == "put"],
                )
                gone = [(change.item_id,) for change in page.changes if change.kind == "delete"]
                connection.executemany("DELETE FROM items WHERE item_id = ?", gone)
            state["cursor"] = str(page.cursor if fits else 0)
            connection.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(state.items()))
        return fits

    def wanted(self, most: int) -> list[str]:
        """Ids among the ``most`` newest whose vectors must be fetched, some at a time; older items' vectors are let go."""
        with self.disk.transaction() as connection:
            self._writes += 1
            connection.execute(
                "UPDATE items SET vector = NULL, metadata = NULL, stale = 1 WHERE vector IS NOT NULL AND item_id NOT IN "
                "(SELECT item_id FROM items ORDER BY cursor DESC LIMIT ?)",
                (most,),
            )
            rows = connection.execute(
                "SELECT item_id FROM (SELECT item_id, stale, cursor FROM items ORDER BY cursor DESC LIMIT ?) "
                "WHERE stale ORDER BY cursor DESC LIMIT ?",
                (most, MAX_BATCH),
            ).fetchall()
        return [row[0] for row in rows]

    def keep(self, model_id: str, asked: Sequence[str], items: Sequence[Item]) -> bool:
        """Take over vectors; what was asked for and is not there was deleted meanwhile. False when they are another model's."""
        if model_id != self.state().model_id:
            return False
        rows = [(item.vector.array()[0].tobytes(), json.dumps(item.metadata), item.item_id) for item in items]
        with self.disk.transaction() as connection:
            self._writes += 1
            connection.executemany("UPDATE items SET vector = ?, metadata = ?, stale = 0 WHERE item_id = ?", rows)
            gone = sorted(set(asked) - {item.item_id for item in items})
            connection.executemany("DELETE FROM items WHERE item_id = ?", [(item_id,) for item_id in gone])
        return True

    def rows(self) -> Rows:
        """All vectors; read again only after a change."""
        with self.disk.reading() as connection:
            # Counts the writes of other connections; ours are counted here.
            version = (connection.execute("PRAGMA data_version").fetchone()[0], self._writes)
            if self._rows is None or self._rows[0] != version:
                found = connection.execute("SELECT item_id, vector, metadata FROM items WHERE vector IS NOT NULL").fetchall()
                matrix = np.frombuffer(b"".join(row[1] for row in found), np.float32).reshape(len(found), self._dim)
                self._rows = (version, Rows([row[0] for row in found], matrix, [json.loads(row[2]) for row in found]))
            return self._rows[1]
