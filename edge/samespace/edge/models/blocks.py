"""What the convolutional families share: conv-norm-activation, the frame of stem, stages and head, and the initialisation."""

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["ConvNorm", "StagedNet"]


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm (folded at export), activation; "same" padding for odd kernels.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: odd edge of the kernel.
        stride: of the convolution.
        groups: ``inputs`` for a depthwise convolution.
        activation: the module to end with; None for a linear end.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


class StagedNet(nn.Module):
    """A stem, stages that each give a feature map, and a head on the last one.

    ``forward``: ``(n, 3, h, w)`` float32, normalised by the model's mean and std -> ``(n, dim)`` float32, *not* L2-normalised.
    """

    def __init__(self, stem: nn.Module, body: Iterable[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.body = nn.ModuleList(body)
        self.head = head

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The feature map after each stage, ``(n, channels, h, w)``, first stage first."""
        maps = []
        x = self.stem(x)
        for stage in self.body:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stages(x)[-1])
