"""The hardest queries: those that the reference decides most narrowly. Easy ones survive any damage."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.report import Comparison, HardQueries, RetrievalLayer, Settings
from samespace.sdk.metrics import bootstrap_mean, paired_bootstrap
from samespace.sdk.metrics.arrays import row_chunks
from samespace.sdk.probes import ProbeSet

__all__ = ["hard_queries", "label_margins", "rank_margins"]


def hard_queries(layer: RetrievalLayer, probes: ProbeSet, gallery: GallerySample, settings: Settings) -> HardQueries | None:
    """What a measured layer says of its hardest queries.

    With labels these are the queries whose nearest right and nearest wrong item score most alike, whichever comes first: a
    query that the reference only just gets wrong is as easily turned as one that it only just gets right. (The smallest
    *signed* margins would be those that the reference gets wrong by far; nothing can be lost there.) Without labels, rank 1
    and rank 2 take the place of right and wrong.

    Args:
        layer: measured in any gallery.
        probes: references and labels.
        gallery: by which the margins are taken; of a service, the bundle's sample.
        settings: share and resampling.

    Returns:
        None where no query has a margin (a gallery of one item).
    """
    if layer.hits is not None and probes.probe_labels is not None and gallery.labels is not None:
        rows = np.asarray(layer.hits.probe)
        labels = tuple(probes.probe_labels[row] for row in rows)
        margins = label_margins(probes.reference[rows], labels, gallery)
        by = "labels"
    else:
        rows, margins, by = np.arange(len(probes)), rank_margins(probes.reference, gallery), "ranks"
    count = min(math.ceil(settings.hard_share * len(rows)), int(np.isfinite(margins).sum()))
    if not count:
        return None
    chosen = np.argsort(margins, kind="stable")[:count]
    resampling = (settings.n_boot, settings.seed, settings.confidence)
    recall = None
    if by == "labels" and layer.hits is not None:
        device, reference = np.asarray(layer.hits.device)[chosen], np.asarray(layer.hits.reference)[chosen]
        recall = Comparison(
            device=bootstrap_mean(device, *resampling),
            reference=bootstrap_mean(reference, *resampling),
            difference=paired_bootstrap(device, reference, *resampling),
        )
    return HardQueries(
        by=by,
        margin=float(margins[chosen[-1]]),
        probe=tuple(rows[chosen].tolist()),
        overlap=bootstrap_mean(np.asarray(layer.overlaps)[rows[chosen]], *resampling),
        recall=recall,
    )


def label_margins(queries: npt.NDArray[np.float32], labels: tuple[str, ...], gallery: GallerySample) -> npt.NDArray[np.float64]:
    """Distance between the scores of the nearest right and the nearest wrong item.

    Args:
        queries: ``(n, d)`` unit-norm.
        labels: of the queries.
        gallery: with labels.

    Returns:
        ``(n,)`` float64, not negative; infinite where the gallery has no right item, or no wrong one.
    """
    right = np.asarray(labels)[:, None] == np.asarray(gallery.labels)[None, :]
    margins = np.empty(len(queries))
    for rows in row_chunks(len(queries), len(gallery.embeddings)):
        scores = queries[rows] @ gallery.embeddings.T
        best = [np.where(mask, scores, -np.inf).max(axis=1).astype(np.float64) for mask in (right[rows], ~right[rows])]
        margins[rows] = np.abs(best[0] - best[1])
    return margins


def rank_margins(queries: npt.NDArray[np.float32], gallery: GallerySample) -> npt.NDArray[np.float64]:
    """Distance between the scores of rank 1 and rank 2, ``(n,)`` float64; infinite in a gallery of one item."""
    if len(gallery.embeddings) < 2:
        return np.full(len(queries), np.inf)
    margins = np.empty(len(queries))
    for rows in row_chunks(len(queries), len(gallery.embeddings)):
        best = np.partition(queries[rows] @ gallery.embeddings.T, -2, axis=1)[:, -2:].astype(np.float64)
        margins[rows] = best[:, 1] - best[:, 0]
    return margins
