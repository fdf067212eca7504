"""What the service counts, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from samespace.cloud.gallery.gallery import SpaceSummary
from samespace.sdk.errors import EmbeddingError, HandshakeRefusedError

__all__ = ["Metrics"]


class Metrics:
    """One set per service, in a registry of its own, so that two services in one process do not count together."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "samespace_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram("samespace_request_seconds", "Time to answer.", ["method", "route"], registry=self._registry)
        self._handshakes = Counter("samespace_handshakes", "Handshakes judged.", ["verdict"], registry=self._registry)
        self._added = Counter("samespace_items_added", "Items acknowledged.", registry=self._registry)
        self._searched = Counter("samespace_queries", "Query vectors searched.", registry=self._registry)
        self._diagnosed = Counter(
            "samespace_handshake_causes",
            "Mistakes that refused handshakes were put down to.",
            ["cause"],
            registry=self._registry,
        )
        self._drifting = Gauge(
            "samespace_drifting",
            "1 for a kind of client whose queries moved away.",
            ["model", "device", "runtime"],
            registry=self._registry,
        )
        self._items = Gauge("samespace_items", "Items of the serving model.", ["space"], registry=self._registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; 0 is the status of one whose client went away."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    @contextmanager
    def handshake(self) -> Iterator[None]:
        """Count how the handshake in the body ends."""
        try:
            yield
        except (HandshakeRefusedError, EmbeddingError) as error:
            self._handshakes.labels("refused").inc()
            for cause in getattr(error, "causes", ()):
                self._diagnosed.labels(cause).inc()
            raise
        self._handshakes.labels("accepted").inc()

    def added(self, items: int) -> None:
        """Count acknowledged items."""
        self._added.inc(items)

    def searched(self, queries: int) -> None:
        """Count query vectors."""
        self._searched.inc(queries)

    def exposition(self, spaces: Iterable[SpaceSummary], drifting: Iterable[tuple[str, str, str]] = ()) -> bytes:
        """Everything, as Prometheus reads it; ``drifting`` are (model, device, runtime)."""
        self._drifting.clear()
        for bucket in drifting:
            self._drifting.labels(*bucket).set(1)
        self._items.clear()
        for summary in spaces:
            self._items.labels(summary.space.space_id).set(summary.items)
        return generate_latest(self._registry)
