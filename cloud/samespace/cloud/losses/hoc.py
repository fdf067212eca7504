"""Higher-order compatibility: each new embedding near the old one of its image, and away from those of other classes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Scale, Shape

__all__ = ["HigherOrderCompatibility"]


class HigherOrderCompatibility(CompatibilityLoss):
    r"""``mean_i -mu g_i e_i + log sum_{j: y_j != y_i} exp(mu g_i e_j)``, with g the partner's embeddings.

    HOC (Biondi et al., "Stationary Representations: Optimally Approximating Compatibility and Implications for Improved Model
    Replacements", CVPR 2024, arXiv 2405.02581): beside a classifier that never moves (the loss ``simplex``) in both models, its
    optimum satisfies both inequalities of compatibility. Published weight 0.1.

    Args:
        shape: not used.
        scale: mu, > 0; published 10. Of an image without others of another class in its batch, only the first part counts.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    def __init__(self, shape: Shape, *, scale: Scale = 10.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        scores = self.scale * partner.embedding @ batch.embedding.T
        same = batch.labels[:, None] == batch.labels[None, :]
        pushed = scores.masked_fill(same, torch.finfo(scores.dtype).min).logsumexp(1)
        return (pushed.masked_fill(same.all(1), 0.0) - scores.diagonal()).mean()
