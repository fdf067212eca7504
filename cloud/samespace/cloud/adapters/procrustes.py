"""Orthogonal Procrustes: the rotation that maps one model's embeddings onto another's best, after the fact."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.cloud.adapters.pairs import Rows, checked_pairs
from samespace.sdk.errors import DataError

__all__ = ["apply_procrustes", "fit_procrustes", "fit_rotation"]


def fit_procrustes(source: Rows, target: Rows) -> npt.NDArray[np.float64]:
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
    a, b = checked_pairs(source, target, "Procrustes", 1, same_width=True)
    u, _, vt = np.linalg.svd(a.T @ b)
    return np.asarray(u @ vt, np.float64)


def fit_rotation(source: Rows, target: Rows) -> npt.NDArray[np.float64]:
    """The same between models of unlike dimensions: ``(d, d')`` with orthonormal columns, or rows where d' > d.

    The narrower side is filled up with zeros, which a rotation may put anything into. Errors as :func:`fit_procrustes`.
    """
    wide = max(source.shape[1], target.shape[1])
    padded = [np.pad(rows, ((0, 0), (0, wide - rows.shape[1]))) for rows in (source, target)]
    return fit_procrustes(*padded)[: source.shape[1], : target.shape[1]]


def apply_procrustes(embeddings: npt.NDArray[np.floating], rotation: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Map ``(n, d)`` embeddings by a rotation of :func:`fit_procrustes`; norms stay what they were.

    Raises:
        DataError: the rotation is for another dimension.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != len(rotation):
        raise DataError(f"a rotation of {len(rotation)} dimensions cannot map embeddings of shape {embeddings.shape}")
    return (embeddings.astype(np.float64) @ rotation).astype(np.float32)
