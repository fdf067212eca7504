"""Retrieval quality: who is found at which rank. All results are per query, so that they can be bootstrapped and paired.

Similarity is the dot product of unit-norm rows, in float32. **Ties count against the query**: of equal scores the wrong
items come first. So a result does not depend on the order of the gallery, and a model that maps all images to one point scores
badly instead of by luck. (:func:`neighbour_overlap` needs exactly k neighbours and takes the lower gallery index of equal
scores, on both sides.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samespace.sdk.metrics.arrays import Labels, check_k, checked_pair, label_codes, row_chunks, same_rows

__all__ = ["average_precision", "first_match_rank", "neighbour_overlap", "recall_at_k"]


def first_match_rank(
    query: npt.NDArray[np.floating], gallery: npt.NDArray[np.floating], query_labels: Labels, gallery_labels: Labels
) -> npt.NDArray[np.int64]:
    """Rank (from 1) of the best gallery item with the query's label.

    Args:
        query: ``(n, d)`` unit-norm.
        gallery: ``(m, d)`` unit-norm.
        query_labels: n labels, each of which some gallery item has.
        gallery_labels: m labels.

    Returns:
        ``(n,)`` int64, ``1 + #(wrong items that score at least as high as the best right one)``.

    Raises:
        DataError: wrong shapes, or a query whose label no gallery item has.
        EmbeddingError: NaN, infinite or not unit-norm.
        SpaceMismatchError: the dimensions differ.
    """
    q, g = checked_pair(("query", "gallery"), query, gallery)
    q_codes, g_codes = label_codes(query_labels, gallery_labels, len(q), len(g))
    ranks = np.empty(len(q), np.int64)
    for rows in row_chunks(len(q), len(g)):
        scores = q[rows] @ g.T
        right = q_codes[rows, None] == g_codes[None, :]
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + ((scores >= best) & ~right).sum(axis=1)
    return ranks


def recall_at_k(
    query: npt.NDArray[np.floating],
    gallery: npt.NDArray[np.floating],
    query_labels: Labels,
    gallery_labels: Labels,
    k: int = 1,
) -> npt.NDArray[np.float64]:
    """1 where one of the k nearest gallery items has the query's label, else 0; the mean is R@k.

    Arguments and errors as :func:`first_match_rank`, and ConfigError unless ``1 <= k <= m``. Returns ``(n,)`` float64.
    """
    check_k(k, len(gallery))
    return (first_match_rank(query, gallery, query_labels, gallery_labels) <= k).astype(np.float64)


def average_precision(
    query: npt.NDArray[np.floating], gallery: npt.NDArray[np.floating], query_labels: Labels, gallery_labels: Labels
) -> npt.NDArray[np.float64]:
    """Average precision over the whole ranking; its mean is mAP.

    That is the mean over all right items of ``i / rank of the i-th right item``.

    Arguments and errors as :func:`first_match_rank`. Returns ``(n,)`` float64 in (0, 1].
    """
    q, g = checked_pair(("query", "gallery"), query, gallery)
    q_codes, g_codes = label_codes(query_labels, gallery_labels, len(q), len(g))
    precision = np.empty(len(q))
    for rows in row_chunks(len(q), len(g)):
        scores = q[rows] @ g.T
        for offset, (code, line) in enumerate(zip(q_codes[rows], scores, strict=True)):
            right = g_codes == code
            found = -np.sort(-line[right])
            wrong = line[~right]
            # Only the wrong items above the last right one push a right one down: far fewer than all of the gallery.
            wrong = np.sort(wrong[wrong >= found[-1]])
            position = np.arange(1, len(found) + 1)
            rank = position + len(wrong) - np.searchsorted(wrong, found, side="left")
            precision[rows.start + offset] = np.mean(position / rank)
    return precision


def neighbour_overlap(
    a: npt.NDArray[np.floating], b: npt.NDArray[np.floating], gallery: npt.NDArray[np.floating], k: int = 10
) -> npt.NDArray[np.float64]:
    """Share of the k nearest gallery items that ``a[i]`` and ``b[i]`` have in common. Needs no labels.

    Args:
        a: ``(n, d)`` unit-norm, e.g. the device's embeddings.
        b: ``(n, d)`` unit-norm, e.g. the reference's embeddings of the same images.
        gallery: ``(m, d)`` unit-norm.
        k: neighbours, ``1 <= k <= m``.

    Returns:
        ``(n,)`` float64 in [0, 1].

    Raises:
        ConfigError, DataError, EmbeddingError, SpaceMismatchError: as :func:`recall_at_k`.
    """
    left, right = checked_pair(("a", "b"), a, b)
    same_rows(left, right)
    left, g = checked_pair(("a", "gallery"), left, gallery)
    check_k(k, len(g))
    overlap = np.empty(len(left))
    for rows in row_chunks(len(left), len(g)):
        shared = _nearest(left[rows] @ g.T, k) & _nearest(right[rows] @ g.T, k)
        overlap[rows] = shared.sum(axis=1) / k
    return overlap


def _nearest(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.bool_]:
    """Mask of each row's k highest scores; of equal ones at the border, those of lower index."""
    border = np.partition(scores, -k, axis=1)[:, -k, None]
    chosen = scores >= border
    for row in np.flatnonzero(chosen.sum(axis=1) > k):
        tied = np.flatnonzero(scores[row] == border[row])
        room = k - int((scores[row] > border[row]).sum())
        chosen[row, tied[room:]] = False
    return chosen
