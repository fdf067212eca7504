"""Affine maps in closed form: ridge regression, and the best one of a low rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.cloud.adapters.pairs import Rows, checked_pairs
from samespace.sdk.errors import ConfigError

__all__ = ["fit_low_rank", "fit_ridge"]

Affine = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


def fit_ridge(source: Rows, target: Rows, penalty: float = 1e-3) -> Affine:
    """``argmin_{W, b} mean ||x W + b - y||^2 + penalty * mean var(x) * ||W||^2``.

    The intercept is not penalised. The penalty is relative to the mean variance of a coordinate, so that it means the same
    whatever the dimension (Hoerl & Kennard, "Ridge regression", Technometrics 12, 1970).

    Args:
        source: ``(n, d)`` embeddings to be mapped, n >= 2.
        target: ``(n, d')`` embeddings of the same items by the other model.
        penalty: > 0.

    Returns:
        W ``(d, d')`` and b ``(d',)``, float64.

    Raises:
        DataError: shapes that do not fit. EmbeddingError: NaN or infinite values. ConfigError: a penalty that is not positive.
    """
    x, y = checked_pairs(source, target, "an affine map", 2)
    if not penalty > 0:
        raise ConfigError(f"penalty={penalty} must be above 0")
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    covariance = x.T @ x / len(x)
    damping = penalty * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    weight = np.linalg.solve(covariance + damping * np.eye(len(covariance)), x.T @ y / len(x))
    return weight, mean_y - mean_x @ weight


def fit_low_rank(source: Rows, target: Rows, rank: int, penalty: float = 1e-3) -> Affine:
    """The same with W of at most this rank: ridge, then projected on the leading directions of what it predicts.

    For squared errors that is the optimum (reduced-rank regression, Izenman, J. Multivariate Analysis 5, 1975). As in
    Drift-Adapter's low-rank affine map, two thin matrices do the work of a large one.

    Args:
        rank: 1 to min(d, d').

    Raises:
        ConfigError: rank out of range. Else as :func:`fit_ridge`.
    """
    x, y = checked_pairs(source, target, "an affine map", 2)
    most = min(x.shape[1], y.shape[1])
    if not 1 <= rank <= most:
        raise ConfigError(f"rank={rank} must be between 1 and {most}")
    weight, _ = fit_ridge(x, y, penalty)
    predicted = (x - x.mean(0)) @ weight
    _, _, directions = np.linalg.svd(predicted, full_matrices=False)
    kept = directions[:rank].T
    weight = weight @ kept @ kept.T
    return weight, y.mean(0) - x.mean(0) @ weight
