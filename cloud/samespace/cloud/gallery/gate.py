"""What every request passes before a route sees it: an id, a log line, the API key, the rate, and a body that is read within
bounds. ASGI, without a framework: it costs microseconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from typing import Any

from anyio import to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samespace.cloud.gallery.access import EVERYBODY, KEY_HEADER, Caller, caller_of
from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.limits import Limits, RateLimiter
from samespace.cloud.gallery.metrics import Metrics
from samespace.cloud.gallery.problems import problem_of, unforeseen
from samespace.sdk.errors import SamespaceError
from samespace.sdk.gallery.wire import API
from samespace.sdk.gallery.wire_admin import OverloadedError, RateLimitedError, TooLargeError

__all__ = ["OPEN_PATHS", "Gate"]

#: What anybody may ask: whether the service is there, what it counts, and how to speak with it.
OPEN_PATHS = frozenset({"/live", "/ready", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
#: Requests that carry pictures or a bundle's evidence.
_LARGE = frozenset({f"{API}/spaces", f"{API}/models"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KEY = KEY_HEADER.lower().encode()

_log = logging.getLogger(__name__)
#: One JSON object a request; never a vector, a key, a token or an item's id.
_requests = logging.getLogger("samespace.gallery.requests")


class Gate:
    """The outermost part of the app.

    Args:
        app: what is behind it.
        ring: the API keys; without, everybody may ask.
        limits: how much is taken.
        metrics: counts.
        state: its ``draining`` makes answers close their connections.
    """

    def __init__(self, app: ASGIApp, *, ring: KeyRing | None, limits: Limits, metrics: Metrics, state: Any) -> None:
        self._app, self._ring, self._limits, self._metrics, self._state = app, ring, limits, metrics, state
        self._rates = RateLimiter(limits.rate, limits.burst)
        self._handled = 0
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id.encode())]
                more += [(b"x-samespace-warning", _ascii(text)) for text in state.get("warnings", ())]
                if getattr(self._state, "draining", False):
                    more.append((b"connection", b"close"))
                message = {**message, "headers": [*message["headers"], *more]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._pass(scope, receive, answer, headers)
        except SamespaceError as error:
            # Refused here, before a route: what the client still sends is not read.
            await problem_of(error, getattr(error, "status", None))(scope, _nothing, answer)
        except Exception:
            _log.exception("%s %s failed (request %s)", scope["method"], scope["path"], request_id)
            if not status:
                await unforeseen()(scope, _nothing, answer)
        finally:
            # The route, not the path: a scanner's thousand paths must not become a thousand time series.
            route, seconds = getattr(scope.get("route"), "path", "unknown"), time.perf_counter() - start
            self._metrics.request(scope["method"], route, status, seconds)
            if _requests.isEnabledFor(logging.INFO):
                caller: Caller = state.get("caller", EVERYBODY)
                line = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(1000 * seconds, 2),
                    "bytes_in": state.get("bytes_in", 0),
                    "bytes_out": sent,
                    "key_id": caller.key_id,
                    "tenant": caller.tenant,
                    **state.get("logged", {}),
                }
                _requests.info("%s", json.dumps(line))

    async def _pass(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        if scope["path"] in OPEN_PATHS:
            # Answered however busy we are: else a busy service would be taken for a dead one.
            await self._app(scope, receive, send)
            return
        if self._handled >= self._limits.requests:
            raise OverloadedError(
                f"this gallery handles {self._limits.requests} requests at once already; try again in a second"
            )
        self._handled += 1
        held = 0
        try:
            state = scope["state"]
            caller = EVERYBODY
            if self._ring is not None:
                key = headers.get(_KEY, b"").decode("latin-1")
                # Only a key that was not seen for a moment costs a question to the store.
                quick = self._ring.believed(key) is not None
                caller = caller_of(key, self._ring) if quick else await to_thread.run_sync(caller_of, key, self._ring)
            state["caller"] = caller
            if not self._rates.allows(caller.key_id or (scope.get("client") or ("",))[0]):
                raise RateLimitedError(f"more than {self._limits.rate:g} requests a second; slow down and repeat this one")
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                body = await self._read(scope, receive, headers)
                held = len(body)
                state["bytes_in"] = held
                receive = _replayed(body, receive)
            await self._app(scope, receive, send)
        finally:
            self._handled -= 1
            self._buffered -= held

    async def _read(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        """The body, counted while it comes: what a header says about its length is believed only when it is too much."""
        most = self._limits.large_body if scope["path"] in _LARGE else self._limits.body
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _slow("the client went away in the middle of its request; send it again")
                    part = message.get("body", b"")
                    if held + len(part) > most:
                        raise _too_large(most)
                    if self._buffered + len(part) > self._limits.buffered:
                        raise OverloadedError("this gallery holds as many requests as it has room for; try again in a second")
                    held += len(part)
                    self._buffered += len(part)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except BaseException as error:
            self._buffered -= held
            if not isinstance(error, TimeoutError):
                raise
            raise _slow(
                f"the request's body did not come within {self._limits.body_seconds:g} s; send less at a time"
            ) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read; after it, what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the request is larger than {most >> 20} MiB; send fewer items at a time")


def _slow(text: str) -> TooLargeError:
    error = TooLargeError(text)
    error.status = 408  # type: ignore[attr-defined]
    return error


def _ascii(text: str) -> bytes:
    return " ".join(text.split()).encode("ascii", "replace")[:1000]
