"""An MLP-mixer for small pictures: patches, then blocks that mix along rows, along columns and across channels.

The token mixing is the axial form of MLP-Mixer (Tolstikhin et al., NeurIPS 2021, arXiv 2105.01601), as in sparse MLP (Tang et
al., AAAI 2022, arXiv 2109.05422): one MLP along the width and one along the height, shared by all channels. Each is a 1x1
convolution on a transposed tensor, so no reshape bakes the batch into an exported graph.
"""

import torch
from torch import nn

from samespace.edge.models.arguments import divisible, in_range
from samespace.edge.models.blocks import StagedNet
from samespace.edge.models.head import EmbeddingHead, Pooling

__all__ = ["MixerBlock", "build"]


class MixerBlock(nn.Module):
    """``x + columns(rows(norm(x)))``, then ``x + channels(norm(x))``; x is ``(n, channels, side, side)``."""

    def __init__(self, channels: int, side: int, token_ratio: int, channel_ratio: int) -> None:
        super().__init__()
        self.token_norm = nn.BatchNorm2d(channels)
        self.rows = _mlp(side, token_ratio * side)
        self.columns = _mlp(side, token_ratio * side)
        self.channel_norm = nn.BatchNorm2d(channels)
        self.channels = _mlp(channels, channel_ratio * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.token_norm(x).permute(0, 3, 2, 1)  # (n, w, h, c): the width is what the convolution sees as channels
        mixed = self.rows(mixed).permute(0, 2, 1, 3)  # (n, h, w, c)
        x = x + self.columns(mixed).permute(0, 3, 1, 2)  # (n, c, h, w)
        return x + self.channels(self.channel_norm(x))


def build(
    *,
    dim: int,
    image_size: int,
    width: int = 96,
    depth: int = 4,
    patch: int = 4,
    token_ratio: int = 2,
    channel_ratio: int = 2,
    pooling: Pooling = "mean",
) -> StagedNet:
    """Patches of ``patch`` x ``patch`` pixels, embedded in ``width`` channels, and ``depth`` mixer blocks, each a stage.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels; a multiple of ``patch``. The model takes this size only.
        width: channels, the same in all blocks.
        depth: mixer blocks.
        patch: edge of a patch in pixels.
        token_ratio: hidden over visible size of the row and column MLPs.
        channel_ratio: hidden over visible size of the channel MLP.
        pooling: see :data:`samespace.edge.models.head.Pooling`.

    Raises:
        ConfigError: an argument out of range.
    """
    in_range("dim", dim, 2, 65536)
    in_range("image_size", image_size, 8, 1024)
    in_range("width", width, 4, 2048)
    in_range("depth", depth, 1, 64)
    in_range("patch", patch, 1, 64)
    in_range("token_ratio", token_ratio, 1, 16)
    in_range("channel_ratio", channel_ratio, 1, 16)
    divisible("image_size", image_size, patch, "the patch")
    side = image_size // patch
    body = [MixerBlock(width, side, token_ratio, channel_ratio) for _ in range(depth)]
    head = nn.Sequential(nn.BatchNorm2d(width), EmbeddingHead(width, side, dim, pooling))
    return StagedNet(nn.Conv2d(3, width, patch, patch), body, head)


def _mlp(size: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(size, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, size, 1))
