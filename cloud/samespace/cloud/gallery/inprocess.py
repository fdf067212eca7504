"""Talking to a gallery service in the same process, through the ordinary client and without a port."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import httpx
from starlette.types import ASGIApp

__all__ = ["InProcessTransport"]


class InProcessTransport(httpx.BaseTransport):
    """Give it to ``GalleryClient(..., transport=InProcessTransport(create_app(gallery)))``.

    The service runs in an event loop in a thread of its own, because the client waits and the service does not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="samespace-gallery", daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        answered: Future[tuple[int, httpx.Headers, bytes]] = asyncio.run_coroutine_threadsafe(
            self._ask(httpx.Request(request.method, request.url, headers=request.headers, content=body)), self._loop
        )
        status, headers, content = answered.result()
        return httpx.Response(status, headers=headers, content=content, request=request)

    async def _ask(self, request: httpx.Request) -> tuple[int, httpx.Headers, bytes]:
        response = await self._inner.handle_async_request(request)
        return response.status_code, response.headers, await response.aread()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
