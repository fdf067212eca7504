"""Pointwise regression to the partner's embedding of the same augmented image."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape

__all__ = ["Regression"]


class Regression(CompatibilityLoss):
    """``mean_i (1 - cos(e_i, g_i))``, with g_i the partner's embedding of the same augmented image.

    FitNet-like regression (Romero et al., ICLR 2015) as asymmetric metric learning uses it (Budnik & Avrithis, CVPR 2021:
    "regression alone is best for asymmetric testing"). Needs no labels. Of unit vectors it is half the squared distance.

    Args:
        shape: not used.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    def __init__(self, shape: Shape) -> None:
        super().__init__()

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        return (1 - (batch.embedding * partner.embedding).sum(1)).mean()
