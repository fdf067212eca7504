"""How scores are computed, filtered and ranked: on the device exactly as by the service, so that both find the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["cosine_scores", "matches", "ranked", "values_of"]


def cosine_scores(query: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosines of one ``(d,)`` query with ``(n, d)`` vectors, all unit norm: in float64, rounded to the 7 decimals that float32
    carries, so that equal vectors get equal scores wherever they stand.
    """
    return np.round(vectors.astype(np.float64) @ query.astype(np.float64), 7)


def ranked(scores: npt.NDArray[np.float64], ids: Sequence[str], k: int) -> list[int]:
    """Positions of the ``k`` best scores, best first; equal scores in the order of their ids (by code point)."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= threshold).tolist()
    else:
        candidates = range(len(scores))
    return sorted(candidates, key=lambda position: (-scores[position], ids[position]))[:k]


def matches(metadata: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether metadata have, for each name of a filter, its value or one of its values, as JSON compares them: 1 is 1.0, but
    neither "1" nor true.
    """
    return all(name in metadata and any(_same(metadata[name], value) for value in values_of(it)) for name, it in where.items())


def values_of(wanted: Any) -> Sequence[Any]:
    """The values of one name of a filter, of which one must be there."""
    return [wanted] if isinstance(wanted, str) or not isinstance(wanted, Sequence) else wanted


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
