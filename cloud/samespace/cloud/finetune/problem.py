"""What a linear quadratic fine-tune minimises, whoever solves it.

    sum_i |J_i dw - r_i|^2  +  mu sum_j |A_j dw|^2  +  lambda |dw|^2

J_i are Jacobians of the images, r_i what is wanted there beyond what the network gives; A_j are Jacobians of anchors, pictures
whose embeddings are to stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from samespace.sdk.errors import ConfigError, DataError

__all__ = ["TARGET_SCALE", "Problem", "class_targets"]

#: Length of a class's target, where outputs are class scores (the group's tangent-model-composition, ``mse_weight``).
TARGET_SCALE = 15.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Images, anchors and weights of the terms.

    Attributes:
        images: ``(n, ...)``.
        wanted: ``(n, d)`` residuals r.
        penalty: lambda > 0.
        anchors: ``(m, ...)`` pictures whose outputs are to stay; None without.
        hold: mu > 0, how much.

    Raises:
        ConfigError: a penalty or a weight that is not above 0.
        DataError: no images, or residuals that are not of them.
    """

    images: Tensor
    wanted: Tensor
    penalty: float = 1e-3
    anchors: Tensor | None = None
    hold: float = 1.0

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and self.hold > 0):
            raise ConfigError(f"penalty and hold must be above 0, got {self.penalty} and {self.hold}")
        if not len(self.images) or self.wanted.ndim != 2 or len(self.wanted) != len(self.images):
            raise DataError(
                f"{len(self.images)} images and residuals of shape {tuple(self.wanted.shape)}: one row of each image is needed"
            )

    @property
    def held(self) -> Tensor:
        """The anchors; an empty batch where there are none."""
        return self.images.new_zeros((0, *self.images.shape[1:])) if self.anchors is None else self.anchors

    @property
    def bound(self) -> float:
        """What no anchor's first-order change is above at the optimum: ``|r| / sqrt(mu)``, as dw = 0 costs ``|r|^2``; infinite
        without anchors.
        """
        return float(self.wanted.double().norm()) / self.hold**0.5 if len(self.held) else float("inf")


def class_targets(labels: Tensor, classes: int, scale: float = TARGET_SCALE) -> Tensor:
    """``(n, classes)``: what class scores are to be, ``scale`` at the label and 0 elsewhere (LQF, eq. 4).

    Raises:
        DataError: a label that is no class.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"labels from {int(labels.min())} to {int(labels.max())}: they must be from 0 to {classes - 1}")
    return scale * F.one_hot(labels.long(), classes).to(torch.get_default_dtype())
