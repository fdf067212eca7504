"""How much a service takes upon itself: sizes, rates, requests and bytes at once. Pure bookkeeping, no HTTP."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Limits", "RateLimiter"]

_MIB = 1 << 20
#: Most callers whose rate is remembered; the one that was seen longest ago is forgotten first.
_CALLERS = 10_000


@dataclass(frozen=True)
class Limits:
    """Bounds; none of them is per space or model.

    Attributes:
        body: bytes of a request.
        large_body: bytes of a request that carries pictures or a bundle's evidence (founding and introducing).
        buffered: bytes of all bodies that are held at once.
        body_seconds: a body must have come after so long.
        header_seconds: so must a request's head, and the first byte of a connection.
        requests: handled at once.
        connections: open at once.
        rate: requests a second of each API key, or of each address without keys; 0 is without bound.
        burst: so many seconds' worth may come at once.
    """

    body: int = 24 * _MIB
    large_body: int = 96 * _MIB
    buffered: int = 256 * _MIB
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    requests: int = 256
    connections: int = 2048
    rate: float = 0.0
    burst: float = 2.0


class RateLimiter:
    """A token bucket for each caller.

    Args:
        rate: tokens a second; 0 lets everybody pass.
        burst: seconds' worth that a bucket holds.
        clock: seconds; for tests.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, max(1.0, rate * burst), clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, caller: str) -> bool:
        """Whether the caller may ask once more now."""
        if not self._rate:
            return True
        now = self._clock()
        with self._lock:
            tokens, then = self._buckets.pop(caller, (self._most, now))
            tokens = min(self._most, tokens + (now - then) * self._rate)
            allowed = tokens >= 1
            self._buckets[caller] = (tokens - allowed, now)
            if len(self._buckets) > _CALLERS:
                self._buckets.popitem(last=False)
        return allowed
