"""A part of the gallery on the device: searched without a network, and kept up to date by what changed since last time.

The vectors are the service's own; nothing is embedded that it holds. They are searched with this device's model under the same
rules as there: only after a passed handshake of this very artifact, and only while the gallery is made of the model with which
it was passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, EmbeddingError, HandshakeRefusedError
from samespace.sdk.gallery import operations
from samespace.sdk.gallery.async_client import AsyncGalleryClient
from samespace.sdk.gallery.client import GalleryClient
from samespace.sdk.gallery.disk import name_of
from samespace.sdk.gallery.operations import Filter
from samespace.sdk.gallery.ranking import cosine_scores, matches, ranked
from samespace.sdk.gallery.replica_file import ReplicaFile
from samespace.sdk.gallery.session import Content, NewItem, Session, taken
from samespace.sdk.gallery.steps import Steps, Work
from samespace.sdk.gallery.wire import SearchHit
from samespace.sdk.identity import canonical_json
from samespace.sdk.metrics.arrays import NORM_TOLERANCE

__all__ = ["AsyncLocalGallery", "LocalGallery", "Synced"]

#: Own pictures of a message.
_BATCH = 64


@dataclass(frozen=True)
class Synced:
    """What a synchronisation did.

    Attributes:
        fetched: vectors that came from the service.
        embedded: images that this device embedded, as counted where it embeds: 0 when the gallery held all of them.
        added: own pictures that the gallery did not hold and now does.
        missing: own pictures that it does not hold, and that this device's model may not add.
        items: in the replica now.
        cleared: the gallery is another one, or made of another model's vectors now, so all was fetched anew.
    """

    fetched: int
    embedded: int
    added: int
    missing: tuple[str, ...]
    items: int
    cleared: bool


class _Replica:
    """The local gallery's steps, for both clients."""

    def __init__(self, session: Session, path: Path | str, most: int, where: Filter | None) -> None:
        if most < 1:
            raise ConfigError(f"most={most}: a local gallery holds at least one item")
        embedder, place = session.embedder, Path(path)
        identity = {"gallery": session.connection.url, "space": embedder.space_id, "model": embedder.model_id}
        self._session, self._most, self._where = session, most, dict(where or {})
        self._told = canonical_json(operations.as_wire(where)).decode()
        file = place / name_of(identity, ".gallery") if place.is_dir() else place
        self._file = ReplicaFile(file, identity, embedder.dim)

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._file.disk.path

    def _syncing(self, pictures: Iterable[NewItem]) -> Steps[Synced]:
        session, before = self._session, self._session.embedded
        # First, so that the artifact that will search has shown what it does.
        yield from session.admission()
        added, missing = yield from self._adding(pictures)
        fetched, cleared = 0, False
        while True:
            state = yield Work(self._file.state)
            page = yield from operations.changes(session, state.cursor, where=self._where, deletions=not state.empty)
            if page.model_id != session.serving:
                # Made of another model's vectors now: whether this device fits those is another question.
                yield from session.handshake()
            if not (yield Work(partial(self._file.apply, page, self._told, self._admitted()))):
                cleared = True
            elif not page.more:
                came = yield from self._fetching()
                fetched += came[0]
                if came[1]:
                    break
        items = yield Work(lambda: len(self._file.rows().ids))
        return Synced(fetched, session.embedded - before, added, tuple(missing), items, cleared)

    def _adding(self, pictures: Iterable[NewItem]) -> Steps[tuple[int, list[str]]]:
        session, added, missing = self._session, 0, list[str]()
        remaining = iter(pictures)
        while part := (yield from taken(remaining, _BATCH)):
            known = yield from operations.known(session, [item.item_id for item in part])
            new = [item for item in part if item.item_id not in known]
            if new and session.serving == session.embedder.model_id:
                added += len((yield from operations.add(session, new)))
            else:
                missing += [item.item_id for item in new]
        return added, missing

    def _fetching(self) -> Steps[tuple[int, bool]]:
        """How many vectors came, and whether these are all that are wanted: not when another model serves now."""
        fetched = 0
        while wanted := (yield Work(partial(self._file.wanted, self._most))):
            model_id, items = yield from operations.fetch(self._session, wanted)
            if not (yield Work(partial(self._file.keep, model_id, wanted, items))):
                return fetched, False
            fetched += len(items)
        return fetched, True

    def _searching(self, queries: Iterable[Content], k: int, where: Filter | None) -> Steps[list[list[SearchHit]]]:
        operations.checked_k(k)
        wanted = operations.as_wire(where)
        state = yield Work(self._file.state)
        if not state.feed:
            raise ConfigError(f"{self.path}: nothing is here yet; synchronise once, with a network")
        if state.admitted != self._admitted():
            raise HandshakeRefusedError(
                f"{self.path}: last synchronised by {state.admitted}; {self._admitted()} has not shown yet that its embeddings "
                "fit; synchronise once with it"
            )
        rows = yield Work(self._file.rows)
        ids, vectors, facts = rows.ids, rows.vectors, rows.metadata
        if wanted:
            chosen = [place for place, metadata in enumerate(facts) if matches(metadata, wanted)]
            ids, vectors, facts = [ids[p] for p in chosen], vectors[chosen], [facts[p] for p in chosen]
        found: list[list[SearchHit]] = []
        for query in _unit((yield from self._session.vectors(list(queries)))):
            scores = cosine_scores(query, vectors)
            places = ranked(scores, ids, k)
            found.append([SearchHit(item_id=ids[p], score=float(scores[p]), metadata=facts[p]) for p in places])
        return found

    def _admitted(self) -> str:
        embedder = self._session.embedder
        return f"{embedder.artifact_id} on {embedder.runtime_name}"


class LocalGallery(_Replica):
    """The newest items of a gallery, or of a part of it, on this device. A context manager; threads and processes may share it.

    Args:
        client: with an embedder.
        path: of the file; or a folder, in which each gallery, space and model gets a file of its own.
        most: so many items, those that were changed last.
        where: only items whose metadata say so, e.g. ``{"owner": "anna"}``.

    Raises:
        SpaceMismatchError: the file is of another gallery, space or model.
        DiskFileError: the file cannot be used.
    """

    def __init__(self, client: GalleryClient, path: Path | str, *, most: int = 10_000, where: Filter | None = None) -> None:
        super().__init__(client.session, path, most, where)
        self._client = client

    def sync(self, pictures: Iterable[NewItem] = ()) -> Synced:
        """Fetch what changed since last time, and forget what is gone. Cut short, it goes on from there next time.

        Args:
            pictures: of this device, to be in the gallery: only those that it does not hold are embedded and added, if this
                device's model is the one that the gallery is made of.

        Raises:
            HandshakeRefusedError, SpaceMismatchError: this device may not search this gallery (any more).
            GalleryUnavailableError: nobody answers; what is here can be searched.
        """
        return self._client.run(self._syncing(pictures))

    def search(self, query: Content, k: int = 10, *, where: Filter | None = None) -> list[SearchHit]:
        """The ``k`` nearest of the items that are here, as the service's exact search would rank them. Needs no network.

        Raises:
            ConfigError: nothing was synchronised yet.
            HandshakeRefusedError: another artifact or runtime synchronised last.
        """
        return self.search_batch([query], k, where=where)[0]

    def search_batch(self, queries: Iterable[Content], k: int = 10, *, where: Filter | None = None) -> list[list[SearchHit]]:
        """The same for several queries."""
        return self._client.run(self._searching(queries, k, where))

    def __len__(self) -> int:
        return len(self._file.rows().ids)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._file.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class AsyncLocalGallery(_Replica):
    """:class:`LocalGallery` for event loops, with the same file."""

    def __init__(
        self, client: AsyncGalleryClient, path: Path | str, *, most: int = 10_000, where: Filter | None = None
    ) -> None:
        super().__init__(client.session, path, most, where)
        self._client = client

    async def sync(self, pictures: Iterable[NewItem] = ()) -> Synced:
        return await self._client.run(self._syncing(pictures))

    async def search(self, query: Content, k: int = 10, *, where: Filter | None = None) -> list[SearchHit]:
        return (await self.search_batch([query], k, where=where))[0]

    async def search_batch(
        self, queries: Iterable[Content], k: int = 10, *, where: Filter | None = None
    ) -> list[list[SearchHit]]:
        return await self._client.run(self._searching(queries, k, where))

    async def aclose(self) -> None:
        self._file.disk.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Queries as the service takes them.

    Raises:
        EmbeddingError: NaN, infinite or not of unit norm.
    """
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
    if len(wrong):
        raise EmbeddingError(
            f"vector {wrong[0]} has norm {norms[wrong[0]]:.4g} instead of 1; give the embedder's output as it is"
        )
    return (wide / norms[:, None]).astype(np.float32)
