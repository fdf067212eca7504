"""Tables of a few values that stand for all weights of a layer: exact one-dimensional k-means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ExportError

__all__ = ["group_size", "palette", "table_maker"]

_Weights = npt.NDArray[np.floating[Any]]

#: Tables of a layer in groups take at most this share of what its indices take; a group has at least so many channels.
_TABLE_SHARE, _LEAST_GROUP = 1 / 8, 16


def table_maker(bits: int) -> Callable[[_Weights], tuple[_Weights, npt.NDArray[np.uint8]]]:
    """:func:`palette` for one width, as coremltools takes it for ``lut_function``."""
    return lambda weights: palette(weights, bits)


def palette(weights: _Weights, bits: int) -> tuple[_Weights, npt.NDArray[np.uint8]]:
    """The table of ``2**bits`` values with the least sum of squared errors, and each weight's place in it.

    Solved exactly by dynamic programming (kmeans1d; Grønlund et al., arXiv 1701.07204), so that nothing is drawn and nothing
    depends on the number of threads. coremltools' own choice takes it for large layers only; for small ones it needs
    scikit-learn, whose centres are worse by up to a tenth of the error.

    Args:
        weights: of any shape, finite.
        bits: 1 to 8.

    Returns:
        the ascending table ``(2**bits,)`` in the dtype of the weights (its last value repeats where there are fewer distinct
        weights), and the indices, uint8, flat.

    Raises:
        ExportError: this coremltools has no k-means.
    """
    values, inverse, counts = np.unique(weights.astype(np.float64).ravel(), return_inverse=True, return_counts=True)
    size = 2**bits
    if len(values) > size:
        centres = np.sort(_kmeans().cluster(values, size, weights=counts.astype(np.float64)).centroids)
    else:
        centres = np.concatenate([values, np.repeat(values[-1:], size - len(values))])
    table = centres.astype(weights.dtype)
    borders = (table[1:].astype(np.float64) + table[:-1].astype(np.float64)) / 2
    return table, np.searchsorted(borders, values)[inverse].astype(np.uint8).ravel()


def group_size(shape: tuple[int, ...], bits: int) -> int:
    """How many output channels (the first axis) share a table: the fewest that the cost of the tables allows.

    Returns:
        a divisor of the channels, 16 or more; all of them where no smaller group pays.
    """
    channels, each = shape[0], int(np.prod(shape[1:]))
    table_bits = 16 * 2**bits
    for size in range(_LEAST_GROUP, channels):
        if channels % size == 0 and table_bits <= _TABLE_SHARE * bits * size * each:
            return size
    return channels


def _kmeans() -> Any:
    try:
        from coremltools._deps import kmeans1d  # comes with coremltools, compiled
    except ImportError as error:
        raise ExportError(
            f"palettised weights need the k-means of coremltools 9, which the installed one lacks ({error}): "
            "pip install 'coremltools>=9,<10', or take another precision"
        ) from None
    return kmeans1d
