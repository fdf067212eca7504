"""Compatibility losses: each a small module that declares what it needs of the partner."""

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Gallery, Need, Partner, Shape, StageShape
from samespace.cloud.losses.cosine_softmax import CosineSoftmax
from samespace.cloud.losses.partner_head import PartnerHead
from samespace.cloud.losses.registry import LOSSES, build_loss, loss_class
from samespace.cloud.losses.regression import Regression

__all__ = [
    "LOSSES",
    "Batch",
    "CompatibilityLoss",
    "CosineSoftmax",
    "Gallery",
    "Need",
    "Partner",
    "PartnerHead",
    "Regression",
    "Shape",
    "StageShape",
    "build_loss",
    "loss_class",
]
