"""What every adapter is fitted to: embeddings of the same items by two models."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import DataError, EmbeddingError

__all__ = ["MOST", "Rows", "checked_pairs"]

Rows = npt.NDArray[np.floating]

#: Training pictures that a map is fitted to, at most.
MOST = 20_000


def checked_pairs(
    source: Rows, target: Rows, what: str, least: int, *, same_width: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both as float64.

    Args:
        source: ``(n, d)``.
        target: ``(n, d')``, row i for the same item.
        what: how messages call the map.
        least: n at least.
        same_width: whether d' must be d.

    Raises:
        DataError: other shapes. EmbeddingError: NaN or infinite values.
    """
    fits = source.ndim == target.ndim == 2 and len(source) == len(target) >= least and 0 not in source.shape + target.shape
    if not fits or (same_width and source.shape != target.shape):
        shapes = "arrays (n, d) of the same shape" if same_width else "two arrays (n, d) and (n, d')"
        raise DataError(
            f"{what} needs {shapes} with n at least {least}, row i of both for the same item; got {source.shape} and "
            f"{target.shape}"
        )
    x, y = source.astype(np.float64), target.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise EmbeddingError(f"{what}: the embeddings hold NaN or infinite values; embed the items again")
    return x, y
