"""Learning compatible embeddings: old class centres as own class weights, and no image farther out than the old ones were."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Gallery, Need, Partner, Shape
from samespace.sdk.errors import ConfigError

__all__ = ["CompatibleEmbedding", "class_centres"]

Weight = Annotated[float, Field(ge=0)]


class CompatibleEmbedding(CompatibilityLoss):
    r"""``a mean_c,k (W_ck - C_ck)^2 + b mean_i max(0, r_{y_i} - e_i C_{y_i})``.

    LCE (Meng et al., "Learning Compatible Embeddings", ICCV 2021, arXiv 2108.01958): *alignment* of the model's own class
    weights W with the centres C of the old embeddings of each class, and a *boundary*: within its class no image may lie
    farther from the old centre than the farthest old one, whose cosine is r. Classes that are new have old centres too, of
    their training images.

    Args:
        shape: not used.
        alignment: a; 100 in published code.
        boundary: b.
        outliers: whether r is the least cosine of all. Otherwise what lies more than 1.5 interquartile ranges below the first
            quartile does not count: old embeddings of wrong labels would open a class to everything.

    Raises:
        ConfigError: the model has no class weights, and ``alignment`` is not 0.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.GALLERY})

    def __init__(self, shape: Shape, *, alignment: Weight = 100.0, boundary: Weight = 1.0, outliers: bool = False) -> None:
        super().__init__()
        self.alignment, self.boundary, self.outliers = alignment, boundary, outliers
        #: Width -> centres and radii. The partner stands still, so they are worked out once.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        centres, radii = self._classes(partner.gallery)
        inside = (batch.embedding * centres[batch.labels]).sum(1)
        loss = self.boundary * (radii[batch.labels] - inside).clamp(min=0).mean()
        if not self.alignment:
            return loss
        if batch.head is None:
            raise ConfigError("lce aligns the model's own class weights: give it cosine_softmax, too, or set alignment = 0")
        return loss + self.alignment * F.mse_loss(batch.head, centres)

    def _classes(self, gallery: Gallery) -> tuple[Tensor, Tensor]:
        """``(classes, d)`` centres and ``(classes,)`` radii as cosines."""
        width = gallery.embedding.shape[1]
        if width not in self._known:
            classes = int(gallery.labels.max()) + 1
            centres = class_centres(gallery, classes)
            cosines = (gallery.embedding * centres[gallery.labels]).sum(1)
            radii = [_least(cosines[gallery.labels == label], self.outliers) for label in range(classes)]
            self._known[width] = centres, torch.stack(radii)
        return self._known[width]


def class_centres(gallery: Gallery, classes: int) -> Tensor:
    """``(classes, d)`` unit rows: the mean embedding of every class; zero where there is none."""
    sums = gallery.embedding.new_zeros(classes, gallery.embedding.shape[1])
    return F.normalize(sums.index_add_(0, gallery.labels, gallery.embedding), dim=1)


def _least(cosines: Tensor, outliers: bool) -> Tensor:
    """The least cosine of a class; without outliers, not below Tukey's lower fence."""
    if outliers:
        return cosines.min()
    first, third = cosines.quantile(0.25), cosines.quantile(0.75)
    return torch.maximum(cosines.min(), first - 1.5 * (third - first))
