"""Logit difference inhibition: stay near the mean of an ensemble, release after release."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Scale, Shape
from samespace.sdk.errors import ConfigError

__all__ = ["LogitDifference"]

Slack = Annotated[float, Field(ge=0)]
Power = Annotated[float, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class LogitDifference(CompatibilityLoss):
    r"""``mean_i mean_{k in S_i} max(|z_ik - t_ik| - slack, 0)^power``, with t the teachers' mean logits.

    LDI and ELODI (Zhao et al., "ELODI: Ensemble Logit Difference Inhibition for Positive-Congruent Training", TPAMI 2024, arXiv
    2205.06265): members of an ensemble of the model's own kind scatter around its mean, so if old and new model are both
    distilled from their ensembles, they differ by less, and fewer predictions flip. Used for *every* release; it needs no
    model of before. The teachers are the recipe's ``teachers``: one makes it LDI, several ELODI.

    Args:
        shape: not used.
        slack: xi, what a logit may differ at no cost, >= 0; published: 0.5 with one teacher, 0 to 0.2 with an ensemble.
        power: p.
        top: S_i are the teachers' so many highest logits of the image; 0 for all classes.
        true_class: whether the labelled class is in S_i; published code with an ensemble leaves it out.
        scale: of cosines into logits; the teachers' logits have that of their own training.

    Raises:
        ConfigError: the model has no class weights.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHERS})
    joins: ClassVar[bool] = False

    def __init__(
        self,
        shape: Shape,
        *,
        slack: Slack = 0.0,
        power: Power = 2.0,
        top: Count = 0,
        true_class: bool = True,
        scale: Scale = 16.0,
    ) -> None:
        super().__init__()
        self.slack, self.power, self.top, self.true_class, self.scale = slack, power, top, true_class, scale

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        if batch.head is None:
            raise ConfigError(
                "logit_difference compares the model's own logits with its teachers': give it cosine_softmax, too"
            )
        taught = partner.teachers
        over = (self.scale * batch.embedding @ batch.head.T - taught).abs() - self.slack
        kept = taught.new_ones(taught.shape)
        if not self.true_class:
            kept = 1 - F.one_hot(batch.labels, taught.shape[1]).to(taught.dtype)
        if 0 < self.top < taught.shape[1]:
            ranked = taught.masked_fill(kept == 0, -float("inf")).topk(self.top, dim=1).indices
            kept = kept * kept.new_zeros(kept.shape).scatter(1, ranked, 1.0)
        return ((over.clamp(min=0) ** self.power * kept).sum(1) / kept.sum(1)).mean()
