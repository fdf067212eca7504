"""Classification by the partner's frozen head: the trained model must be readable by what the cloud model learnt."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Margin, Need, Partner, Scale, Shape, Smoothing
from samespace.cloud.losses.cosine_softmax import cosine_cross_entropy

__all__ = ["PartnerHead"]


class PartnerHead(CompatibilityLoss):
    r"""``mean_i -log softmax_y(s * (cos(e_i, W^g_c) - m * [c = y_i]))``, with W^g the partner's class weights, frozen.

    The influence loss of BCT (Shen et al., CVPR 2020, arXiv 2003.11942) with the gallery model's classifier in the place of
    the old one: the weight-level term of HVS (Duggal et al., CVPR 2021, arXiv 2105.06047). Normalised heads matter: with an
    ordinary linear head BCT's own figures are several points lower. Scale and margin are those the partner was trained with.

    Args:
        shape: not used; the head is the partner's.
        scale: s, > 0.
        margin: m in cosine units, >= 0.
        label_smoothing: in [0, 1).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.HEAD})

    def __init__(self, shape: Shape, *, scale: Scale = 16.0, margin: Margin = 0.0, label_smoothing: Smoothing = 0.0) -> None:
        super().__init__()
        self.scale, self.margin, self.label_smoothing = scale, margin, label_smoothing

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        return cosine_cross_entropy(batch, partner.head, self.scale, self.margin, self.label_smoothing)
