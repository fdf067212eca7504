"""Confidence intervals by the percentile bootstrap (Efron 1979) over queries, seeded: the same numbers in every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics.arrays import checked_values, same_rows

__all__ = ["Estimate", "bootstrap_mean", "paired_bootstrap"]

#: Resampled values held at once (8 bytes each).
_VALUES_AT_ONCE = 2**21


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        value: the mean over all items.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of items.
    """

    value: float
    low: float
    high: float
    n: int

    def text(self, scale: float = 100, digits: int = 1) -> str:
        """``44.0 [41.9, 46.1]``: numbers times ``scale``, without n."""
        value, low, high = (f"{number * scale:z.{digits}f}" for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        """In percent, as rates are read: ``44.0 [41.9, 46.1] (n=1998)``."""
        return f"{self.text()} (n={self.n})"


def bootstrap_mean(values: npt.ArrayLike, n_boot: int = 2000, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """Mean of per-query values with its confidence interval.

    Args:
        values: ``(n,)``, one number per query, n >= 1.
        n_boot: resamples of the queries, with replacement.
        seed: of the resampling.
        confidence: of the two-sided interval, 0 < confidence < 1.

    Raises:
        ConfigError: ``n_boot`` or ``confidence`` out of range. DataError: no values, or one that is not finite.
    """
    if n_boot < 1 or not 0 < confidence < 1:
        raise ConfigError(f"n_boot={n_boot} must be at least 1 and confidence={confidence} between 0 and 1, both excluded")
    array = checked_values("values", values)
    mean = float(array.mean())
    if array.min() == array.max():
        # Resampling equal numbers gives that number; said directly, without the rounding of a sum.
        value = float(array[0])
        return Estimate(value, value, value, len(array))
    generator = np.random.default_rng(seed)
    means = np.empty(n_boot)
    step = max(1, _VALUES_AT_ONCE // len(array))
    for start in range(0, n_boot, step):
        size = min(step, n_boot - start)
        means[start : start + size] = array[generator.integers(0, len(array), (size, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(mean, float(low), float(high), len(array))


def paired_bootstrap(
    a: npt.ArrayLike, b: npt.ArrayLike, n_boot: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """Mean of ``a - b``, query by query, with its confidence interval: what both find equally hard cancels out.

    Arguments as :func:`bootstrap_mean`; ``a[i]`` and ``b[i]`` belong to the same query.

    Raises:
        ConfigError, DataError: as :func:`bootstrap_mean`, and when the lengths differ.
    """
    left, right = checked_values("a", a), checked_values("b", b)
    same_rows(left, right)
    return bootstrap_mean(left - right, n_boot, seed, confidence)
