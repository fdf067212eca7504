"""What embeddings show by themselves: rows that are none, and norms that are not 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samespace.sdk.metrics.arrays import NORM_TOLERANCE

__all__ = ["RowFacts", "row_facts"]

#: Norms that differ by less than this share are all the same: a scaled output, not a missing norm.
_CONSTANT = 1e-3


@dataclass(frozen=True, eq=False)
class RowFacts:
    """What is known without a reference.

    Attributes:
        usable: ``(n,)`` rows that have a direction.
        broken: share of rows that are NaN, infinite or zero.
        unnormalised: share of the usable rows whose norm is not 1.
        scaled: whether their norms are wrong, but all the same.
    """

    usable: npt.NDArray[np.bool_]
    broken: float
    unnormalised: float
    scaled: bool


def row_facts(embeddings: npt.NDArray[np.floating]) -> RowFacts:
    """Look at ``(n, d)`` raw rows."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    usable = np.isfinite(norms) & (norms > 1e-12)
    wrong = np.abs(norms[usable] - 1) > NORM_TOLERANCE
    some = norms[usable]
    return RowFacts(
        usable=usable,
        broken=float(1 - usable.mean()),
        unnormalised=float(wrong.mean()) if usable.any() else 0.0,
        scaled=bool(len(some) > 1 and some.std() < _CONSTANT * some.mean()),
    )
