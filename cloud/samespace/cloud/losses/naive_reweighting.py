"""Learn once more what the old model knew: the baseline of positive-congruent training."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Scale, Shape
from samespace.cloud.losses.focal_distillation import right_before
from samespace.sdk.errors import ConfigError

__all__ = ["NaiveReweighting"]


class NaiveReweighting(CompatibilityLoss):
    r"""``mean_i c_i [argmax z^o_i = y_i] CE(s cos(e_i, W), y_i)``, with W the model's own class weights.

    The "naive" variant of PCT (Yan et al., CVPR 2021, arXiv 2011.09161, section 4): images about which the partner is right
    count more. It learns the label once more, not how the old model saw it, and cuts few flips: a baseline for
    :class:`~samespace.cloud.losses.focal_distillation.FocalDistillation`.

    Args:
        shape: not used.
        scale: s, the inverse temperature, > 0.

    Raises:
        ConfigError: the model has no class weights.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING, Need.HEAD})
    joins: ClassVar[bool] = False

    def __init__(self, shape: Shape, *, scale: Scale = 16.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        if batch.head is None:
            raise ConfigError("naive_reweighting weighs the model's own classification: give the model cosine_softmax, too")
        terms = F.cross_entropy(self.scale * batch.embedding @ batch.head.T, batch.labels, reduction="none")
        costs = 1.0 if batch.costs is None else batch.costs
        return (costs * right_before(batch, partner) * terms).mean()
