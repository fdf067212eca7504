"""Vectors are judged here, before any store sees them: stores disagree wildly on NaN, zero norms and wrong
dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import EmbeddingError, SpaceMismatchError
from samespace.sdk.metrics.arrays import NORM_TOLERANCE

__all__ = ["checked_vectors"]


def checked_vectors(
    rows: npt.NDArray[np.floating], dim: int, space_id: str, name: Callable[[int], str] = lambda row: f"vector {row}"
) -> npt.NDArray[np.float32]:
    """``(n, d)`` rows as float32 of unit norm.

    Args:
        dim: of the space.
        name: what to call a row in a message, e.g. by its item id.

    Raises:
        SpaceMismatchError: another dimension.
        EmbeddingError: NaN, infinite, zero or not of unit norm; nothing of the batch is to be used then.
    """
    if rows.ndim != 2 or rows.shape[1] != dim:
        got = f"{rows.shape[1]} dimensions" if rows.ndim == 2 else f"shape {rows.shape}"
        raise SpaceMismatchError(
            f"{name(0)} has {got}, the space {space_id} has {dim}: it is not of this space; embed with a bundle of this space"
        )
    wide = rows.astype(np.float64)
    for row in np.flatnonzero(~np.isfinite(wide).all(axis=1)).tolist()[:1]:
        raise EmbeddingError(
            f"{name(row)} holds NaN or infinite values; the device's runtime is broken for this model: run 'samespace "
            "check', and embed again"
        )
    norms = np.linalg.norm(wide, axis=1)
    for row in np.flatnonzero(norms == 0).tolist()[:1]:
        raise EmbeddingError(
            f"{name(row)} is all zeros: it has no direction, so it cannot be compared; run 'samespace check', and embed again"
        )
    for row in np.flatnonzero(np.abs(norms - 1) > NORM_TOLERANCE).tolist()[:1]:
        raise EmbeddingError(
            f"{name(row)} has norm {norms[row]:.4g} instead of 1; the L2 normalisation is missing: use the artifact's "
            "output as it is, or divide by the norm"
        )
    return (wide / norms[:, None]).astype(np.float32)
