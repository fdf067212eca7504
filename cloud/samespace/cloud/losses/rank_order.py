"""Rank order preservation: rank the partner's gallery as the partner ranks it."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape
from samespace.cloud.losses.csd import neighbourhood

__all__ = ["RankOrder"]

Temperature = Annotated[float, Field(gt=0)]
Neighbours = Annotated[int, Field(ge=2)]


class RankOrder(CompatibilityLoss):
    r"""``mean_i 1/K^2 sum_{a,b} (H(g_ib - g_ia) - sigmoid((s_ib - g_ia) / t))^2`` over the partner's K nearest gallery rows.

    Of image i and its neighbours a, b: g is the partner's cosine, s the trained model's, both with the *partner's* row; H is
    the step function, H(0) = 1/2. Row a of the inner sum says which neighbours come before a's place in the partner's list: its
    total is a soft rank. On which side of each place a neighbour falls is all that it asks, which is easier for a small model
    than equal similarities; it needs no labels.

    After ROP (Wu et al., "A General Rank Preserving Framework for Asymmetric Image Retrieval", ICLR 2023), of which the
    abstract and a published re-implementation could be read; form used here: its indicator matrices (t = 0.1; there K = 96),
    all pairs with equal weight, where the re-implementation weighs row a by its position in the list times a flat softmax of
    g_ia, and K = 32, since the cost grows with its square. The value stays in [0, 1] and is not 0 for equal embeddings, since
    the sigmoid is soft: there it still pulls neighbours apart.

    Args:
        shape: not used.
        neighbours: K, at most the size of the gallery; the image itself is the first of them.
        temperature: t, of differences of cosines.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING, Need.GALLERY})

    def __init__(self, shape: Shape, *, neighbours: Neighbours = 32, temperature: Temperature = 0.1) -> None:
        super().__init__()
        self.neighbours, self.temperature = neighbours, temperature

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        gallery = partner.gallery.embedding[neighbourhood(batch, partner, self.neighbours)]
        theirs = (gallery * partner.embedding[:, None]).sum(2)
        ours = (gallery * batch.embedding[:, None]).sum(2) / self.temperature
        before = (1 + torch.sign(theirs[:, None, :] - theirs[:, :, None])) / 2
        soft = torch.sigmoid(ours[:, None, :] - (theirs / self.temperature)[:, :, None])
        return F.mse_loss(soft, before)
