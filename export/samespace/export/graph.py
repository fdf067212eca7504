"""The network that a device runs: 0-255 pixels in, unit-norm embedding out; scaling, mean, std and L2 norm are inside."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from samespace.edge.models.head import L2Norm
from samespace.sdk.preprocess import Preprocess

__all__ = ["DeviceGraph", "Layout"]

Layout = Literal["nhwc", "nchw"]


class DeviceGraph(nn.Module):
    """``(n, size, size, 3)`` RGB values 0-255, uint8 or float32 -> ``(n, dim)`` float32 of unit norm.

    Scaling to 0-1, mean and std are one multiply-add. With the layout ``nchw`` (Core ML's images) the input is
    ``(n, 3, size, size)``.

    Args:
        model: takes ``(n, 3, size, size)`` float32, normalised; gives ``(n, dim)``, not normalised.
        preprocess: size, mean and std.
        layout: of the input.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess, layout: Layout = "nhwc") -> None:
        super().__init__()
        self.model = model
        self.norm = L2Norm()
        self.preprocess = preprocess
        self.layout: Layout = layout
        mean, std = (
            torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std)
        )
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())
        self.eval().requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.to(torch.float32)
        if self.layout == "nhwc":
            x = x.permute(0, 3, 1, 2)
        return self.norm(self.model(x * self.scale + self.shift))

    def with_layout(self, layout: Layout) -> DeviceGraph:
        """The same model behind another input layout."""
        return self if layout == self.layout else type(self)(self.model, self.preprocess, layout)

    def example(self, batch: int, dtype: torch.dtype) -> torch.Tensor:
        """An input of noise, to trace the graph with."""
        size = self.preprocess.size
        shape = (batch, size, size, 3) if self.layout == "nhwc" else (batch, 3, size, size)
        return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
