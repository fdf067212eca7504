"""Contextual similarity distillation: see the neighbours of an image in the gallery as the partner sees them."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape
from samespace.sdk.errors import ConfigError

__all__ = ["ContextualSimilarity"]

Temperature = Annotated[float, Field(gt=0)]
Neighbours = Annotated[int, Field(ge=2)]


class ContextualSimilarity(CompatibilityLoss):
    r"""``mean_i KL(softmax(G_i g_i / t_p) || softmax(G_i e_i / t_o))``, with G_i the K gallery rows nearest to g_i.

    CSD (Wu et al., "Contextual Similarity Distillation for Asymmetric Image Retrieval", CVPR 2022): g_i is the partner's
    embedding of image i, e_i the trained model's, both compared with the *partner's* gallery: a term across the spaces, without
    labels. The image itself is the first of its neighbours. The lower the partner's temperature, the more the nearest ones
    count; published code has K = 96, t_p = 0.01 and t_o = 1. Cosines divided by 1 make a nearly uniform distribution over K, so
    that the gradient pulls towards the nearest neighbours with almost constant force, and the loss cannot come near 0; a lower
    t_o lets both fade as the two agree.

    Args:
        shape: not used.
        neighbours: K, at most the size of the gallery.
        partner_temperature: t_p, of cosines.
        temperature: t_o, of cosines.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING, Need.GALLERY})

    def __init__(
        self,
        shape: Shape,
        *,
        neighbours: Neighbours = 96,
        partner_temperature: Temperature = 0.01,
        temperature: Temperature = 1.0,
    ) -> None:
        super().__init__()
        self.neighbours, self.partner_temperature, self.temperature = neighbours, partner_temperature, temperature

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        rows = neighbourhood(batch, partner, self.neighbours)
        gallery = partner.gallery.embedding[rows]
        target = torch.einsum("nkd,nd->nk", gallery, partner.embedding) / self.partner_temperature
        seen = torch.einsum("nkd,nd->nk", gallery, batch.embedding) / self.temperature
        return F.kl_div(seen.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


def neighbourhood(batch: Batch, partner: Partner, count: int) -> Tensor:
    """``(n, min(count, N))`` int64 rows of the gallery: the image itself, then its nearest others in the partner's eyes.

    Raises:
        ConfigError: the batch does not say which rows its images are.
    """
    if batch.rows is None:
        raise ConfigError("a loss over the gallery's neighbours needs Batch.rows: which gallery rows the images are")
    gallery = partner.gallery.embedding
    with torch.no_grad():
        scores = partner.embedding @ gallery.T
        # Above any cosine: the augmented image may be nearer to another picture than to its own.
        scores.scatter_(1, batch.rows[:, None], 2.0)
        return scores.topk(min(count, len(gallery)), dim=1).indices
