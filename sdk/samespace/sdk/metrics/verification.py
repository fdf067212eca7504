"""Verification (same or not?) at a threshold: a pair is accepted when its score is at least the threshold."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.metrics.arrays import Labels, checked_pair, checked_values, label_codes

__all__ = ["pair_scores", "tar_at_far", "threshold_at_far"]


def threshold_at_far(impostor: npt.ArrayLike, far: float) -> float:
    """Lowest threshold at which at most a share ``far`` of the impostor scores is accepted, ties included.

    Args:
        impostor: scores of pairs that do not belong together.
        far: false accept rate, 0 < far < 1.

    Raises:
        ConfigError: ``far`` is out of range.
        DataError: fewer than ``1 / far`` impostor scores, so that this rate cannot be measured.
    """
    if not 0 < far < 1:
        raise ConfigError(f"far={far} must be between 0 and 1, both excluded")
    scores = np.sort(checked_values("impostor scores", impostor))[::-1]
    accepted = math.floor(far * len(scores) + 1e-9)
    if accepted < 1:
        raise DataError(f"a false accept rate of {far:g} needs at least {math.ceil(1 / far)} impostor pairs; got {len(scores)}")
    # The next number in the scores' own precision: between two float32 there is no float64 that a comparison with them keeps.
    own = np.float32 if np.asarray(impostor).dtype == np.float32 else np.float64
    return float(np.nextafter(own(scores[accepted]), own(np.inf)))


def tar_at_far(genuine: npt.ArrayLike, impostor: npt.ArrayLike, far: float) -> float:
    """True accept rate: share of the genuine scores at or above :func:`threshold_at_far` of the impostors. In [0, 1]."""
    return float(np.mean(checked_values("genuine scores", genuine) >= threshold_at_far(impostor, far)))


def pair_scores(
    query: npt.NDArray[np.floating], gallery: npt.NDArray[np.floating], query_labels: Labels, gallery_labels: Labels
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """All cosines of queries and gallery items, and which of the pairs are genuine; both ``(n, m)``, all in memory.

    Raises:
        DataError, EmbeddingError, SpaceMismatchError: as :func:`samespace.sdk.metrics.first_match_rank`.
    """
    q, g = checked_pair(("query", "gallery"), query, gallery)
    q_codes, g_codes = label_codes(query_labels, gallery_labels, len(q), len(g))
    return q @ g.T, q_codes[:, None] == g_codes[None, :]
