"""What waits to be sent to a gallery, on disk: in order, each job with the key by which the service knows it again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samespace.sdk.gallery.disk import DiskFile

__all__ = ["Job", "QueueFile"]

Kind = Literal["add", "delete"]

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    item_id TEXT NOT NULL,
    vector BLOB,
    metadata TEXT,
    key TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT);
CREATE INDEX IF NOT EXISTS waiting ON jobs (number) WHERE reason IS NULL;
"""


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        number: its place in the order.
        key: idempotency key of the message that it is sent in; None before it is first sent.
        attempts: how often the service failed at it alone, for no reason of ours.
        reason: why it was set aside; None while it waits.
    """

    number: int
    kind: Kind
    item_id: str
    vector: npt.NDArray[np.float32] | None
    metadata: dict[str, Any]
    key: str | None
    attempts: int
    reason: str | None


class QueueFile:
    """Jobs in a file; arguments and errors as of :class:`~samespace.sdk.gallery.disk.DiskFile`."""

    def __init__(self, path: Path, identity: dict[str, str]) -> None:
        self.disk = DiskFile(path, "offline queue", identity, _TABLES)

    def append(self, jobs: Sequence[tuple[Kind, str, npt.NDArray[np.float32] | None, dict[str, Any]]]) -> None:
        """Put jobs at the end, all or none; they are on disk when this returns."""
        rows = [
            (kind, item_id, None if vector is None else vector.astype("<f4").tobytes(), json.dumps(metadata))
            for kind, item_id, vector, metadata in jobs
        ]
        with self.disk.transaction() as connection:
            connection.executemany("INSERT INTO jobs (kind, item_id, vector, metadata) VALUES (?, ?, ?, ?)", rows)

    def next(self, most: int, new_key: str) -> list[Job]:
        """The message to send next: up to ``most`` adds, or one delete.

        One that was sent before is the same, under its old key; another one is noted under ``new_key`` before this returns.
        """
        with self.disk.transaction() as connection:
            waiting = _jobs(connection, "reason IS NULL", limit=most)
            if not waiting:
                return []
            first = waiting[0]
            if first.key is not None:
                return _jobs(connection, "reason IS NULL AND key = ?", first.key)
            chosen = [first]
            for job in waiting[1:]:
                if first.kind == "delete" or job.kind == "delete" or job.key is not None:
                    break
                chosen.append(job)
            connection.executemany("UPDATE jobs SET key = ? WHERE number = ?", [(new_key, job.number) for job in chosen])
            return _jobs(connection, "reason IS NULL AND key = ?", new_key)

    def done(self, jobs: Sequence[Job]) -> None:
        """Forget jobs that the service acknowledged."""
        with self.disk.transaction() as connection:
            connection.executemany("DELETE FROM jobs WHERE number = ?", [(job.number,) for job in jobs])

    def split(self, jobs: Sequence[Job], keys: Sequence[str]) -> None:
        """Send the jobs of a refused message in two, under new keys: one of them may be what it was refused for."""
        half = len(jobs) // 2
        with self.disk.transaction() as connection:
            for part, key in ((jobs[:half], keys[0]), (jobs[half:], keys[1])):
                connection.executemany("UPDATE jobs SET key = ? WHERE number = ?", [(key, job.number) for job in part])

    def failed(self, job: Job) -> None:
        """Count a failure of the service."""
        with self.disk.transaction() as connection:
            connection.execute("UPDATE jobs SET attempts = attempts + 1 WHERE number = ?", (job.number,))

    def set_aside(self, job: Job, reason: str) -> None:
        """Take a job out of the order, with the reason."""
        with self.disk.transaction() as connection:
            connection.execute("UPDATE jobs SET reason = ?, key = NULL WHERE number = ?", (reason, job.number))

    def again(self) -> int:
        """Put what was set aside at the end of the order; how many they were."""
        with self.disk.transaction() as connection:
            columns = "kind, item_id, vector, metadata"
            rows = connection.execute(f"SELECT {columns} FROM jobs WHERE reason IS NOT NULL ORDER BY number").fetchall()
            connection.execute("DELETE FROM jobs WHERE reason IS NOT NULL")
            connection.executemany(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?)", rows)
            return len(rows)

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget jobs that were set aside."""
        with self.disk.transaction() as connection:
            connection.executemany("DELETE FROM jobs WHERE number = ? AND reason IS NOT NULL", [(n,) for n in numbers])

    def waiting(self) -> int:
        """How many jobs wait."""
        with self.disk.reading() as connection:
            return connection.execute("SELECT count(*) FROM jobs WHERE reason IS NULL").fetchone()[0]

    def aside(self) -> list[Job]:
        """What was set aside, in order."""
        with self.disk.reading() as connection:
            return _jobs(connection, "reason IS NOT NULL")

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """True for the one, of all threads and processes with this file, that may send now; the lock ends with its process."""
        with closing(sqlite3.connect(f"{self.disk.path}.sending", timeout=0, check_same_thread=False)) as lock:
            lock.isolation_level = None
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                yield False
                return
            yield True


def _jobs(connection: sqlite3.Connection, condition: str, *arguments: object, limit: int = -1) -> list[Job]:
    rows = connection.execute(
        "SELECT number, kind, item_id, vector, metadata, key, attempts, reason FROM jobs "
        f"WHERE {condition} ORDER BY number LIMIT {limit}",
        arguments,
    ).fetchall()
    return [
        Job(
            number,
            kind,
            item_id,
            None if blob is None else np.frombuffer(blob, "<f4").astype(np.float32),
            json.loads(metadata),
            key,
            attempts,
            reason,
        )
        for number, kind, item_id, blob, metadata, key, attempts, reason in rows
    ]
