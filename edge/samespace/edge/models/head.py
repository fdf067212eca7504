"""From the last feature map to the embedding, and the norm tail that every exported graph ends with."""

from typing import Literal

import torch
from torch import nn

from samespace.edge.models.arguments import one_of

__all__ = ["EmbeddingHead", "L2Norm", "Pooling"]

#: ``mean``: global mean, blind to position. ``map``: every position has weights of its own; for aligned pictures (icons).
Pooling = Literal["mean", "map"]


class EmbeddingHead(nn.Module):
    """``(n, channels, side, side)`` -> ``(n, dim)``, linear.

    ``mean`` ignores ``side``: such a model takes any input size. ``map`` is a convolution as large as the feature map, applied
    to the map and to the map shifted by one column, averaged. That is as general as a linear layer on the flattened map, but a
    flattening (or a mean over one position) becomes a reshape that fixes the batch of a TFLite graph; a mean over two does not.
    """

    def __init__(self, channels: int, side: int, dim: int, pooling: Pooling = "mean") -> None:
        super().__init__()
        one_of("pooling", pooling, ("mean", "map"))
        self.pooling = pooling
        self.pad = nn.ZeroPad2d((0, 1, 0, 0))
        self.project: nn.Module = nn.Linear(channels, dim) if pooling == "mean" else nn.Conv2d(channels, dim, side)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pooling == "mean":
            return self.project(x.mean((2, 3)))
        return self.project(self.pad(x)).mean((2, 3))


class L2Norm(nn.Module):
    """``(n, dim)`` -> unit rows: ``x / (max|x| + 1e-6)``, then ``x * rsqrt(sum(x^2) + eps)``.

    The first step keeps a sum of squares within fp16 (65504); without it a row of norm 256 overflows.
    Written with plain operators because ``F.normalize`` exports as a reshape that fixes the batch. Quantisers leave the
    tail in float by this class's name. A zero row stays zero, for the reader to refuse (so ``eps`` must not vanish in fp16).
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x / (x.abs().amax(1, keepdim=True) + 1e-6)
        return x * torch.rsqrt((x * x).sum(1, keepdim=True) + self.eps)
