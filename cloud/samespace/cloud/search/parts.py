"""An architecture as a chain of parts that cost what they cost wherever they stand: entrance and stem, blocks, head."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from samespace.edge.models.head import EmbeddingHead, L2Norm
from samespace.edge.models.macs import Cost, count
from samespace.edge.models.mobile_blocks import mobile_block, mobile_stem
from samespace.edge.search import Architecture, SearchSpace

__all__ = ["Part", "cost", "parts_of"]


class Part(NamedTuple):
    """One part; equal parts cost the same.

    Attributes:
        op: ``stem``, ``head``, or an operator of the space.
        inputs: channels in; 3 for the stem.
        outputs: channels out; the dimension of the embedding for the head.
        side: edge of the map that comes in.
        stride: of stem or block.
        kernel: of the block.
        expansion: of the block.
        variant: activation of stem or block, pooling of the head.
    """

    op: str
    inputs: int
    outputs: int
    side: int
    stride: int = 1
    kernel: int = 1
    expansion: int = 1
    variant: str = ""

    @property
    def key(self) -> str:
        """As it stands in the cost table."""
        return (
            f"{self.op} {self.inputs}>{self.outputs} @{self.side} stride {self.stride} kernel {self.kernel} "
            f"expansion {self.expansion} {self.variant}"
        )

    def module(self) -> nn.Module:
        """The part as it stands in an exported artifact: the stem with scaling before it, the head with the norm behind it."""
        if self.op == "stem":
            return _Entrance(mobile_stem(self.outputs, self.stride, self.variant))
        if self.op == "head":
            pooling = "mean" if self.variant == "mean" else "map"
            return nn.Sequential(EmbeddingHead(self.inputs, self.side, self.outputs, pooling), L2Norm())
        return mobile_block(
            self.op,
            self.inputs,
            self.outputs,
            kernel=self.kernel,
            expansion=self.expansion,
            stride=self.stride,
            side=self.side,
            activation=self.variant,
        )

    def example(self) -> torch.Tensor:
        """An input of noise: ``(1, side, side, 3)`` uint8 for the stem, else ``(1, inputs, side, side)`` float32."""
        chance = torch.Generator().manual_seed(0)
        if self.op == "stem":
            return torch.randint(0, 256, (1, self.side, self.side, 3), generator=chance, dtype=torch.uint8)
        return torch.randn(1, self.inputs, self.side, self.side, generator=chance)


def parts_of(architecture: Architecture, space: SearchSpace) -> tuple[Part, ...]:
    """The chain, from the picture to the embedding."""
    variant = architecture.activation
    side = space.image_size
    parts = [Part("stem", 3, architecture.stem_width, side, architecture.stem_stride, variant=variant)]
    side, channels = side // architecture.stem_stride, architecture.stem_width
    for stage in architecture.stages:
        for index, block in enumerate(stage):
            stride = 2 if index == 0 else 1
            parts.append(Part(block.op, channels, block.width, side, stride, block.kernel, block.expansion, variant))
            side, channels = side // stride, block.width
    return (*parts, Part("head", channels, space.dim, side, variant=space.pooling))


def cost(architecture: Architecture, space: SearchSpace) -> Cost:
    """What :func:`samespace.edge.models.macs.count` says of the whole network, without building it."""
    costs = [_cost(part) for part in parts_of(architecture, space)]
    return Cost(sum(one.macs for one in costs), sum(one.params for one in costs))


@cache
def _cost(part: Part) -> Cost:
    with torch.random.fork_rng(devices=[]):  # its weights do not matter, and shall move nobody's generator
        return count(_Fed(part), part.side)


class _Entrance(nn.Module):
    """Pixels to what the network takes, as :class:`samespace.export.graph.DeviceGraph` does it, and the stem."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.register_buffer("scale", torch.full((1, 3, 1, 1), 2 / 255), persistent=False)
        self.register_buffer("shift", torch.full((1, 3, 1, 1), -1.0), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.stem(image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift)


class _Fed(nn.Module):
    """Any part behind the input of a whole network, for the counter."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part.module()
        self.shape = (1, part.side, part.side, 3) if part.op == "stem" else (1, part.inputs, part.side, part.side)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.part(torch.zeros(self.shape, device=image.device))
