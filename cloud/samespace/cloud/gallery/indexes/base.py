"""What every vector index is. How scores are computed, filtered and ranked: :mod:`samespace.sdk.gallery.ranking`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "Filter",
    "Hit",
    "Metadata",
    "Place",
    "StoredItem",
    "VectorIndex",
    "comes_after",
]

#: Flat facts about an item that come back with a hit: path, label, ...
Metadata = Mapping[str, str | int | float | bool | None]
#: What metadata must say: for each name a value, or several of which one must be there.
Filter = Mapping[str, str | int | float | bool | Sequence[str | int | float | bool | None] | None]
#: Score and id of a hit: where it stands in a ranking.
Place = tuple[float, str]


@dataclass(frozen=True)
class StoredItem:
    """One vector of a gallery.

    Attributes:
        item_id: unique among the vectors of one model.
        vector: ``(d,)`` float32, unit norm.
        metadata: flat JSON values.
    """

    item_id: str
    vector: npt.NDArray[np.float32]
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """An item that a search found; ``score`` is the cosine, -1 to 1."""

    item_id: str
    score: float
    metadata: Metadata


class VectorIndex(Protocol):
    """Keeps unit-norm vectors, each under the model that made it and an item id.

    The caller (:class:`~samespace.cloud.gallery.gallery.Gallery`) has validated every argument: an index never sees
    NaN, a vector of another dimension, or a model that was not prepared. What is written is committed when the call
    returns.
    """

    def prepare(self, model_id: str, dim: int) -> None:
        """Make room for a model's vectors; may be repeated.

        Raises:
            GalleryError: this index cannot hold vectors of that dimension.
        """
        ...

    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        """Write all items or none; an id that is already there is replaced, and the last of equal ids counts."""
        ...

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
        """The ``k`` nearest items of ``model_id`` for each of the ``(m, d)`` queries, nearest first, ties by item id.

        Args:
            exact: compare with every vector, whatever it costs; else the index may approximate.
            where: only items whose metadata match, see :func:`matches`.
            after: only items that stand behind this place in the ranking, see :func:`comes_after`.
            without: only items that this other model has not.
        """
        ...

    def get(self, model_id: str, ids: Sequence[str]) -> dict[str, StoredItem]:
        """The items that are there, of those asked for."""
        ...

    def known(self, model_id: str, ids: Sequence[str]) -> set[str]:
        """Which of the ids are there; cheaper than :meth:`get`."""
        ...

    def delete(self, model_id: str, ids: Sequence[str]) -> int:
        """Forget items; how many of them were there."""
        ...

    def scan(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
        """Up to ``limit`` items whose ids come after ``after``, in the order of their ids (by code point)."""
        ...

    def count(self, model_id: str, *, without: str | None = None) -> int:
        """How many items the model has; with ``without``, how many of them that other model has not."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Inside it, all that this thread reads is of one moment, where the store can do that (Milvus cannot)."""
        ...

    def close(self) -> None:
        """Give back what the index holds."""
        ...


def comes_after(hit: Hit, place: Place) -> bool:
    """Whether a hit stands behind a place in the ranking."""
    return (-hit.score, hit.item_id) > (-place[0], place[1])
