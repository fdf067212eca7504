"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146): few blocks, many channels.

Dense 3x3 convolutions keep a data-centre CPU or GPU busy, so a wide network trains faster than a deep or a depthwise one of
the same cost.
"""

from collections.abc import Sequence

from torch import nn

from samespace.edge.models.arguments import divisible, in_range
from samespace.edge.models.blocks import ConvNorm, StagedNet
from samespace.edge.models.head import EmbeddingHead, Pooling
from samespace.edge.models.residual import BasicBlock

__all__ = ["build"]


def build(
    *,
    dim: int,
    image_size: int,
    width: int = 64,
    depth: int = 1,
    stages: int = 3,
    stem_width: int = 32,
    stem_stride: int = 1,
    pooling: Pooling = "map",
) -> StagedNet:
    """A narrow stem and ``stages`` wide stages, each half the resolution and twice the channels of the one before.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels; a multiple of ``stem_stride * 2**stages``.
        width: channels of the first stage; the last has ``width * 2**(stages - 1)``.
        depth: basic blocks a stage.
        stages: how often the resolution is halved after the stem.
        stem_width: channels of the stem, which works at full resolution.
        stem_stride: 1 for icons, 2 or 4 for photos.
        pooling: see :data:`samespace.edge.models.head.Pooling`.

    Raises:
        ConfigError: an argument out of range.
    """
    in_range("dim", dim, 2, 65536)
    in_range("image_size", image_size, 8, 1024)
    in_range("width", width, 8, 2048)
    in_range("depth", depth, 1, 64)
    in_range("stages", stages, 1, 5)
    in_range("stem_width", stem_width, 4, 512)
    in_range("stem_stride", stem_stride, 1, 4)
    reduction = stem_stride * 2**stages
    divisible("image_size", image_size, reduction, "the reduction of stem and stages")
    widths = [width * 2**stage for stage in range(stages)]
    body = [_stage(before, after, depth) for before, after in zip([stem_width, *widths], widths, strict=False)]
    head = EmbeddingHead(widths[-1], image_size // reduction, dim, pooling)
    return StagedNet(ConvNorm(3, stem_width, 3, stem_stride), body, head)


def _stage(inputs: int, outputs: int, depth: int) -> nn.Module:
    blocks: Sequence[nn.Module] = [
        BasicBlock(inputs if index == 0 else outputs, outputs, 2 if index == 0 else 1) for index in range(depth)
    ]
    return nn.Sequential(*blocks)
