"""Adding and deleting without a network: what is queued is on disk, and reaches the gallery in order, once each.

An image is embedded when it is queued, so the picture itself may be gone later. Each message gets its idempotency key before it
is first sent, so whoever sends it again after a crash, or after an answer that got lost, does not do it twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from samespace.sdk.errors import (
    ConfigError,
    EmbeddingError,
    GalleryError,
    GalleryUnavailableError,
    HandshakeRefusedError,
    SamespaceError,
    SpaceMismatchError,
)
from samespace.sdk.gallery import operations
from samespace.sdk.gallery.async_client import AsyncGalleryClient
from samespace.sdk.gallery.client import GalleryClient
from samespace.sdk.gallery.disk import name_of
from samespace.sdk.gallery.queue_file import Job, Kind, QueueFile
from samespace.sdk.gallery.session import NewItem, Session, taken
from samespace.sdk.gallery.steps import Steps, Work
from samespace.sdk.gallery.wire import API, Added, ItemBatch
from samespace.sdk.gallery.wire_admin import ApiKeyError, ForbiddenError, RateLimitedError, TooLargeError
from samespace.sdk.metrics.arrays import NORM_TOLERANCE

__all__ = ["AsyncOfflineQueue", "Flushed", "OfflineQueue"]

#: Items of a message: small enough to be sent again over a bad connection.
_BATCH = 64
#: A job at which the service itself fails this often is set aside.
_ATTEMPTS = 5
#: Refusals that are about one item; the others are about who sends it, or when.
_OF_THE_ITEM = (EmbeddingError, ConfigError, TooLargeError)
#: Refusals that are about who sends, and so of the whole queue.
_OF_ALL = (GalleryUnavailableError, HandshakeRefusedError, RateLimitedError, ApiKeyError, ForbiddenError)


@dataclass(frozen=True)
class Flushed:
    """What came of sending a queue.

    Attributes:
        sent: jobs that the service acknowledged in this call.
        aside: jobs that were set aside in this call.
        waiting: jobs that wait; not zero when another process is sending, or queues more meanwhile.
        busy: another thread or process was sending, so this call sent nothing.
    """

    sent: int
    aside: int
    waiting: int
    busy: bool = False


class _Queue:
    """The queue's steps, for both clients."""

    def __init__(self, session: Session, path: Path | str) -> None:
        embedder = session.embedder
        identity = {"gallery": session.connection.url, "space": embedder.space_id, "model": embedder.model_id}
        place = Path(path)
        self._session = session
        self._file = QueueFile(place / name_of(identity, ".queue") if place.is_dir() else place, identity)

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._file.disk.path

    def _adding(self, items: Iterable[NewItem]) -> Steps[tuple[str, ...]]:
        serving, mine = self._session.serving, self._session.embedder.model_id
        if serving not in (None, mine):
            raise SpaceMismatchError(
                f"this gallery is made of vectors of the model {serving}, not of {mine}: {mine} may search it, not fill it; "
                "nothing was queued"
            )
        ids: list[str] = []
        remaining = iter(items)
        while part := (yield from taken(remaining, _BATCH)):
            # Checked as the service would: what no gallery takes is refused now, not in the train tomorrow.
            message = yield from operations.item_batch(self._session, part)
            rows = _unit(message)
            jobs: list[tuple[Kind, str, Any, dict[str, Any]]] = [
                ("add", item_id, row, dict(facts))
                for item_id, row, facts in zip(message.ids, rows, message.metadata, strict=True)
            ]
            yield Work(partial(self._file.append, jobs))
            ids += message.ids
        return tuple(ids)

    def _deleting(self, item_id: str) -> Steps[None]:
        yield Work(partial(self._file.append, [("delete", operations.checked_id(item_id), None, {})]))

    def _flushing(self) -> Steps[Flushed]:
        with ExitStack() as held:
            mine = yield Work(lambda: held.enter_context(self._file.sending()))
            sent = aside = 0
            while mine:
                jobs: list[Job] = yield Work(lambda: self._file.next(_BATCH, operations.new_key()))
                if not jobs:
                    break
                try:
                    yield from self._send(jobs)
                except SamespaceError as error:
                    aside += yield from self._refused(jobs, error)
                else:
                    yield Work(partial(self._file.done, jobs))
                    sent += len(jobs)
            waiting = yield Work(self._file.waiting)
            return Flushed(sent, aside, waiting, busy=not mine)

    def _send(self, jobs: list[Job]) -> Steps[None]:
        key = jobs[0].key
        if jobs[0].kind == "delete":
            yield from operations.delete(self._session, jobs[0].item_id, once=key)
            return
        items = [NewItem(job.item_id, job.vector, job.metadata) for job in jobs if job.vector is not None]
        message = yield from operations.item_batch(self._session, items)
        yield from self._session.call("POST", f"{API}/items", Added, message, once=key)

    def _refused(self, jobs: list[Job], error: SamespaceError) -> Steps[int]:
        """Whether what was refused is one item (set aside: 1), or among these (sent in two: 0); else raises."""
        ours = isinstance(error, _OF_THE_ITEM) and not isinstance(error, _OF_ALL)
        # The service's own failure, which may be this item's doing. (A hotel's login page is not: that is a subclass.)
        theirs = type(error) is GalleryError
        if not (ours or theirs):
            raise error
        if len(jobs) > 1:
            yield Work(lambda: self._file.split(jobs, (operations.new_key(), operations.new_key())))
            return 0
        if theirs and jobs[0].attempts + 1 < _ATTEMPTS:
            yield Work(partial(self._file.failed, jobs[0]))
            raise error
        yield Work(partial(self._file.set_aside, jobs[0], str(error)))
        return 1

    def _close(self) -> None:
        self._file.disk.close()


class OfflineQueue(_Queue):
    """What this device wants added and deleted, kept until the gallery has it. A context manager.

    Threads and processes may share the file: all may queue, and one at a time sends.

    Args:
        client: with an embedder; its model must be the one that the gallery is made of.
        path: of the file; or a folder, in which each gallery, space and model gets a file of its own.

    Raises:
        SpaceMismatchError: the file is of another gallery, space or model.
        DiskFileError: the file cannot be used.
    """

    def __init__(self, client: GalleryClient, path: Path | str) -> None:
        super().__init__(client.session, path)
        self._client = client

    def add(self, items: Iterable[NewItem]) -> tuple[str, ...]:
        """Embed items and queue them; needs no network. They are on this device's disk when it returns.

        Raises:
            ImageError, EmbeddingError: an item that cannot be embedded.
            ConfigError: an id or metadata that no gallery takes.
            SpaceMismatchError: the gallery is known to be made of another model's vectors.
            DiskFileError: the disk is full.
        """
        return self._client.run(self._adding(items))

    def delete(self, item_id: str) -> None:
        """Queue that an item is to be forgotten."""
        self._client.run(self._deleting(item_id))

    def flush(self) -> Flushed:
        """Send what waits, in order. What the service refuses for its own sake (a vector, metadata) is set aside with the
        reason, and the rest goes on.

        Raises:
            GalleryUnavailableError: nobody answers; all that was not acknowledged waits.
            SpaceMismatchError: the gallery is made of another model's vectors (now); so all of them wait, see :meth:`aside`.
            HandshakeRefusedError, ApiKeyError, ForbiddenError, RateLimitedError: the service refuses this device.
        """
        return self._client.run(self._flushing())

    def waiting(self) -> int:
        """How many jobs wait."""
        return self._file.waiting()

    def aside(self) -> list[Job]:
        """What was set aside, with the reasons."""
        return self._file.aside()

    def retry_aside(self) -> int:
        """Queue what was set aside once more, at the end."""
        return self._file.again()

    def drop_aside(self, jobs: Iterable[Job]) -> None:
        """Forget some of what was set aside."""
        self._file.drop([job.number for job in jobs])

    def close(self) -> None:
        """Close the file; what waits stays in it."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncOfflineQueue(_Queue):
    """:class:`OfflineQueue` for event loops, with the same file."""

    def __init__(self, client: AsyncGalleryClient, path: Path | str) -> None:
        super().__init__(client.session, path)
        self._client = client

    async def add(self, items: Iterable[NewItem]) -> tuple[str, ...]:
        return await self._client.run(self._adding(items))

    async def delete(self, item_id: str) -> None:
        await self._client.run(self._deleting(item_id))

    async def flush(self) -> Flushed:
        return await self._client.run(self._flushing())

    async def waiting(self) -> int:
        return await self._client.run(_worked(self._file.waiting))

    async def aside(self) -> list[Job]:
        return await self._client.run(_worked(self._file.aside))

    async def retry_aside(self) -> int:
        return await self._client.run(_worked(self._file.again))

    async def drop_aside(self, jobs: Iterable[Job]) -> None:
        await self._client.run(_worked(partial(self._file.drop, [job.number for job in jobs])))

    async def aclose(self) -> None:
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _worked(do: Any) -> Steps[Any]:
    return (yield Work(do))


def _unit(message: ItemBatch) -> Any:
    """The vectors, which must be such as a gallery takes.

    Raises:
        EmbeddingError: NaN, infinite or not of unit norm; names the item.
    """
    rows = message.vectors.array()
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
    if len(wrong):
        raise EmbeddingError(
            f"item {message.ids[wrong[0]]!r}: its vector has norm {norms[wrong[0]]:.4g} instead of 1; give the embedder's "
            "output as it is. Nothing of this batch was queued"
        )
    return rows
