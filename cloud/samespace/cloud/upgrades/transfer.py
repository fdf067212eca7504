"""What an app built on the old model: its threshold, and the groups that it formed with it. Do they survive?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.cloud.upgrades.report import GroupTransfer, ThresholdTransfer
from samespace.sdk.errors import DataError
from samespace.sdk.metrics import Estimate, adjusted_rand_index, bootstrap_mean, pair_scores, threshold_at_far

__all__ = ["FAR", "form_groups", "group_transfer", "threshold_transfer"]

#: False accept rate whose threshold is transferred.
FAR = 1e-3
#: Gallery pictures that are grouped, at most: the work grows with their square.
GROUPED_MOST = 2000

Rows = npt.NDArray[np.float32]


def threshold_transfer(
    same: tuple[Rows, Rows],
    across: tuple[Rows, Rows],
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    far: float = FAR,
) -> ThresholdTransfer:
    """TAR and FAR at the old threshold, with old and new queries in the old gallery.

    Args:
        same: ``(n, d)`` queries and ``(m, d)`` gallery by the old model, unit-norm.
        across: ``(n, d')`` the same queries by the new model, and ``(m, d')`` the old gallery as they are compared with it.
        far: false accept rate, 0 < far < 1; intervals are over queries.

    Raises:
        DataError: fewer than ``1 / far`` pairs that do not belong together.
    """
    before, genuine = pair_scores(*same, list(query_labels), list(gallery_labels))
    after, _ = pair_scores(*across, list(query_labels), list(gallery_labels))
    threshold, advised = threshold_at_far(before[~genuine], far), threshold_at_far(after[~genuine], far)
    return ThresholdTransfer(
        far=far,
        threshold=threshold,
        tar_old=_accepted(before, genuine, threshold),
        far_old=_accepted(before, ~genuine, threshold),
        tar_new=_accepted(after, genuine, threshold),
        far_new=_accepted(after, ~genuine, threshold),
        advised=advised,
        tar_advised=_accepted(after, genuine, advised),
    )


def group_transfer(
    same: tuple[Rows, Rows],
    across: tuple[Rows, Rows],
    new_gallery: Rows,
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
    threshold: float,
) -> GroupTransfer:
    """Group the gallery by the old and by the new model, and put new photos to yesterday's groups by either's queries.

    Args:
        same, across: as :func:`threshold_transfer`.
        new_gallery: ``(m, d'')`` the gallery by the new model.
        threshold: cosine at which the old model joins.
    """
    kept = slice(GROUPED_MOST)
    labels = np.asarray(gallery_labels[kept])
    before, after = form_groups(same[1][kept], threshold), form_groups(new_gallery[kept], threshold)
    wrong = [
        _misplaced(query, query_labels, *_centres(gallery[kept], before, labels), threshold)
        for query, gallery in (same, across)
    ]
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
    scores = queries @ centres.T
    nearest, joins = scores.argmax(axis=1), scores.max(axis=1) >= threshold
    found = [names[group] if joined else None for group, joined in zip(nearest, joins, strict=True)]
    # A photo of a class that has no group is right to join none.
    expected = [label if label in names else None for label in labels]
    return np.asarray([group != wanted for group, wanted in zip(found, expected, strict=True)], np.float64)
