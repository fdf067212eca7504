"""One gallery in the embeddings of two models: what it is from the day a successor is registered until the old vectors go.

An item may be there by both models, or by one. Whoever searches gets each item once: by the model that comes first for it, else
by the other one, with scores on one scale. So nothing has to be embedded anew before it is found.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.indexes.base import Filter, Hit, Place, StoredItem, VectorIndex, comes_after
from samespace.sdk.metrics import ScoreMap

__all__ = ["Layer", "Layers", "LeftOver"]

#: Rows beyond a page's own that are fetched of another layer: scores at its border differ by rounding.
_BORDER = 16
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Layer:
    """One model's vectors of a tenant.

    Attributes:
        partition: where in the index they lie.
        scores: puts this layer's scores on the scale of the first layer's.
    """

    model_id: str
    partition: str
    scores: ScoreMap = field(default_factory=ScoreMap)


class LeftOver:
    """How many items of one layer another one has not; remembered a while, for it is counted item by item.

    It grows by new items only, which this process forgets it for; those of other processes are seen when it is counted again.
    """

    #: Seconds for which a count is believed, at least, and in multiples of how long it took.
    LEAST, TIMES = 1.0, 20.0

    def __init__(self, index: VectorIndex) -> None:
        self._index = index
        self._counted: dict[tuple[str, str], tuple[float, int]] = {}

    def count(self, partition: str, other: str, *, now: bool = False) -> int:
        """Items of ``partition`` that ``other`` has not."""
        until, left = self._counted.get((partition, other), (0.0, 0))
        began = time.monotonic()
        if now or began >= until:
            left = self._index.count(partition, without=other)
            ended = time.monotonic()
            self._counted[partition, other] = (ended + max(self.LEAST, self.TIMES * (ended - began)), left)
        return left

    def forget(self) -> None:
        """Count again when asked next."""
        self._counted.clear()


class Layers:
    """The items of a gallery, each from the first layer that has it.

    Args:
        index: the vectors.
        layers: one, or two; the first goes first.
        left_over: how many items only the second has.
    """

    def __init__(self, index: VectorIndex, layers: Sequence[Layer], left_over: LeftOver) -> None:
        self._index = index
        self.layers = tuple(layers)
        self._left_over = left_over

    @property
    def models(self) -> tuple[str, ...]:
        """Whose vectors these are."""
        return tuple(layer.model_id for layer in self.layers)

    def get(self, ids: Iterable[str]) -> dict[str, tuple[str, StoredItem]]:
        """Those of the items that are there, each with the model that embedded it."""
        wanted, found = list(ids), {}
        with self._one_moment():
            for layer in self.layers:
                if absent := [item_id for item_id in wanted if item_id not in found]:
                    there = self._index.get(layer.partition, absent)
                    found |= {item_id: (layer.model_id, item) for item_id, item in there.items()}
        return found

    def known(self, ids: Sequence[str]) -> set[str]:
        """Which of the ids are there."""
        with self._one_moment():
            return set().union(*(self._index.known(layer.partition, ids) for layer in self.layers))

    def scan(self, after: str, limit: int) -> list[tuple[str, StoredItem]]:
        """Up to ``limit`` items whose ids come after ``after``, by id, each with the model that embedded it."""
        found: dict[str, tuple[str, StoredItem]] = {}
        with self._one_moment():
            for layer in self.layers:
                for item in self._index.scan(layer.partition, after, limit):
                    found.setdefault(item.item_id, (layer.model_id, item))
        return [found[item_id] for item_id in sorted(found)[:limit]]

    def count(self) -> int:
        """How many items there are."""
        first, *rest = self.layers
        return self._index.count(first.partition) + sum(self._left_over.count(one.partition, first.partition) for one in rest)

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        where: Filter | None = None,
        after: Place | None = None,
    ) -> list[list[Hit]]:
        """As :meth:`VectorIndex.search`, over all layers; scores are on the first layer's scale."""
        first, *rest = self.layers
        with self._one_moment():
            found = self._index.search(first.partition, queries, k, exact=exact, where=where, after=after)
            for layer in rest:
                if self._left_over.count(layer.partition, first.partition):
                    others = self._others(layer, first.partition, queries, k, exact=exact, where=where, after=after)
                    found = [_merged(hits, more)[:k] for hits, more in zip(found, others, strict=True)]
        return found

    def _one_moment(self) -> AbstractContextManager[None]:
        """An item that goes from one layer to another while both are read is neither missed nor found twice."""
        return self._index.snapshot() if len(self.layers) > 1 else nullcontext()

    def _others(
        self,
        layer: Layer,
        first: str,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        exact: bool,
        where: Filter | None,
        after: Place | None,
    ) -> list[list[Hit]]:
        """What only this layer has, with scores on the first one's scale."""
        start = None if after is None else (layer.scores.back(after[0]) + _ROUNDING, "")
        limit = k if after is None else k + _BORDER
        while True:
            found = self._index.search(layer.partition, queries, limit, exact=exact, where=where, after=start, without=first)
            hits = [[Hit(hit.item_id, layer.scores(hit.score), hit.metadata) for hit in row] for row in found]
            if after is None:
                return hits
            # A page is of one query. What stands before it, by a rounding, came along.
            page = [hit for hit in hits[0] if comes_after(hit, after)]
            if len(page) >= k or len(found[0]) < limit:
                return [page[:k]]
            limit *= 2


def _merged(hits: list[Hit], others: list[Hit]) -> list[Hit]:
    """One ranking. A store without snapshots may have found an item twice."""
    ids = {hit.item_id for hit in hits}
    every = [*hits, *(hit for hit in others if hit.item_id not in ids)]
    return sorted(every, key=lambda hit: (-hit.score, hit.item_id))
