"""The gallery's client for event loops (asyncio or trio): the same operations, with a runner that awaits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.gallery import operations
from samespace.sdk.gallery.connection import Connection
from samespace.sdk.gallery.operations import Filter, Page
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.session import Content, NewItem, Session
from samespace.sdk.gallery.steps import Pause, Send, Step, Steps, Turn, Work
from samespace.sdk.gallery.wire import API, MAX_BATCH, Admission, GalleryHealth, Introduced, Item, SearchHit, SignedRecord
from samespace.sdk.gallery.wire_admin import Explanation
from samespace.sdk.gallery.wire_sync import ChangePage
from samespace.sdk.identity import CompatibilityRecord

__all__ = ["AsyncGalleryClient"]

T = TypeVar("T")


class AsyncGalleryClient:
    """:class:`~samespace.sdk.gallery.client.GalleryClient`, to be awaited: same arguments, methods and errors.

    Embedding and files are done in threads, so that the event loop goes on. A cancelled call is as one whose answer got lost:
    the service may have done it, and repeating it does no harm.
    """

    def __init__(
        self,
        url: str,
        embedder: Embedder | None = None,
        *,
        bundle: Bundle | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
        device: str | None = None,
    ) -> None:
        self.session = Session(Connection(url, retry=retry, api_key=api_key), embedder, bundle, device)
        self._http = httpx.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False)
        self._turn = anyio.Lock()
        self._owned: Embedder | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        bundle: Bundle | Path | str,
        *,
        runtime: str | None = None,
        allow_unsigned: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
        api_key: str | None = None,
        device: str | None = None,
    ) -> Self:
        """A client with an embedder of its own, from a bundle."""
        Connection(url, api_key=api_key)  # a wrong URL is said before a model is loaded

        def load() -> Embedder:
            opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, allow_unsigned=allow_unsigned)
            return Embedder.open(opened, runtime)

        embedder = await anyio.to_thread.run_sync(load)
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
        """What makes this client's vectors."""
        return self.session.embedder

    async def run(self, steps: Steps[T]) -> T:
        """Do an operation of :mod:`~samespace.sdk.gallery.operations` or one that is made like them."""
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._done(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value

    async def health(self) -> GalleryHealth:
        return await self.run(self.session.connection.call("GET", f"{API}/health", GalleryHealth))

    async def found(self) -> Introduced:
        return await self.run(self.session.found())

    async def introduce(self) -> Introduced:
        return await self.run(self.session.introduce())

    async def put_record(self, record: SignedRecord) -> CompatibilityRecord:
        return await self.run(self.session.connection.call("POST", f"{API}/records", CompatibilityRecord, record))

    async def handshake(self) -> Admission:
        return await self.run(self.session.handshake())

    async def search(self, query: Content, k: int = 10, *, exact: bool = False, where: Filter | None = None) -> list[SearchHit]:
        return (await self.search_batch([query], k, exact=exact, where=where))[0]

    async def search_batch(
        self, queries: Iterable[Content], k: int = 10, *, exact: bool = False, where: Filter | None = None
    ) -> list[list[SearchHit]]:
        return await self.run(operations.search(self.session, queries, k, exact=exact, where=where))

    async def search_page(
        self,
        query: Content,
        size: int = 50,
        cursor: str | None = None,
        *,
        exact: bool = False,
        where: Filter | None = None,
    ) -> Page:
        return await self.run(operations.search_page(self.session, query, size, cursor, exact=exact, where=where))

    async def search_pages(
        self, query: Content, size: int = 50, *, exact: bool = False, where: Filter | None = None
    ) -> AsyncIterator[list[SearchHit]]:
        vector = (await self.run(self.session.vectors([query])))[0]
        cursor: str | None = None
        while True:
            page = await self.search_page(vector, size, cursor, exact=exact, where=where)
            if page.hits:
                yield page.hits
            if (cursor := page.cursor) is None:
                return

    async def search_ids(self, ids: Sequence[str], k: int = 10, *, exact: bool = False) -> list[list[SearchHit]]:
        return await self.run(operations.search_ids(self.session, ids, k, exact=exact))

    async def explain(self, query: Content, k: int = 10) -> list[Explanation]:
        return await self.run(operations.explain(self.session, query, k))

    async def add(
        self,
        items: Iterable[NewItem],
        *,
        batch: int = MAX_BATCH,
        progress: Callable[[int], None] = lambda acknowledged: None,
    ) -> tuple[str, ...]:
        return await self.run(operations.add(self.session, items, batch=batch, progress=progress))

    async def known(self, ids: Iterable[str]) -> set[str]:
        return await self.run(operations.known(self.session, ids))

    async def get(self, item_id: str) -> Item | None:
        return await self.run(operations.get(self.session, item_id))

    async def fetch(self, ids: Sequence[str]) -> list[Item]:
        return (await self.run(operations.fetch(self.session, ids)))[1]

    async def delete(self, item_id: str) -> bool:
        return await self.run(operations.delete(self.session, item_id))

    async def changes(self, after: int = 0, *, limit: int = MAX_BATCH, where: Filter | None = None) -> ChangePage:
        return await self.run(operations.changes(self.session, after, limit=limit, where=where))

    async def aclose(self) -> None:
        """Close the connections, and the embedder if :meth:`open` made it."""
        await self._http.aclose()
        if self._owned is not None:
            self._owned.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _done(self, step: Step) -> Any:
        match step:
            case Send(method, url, headers, content):
                return await self._http.request(method, url, content=content, headers=headers)
            case Pause(seconds):
                return await anyio.sleep(seconds)
            case Work(do):
                return await anyio.to_thread.run_sync(do)
            case Turn(taken):
                return await self._turn.acquire() if taken else self._turn.release()
