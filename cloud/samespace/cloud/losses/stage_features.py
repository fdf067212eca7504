"""Feature maps of the stages alike: which stage of one architecture belongs to which of another, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log2
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape, StageShape
from samespace.sdk.errors import ConfigError

__all__ = ["StageFeatures", "match_stages"]


class StageFeatures(CompatibilityLoss):
    r"""``mean over matched stages, images, positions of 1 - cos(P_s f_s, pool(f^g_s'))``.

    Hints (FitNets, Romero et al., ICLR 2015, arXiv 1412.6550, eq. 3) with the squared error of unit vectors, halved, in the
    place of the plain one: scales of the two networks do not matter. Stages are paired by :func:`match_stages`; P_s is a 1x1
    convolution from the trained model's channels to the partner's, learnt here and so no part of the model; the partner's map
    is pooled to the size of the trained model's, whatever the two sizes are.

    Alone it says nothing about embeddings, only about what leads to them: add it to a loss on these.

    Args:
        shape: stages of both models.

    Raises:
        ConfigError: one of the models gives no feature maps.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.STAGES})
    on_embedding: ClassVar[bool] = False

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        for whose, stages in (("the trained model", shape.stages), ("the cloud model", shape.partner_stages)):
            if not stages:
                raise ConfigError(
                    f"loss stage_features: {whose} gives no feature maps: its family has no stages; choose a family that has "
                    "(residual, inverted_residual, mobile), or leave the loss out"
                )
        self.pairs = match_stages(shape.stages, shape.partner_stages)
        self.projections = nn.ModuleList(
            nn.Conv2d(shape.stages[own].channels, shape.partner_stages[its].channels, 1) for own, its in self.pairs
        )

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        terms = [
            _distance(projection(batch.stages[own]), partner.stages[its])
            for projection, (own, its) in zip(self.projections, self.pairs, strict=True)
        ]
        return torch.stack(terms).mean()


def match_stages(own: Sequence[StageShape], partner: Sequence[StageShape]) -> tuple[tuple[int, int], ...]:
    """Which stage of the one model belongs to which of the other.

    Each stage of the model that has fewer gets one of the other's, later ones to later ones. Among all such pairings the one
    with the least total of ``|log2|`` of stride ratios is taken: maps of equal resolution belong together. Where strides leave
    it open, total difference of relative depth (stage i of n is at i/n) decides, then the earlier stage.

    Args:
        own: stages of one model, first stage first.
        partner: of the other.

    Returns:
        Pairs of indices (own, partner), ascending in both; as many as the model with fewer stages has.
    """
    count = min(len(own), len(partner))

    def cost(pairs: tuple[tuple[int, int], ...]) -> tuple[float, float]:
        octaves = sum(abs(log2(own[i].stride / partner[j].stride)) for i, j in pairs)
        depth = sum(abs((i + 1) / len(own) - (j + 1) / len(partner)) for i, j in pairs)
        return round(octaves, 6), round(depth, 6)  # sums in another order must not decide

    pairings = (
        tuple(zip(mine, its, strict=True))
        for mine in combinations(range(len(own)), count)
        for its in combinations(range(len(partner)), count)
    )
    return min(pairings, key=cost)


def _distance(own: Tensor, its: Tensor) -> Tensor:
    """Mean cosine distance per position of ``(n, c, h, w)`` and ``(n, c, h', w')``, the second pooled to the first's size."""
    its = F.adaptive_avg_pool2d(its, (own.shape[2], own.shape[3]))
    return (1 - F.cosine_similarity(own, its, dim=1)).mean()
