"""Asymmetric margin: with the partner's embeddings, separate classes at least as well as the partner does itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Margin, Need, Partner, Shape

__all__ = ["AsymmetricMargin"]


class AsymmetricMargin(CompatibilityLoss):
    r"""``mean+ [min(c_ip + m, 1) - s_ip]_+  +  mean+ [s_in - max(c_in - m, -1)]_+`` over all pairs of the batch.

    s_ij = e_i . g_j has the trained model's anchor and the partner's other side, c_ij = g_i . g_j is what the partner makes of
    the same pair; p has i's class (i itself included), n another. mean+ is the mean over the pairs above zero, so that the pull
    does not fade as the others are satisfied. With m = 0 it is the strict criterion of backward compatible training (Shen et
    al., CVPR 2020) as a hinge: same class at least as near, other classes at least as far, as in the partner's own space.

    After RAML (Suma & Tolias, "Large-to-Small Image Resolution Asymmetry in Deep Metric Learning", WACV 2023), whose cross term
    makes s_ij *equal* to c_ij by mean squares, and AML (Budnik & Avrithis, CVPR 2021), whose margin is the same for all pairs;
    form used here: one-sided, labels say which side is a fault, and relative, each pair's margin starts at the partner's own
    similarity. RAML's other two parts are a term of their own (``regression``) and the negative control (own-own similarities).

    Args:
        shape: not used.
        margin: m in cosine units, >= 0; asks for more than the partner reaches, capped at what a cosine can be.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    def __init__(self, shape: Shape, *, margin: Margin = 0.05) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        cross = batch.embedding @ partner.embedding.T
        reference = partner.embedding @ partner.embedding.T
        same = batch.labels[:, None] == batch.labels[None, :]
        near = ((reference + self.margin).clamp(max=1) - cross).relu() * same
        far = (cross - (reference - self.margin).clamp(min=-1)).relu() * ~same
        return _mean_of_positive(near) + _mean_of_positive(far)


def _mean_of_positive(excess: Tensor) -> Tensor:
    """The mean of the elements above zero; 0, with a gradient of 0, where none is."""
    return excess.sum() / torch.count_nonzero(excess.detach()).clamp(min=1)
