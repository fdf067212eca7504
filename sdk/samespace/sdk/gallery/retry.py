"""When and how often a request is repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from samespace.sdk.errors import GalleryUnavailableError
from samespace.sdk.gallery.steps import Pause, Send, Steps

__all__ = ["RetryPolicy"]

#: The service is asked too often, or it (or a proxy before it) is not there at the moment.
_PASSING = (429, 502, 503, 504)


@dataclass(frozen=True)
class RetryPolicy:
    """Repeats what failed for a passing reason: nobody listens, the connection broke, it took too long, or HTTP 429 and
    502-504.

    Every request of a gallery client may be repeated: what changes the gallery has an idempotency key.

    Attributes:
        attempts: at most so many times in all.
        base_delay: seconds before the second attempt, doubled before each further one.
        longest_delay: no pause is longer, in seconds, whatever a service asks for in ``Retry-After``.
        jitter: each pause is multiplied by a random number from ``1 - jitter`` to ``1 + jitter``, so that a thousand
            phones do not come back in the same moment; where the service said when, never by less than 1.
    """

    attempts: int = 4
    base_delay: float = 0.2
    longest_delay: float = 5.0
    jitter: float = 0.5

    def answered(self, request: Send, url: str) -> Steps[httpx.Response]:
        """Do the request until it is answered.

        Raises:
            GalleryUnavailableError: it was not, in any attempt; names ``url``.
        """
        for attempt in range(1, self.attempts + 1):
            last, told = attempt == self.attempts, None
            try:
                response: httpx.Response = yield request
                if response.status_code not in _PASSING or last:
                    return response
                told = _seconds(response.headers.get("retry-after", ""))
            except httpx.TransportError as error:
                if last:
                    reason = str(error) or type(error).__name__
                    raise GalleryUnavailableError(
                        f"no gallery answers at {url} ({reason}; {attempt} attempts); start one with 'samespace "
                        "gallery serve', or correct the URL"
                    ) from error
            yield Pause(self.delay(attempt, told))
        raise AssertionError("the last attempt returns or raises")

    def delay(self, attempt: int, told: float | None = None) -> float:
        """Seconds to wait after the failed attempt with this number, counted from 1; ``told`` is what the service asked for."""
        pause = min(self.longest_delay, self.base_delay * 2 ** (attempt - 1)) * random.uniform(1 - self.jitter, 1 + self.jitter)
        return max(pause, min(self.longest_delay, told or 0.0) * random.uniform(1, 1 + self.jitter))


def _seconds(text: str) -> float | None:
    """``Retry-After`` in seconds; a date, which our service never sends, counts as nothing said."""
    return float(text) if text.isascii() and text.isdigit() else None
