"""How well two embeddings of the same images agree, image by image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics.arrays import checked_pair, checked_values, same_rows

__all__ = ["angle", "cosine", "max_angle", "worst_percentile"]


def cosine(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows.

    Args:
        a: ``(n, d)`` unit-norm.
        b: ``(n, d)`` unit-norm; row i belongs to the same image as ``a[i]``.

    Returns:
        ``(n,)`` float64 in [-1, 1]. Norms are divided out in float64: a gate at 0.99999 must not judge the rounding of a norm.

    Raises:
        DataError: shapes that do not fit. EmbeddingError: NaN or not unit-norm. SpaceMismatchError: other dimension.
    """
    a64, b64 = _normalised_pair(a, b)
    return np.clip(np.einsum("ij,ij->i", a64, b64), -1.0, 1.0)


def angle(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Angle of each pair of rows in degrees, ``(n,)`` float64 in [0, 180]. Arguments and errors as :func:`cosine`.

    Uses ``2 atan2(|a - b|, |a + b|)`` (Kahan): arccos loses half of the digits where two embeddings nearly agree.
    """
    a64, b64 = _normalised_pair(a, b)
    return np.degrees(2 * np.arctan2(np.linalg.norm(a64 - b64, axis=1), np.linalg.norm(a64 + b64, axis=1)))


def max_angle(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Largest :func:`angle` of all pairs of rows, in degrees."""
    return float(angle(a, b).max())


def worst_percentile(values: npt.ArrayLike, percent: float = 1.0) -> float:
    """The value that ``percent`` % of the values lie at or below: 1.0 is "the worst 1 %" of cosines.

    It is always a value that was observed (the lower one between two), hence the minimum for up to 100 values: with few
    images the worst one decides.

    Raises:
        ConfigError: ``percent`` is not in [0, 100]. DataError: no values, or one that is not finite.
    """
    if not 0 <= percent <= 100:
        raise ConfigError(f"percent={percent} must be between 0 and 100")
    return float(np.percentile(checked_values("values", values), percent, method="lower"))


def _normalised_pair(
    a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a32, b32 = checked_pair(("a", "b"), a, b)
    same_rows(a32, b32)
    a64, b64 = a32.astype(np.float64), b32.astype(np.float64)
    return a64 / np.linalg.norm(a64, axis=1, keepdims=True), b64 / np.linalg.norm(b64, axis=1, keepdims=True)
