"""M(a, b): retrieval quality with query encoder a and gallery encoder b, on the pictures a device would see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samespace.cloud.inputs import normalised
from samespace.edge.models.head import L2Norm
from samespace.sdk.errors import EmbeddingError
from samespace.sdk.metrics import Estimate, average_precision, bootstrap_mean, recall_at_k
from samespace.sdk.preprocess import Preprocess

__all__ = ["METRICS", "Measurement", "Scores", "embed", "measure", "score"]

#: Names of the metrics of a measurement, as they stand in ``matrices.json``.
METRICS = ("recall@1", "recall@5", "map")


@dataclass(frozen=True)
class Measurement:
    """One cell of the matrix.

    Attributes:
        query: name of the query model.
        gallery: name of the gallery model.
        split: ``test`` (unseen classes, for the final table) or ``validation`` (to choose by).
        adapter: what the query embeddings went through first, e.g. ``procrustes``; None for none.
        prefix: how many coordinates were compared, where that is less than the models have; None for all.
        metrics: name in :data:`METRICS` -> estimate with its 95 % interval over queries, as a share (0-1).
    """

    query: str
    gallery: str
    split: str
    adapter: str | None
    metrics: Mapping[str, Estimate]
    prefix: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; an estimate becomes ``{"value", "low", "high", "n"}``."""
        return {**asdict(self), "metrics": {name: asdict(estimate) for name, estimate in self.metrics.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measurement:
        """What :meth:`as_json` gave."""
        known = ("query", "gallery", "split", "adapter")
        metrics = {name: Estimate(**estimate) for name, estimate in value["metrics"].items()}
        return cls(**{name: value[name] for name in known}, metrics=metrics, prefix=value.get("prefix"))


class Scores(NamedTuple):
    """Per query, in the order of the queries: what paired statistics are made from.

    Attributes:
        recall1: ``(n,)`` float64, 1 where the first hit is right.
        recall5: the same for the first five.
        average_precision: ``(n,)`` float64 in (0, 1].
    """

    recall1: npt.NDArray[np.float64]
    recall5: npt.NDArray[np.float64]
    average_precision: npt.NDArray[np.float64]

    def estimates(self) -> dict[str, Estimate]:
        """Name in :data:`METRICS` -> mean with its 95 % bootstrap interval over the queries."""
        return {name: bootstrap_mean(values) for name, values in zip(METRICS, self, strict=True)}


def embed(
    model: nn.Module, pictures: npt.NDArray[np.uint8], preprocess: Preprocess, batch: int = 256
) -> npt.NDArray[np.float32]:
    """Unit-norm embeddings by a network of a model family, in evaluation mode, on the device where it is.

    Args:
        model: ``(n, 3, s, s)`` normalised float32 -> ``(n, d)``, as :class:`samespace.edge.models.registry.ModelFamily` says.
        pictures: ``(n, s, s, 3)`` uint8, what ``preprocess`` made of each picture.
        preprocess: the model's; its mean and std are applied here.
        batch: pictures at once.

    Returns:
        ``(n, d)`` float32.

    Raises:
        EmbeddingError: a row that is NaN, infinite or zero.
    """
    training = model.training
    device = next(model.parameters()).device
    tail = L2Norm()
    rows = []
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                part = torch.from_numpy(np.array(pictures[start : start + batch])).to(device)
                rows.append(tail(model(normalised(part, preprocess))).float().cpu().numpy())
    finally:
        model.train(training)
    embeddings = np.concatenate(rows)
    # Written so that NaN counts as wrong.
    wrong = np.flatnonzero(~(np.abs(np.linalg.norm(embeddings, axis=1) - 1) < 1e-3))
    if len(wrong):
        raise EmbeddingError(
            f"{len(wrong)} of {len(embeddings)} embeddings are NaN, infinite or zero (first: picture {wrong[0]}); "
            "the model has diverged: train it again with a lower learning_rate"
        )
    return embeddings


def score(
    query: npt.NDArray[np.floating],
    gallery: npt.NDArray[np.floating],
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
) -> Scores:
    """What each query finds.

    Args:
        query: ``(n, d)`` unit-norm.
        gallery: ``(m, d)`` unit-norm.
        query_labels: n labels, each of which the gallery has.
        gallery_labels: m labels.

    Raises:
        DataError, EmbeddingError, SpaceMismatchError: as :func:`samespace.sdk.metrics.recall_at_k`.
    """
    sides = query, gallery, list(query_labels), list(gallery_labels)
    return Scores(recall_at_k(*sides, k=1), recall_at_k(*sides, k=min(5, len(gallery))), average_precision(*sides))


def measure(
    query: npt.NDArray[np.floating],
    gallery: npt.NDArray[np.floating],
    query_labels: Sequence[str],
    gallery_labels: Sequence[str],
) -> dict[str, Estimate]:
    """All :data:`METRICS` with 95 % bootstrap intervals over the queries.

    Args:
        query: ``(n, d)`` unit-norm.
        gallery: ``(m, d)`` unit-norm.
        query_labels: n labels, each of which the gallery has.
        gallery_labels: m labels.

    Raises:
        DataError, EmbeddingError, SpaceMismatchError: as :func:`samespace.sdk.metrics.recall_at_k`.
    """
    return score(query, gallery, query_labels, gallery_labels).estimates()
