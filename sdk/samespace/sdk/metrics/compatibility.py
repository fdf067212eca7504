"""How compatible a chain of models is: numbers over a T x T matrix of M(query model, gallery model).

Sources: AC and AA as in Biondi et al., "CL2R: Compatible Lifelong Learning Representations" (TOMM 2023); gain and tax as in
Shen et al., "Towards Backward-Compatible Representation Learning" (BCT, CVPR 2020, arXiv 2003.11942).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import DataError

__all__ = ["average_accuracy", "average_compatibility", "compatibility_tax", "update_gain"]


def average_compatibility(matrix: npt.ArrayLike) -> float:
    """AC: share of the pairs t > k with ``C[t, k] > C[k, k]``, i.e. whose newer model is worth using without a backfill.

    Args:
        matrix: ``(T, T)``, T >= 2; ``C[t, k]`` is M(model t as query, model k as gallery), oldest model first. Cells above the
            diagonal are not read, and may be NaN.

    Returns:
        in [0, 1].

    Raises:
        DataError: not square, fewer than two models, or a cell on or below the diagonal that is not finite.
    """
    cells, below = _lower(matrix, least=2)
    return float(np.mean(cells[below] > np.diag(cells)[below[1]]))


def average_accuracy(matrix: npt.ArrayLike) -> float:
    """AA: mean of M over all pairs t >= k, the diagonal included. Argument and errors as :func:`average_compatibility`."""
    cells, _ = _lower(matrix, least=1)
    return float(cells[np.tril_indices(len(cells))].mean())


def update_gain(old: float, cross: float, best: float) -> float | None:
    """``(M(n,o) - M(o,o)) / (M(n*,n*) - M(o,o))``: how much of a full backfill's benefit comes without one.

    Args:
        old: M(o, o).
        cross: M(n, o).
        best: M(n*, n*), of the same new model trained without a compatibility term, on a gallery that is its own.

    Returns:
        1 where nothing is left to gain by a backfill; below 0 where the new model finds less than the old one; None where the
        unconstrained model is not better than the old one, so that there is nothing to be gained.
    """
    return (cross - old) / (best - old) if best > old else None


def compatibility_tax(best: float, new: float) -> float:
    """``M(n*, n*) - M(n, n)``: what the model lost by being compatible; negative where it won."""
    return best - new


def _lower(matrix: npt.ArrayLike, least: int) -> tuple[npt.NDArray[np.float64], tuple[npt.NDArray[np.intp], ...]]:
    cells = np.asarray(matrix, dtype=np.float64)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1] or len(cells) < least:
        raise DataError(f"the matrix must be (T, T) with T at least {least}; got {cells.shape}")
    if not np.isfinite(cells[np.tril_indices(len(cells))]).all():
        raise DataError("the matrix has cells on or below the diagonal that are not finite; measure each pair t >= k")
    return cells, np.tril_indices(len(cells), -1)
