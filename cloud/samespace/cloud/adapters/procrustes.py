"""Orthogonal Procrustes: the rotation that maps one model's embeddings onto another's best, after the fact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import DataError, EmbeddingError

__all__ = ["apply_procrustes", "fit_procrustes"]


def fit_procrustes(source: npt.NDArray[np.floating], target: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """``argmin_R ||source R - target||_F`` over orthogonal R: ``R = U V^T`` with ``source^T target = U S V^T``.

    Schoenemann, "A generalized solution of the orthogonal Procrustes problem", Psychometrika 31 (1966). R may reflect: an
    embedding space has no handedness. Nothing is centred, so that cosines within the mapped set stay what they were.

    Args:
        source: ``(n, d)`` embeddings to be mapped, n >= 1.
        target: ``(n, d)`` embeddings of the same items by the other model.

    Returns:
        ``(d, d)`` float64, orthogonal.

    Raises:
        DataError: shapes that differ, or that are not ``(n, d)``.
        EmbeddingError: NaN or infinite values.
    """
    if source.ndim != 2 or source.shape != target.shape or 0 in source.shape:
        raise DataError(
            "Procrustes needs two (n, d) arrays of the same shape, row i of both for the same item; "
            f"got {source.shape} and {target.shape}"
        )
    a, b = source.astype(np.float64), target.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EmbeddingError("Procrustes: the embeddings hold NaN or infinite values; embed the items again")
    u, _, vt = np.linalg.svd(a.T @ b)
    return np.asarray(u @ vt, np.float64)


def apply_procrustes(embeddings: npt.NDArray[np.floating], rotation: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Map ``(n, d)`` embeddings by a rotation of :func:`fit_procrustes`; norms stay what they were.

    Raises:
        DataError: the rotation is for another dimension.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != len(rotation):
        raise DataError(f"a rotation of {len(rotation)} dimensions cannot map embeddings of shape {embeddings.shape}")
    return (embeddings.astype(np.float64) @ rotation).astype(np.float32)
