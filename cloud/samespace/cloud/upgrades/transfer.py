"""What an app built on the old model: its threshold, and the groups that it formed with it. Do they survive?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.cloud.upgrades.report import GroupTransfer, ThresholdTransfer
from samespace.sdk.errors import DataError
from samespace.sdk.metrics import Estimate, adjusted_rand_index, bootstrap_mean, pair_scores, threshold_at_far
from samespace.sdk.prefix import comparable

__all__ = ["FAR", "form_groups", "group_transfer", "threshold_transfer"]

#: False accept rate whose threshold is transferred.
FAR = 1e-3
#: Gallery pictures that are grouped, at most: the work grows with their square.
GROUPED_MOST = 2000

Rows = npt.NDArray[np.float32]


def threshold_transfer(
    old_query: Rows,
    new_query: Rows,
    old_gallery: Rows,
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    far: float = FAR,
) -> ThresholdTransfer:
    """TAR and FAR at the old threshold, with old and new queries in the old gallery.

    Args:
        old_query: ``(n, d)`` unit-norm, by the old model.
        new_query: ``(n, d')`` the same pictures by the new one; compared on the coordinates that both have.
        old_gallery: ``(m, d)`` by the old model.
        far: false accept rate, 0 < far < 1; intervals are over queries.

    Raises:
        DataError: fewer than ``1 / far`` pairs that do not belong together.
    """
    before, same = pair_scores(old_query, old_gallery, list(query_labels), list(gallery_labels))
    after, _ = pair_scores(*comparable(new_query, old_gallery), list(query_labels), list(gallery_labels))
    threshold, advised = threshold_at_far(before[~same], far), threshold_at_far(after[~same], far)
    return ThresholdTransfer(
        far=far,
        threshold=threshold,
        tar_old=_accepted(before, same, threshold),
        far_old=_accepted(before, ~same, threshold),
        tar_new=_accepted(after, same, threshold),
        far_new=_accepted(after, ~same, threshold),
        advised=advised,
        tar_advised=_accepted(after, same, advised),
    )


def group_transfer(
    old_query: Rows,
    new_query: Rows,
    old_gallery: Rows,
    new_gallery: Rows,
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    threshold: float,
) -> GroupTransfer:
    """Group the gallery by the old and by the new model, and put new photos to yesterday's groups by either's queries.

    Args:
        old_query, old_gallery: ``(n, d)`` and ``(m, d)`` unit-norm, by the old model.
        new_query, new_gallery: ``(n, d')`` and ``(m, d')`` by the new one.
        threshold: cosine at which the old model joins.
    """
    kept = slice(GROUPED_MOST)
    labels = np.asarray(gallery_labels[kept])
    before, after = form_groups(old_gallery[kept], threshold), form_groups(new_gallery[kept], threshold)
    centres, names = _centres(old_gallery[kept], before, labels)
    wrong = [_misplaced(rows, query_labels, centres, names, threshold) for rows in (old_query, new_query)]
    return GroupTransfer(
        items=len(labels),
        groups_old=int(before.max()) + 1,
        groups_new=int(after.max()) + 1,
        threshold=threshold,
        agreement=adjusted_rand_index(before, after),
        truth_old=adjusted_rand_index(before, labels),
        truth_new=adjusted_rand_index(after, labels),
        rule_error_old=bootstrap_mean(wrong[0]),
        rule_error_new=bootstrap_mean(wrong[1]),
    )


def form_groups(rows: Rows, threshold: float) -> npt.NDArray[np.int64]:
    """Average-linkage groups: two are joined while the mean cosine between their members is at least ``threshold``.

    Args:
        rows: ``(m, d)`` unit-norm, m >= 2.

    Returns:
        ``(m,)`` int64, group numbers from 0.

    Raises:
        DataError: fewer than two rows.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(rows) < 2:
        raise DataError(f"groups need at least two pictures, got {len(rows)}")
    tree = linkage(rows.astype(np.float64), method="average", metric="cosine")
    return np.asarray(fcluster(tree, 1 - threshold, criterion="distance"), np.int64) - 1


def _accepted(scores: npt.NDArray[np.float32], chosen: npt.NDArray[np.bool_], threshold: float) -> Estimate:
    """Share of the chosen pairs at or above the threshold; whole queries are resampled, since their pairs hang together."""
    hits = ((scores >= threshold) & chosen).sum(axis=1).astype(np.float64)
    pairs = chosen.sum(axis=1).astype(np.float64)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(1000):
        drawn = generator.integers(0, len(pairs), len(pairs))
        means.append(hits[drawn].sum() / max(pairs[drawn].sum(), 1.0))
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(hits.sum() / pairs.sum()), float(low), float(high), len(pairs))


def _centres(rows: Rows, groups: npt.NDArray[np.int64], labels: npt.NDArray[np.str_]) -> tuple[Rows, list[str]]:
    """Each group's mean direction, and the class that most of its pictures have."""
    centres, names = [], []
    for group in range(groups.max() + 1):
        members = groups == group
        total = rows[members].sum(axis=0)
        centres.append(total / max(float(np.linalg.norm(total)), 1e-12))
        values, counts = np.unique(labels[members], return_counts=True)
        names.append(str(values[counts.argmax()]))
    return np.stack(centres).astype(np.float32), names


def _misplaced(
    queries: Rows, labels: Sequence[str], centres: Rows, names: Sequence[str], threshold: float
) -> npt.NDArray[np.float64]:
    """``(n,)`` 1 where a photo goes to a group of another class, or to none although its class was there."""
    rows, columns = comparable(queries, centres)
    scores = rows @ columns.T
    nearest, joins = scores.argmax(axis=1), scores.max(axis=1) >= threshold
    found = [names[group] if joined else None for group, joined in zip(nearest, joins, strict=True)]
    # A photo of a class that has no group is right to join none.
    expected = [label if label in names else None for label in labels]
    return np.asarray([group != wanted for group, wanted in zip(found, expected, strict=True)], np.float64)
