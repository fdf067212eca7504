"""Whether two groupings of the same items agree."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import DataError

__all__ = ["adjusted_rand_index"]


def adjusted_rand_index(a: Sequence[Hashable] | npt.NDArray, b: Sequence[Hashable] | npt.NDArray) -> float:
    """Agreement of two groupings over all pairs of items, corrected for chance (Hubert & Arabie, J. Classification 2, 1985).

    Args:
        a: ``(n,)`` name or number of each item's group, n >= 1.
        b: the same of the other grouping.

    Returns:
        1 for the same groups, whatever they are called; 0 on average for groupings that have nothing to do with each other; at
        least -0.5.

    Raises:
        DataError: no items, or different numbers of them.
    """
    if not len(a) or len(a) != len(b):
        raise DataError(f"two groupings must be of the same items, at least one; got {len(a)} and {len(b)}")
    left, right = (np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1) for groups in (a, b))
    table = np.zeros((left.max() + 1, right.max() + 1), np.int64)
    np.add.at(table, (left, right), 1)
    together = _pairs(table).sum()
    by_a, by_b, everything = _pairs(table.sum(axis=1)).sum(), _pairs(table.sum(axis=0)).sum(), _pairs(np.array(len(left)))
    chance = by_a * by_b / everything if everything else 0.0
    most = (by_a + by_b) / 2
    # Both are one group, or both are all groups of one: the same.
    return 1.0 if most == chance else float((together - chance) / (most - chance))


def _pairs(count: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return count * (count - 1) / 2.0
