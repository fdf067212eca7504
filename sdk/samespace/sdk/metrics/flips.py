"""Negative flips: what was right with the old model and is wrong with the new one.

Source: PCT (Yan et al., "Positive-Congruent Training", CVPR 2021, arXiv 2011.09161).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import DataError
from samespace.sdk.metrics.arrays import checked_values, same_rows

__all__ = ["negative_flips", "relative_negative_flip_rate"]


def negative_flips(old_correct: npt.ArrayLike, new_correct: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """1 where the old model is right and the new one wrong, else 0; the mean is the negative flip rate (PCT eq. 2).

    Args:
        old_correct: ``(n,)`` of 0 / 1 or bool, e.g. from :func:`samespace.sdk.metrics.recall_at_k`.
        new_correct: ``(n,)``, of the same items in the same order.

    Returns:
        ``(n,)`` float64.

    Raises:
        DataError: other lengths, or values other than 0 and 1.
    """
    old, new = _outcomes("old_correct", old_correct), _outcomes("new_correct", new_correct)
    same_rows(old, new)
    return (old & ~new).astype(np.float64)


def relative_negative_flip_rate(old_correct: npt.ArrayLike, new_correct: npt.ArrayLike) -> float:
    """``NFR / ((1 - ER_old) * ER_new)`` (PCT eq. 11): 1 means that errors fall as if the two models had nothing in common.

    0 where the old model was never right or the new one is never wrong: then there is nothing to flip.
    """
    flips = negative_flips(old_correct, new_correct)
    right_before = float(np.mean(_outcomes("old_correct", old_correct)))
    wrong_now = 1 - float(np.mean(_outcomes("new_correct", new_correct)))
    chance = right_before * wrong_now
    return float(flips.mean()) / chance if chance > 0 else 0.0


def _outcomes(name: str, values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    array = checked_values(name, values)
    if not np.isin(array, (0.0, 1.0)).all():
        raise DataError(f"{name} must hold 0 (wrong) and 1 (right) only")
    return array.astype(np.bool_)
