"""Keep the margins of known classes when new ones are added."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Scale, Shape
from samespace.sdk.errors import ConfigError

__all__ = ["MarginPreserving"]

Bias = Annotated[float, Field(ge=0)]


class MarginPreserving(CompatibilityLoss):
    r"""``mean_i [y_i known] -log softmax_y(z_i + b [c new])``, over all images i.

    Each class that an update adds takes room from those that were there, and pictures of these flip. Here a picture of a known
    class must win against every new class by b more. After the margin calibration of Ricci et al., "Mitigating Negative Flips
    via Margin Preserving Training" (AAAI 2026, arXiv 2511.08322); its double-source distillation is ``focal_distillation``
    with ``classes = "known"``, and ``logit_difference`` with an independently trained model among the recipe's ``teachers``.
    Where the partner knows all classes, it is the softmax once more.

    Args:
        shape: not used.
        bias: b in logits, >= 0; published: 0 to 4.
        scale: of cosines into logits.

    Raises:
        ConfigError: the model has no class weights.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.KNOWN})
    joins: ClassVar[bool] = False

    def __init__(self, shape: Shape, *, bias: Bias = 2.0, scale: Scale = 16.0) -> None:
        super().__init__()
        self.bias, self.scale = bias, scale

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        if batch.head is None:
            raise ConfigError("margin_preserving is about the model's own classes: give it cosine_softmax, too")
        logits = self.scale * batch.embedding @ batch.head.T + self.bias * ~partner.known
        each = F.cross_entropy(logits, batch.labels, reduction="none")
        return (each * partner.known[batch.labels]).mean()
