"""How many of the nearest items an approximate search finds, measured on the gallery itself and stated.

The queries are a sample of the stored vectors, each without itself. The exact answers come from the vectors as they are
read back, not from the index, so an index that loses rows is seen as well.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from samespace.cloud.gallery.indexes.base import StoredItem, VectorIndex
from samespace.cloud.gallery.shelf import Shelf
from samespace.sdk.errors import GalleryError
from samespace.sdk.gallery.wire_recall import StatedRecall
from samespace.sdk.metrics.bootstrap import bootstrap_mean

__all__ = ["is_due", "measure_recall", "measured_beside", "state_recall", "stated_recall"]

_KIND = "recall"
#: Smaller galleries are searched row by row, or as good as that.
_WORTH_IT = 1000
_PAGE = 4096

_log = logging.getLogger("samespace.gallery")


class _StoppedError(Exception):
    pass


def measure_recall(
    index: VectorIndex,
    model_id: str,
    *,
    k: int = 10,
    n: int = 200,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> StatedRecall | None:
    """Mean recall@k of ordinary searches over ``n`` sampled items; None where there are not more than ``k`` items.

    Reads all vectors twice. Among equal scores one item is as good as another.

    Args:
        seed: of the sample.
        stop: when set, give up.
    """
    queries, items = _sample(index, model_id, n, seed, stop)
    if items <= k:
        return None
    rows = np.stack([query.vector for query in queries])
    ids = [query.item_id for query in queries]
    thresholds = _kth_best(index, model_id, rows, ids, k, stop)
    recalls = []
    for row, (item_id, threshold) in enumerate(zip(ids, thresholds, strict=True)):
        _go_on(stop)
        (hits,) = index.search(model_id, rows[row : row + 1], k + 1)
        others = [hit for hit in hits if hit.item_id != item_id][:k]
        recalls.append(sum(hit.score >= threshold for hit in others) / k)
    mean = bootstrap_mean(recalls)
    # Without a single miss a bootstrap would claim certainty; so many queries cannot rule out 3 misses in n.
    low = mean.low if mean.value < 1 else 1 - 3 / max(3, len(recalls))
    return StatedRecall(
        recall=min(1.0, mean.value),
        low=low,
        high=min(1.0, mean.high),
        k=k,
        n=len(recalls),
        items=items,
        index=_described(index, model_id),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def state_recall(index: VectorIndex, shelf: Shelf, model_id: str, stop: threading.Event | None = None) -> StatedRecall | None:
    """Measure, and keep what was measured beside the registry."""
    stated = measure_recall(index, model_id, stop=stop)
    if stated is not None:
        shelf.put(_KIND, model_id, stated.model_dump_json().encode())
    return stated


def stated_recall(shelf: Shelf, model_id: str) -> StatedRecall | None:
    """What was measured last, if anything was."""
    content = shelf.get(_KIND, model_id)
    try:
        return None if content is None else StatedRecall.model_validate_json(content)
    except ValidationError:  # of another version
        return None


def is_due(index: VectorIndex, stated: StatedRecall | None, model_id: str) -> bool:
    """Whether an index was built, built otherwise, or has grown twofold since its recall was measured."""
    items = index.count(model_id)
    if items < _WORTH_IT:
        return False
    return stated is None or items >= 2 * stated.items or stated.index != _described(index, model_id)


@contextmanager
def measured_beside(index: VectorIndex, shelf: Shelf, models: Sequence[str]) -> Iterator[None]:
    """Measures what is due in a thread, while the block runs; nobody waits for it."""
    stop = threading.Event()

    def work() -> None:
        for model_id in models:
            try:
                if is_due(index, stated_recall(shelf, model_id), model_id):
                    state_recall(index, shelf, model_id, stop)
            except _StoppedError:
                return
            except GalleryError as error:
                _log.warning("the recall of %s was not measured: %s", model_id, error)

    thread = threading.Thread(target=work, name="recall", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _described(index: VectorIndex, model_id: str) -> str:
    describe = getattr(index, "describe", None)
    return type(index).__name__.removesuffix("Index").lower() if describe is None else describe(model_id)


def _pages(index: VectorIndex, model_id: str, stop: threading.Event | None) -> Iterator[list[StoredItem]]:
    after = ""
    while page := index.scan(model_id, after, _PAGE):
        _go_on(stop)
        yield page
        after = page[-1].item_id


def _sample(index: VectorIndex, model_id: str, n: int, seed: int, stop: threading.Event | None) -> tuple[list[StoredItem], int]:
    """``n`` items, each as likely as any other, and how many there are: those with the ``n`` smallest random numbers."""
    generator = np.random.default_rng(seed)
    chosen: list[tuple[float, StoredItem]] = []
    seen = 0
    for page in _pages(index, model_id, stop):
        seen += len(page)
        chosen = sorted([*chosen, *zip(generator.random(len(page)).tolist(), page, strict=True)], key=lambda pair: pair[0])[:n]
    return [item for _, item in chosen], seen


def _kth_best(
    index: VectorIndex,
    model_id: str,
    queries: npt.NDArray[np.float32],
    own: Sequence[str],
    k: int,
    stop: threading.Event | None,
) -> npt.NDArray[np.float64]:
    """``(n,)`` for each query the score of its ``k``-th nearest item other than itself."""
    best = np.full((len(queries), k), -np.inf)
    wide, place = queries.astype(np.float64), {item_id: row for row, item_id in enumerate(own)}
    for page in _pages(index, model_id, stop):
        scores = np.round(wide @ np.stack([item.vector for item in page]).astype(np.float64).T, 7)
        for column, item in enumerate(page):
            if item.item_id in place:
                scores[place[item.item_id], column] = -np.inf
        best = np.partition(np.concatenate([best, scores], axis=1), -k, axis=1)[:, -k:]
    return best.min(axis=1)


def _go_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise _StoppedError
