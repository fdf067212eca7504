"""Connections within bounds: how many there are, and how long one may take to say what it wants.

uvicorn lets a connection that never finishes a request's head stay for ever; ten thousand of them would take all sockets and
memory. Here, one too many is closed at once, and a head that does not come in time closes its connection.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from samespace.cloud.gallery.limits import Limits

__all__ = ["bounded_protocol"]


def bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """The protocol for ``uvicorn.Config(http=...)`` that keeps these limits."""

    class Bounded(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= limits.connections:
                # Without an answer: who opens so many does not read answers.
                self.transport = transport
                transport.abort()
                return
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            if self in self.connections:
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            cycle = self.cycle
            super().data_received(data)
            if self.cycle is not cycle:
                self._stop_waiting()
            elif (cycle is None or cycle.response_complete) and self._waiting is None:
                # The first bytes of a further request on a connection that was kept alive.
                self._wait()

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(limits.header_seconds, self._give_up)

        def _give_up(self) -> None:
            self._waiting = None
            if not self.transport.is_closing():
                self.transport.abort()

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return Bounded
