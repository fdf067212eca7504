"""The model's own classification: cosine softmax with one learnt prototype a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Margin, Partner, Scale, Shape, Smoothing, prefix

__all__ = ["CosineSoftmax", "cosine_cross_entropy"]


class CosineSoftmax(CompatibilityLoss):
    r"""``mean_i -log softmax_y(s * (cos(e_i, W_c) - m * [c = y_i]))``.

    With e a unit embedding and W the class weights, both normalised: NormFace (Wang et al., ACM MM 2017, eq. 6-7); the additive
    cosine margin m is that of CosFace (Wang et al., CVPR 2018, eq. 4). W is this loss's parameter: of the cloud model it is the
    head that edge models are trained against.

    Args:
        shape: classes and dimension of W.
        scale: s, the inverse temperature, > 0.
        margin: m in cosine units, >= 0; 0 is the plain softmax.
        label_smoothing: share of the target spread over all classes, in [0, 1).
    """

    def __init__(self, shape: Shape, *, scale: Scale = 16.0, margin: Margin = 0.0, label_smoothing: Smoothing = 0.0) -> None:
        super().__init__()
        self.scale, self.margin, self.label_smoothing = scale, margin, label_smoothing
        self.weight = nn.Parameter(torch.randn(shape.classes, shape.dim) / shape.dim**0.5)

    def head(self) -> Tensor:
        """``(classes, dim)`` unit rows, with gradient."""
        return F.normalize(self.weight, dim=1)

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        head = prefix(self.head(), batch.embedding.shape[1])
        return cosine_cross_entropy(batch, head, self.scale, self.margin, self.label_smoothing)


def cosine_cross_entropy(batch: Batch, head: Tensor, scale: float, margin: float, label_smoothing: float) -> Tensor:
    """Cross entropy of unit embeddings against unit class weights; the formula of :class:`CosineSoftmax`.

    Args:
        batch: embeddings ``(n, d)`` and labels ``(n,)``.
        head: ``(classes, d)`` unit rows.
        scale: > 0.
        margin: subtracted from the true class's cosine.
        label_smoothing: in [0, 1).
    """
    cosine = batch.embedding @ head.T
    if margin:
        cosine = cosine - margin * F.one_hot(batch.labels, len(head)).to(cosine.dtype)
    return F.cross_entropy(scale * cosine, batch.labels, label_smoothing=label_smoothing)
