"""Whether the queries of one kind of client are still what they were, seen from the gallery.

The first queries of a bucket (model, device, runtime) are its reference. Later windows are compared with it by the maximum mean
discrepancy (Gretton et al., 2012) of the embeddings, and of the quantiles of their scores with a sample of the gallery. Its
p-value comes from permutations, so the rate of false alarms is exact whatever the embeddings' distribution is: a window of a
stationary (exchangeable) bucket is reported with at most the stated probability.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from samespace.sdk.gallery.wire_admin import DriftBucket

__all__ = ["Bucket", "DriftMonitor", "DriftPolicy", "drift_test"]

_Rows = npt.NDArray[np.float32]
_QUANTILES = (0.5, 0.9, 0.99, 1.0)
#: Vectors of the gallery that quantiles need.
_FEWEST = 8
#: A window so unsuspicious is evidence that a bucket recovered; so many in a row are enough.
_CALM, _CALM_WINDOWS = 0.05, 3
#: The permutations stop early when so many were at least as extreme (Besag and Clifford, 1991).
_ENOUGH = 20
_CHUNK = 250


class Bucket(NamedTuple):
    """A kind of client of one tenant in one space."""

    tenant: str
    space_id: str
    model_id: str
    device: str
    runtime: str


@dataclass(frozen=True)
class DriftPolicy:
    """How queries are watched.

    Attributes:
        reference: how many of a bucket's first queries are its reference.
        window: how many later ones are compared with it at a time.
        false_alarm_rate: chance that a window of a stationary bucket is reported.
        seconds: between two queries of a bucket that are looked at: a sample, not all.
        buckets: at most so many are watched; further ones are not.
    """

    reference: int = 256
    window: int = 64
    false_alarm_rate: float = 1e-3
    seconds: float = 0.02
    buckets: int = 256


@dataclass(eq=False)
class _Watched:
    reference: list[_Rows] = field(default_factory=list)
    window: list[_Rows] = field(default_factory=list)
    last: float = float("-inf")
    queries: int = 0
    windows: int = 0
    statistic: float | None = None
    p_value: float | None = None
    drifting: bool = False
    calm: int = 0
    reason: str = "the reference is not complete yet"


class DriftMonitor:
    """Watches all buckets of a service. Safe to share between threads; tests run in one background thread.

    Args:
        gallery_sample: ``(n, d)`` vectors of the gallery that a bucket's queries search, or none.
        policy: how closely.
        clock: seconds; for tests.
        seed: for tests.
    """

    def __init__(
        self,
        gallery_sample: Callable[[Bucket], _Rows | None],
        policy: DriftPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self.policy = policy or DriftPolicy()
        self._sample, self._clock, self._chance = gallery_sample, clock, random.Random(seed)
        self._lock = threading.Lock()
        self._watched: dict[Bucket, _Watched] = {}
        self._generator = np.random.default_rng(seed)
        self._worker = ThreadPoolExecutor(1, "samespace-drift")
        self._pending: set[Future[None]] = set()

    def observe(self, bucket: Bucket, queries: _Rows) -> None:
        """Look at one of these ``(m, d)`` queries, unless the bucket was looked at a moment ago. Takes microseconds."""
        if not len(queries):
            return
        now = self._clock()
        with self._lock:
            watched = self._watched.get(bucket)
            if watched is None:
                if len(self._watched) >= self.policy.buckets:
                    return
                watched = self._watched[bucket] = _Watched()
            if now - watched.last < self.policy.seconds:
                return
            watched.last = now
            watched.queries += 1
            query = np.array(queries[self._chance.randrange(len(queries))], np.float32)
            if len(watched.reference) < self.policy.reference:
                watched.reference.append(query)
                return
            watched.window.append(query)
            if len(watched.window) < self.policy.window:
                return
            window, watched.window = np.stack(watched.window), []
            if len(self._pending) < self.policy.buckets:
                task = self._worker.submit(self._judge, bucket, watched, np.stack(watched.reference), window)
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)

    def drifting(self, bucket: Bucket) -> str | None:
        """Why a bucket is taken to drift; None when it is not."""
        watched = self._watched.get(bucket)
        return watched.reason if watched is not None and watched.drifting else None

    def report(self, tenant: str | None = None) -> tuple[DriftBucket, ...]:
        """Every bucket, or those of a tenant."""
        with self._lock:
            return tuple(
                DriftBucket(
                    model_id=bucket.model_id,
                    device=bucket.device,
                    runtime=bucket.runtime,
                    state="drifting" if watched.drifting else "stationary" if watched.windows else "learning",
                    queries=watched.queries,
                    windows=watched.windows,
                    statistic=watched.statistic,
                    p_value=watched.p_value,
                    reason=watched.reason,
                )
                for bucket, watched in sorted(self._watched.items())
                if tenant in (None, bucket.tenant)
            )

    def settle(self) -> None:
        """Wait until every window that is complete was judged."""
        for task in list(self._pending):
            task.result()

    def close(self) -> None:
        """Stop the background thread."""
        self._worker.shutdown(cancel_futures=True)

    def _judge(self, bucket: Bucket, watched: _Watched, reference: _Rows, window: _Rows) -> None:
        rate = self.policy.false_alarm_rate
        statistic, p_value = drift_test(reference, window, self._sample(bucket), rate, self._generator)
        with self._lock:
            watched.windows += 1
            watched.statistic, watched.p_value = statistic, p_value
            watched.calm = watched.calm + 1 if p_value > _CALM else 0
            if p_value <= rate:
                watched.drifting = True
            elif watched.calm >= _CALM_WINDOWS:
                watched.drifting = False
            if watched.drifting:
                watched.reason = (
                    f"drift: its last {len(window)} queries are unlike its first {len(reference)} (MMD^2 {statistic:.4f}, "
                    f"p = {p_value:.2g}, reported at {rate:g}); run 'samespace check' on such a device"
                )
            else:
                watched.reason = f"its queries are like its first {len(reference)} (p = {p_value:.2g})"


def drift_test(
    reference: _Rows, window: _Rows, gallery: _Rows | None, rate: float, generator: np.random.Generator
) -> tuple[float, float]:
    """MMD^2 between ``(n, d)`` and ``(m, d)`` queries, and its permutation p-value, valid at every level.

    Two views are tested, and the smaller p-value counts twice (Bonferroni): the embeddings, and the quantiles of their scores
    with the gallery.

    Args:
        gallery: ``(k, d)`` vectors; without enough of them there is only the first view.
        rate: at which the p-value will be read: it is resolved a bit finer.
    """
    rows = np.concatenate([reference, window]).astype(np.float64)
    views = [rows]
    if gallery is not None and len(gallery) >= _FEWEST:
        scores = np.quantile(rows @ gallery.astype(np.float64).T, _QUANTILES, axis=1).T
        views.append((scores - scores.mean(axis=0)) / np.maximum(scores.std(axis=0), 1e-9))
    found = [_permuted(_gaussian(view), len(reference), rate / len(views), generator) for view in views]
    statistic, p_value = min(found, key=lambda pair: pair[1])
    return statistic, min(1.0, len(views) * p_value)


def _permuted(kernel: npt.NDArray[np.float64], n: int, rate: float, generator: np.random.Generator) -> tuple[float, float]:
    """MMD^2 of the first n rows and the others, and the share of permutations that have at least as much."""
    m = len(kernel) - n
    np.fill_diagonal(kernel, 0)
    weights = np.concatenate([np.full(n, -1 / n), np.full(m, 1 / m)])
    statistic = float(weights @ kernel @ weights)
    least, extreme, tried = int(np.ceil(2 / rate)) - 1, 0, 0
    while tried < least:
        shuffled = generator.permuted(np.broadcast_to(weights, (min(_CHUNK, least - tried), n + m)), axis=1)
        for value in np.einsum("bi,bi->b", shuffled @ kernel, shuffled):
            tried += 1
            extreme += bool(value >= statistic - 1e-12)
            if extreme >= _ENOUGH:
                return statistic, extreme / tried
    return statistic, (extreme + 1) / (tried + 1)


def _gaussian(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Kernel with the median of the distances as its width: of both samples together, so no permutation changes it."""
    squared = np.einsum("ij,ij->i", rows, rows)
    distances = np.maximum(squared[:, None] + squared[None] - 2 * rows @ rows.T, 0)
    return np.exp(-distances / max(float(np.median(distances)), 1e-12))
