"""Residual networks of basic blocks (He et al., CVPR 2016, arXiv 1512.03385, fig. 5 left) for small pictures."""

import torch
from torch import nn

from samespace.edge.models.arguments import divisible, in_range
from samespace.edge.models.blocks import ConvNorm, StagedNet
from samespace.edge.models.head import EmbeddingHead, Pooling

__all__ = ["BasicBlock", "build"]


class BasicBlock(nn.Module):
    """``relu(conv(conv(x)) + shortcut(x))``; the shortcut is a 1x1 convolution where the shape changes.

    Without the shortcut it is ``relu(conv(conv(x)))``: two layers of a plain network.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: bool = True) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3, activation=None)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module | None = None
        if shortcut:
            self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, activation=None)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x))
        return self.activation(y if self.shortcut is None else y + self.shortcut(x))


def build(
    *,
    dim: int,
    image_size: int,
    width: int = 24,
    depth: int = 1,
    stages: int = 3,
    stem_stride: int = 1,
    pooling: Pooling = "mean",
    shortcut: bool = True,
) -> StagedNet:
    """A stem and ``stages`` stages, each half the resolution and twice the channels of the one before.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels; a multiple of ``stem_stride * 2**stages``.
        width: channels of the stem; the last stage has ``width * 2**stages``.
        depth: basic blocks a stage.
        stages: how often the resolution is halved after the stem.
        stem_stride: 1 for icons, 2 for photos.
        pooling: see :data:`samespace.edge.models.head.Pooling`.
        shortcut: False leaves the shortcuts out: a plain network, to compare with.

    Raises:
        ConfigError: an argument out of range.
    """
    in_range("dim", dim, 2, 65536)
    in_range("image_size", image_size, 8, 1024)
    in_range("width", width, 4, 1024)
    in_range("depth", depth, 1, 64)
    in_range("stages", stages, 1, 5)
    in_range("stem_stride", stem_stride, 1, 4)
    reduction = stem_stride * 2**stages
    divisible("image_size", image_size, reduction, "the reduction of stem and stages")
    body: list[nn.Module] = []
    channels = width
    for _ in range(stages):
        blocks = [BasicBlock(channels, 2 * channels, 2, shortcut)]
        channels *= 2
        blocks += [BasicBlock(channels, channels, 1, shortcut) for _ in range(depth - 1)]
        body.append(nn.Sequential(*blocks))
    stem = ConvNorm(3, width, 3, stem_stride)
    return StagedNet(stem, body, EmbeddingHead(channels, image_size // reduction, dim, pooling))
