"""When and how often a request is repeated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from samespace.sdk.errors import GalleryUnavailableError

__all__ = ["RetryPolicy"]

#: The service, or a proxy before it, is not there at the moment.
_PASSING = (502, 503, 504)


@dataclass(frozen=True)
class RetryPolicy:
    """Repeats what failed for a passing reason: nobody listens, the connection broke, it took too long, or HTTP
    502-504.

    Every request of a gallery client may be repeated: adding is an upsert by id.

    Attributes:
        attempts: at most so many times in all.
        base_delay: seconds before the second attempt, doubled before each further one.
        longest_delay: no pause is longer, in seconds.
        jitter: each pause is multiplied by a random number from ``1 - jitter`` to ``1 + jitter``, so that a thousand
            phones do not come back in the same moment.
    """

    attempts: int = 4
    base_delay: float = 0.2
    longest_delay: float = 5.0
    jitter: float = 0.5

    def run(self, request: Callable[[], httpx.Response], url: str) -> httpx.Response:
        """Do the request until it is answered.

        Raises:
            GalleryUnavailableError: it was not, in any attempt; names ``url``.
        """
        for attempt in range(1, self.attempts + 1):
            last = attempt == self.attempts
            try:
                response = request()
                if response.status_code not in _PASSING or last:
                    return response
            except httpx.TransportError as error:
                if last:
                    reason = str(error) or type(error).__name__
                    raise GalleryUnavailableError(
                        f"no gallery answers at {url} ({reason}; {attempt} attempts); start one with 'samespace "
                        "gallery serve', or correct the URL"
                    ) from error
            time.sleep(self.delay(attempt))
        raise AssertionError("the last attempt returns or raises")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the failed attempt with this number, counted from 1."""
        pause = min(self.longest_delay, self.base_delay * 2 ** (attempt - 1))
        return pause * random.uniform(1 - self.jitter, 1 + self.jitter)
