"""Decoupled differences: between neighbours, differ in similarity as the partner does, first of all in the sign."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape

__all__ = ["RankDifference"]

Neighbours = Annotated[int, Field(ge=3)]
Part = Annotated[float, Field(ge=0)]

#: Added to the partner's difference, so that near ties do not outweigh everything; the published constant.
_SOFTENING = 0.1


class RankDifference(CompatibilityLoss):
    r"""``alpha * rms_i(1 - s_ii) + mean_i (beta * |D_i[wrong]| + gamma * |D_i[right]|) / (K - 1)``.

    s_ij = e_i . g_j, c_ij = g_i . g_j; a, b run over the K - 1 images of the batch that the partner finds nearest to i (the
    hardest to tell from it), i itself not among them. ``D_i[a, b] = (ds - dc) / (0.1 + |dc|)`` with ds = s_ia - s_ib and dc =
    c_ia - c_ib is how far the two spaces differ over that pair of neighbours; *wrong* are the pairs that the trained model has
    in the other order (ds dc < 0), *right* those in the same, ties are in neither; |.| is the Euclidean norm over the pairs.
    The first part is the agreement of the features themselves.

    D3still (Xie et al., "Decoupled Differential Distillation for Asymmetric Image Retrieval", CVPR 2024), read from its
    published code: K = 10 and alpha, beta, gamma = 50, 2, 1. There the first norm is divided by the batch size n, here by its
    root, so that the balance does not depend on n: 50 / n of a norm is 3.125 of a root mean square at their n = 256.

    Args:
        shape: not used.
        neighbours: K, the image itself counted; at most the batch.
        feature: alpha.
        wrong: beta, for pairs in the wrong order.
        right: gamma, for pairs in the right order.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    def __init__(
        self, shape: Shape, *, neighbours: Neighbours = 10, feature: Part = 3.125, wrong: Part = 2.0, right: Part = 1.0
    ) -> None:
        super().__init__()
        self.neighbours, self.feature, self.wrong, self.right = neighbours, feature, wrong, right

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        cross = batch.embedding @ partner.embedding.T
        reference = partner.embedding @ partner.embedding.T
        count = min(self.neighbours, len(reference)) - 1
        feature = torch.linalg.vector_norm(1 - cross.diagonal()) / len(cross) ** 0.5
        if count < 2:
            return self.feature * feature
        nearest = reference.clone().fill_diagonal_(-2.0).topk(count, dim=1).indices
        theirs, ours = reference.gather(1, nearest), cross.gather(1, nearest)
        expected = (theirs[:, :, None] - theirs[:, None, :]).flatten(1)
        found = (ours[:, :, None] - ours[:, None, :]).flatten(1)
        apart = (found - expected) / (_SOFTENING + expected.abs())
        agreement = torch.sign(found.detach() * expected)
        wrong = torch.linalg.vector_norm(apart * (agreement < 0), dim=1).mean()
        right = torch.linalg.vector_norm(apart * (agreement > 0), dim=1).mean()
        return self.feature * feature + (self.wrong * wrong + self.right * right) / count
