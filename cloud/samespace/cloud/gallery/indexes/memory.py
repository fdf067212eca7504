"""Exact search in memory: the oracle of the other indexes, and enough for tests and small demos."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.indexes.base import Filter, Hit, Place, StoredItem, comes_after
from samespace.sdk.gallery.ranking import cosine_scores, matches, ranked

__all__ = ["MemoryIndex"]


class MemoryIndex:
    """Compares every query with every vector. Nothing outlives the process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._models: dict[str, dict[str, StoredItem]] = {}
        self._dims: dict[str, int] = {}
        #: Built by the first search after a change, so that adding in many small batches stays linear.
        self._matrices: dict[str, tuple[list[StoredItem], npt.NDArray[np.float32]]] = {}

    def prepare(self, model_id: str, dim: int) -> None:
        with self._lock:
            self._models.setdefault(model_id, {})
            self._dims[model_id] = dim

    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        with self._lock:
            self._models[model_id].update((item.item_id, item) for item in items)
            self._matrices.pop(model_id, None)

    def search(
        self,
        model_id: str,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        where: Filter | None = None,
        after: Place | None = None,
        without: str | None = None,
    ) -> list[list[Hit]]:
        with self._lock:
            items, matrix = self._matrix(model_id)
            left_out = frozenset(self._models[without]) if without else frozenset()
        if where or left_out:
            wanted = where or {}
            rows = [r for r, item in enumerate(items) if item.item_id not in left_out and matches(item.metadata, wanted)]
            items, matrix = [items[row] for row in rows], matrix[rows]
        ids = [item.item_id for item in items]
        if after is None:
            return [self._hits(items, ids, cosine_scores(query, matrix), k) for query in queries]
        every = (self._hits(items, ids, cosine_scores(query, matrix), len(items)) for query in queries)
        return [[hit for hit in hits if comes_after(hit, after)][:k] for hits in every]

    def get(self, model_id: str, ids: Sequence[str]) -> dict[str, StoredItem]:
        with self._lock:
            items = self._models[model_id]
            return {item_id: items[item_id] for item_id in ids if item_id in items}

    def known(self, model_id: str, ids: Sequence[str]) -> set[str]:
        with self._lock:
            return set(ids) & self._models[model_id].keys()

    def delete(self, model_id: str, ids: Sequence[str]) -> int:
        with self._lock:
            items = self._models[model_id]
            gone = [item_id for item_id in set(ids) if items.pop(item_id, None) is not None]
            self._matrices.pop(model_id, None)
            return len(gone)

    def scan(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
        with self._lock:
            items = self._models[model_id]
            ids = heapq.nsmallest(limit, (item_id for item_id in items if item_id > after))
            return [items[item_id] for item_id in ids]

    def count(self, model_id: str, *, without: str | None = None) -> int:
        with self._lock:
            return len(self._models[model_id].keys() - (self._models[without].keys() if without else set()))

    def snapshot(self) -> AbstractContextManager[Any]:
        return self._lock

    def close(self) -> None:
        """Nothing to give back."""

    def _matrix(self, model_id: str) -> tuple[list[StoredItem], npt.NDArray[np.float32]]:
        if model_id not in self._matrices:
            items = list(self._models[model_id].values())
            matrix = np.stack([item.vector for item in items]) if items else np.empty((0, self._dims[model_id]), np.float32)
            self._matrices[model_id] = (items, matrix)
        return self._matrices[model_id]

    @staticmethod
    def _hits(items: list[StoredItem], ids: list[str], scores: npt.NDArray[np.float64], k: int) -> list[Hit]:
        return [
            Hit(items[position].item_id, float(scores[position]), items[position].metadata)
            for position in ranked(scores, ids, k)
        ]
