"""Random changes to training pictures, the same for teacher and student.

The *picture* is changed once, at its source size, before each model resizes it to its own: so the cloud model and every edge
model see the same augmented picture, which is what regression to the cloud's embedding needs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

__all__ = ["Augment", "augment_batch"]

#: ITU-R BT.601, what "grey" means.
_LUMA = (0.299, 0.587, 0.114)


class Augment(BaseModel):
    """How much is changed at most; each is drawn uniformly for each picture, and 0 switches it off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: float = Field(default=10.0, ge=0, le=180, description="degrees, either way")
    scale: float = Field(default=0.15, ge=0, le=0.9, description="relative")
    aspect: float = Field(default=0.08, ge=0, le=0.9, description="width against height, relative")
    shift: float = Field(default=0.06, ge=0, le=1, description="of the edge, in each direction")
    flip: float = Field(default=0.0, ge=0, le=1, description="probability of a mirror image; not where left and right matter")
    border: Literal["white", "edge", "reflect"] = Field(default="white", description="what comes in from outside the picture")
    saturation: float = Field(default=0.5, ge=0, le=1, description="relative")
    grey: float = Field(default=0.2, ge=0, le=1, description="probability of losing all colour")
    channel: float = Field(default=0.15, ge=0, le=1, description="gain of each channel on its own, relative")
    brightness: float = Field(default=0.15, ge=0, le=1, description="gain of all channels, relative")
    contrast: float = Field(default=0.2, ge=0, le=1, description="about middle grey, relative")
    noise: float = Field(default=0.0, ge=0, le=0.5, description="standard deviation, of the full range")


def augment_batch(batch: torch.Tensor, generator: torch.Generator, augment: Augment | None = None) -> torch.Tensor:
    """Change each picture of a batch at random.

    Args:
        batch: ``(n, h, w, 3)`` uint8 RGB.
        generator: where all the chance comes from; the same state gives the same pictures. It may live on the CPU while the
            batch does not: numbers are drawn where the generator is.
        augment: what may happen.

    Returns:
        ``(n, h, w, 3)`` uint8, on the batch's device.
    """
    augment = augment or Augment()
    count = batch.shape[0]

    def draw(*shape: int) -> torch.Tensor:
        """Uniform in [-1, 1]."""
        return torch.rand(count, *shape, generator=generator, device=generator.device).to(batch.device) * 2 - 1

    # Every number is drawn whatever the settings are, so that switching one change off leaves the others as they were.
    rotate, scale, aspect, shift, flip = draw(), draw(), draw(), draw(2), draw()
    saturation, grey, channel, brightness, contrast = draw(1, 1, 1), draw(1, 1, 1), draw(3, 1, 1), draw(1, 1, 1), draw(1, 1, 1)

    images = batch.permute(0, 3, 1, 2).float() / 255
    matrices = _matrices(augment, rotate, scale, aspect, shift, flip)
    if augment.rotate or augment.scale or augment.aspect or augment.shift or augment.flip:
        images = _warp(images, matrices, augment.border)
    if augment.saturation or augment.grey:
        weights = images.new_tensor(_LUMA).view(1, 3, 1, 1)
        luma = (images * weights).sum(1, keepdim=True)
        keep = torch.where(grey < 2 * augment.grey - 1, 0.0, 1 + saturation * augment.saturation)
        images = luma + (images - luma) * keep
    gain = (1 + channel * augment.channel) * (1 + brightness * augment.brightness)
    slope = 1 + contrast * augment.contrast
    images = (images * gain - 0.5) * slope + 0.5
    if augment.noise:
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(batch.device)
        images = images + noise * augment.noise
    levels = (images * 255).round_().clamp_(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def _matrices(
    augment: Augment,
    rotate: torch.Tensor,
    scale: torch.Tensor,
    aspect: torch.Tensor,
    shift: torch.Tensor,
    flip: torch.Tensor,
) -> torch.Tensor:
    """``(n, 2, 3)``: where in the old picture, edges at -1 and 1, each new pixel comes from."""
    angle = rotate * math.radians(augment.rotate)
    cosine, sine = angle.cos(), angle.sin()
    zoom, stretch = 1 + scale * augment.scale, 1 + aspect * augment.aspect
    mirror = torch.where(flip < 2 * augment.flip - 1, -1.0, 1.0)
    offset = shift * 2 * augment.shift
    first = torch.stack([mirror * cosine * zoom * stretch, -sine * zoom, offset[:, 0]], 1)
    second = torch.stack([mirror * sine * zoom, cosine * zoom / stretch, offset[:, 1]], 1)
    return torch.stack([first, second], 1)


def _warp(images: torch.Tensor, matrices: torch.Tensor, border: str) -> torch.Tensor:
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    if border == "white":
        # Outside is zero for grid_sample, and white is zero in the negative.
        return 1 - functional.grid_sample(1 - images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mode = "border" if border == "edge" else "reflection"
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode=mode, align_corners=False)
