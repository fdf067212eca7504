"""A ranking before any evaluation: how alike a candidate's and the cloud model's embeddings of training pictures are.

Linear CKA (Kornblith et al., ICML 2019, arXiv 1905.00414) in place of accuracy. The candidate's weights are its slice of the
trained supernet, not fresh ones: a fresh network says what its resolution is and little else, and the slice costs the same.
Batch norm takes the statistics of the very pictures, so that one forward pass is all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import EmbeddingError

__all__ = ["linear_cka", "rank_correlation"]


def linear_cka(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """``|A'B|^2 / (|A'A| |B'B|)`` (Frobenius norms) of centred features: 1 when equal up to rotation and scale, 0 if unrelated.

    Args:
        a: ``(n, d)``.
        b: ``(n, e)``, of the same n pictures.

    Raises:
        EmbeddingError: NaN or infinite features, or the same feature for all pictures.
    """
    left, right = (np.asarray(rows, np.float64) - np.mean(rows, axis=0, dtype=np.float64) for rows in (a, b))
    scale = np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right)
    if not np.isfinite(scale) or scale == 0:
        raise EmbeddingError("features are NaN, infinite or the same for all pictures; train the supernet longer or slower")
    return float(np.linalg.norm(left.T @ right) ** 2 / scale)


def rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float | None:
    """Spearman's: -1 to 1; None where there are fewer than three values, or all are equal."""
    left, right = (_ranks(np.asarray(values, np.float64)) for values in (a, b))
    if len(left) < 3 or left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[inverse]
