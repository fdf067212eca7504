"""The client of a gallery: embed on the device, shake hands, search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx

from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.gallery import operations
from samespace.sdk.gallery.connection import Connection
from samespace.sdk.gallery.operations import Filter, Page
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.session import Content, NewItem, Session, proof_of
from samespace.sdk.gallery.steps import Runner, Steps
from samespace.sdk.gallery.wire import API, MAX_BATCH, Admission, GalleryHealth, Introduced, Item, SearchHit, SignedRecord
from samespace.sdk.gallery.wire_admin import Explanation
from samespace.sdk.gallery.wire_sync import ChangePage
from samespace.sdk.identity import CompatibilityRecord

__all__ = ["GalleryClient", "NewItem", "proof_of"]

T = TypeVar("T")


class GalleryClient:
    """Talks to one gallery service for one embedder. A context manager; shakes hands by itself before the first search.

    Several threads may share it. :class:`~samespace.sdk.gallery.async_client.AsyncGalleryClient` has the same methods, to be
    awaited.

    Args:
        url: of the service, like ``http://host:8765``.
        embedder: makes the vectors; without one, only :meth:`health` and :meth:`put_record` work.
        bundle: with it, the client introduces a model that the gallery does not know; by default the one that the embedder was
            opened from.
        transport: instead of the network, e.g. to an in-process service.
        timeout: seconds for each request.
        retry: how often a request is repeated that nobody answered.
        api_key: for a service that asks for one; by default what ``SAMESPACE_GALLERY_KEY`` holds.
        device: kind of device, which the service names in diagnoses and watches for drift.

    Every method raises :class:`~samespace.sdk.errors.GalleryUnavailableError` when nobody answers, and the service's
    own errors as if they had been raised here.
    """

    def __init__(
        self,
        url: str,
        embedder: Embedder | None = None,
        *,
        bundle: Bundle | None = None,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
        device: str | None = None,
    ) -> None:
        #: What this client says and knows; for those that build on it (queue, replica).
        self.session = Session(Connection(url, retry=retry, api_key=api_key), embedder, bundle, device)
        self._runner = Runner(httpx.Client(transport=transport, timeout=timeout, follow_redirects=False))
        self._owned: Embedder | None = None

    @classmethod
    def open(
        cls,
        url: str,
        bundle: Bundle | Path | str,
        *,
        runtime: str | None = None,
        allow_unsigned: bool = False,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
        device: str | None = None,
    ) -> Self:
        """A client with an embedder of its own, from a bundle; arguments as for :meth:`Embedder.open` and the constructor."""
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, allow_unsigned=allow_unsigned)
        Connection(url, api_key=api_key)  # a wrong URL is said before a model is loaded
        embedder = Embedder.open(opened, runtime)
        client = cls(url, embedder, transport=transport, timeout=timeout, retry=retry, api_key=api_key, device=device)
        client._owned = embedder
        return client

    @property
    def url(self) -> str:
        """Of the service, without a slash at the end."""
        return self.session.connection.url

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the service warned of so far; each was a :class:`~samespace.sdk.gallery.connection.GalleryWarning`, too."""
        return self.session.connection.warnings

    @property
    def embedder(self) -> Embedder:
        """What makes this client's vectors.

        Raises:
            ConfigError: it has none.
        """
        return self.session.embedder

    def run(self, steps: Steps[T]) -> T:
        """Do an operation of :mod:`~samespace.sdk.gallery.operations` or one that is made like them."""
        return self._runner.run(steps)

    def health(self) -> GalleryHealth:
        """What the service holds."""
        return self.run(self.session.connection.call("GET", f"{API}/health", GalleryHealth))

    def found(self) -> Introduced:
        """Found the bundle's space with its cloud model; does nothing when the gallery has it already.

        Raises:
            SignatureError: the service does not trust the bundle's signer.
            SpaceMismatchError: the bundle's model did not found its space.
        """
        return self.run(self.session.found())

    def introduce(self) -> Introduced:
        """Show the service the bundle's signed evidence; it measures the compatibility from it and keeps the record.

        Raises:
            SignatureError: the service does not trust the bundle's signer.
            SpaceMismatchError: the gallery has no such space.
        """
        return self.run(self.session.introduce())

    def put_record(self, record: SignedRecord) -> CompatibilityRecord:
        """Give the service a compatibility record that was measured elsewhere."""
        return self.run(self.session.connection.call("POST", f"{API}/records", CompatibilityRecord, record))

    def handshake(self) -> Admission:
        """Embed the service's challenge pictures and let it judge.

        Raises:
            HandshakeRefusedError: the embeddings do not fit the gallery; says by how much and, where it can be told,
                why.
            SpaceMismatchError: another space, or no passing compatibility record.
        """
        return self.run(self.session.handshake())

    def search(self, query: Content, k: int = 10, *, exact: bool = False, where: Filter | None = None) -> list[SearchHit]:
        """The ``k`` nearest items for one image (path, bytes, PIL or array), or for one ``(d,)`` float vector of this model.

        Args:
            exact: compare with every item; else the service's index may approximate.
            where: only items whose metadata say so, e.g. ``{"label": "cat", "year": [2023, 2024]}``.
        """
        return self.search_batch([query], k, exact=exact, where=where)[0]

    def search_batch(
        self, queries: Iterable[Content], k: int = 10, *, exact: bool = False, where: Filter | None = None
    ) -> list[list[SearchHit]]:
        """The ``k`` nearest items, nearest first, for each of the queries.

        Raises:
            HandshakeRefusedError, SpaceMismatchError: as :meth:`handshake`.
            EmbeddingError, ImageError: a query that cannot be embedded, or is no unit-norm vector.
        """
        return self.run(operations.search(self.session, queries, k, exact=exact, where=where))

    def search_page(
        self,
        query: Content,
        size: int = 50,
        cursor: str | None = None,
        *,
        exact: bool = False,
        where: Filter | None = None,
    ) -> Page:
        """The ``size`` nearest items that come after the page whose ``cursor`` is given; the first page without one."""
        return self.run(operations.search_page(self.session, query, size, cursor, exact=exact, where=where))

    def search_pages(
        self, query: Content, size: int = 50, *, exact: bool = False, where: Filter | None = None
    ) -> Iterator[list[SearchHit]]:
        """All items, nearest first, a page at a time; the query is embedded once."""
        vector = self.run(self.session.vectors([query]))[0]
        cursor: str | None = None
        while True:
            page = self.search_page(vector, size, cursor, exact=exact, where=where)
            if page.hits:
                yield page.hits
            if (cursor := page.cursor) is None:
                return

    def search_ids(self, ids: Sequence[str], k: int = 10, *, exact: bool = False) -> list[list[SearchHit]]:
        """The ``k`` nearest items for each of these items of the gallery, itself first."""
        return self.run(operations.search_ids(self.session, ids, k, exact=exact))

    def explain(self, query: Content, k: int = 10) -> list[Explanation]:
        """Why the ``k`` nearest items are near."""
        return self.run(operations.explain(self.session, query, k))

    def add(
        self,
        items: Iterable[NewItem],
        *,
        batch: int = MAX_BATCH,
        progress: Callable[[int], None] = lambda acknowledged: None,
    ) -> tuple[str, ...]:
        """Embed what is not embedded yet and keep it; an id that is already there is replaced.

        Args:
            batch: items of a message, which the service keeps all of or none.
            progress: told after each batch how many items are on the service's disk.

        Returns:
            The ids that the service acknowledged: they are on its disk.

        Raises:
            SpaceMismatchError: this client's model is not the one that the gallery is made of.
        """
        return self.run(operations.add(self.session, items, batch=batch, progress=progress))

    def known(self, ids: Iterable[str]) -> set[str]:
        """Which of the ids the gallery holds already."""
        return self.run(operations.known(self.session, ids))

    def get(self, item_id: str) -> Item | None:
        """One item with its vector, or None."""
        return self.run(operations.get(self.session, item_id))

    def fetch(self, ids: Sequence[str]) -> list[Item]:
        """Those of the items that are there, with their vectors."""
        return self.run(operations.fetch(self.session, ids))[1]

    def delete(self, item_id: str) -> bool:
        """Forget an item; False when it was not there."""
        return self.run(operations.delete(self.session, item_id))

    def changes(self, after: int = 0, *, limit: int = MAX_BATCH, where: Filter | None = None) -> ChangePage:
        """What changed in the gallery since a cursor."""
        return self.run(operations.changes(self.session, after, limit=limit, where=where))

    def close(self) -> None:
        """Close the connections, and the embedder if :meth:`open` made it."""
        self._runner.close()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
