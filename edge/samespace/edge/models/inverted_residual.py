"""Inverted residuals (MobileNetV2, Sandler et al., CVPR 2018, arXiv 1801.04381), without squeeze-and-excitation: ReLU6, so
that the networks quantise well."""

import torch
from torch import nn

from samespace.edge.models.arguments import divisible, in_range, one_of
from samespace.edge.models.blocks import ConvNorm, StagedNet
from samespace.edge.models.head import EmbeddingHead, Pooling

__all__ = ["InvertedResidual", "build"]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; a shortcut where the shape does not change."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [ConvNorm(inputs, hidden, 1, activation=nn.ReLU6)]
        layers += [
            ConvNorm(hidden, hidden, kernel, stride, groups=hidden, activation=nn.ReLU6),
            ConvNorm(hidden, outputs, 1, activation=None),
        ]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def build(
    *,
    dim: int,
    image_size: int,
    width: int = 24,
    depth: int = 2,
    stages: int = 3,
    expansion: int = 4,
    kernel: int = 3,
    stem_stride: int = 1,
    pooling: Pooling = "mean",
) -> StagedNet:
    """A stem and ``stages`` stages of ``depth`` blocks; each stage halves the resolution and widens the channels.

    Stage i (from 0) has ``width * (i + 1)`` channels; a last 1x1 convolution multiplies those of the last stage by 4.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels; a multiple of ``stem_stride * 2**stages``.
        width: channels of the stem and of the first stage.
        depth: blocks a stage.
        stages: how often the resolution is halved after the stem.
        expansion: hidden channels of a block over its channels in.
        kernel: of the depthwise convolution, 3, 5 or 7.
        stem_stride: 1 for icons, 2 for photos.
        pooling: see :data:`samespace.edge.models.head.Pooling`.

    Raises:
        ConfigError: an argument out of range.
    """
    in_range("dim", dim, 2, 65536)
    in_range("image_size", image_size, 8, 1024)
    in_range("width", width, 4, 512)
    in_range("depth", depth, 1, 64)
    in_range("stages", stages, 1, 6)
    in_range("expansion", expansion, 1, 8)
    one_of("kernel", kernel, (3, 5, 7))
    in_range("stem_stride", stem_stride, 1, 4)
    reduction = stem_stride * 2**stages
    divisible("image_size", image_size, reduction, "the reduction of stem and stages")
    body: list[nn.Module] = []
    channels = width
    for stage in range(stages):
        wider = width * (stage + 1)
        blocks: list[nn.Module] = [InvertedResidual(channels, wider, 2, expansion, kernel)]
        blocks += [InvertedResidual(wider, wider, 1, expansion, kernel) for _ in range(depth - 1)]
        channels = wider
        body.append(nn.Sequential(*blocks))
    head = nn.Sequential(
        ConvNorm(channels, 4 * channels, 1, activation=nn.ReLU6),
        EmbeddingHead(4 * channels, image_size // reduction, dim, pooling),
    )
    return StagedNet(ConvNorm(3, width, 3, stem_stride, activation=nn.ReLU6), body, head)
