"""Regression-alleviating compatible training: find the right item in a gallery that is half old, half new."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape

__all__ = ["RegressionAlleviating"]

Temperature = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RegressionAlleviating(CompatibilityLoss):
    r"""``mean_i -log (p_i / (p_i + sum_{top k old} exp(e_i g_j / t) + sum_{top k new} exp(e_i e_j / t)))``.

    With ``p_i = exp(e_i g_i / t)``.
    RACT (Zhang et al., "Hot-Refresh Model Upgrades with Regression-Alleviating Compatible Training in Image Retrieval", ICLR
    2022, arXiv 2201.09724): in the middle of a backfill a query meets negatives of both kinds. Its old positive must stand
    above old *and new* ones, else re-embedding a wrong item takes a right answer away. Negatives are the batch's images of
    other classes, the k nearest of each kind.

    Args:
        shape: not used.
        temperature: t, of cosines. Published code has 0.01.
        top: k.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    def __init__(self, shape: Shape, *, temperature: Temperature = 0.05, top: Count = 10) -> None:
        super().__init__()
        self.temperature, self.top = temperature, top

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        own, old = batch.embedding, partner.embedding
        positive = (own * old).sum(1) / self.temperature
        same = batch.labels[:, None] == batch.labels[None, :]
        negatives = torch.cat([self._nearest(own @ side.T, same) for side in (old, own)], 1)
        return F.softplus(negatives.logsumexp(1) - positive).mean()

    def _nearest(self, cosines: Tensor, same: Tensor) -> Tensor:
        """``(n, min(k, n))`` scores of the nearest of other classes; a finite floor where there are fewer."""
        scores = (cosines / self.temperature).masked_fill(same, torch.finfo(cosines.dtype).min)
        return scores.topk(min(self.top, scores.shape[1]), dim=1).values
