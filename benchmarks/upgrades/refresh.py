"""A gallery that is embedded anew bit by bit: what queries of the new model find on the way, by order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SHARES", "curve", "orders", "precisions"]

#: Shares of the gallery that are embedded anew at the points of a curve.
SHARES = tuple(point / 10 for point in range(11))

Array = npt.NDArray[np.float64]


def curve(scores_old: Array, scores_new: Array, genuine: npt.NDArray[np.bool_], order: Sequence[int]) -> Array:
    """``(11, queries)`` average precision when these first items of ``order`` are there by the new model.

    Args:
        scores_old, scores_new: ``(queries, items)`` of each item as it is, and embedded anew; on one scale.
    """
    found = []
    for share in SHARES:
        scores = scores_old.copy()
        anew = list(order[: round(share * len(order))])
        scores[:, anew] = scores_new[:, anew]
        found.append(precisions(scores, genuine))
    return np.stack(found)


def precisions(scores: Array, genuine: npt.NDArray[np.bool_]) -> Array:
    """``(queries,)`` average precision of rankings by score."""
    ranking = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(genuine, ranking, axis=1)
    places = np.arange(1, scores.shape[1] + 1)
    return (np.cumsum(hits, axis=1) / places * hits).sum(1) / hits.sum(1)


def orders(uncertainty: Array, seed: int) -> Mapping[str, list[int]]:
    """Items by name of the order. The gallery's own order stands for the oldest first."""
    items = len(uncertainty)
    return {
        "uncertainty": np.argsort(-uncertainty, kind="stable").tolist(),
        "random": np.random.default_rng(seed).permutation(items).tolist(),
        "oldest": list(range(items)),
    }
