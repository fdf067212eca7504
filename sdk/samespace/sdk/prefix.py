"""Embeddings of unlike width: a narrower model is compared on the first coordinates of its space, normalised again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import EmbeddingError

__all__ = ["comparable", "first_coordinates"]


def first_coordinates(rows: npt.NDArray[np.float32], dim: int) -> npt.NDArray[np.float32]:
    """``(n, d)`` unit rows -> ``(n, dim)`` unit rows of their first coordinates; ``rows`` itself where d = dim.

    Raises:
        EmbeddingError: rows narrower than ``dim``, or one whose first coordinates are all zero.
    """
    if rows.shape[1] == dim:
        return rows
    if rows.shape[1] < dim:
        raise EmbeddingError(f"embeddings of {rows.shape[1]} dimensions have no first {dim} coordinates")
    cut = rows[:, :dim].astype(np.float64)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    if len(zero := np.flatnonzero(~(norms[:, 0] > 0))):
        raise EmbeddingError(f"row {zero[0]}: its first {dim} coordinates are zero, so it has no direction in them")
    return (cut / norms).astype(np.float32)


def comparable(
    query: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32], prefix: int | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Both sides cut to the coordinates that they have in common (or to the first ``prefix`` of them), as unit rows again."""
    width = min(query.shape[1], gallery.shape[1], prefix or query.shape[1])
    return first_coordinates(query, width), first_coordinates(gallery, width)
