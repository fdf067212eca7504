"""Relational distillation: the same distances and angles within the batch. The negative control of this folder."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape

__all__ = ["Relational"]

Weight = Annotated[float, Field(ge=0)]

#: Embeddings nearer to each other than this count as so far apart in directions: keeps the gradient of near duplicates finite.
_NEAR = 1e-3


class Relational(CompatibilityLoss):
    r"""``w_d * mean_{i != j} h(d^e_ij, d^g_ij) + w_a * mean_{i != j != k} h(cos angle^e_ijk, cos angle^g_ijk)``.

    RKD (Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, eq. 5-9): d_ij is the distance of two
    images over the mean distance in the batch, angle_ijk is the one at j, both within one space, e the trained model's and g
    the partner's; h is the Huber loss with delta 1.

    **This is a negative control: it leaves the spaces unrelated.** Both terms stay the same under any rotation of the trained
    model's space, so a perfect score says nothing about comparisons across the spaces: by itself it gives the partner's
    geometry and asymmetric retrieval at chance. Use it to show that a measure of compatibility measures compatibility.

    Args:
        shape: not used.
        distance_weight: w_d, >= 0; 1 in the paper's metric learning.
        angle_weight: w_a, >= 0; 2 there.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    def __init__(self, shape: Shape, *, distance_weight: Weight = 1.0, angle_weight: Weight = 2.0) -> None:
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        own, its = batch.embedding, partner.embedding
        pairs = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        total = own.new_zeros(())
        if self.distance_weight:
            total = total + self.distance_weight * _huber(_distances(own, pairs), _distances(its, pairs), pairs)
        if self.angle_weight:
            triplets = pairs[:, :, None] & pairs[:, None, :] & pairs[None, :, :]
            total = total + self.angle_weight * _huber(_angles(own), _angles(its), triplets)
        return total


def _distances(rows: Tensor, pairs: Tensor) -> Tensor:
    """``(n, d)`` -> ``(n, n)`` distances over their mean; the diagonal, which ``pairs`` leaves out, is 0."""
    distances = torch.linalg.vector_norm(rows[:, None] - rows[None, :], dim=2)
    return distances / (distances.sum() / pairs.sum().clamp_min(1)).clamp_min(_NEAR)


def _angles(rows: Tensor) -> Tensor:
    """``(n, d)`` -> ``(n, n, n)`` [j, i, k]: cosine of the angle at j between the directions to i and to k."""
    directions = F.normalize(rows[None, :] - rows[:, None], dim=2, eps=_NEAR)
    return directions @ directions.transpose(1, 2)


def _huber(own: Tensor, its: Tensor, counted: Tensor) -> Tensor:
    """Mean over what is counted; 0 where nothing is."""
    return (F.smooth_l1_loss(own, its, reduction="none") * counted).sum() / counted.sum().clamp_min(1)
