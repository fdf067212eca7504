"""The retrieval layer: what the device's queries find in the cloud's gallery, beside what the reference's find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.report import Comparison, Hits, RetrievalLayer, Settings, Verification, WorstCase
from samespace.sdk.errors import DataError
from samespace.sdk.metrics import (
    Estimate,
    average_precision,
    bootstrap_mean,
    first_match_rank,
    negative_flips,
    neighbour_overlap,
    pair_scores,
    paired_bootstrap,
    relative_negative_flip_rate,
    threshold_at_far,
)
from samespace.sdk.probes import ProbeSet

__all__ = ["measure_retrieval"]

_Embeddings = npt.NDArray[np.float32]


def measure_retrieval(device: _Embeddings, probes: ProbeSet, gallery: GallerySample, settings: Settings) -> RetrievalLayer:
    """Search the gallery with the device's and with the reference's embeddings of the same probes.

    Args:
        device: ``(n, d)`` unit-norm.
        probes: references and labels; a probe whose label the gallery does not have counts for the overlap only.
        gallery: what to search.
        settings: seeds and sizes.
    """
    k = min(settings.overlap_k, len(gallery.embeddings))
    overlap = neighbour_overlap(device, probes.reference, gallery.embeddings, k)
    mean = _bootstrap(settings)
    common = {
        "gallery": gallery.source,
        "gallery_model_id": gallery.model_id,
        "gallery_size": len(gallery.embeddings),
        "overlap_k": k,
        "overlap": mean(overlap),
        "overlaps": tuple(overlap.tolist()),
        "worst": WorstCase.lowest(overlap, settings.worst_cases),
    }
    rows = _judgeable(probes.probe_labels, gallery.labels)
    if not len(rows) or probes.probe_labels is None or gallery.labels is None:
        return RetrievalLayer(**common)

    labels = [probes.probe_labels[row] for row in rows]

    def ranks(embeddings: _Embeddings) -> npt.NDArray[np.int64]:
        return first_match_rank(embeddings[rows], gallery.embeddings, labels, gallery.labels or ())

    def precision(embeddings: _Embeddings) -> npt.NDArray[np.float64]:
        return average_precision(embeddings[rows], gallery.embeddings, labels, gallery.labels or ())

    device_rank, reference_rank, cloud_rank = ranks(device), ranks(probes.reference), ranks(probes.cloud)
    flips = negative_flips(reference_rank == 1, device_rank == 1)
    recall_k = [k for k in settings.recall_k if k <= len(gallery.embeddings)]
    return RetrievalLayer(
        **common,
        queries=len(rows),
        recall={k: _compare(device_rank <= k, reference_rank <= k, settings) for k in recall_k},
        cloud_recall={k: mean(cloud_rank <= k) for k in recall_k},
        chance=_chance(labels, gallery.labels),
        mean_average_precision=_compare(precision(device), precision(probes.reference), settings),
        verification=_verify(device[rows], probes.reference[rows], labels, gallery, settings),
        negative_flips=mean(flips),
        relative_negative_flips=relative_negative_flip_rate(reference_rank == 1, device_rank == 1),
        hits=Hits(
            probe=tuple(rows.tolist()),
            device=tuple((device_rank == 1).tolist()),
            reference=tuple((reference_rank == 1).tolist()),
            cloud=tuple((cloud_rank == 1).tolist()),
        ),
    )


def _bootstrap(settings: Settings) -> Callable[[npt.ArrayLike], Estimate]:
    return lambda values: bootstrap_mean(values, settings.n_boot, settings.seed, settings.confidence)


def _compare(device: npt.ArrayLike, reference: npt.ArrayLike, settings: Settings) -> Comparison:
    mean = _bootstrap(settings)
    return Comparison(
        device=mean(device),
        reference=mean(reference),
        difference=paired_bootstrap(device, reference, settings.n_boot, settings.seed, settings.confidence),
    )


def _judgeable(queries: tuple[str, ...] | None, gallery: tuple[str, ...] | None) -> npt.NDArray[np.int64]:
    """Positions of the probes whose label the gallery has, too."""
    known = set(gallery or ())
    return np.array([index for index, label in enumerate(queries or ()) if label in known], np.int64)


def _chance(queries: list[str], gallery: tuple[str, ...]) -> float:
    labels, counts = np.unique(np.asarray(gallery), return_counts=True)
    share = dict(zip(labels.tolist(), (counts / len(gallery)).tolist(), strict=True))
    return float(np.mean([share[label] for label in queries]))


def _verify(
    device: _Embeddings, reference: _Embeddings, labels: list[str], gallery: GallerySample, settings: Settings
) -> Verification | None:
    """None where there are too few impostor pairs for the false accept rate."""
    scores, genuine = pair_scores(reference, gallery.embeddings, labels, gallery.labels or ())
    try:
        threshold = threshold_at_far(scores[~genuine], settings.far)
    except DataError:
        return None

    def accepted(values: _Embeddings) -> npt.NDArray[np.float64]:
        return ((values >= threshold) & genuine).sum(axis=1) / genuine.sum(axis=1)

    device_scores, _ = pair_scores(device, gallery.embeddings, labels, gallery.labels or ())
    return Verification(
        far=settings.far,
        threshold=threshold,
        device_far=float(np.mean(device_scores[~genuine] >= threshold)),
        tar=_compare(accepted(device_scores), accepted(scores), settings),
    )
