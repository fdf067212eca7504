"""The operators of the family ``mobile``: an elastic copy of each keeps the weights of all its sizes, so names never depend on
sizes."""

import torch
from torch import nn

from samespace.edge.models.blocks import ConvNorm
from samespace.edge.models.mixer import MixerBlock

__all__ = ["ACTIVATIONS", "OPERATORS", "USES", "mobile_block", "mobile_stem"]

#: Activations that come out of ONNX, TFLite and Core ML as they go in.
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}
#: Operator -> those of its options that make a difference to it.
USES: dict[str, frozenset[str]] = {
    "inverted": frozenset({"kernel", "expansion"}),
    "fused": frozenset({"kernel", "expansion"}),
    "basic": frozenset({"kernel"}),
    "mixer": frozenset(),
}
OPERATORS = tuple(USES)


def mobile_stem(width: int, stride: int, activation: str) -> nn.Module:
    """``(n, 3, h, w)`` -> ``(n, width, h / stride, w / stride)``; above stride 2 the kernel is 5, to leave no pixel out."""
    return ConvNorm(3, width, 3 if stride <= 2 else 5, stride, activation=ACTIVATIONS[activation])


def mobile_block(
    op: str, inputs: int, outputs: int, *, kernel: int, expansion: int, stride: int, side: int, activation: str
) -> nn.Module:
    """``(n, inputs, side, side)`` -> ``(n, outputs, side / stride, side / stride)`` by one operator.

    Args:
        op: of :data:`OPERATORS`; a ``mixer`` keeps the shape, so stride 1 and as many outputs as inputs.
        inputs: channels in.
        outputs: channels out.
        kernel: odd; of the depthwise convolution, of the expansion (fused), of both convolutions (basic).
        expansion: hidden channels over channels in.
        stride: 1 or 2.
        side: of the feature map that comes in.
        activation: of :data:`ACTIVATIONS`.
    """
    act = ACTIVATIONS[activation]
    if op == "inverted":
        return _Inverted(inputs, outputs, kernel, expansion, stride, act)
    if op == "fused":
        return _Fused(inputs, outputs, kernel, expansion, stride, act)
    if op == "basic":
        return _Basic(inputs, outputs, kernel, stride, act)
    return _Mixer(outputs, side, act)


class _Inverted(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection (MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, expansion: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Identity() if expansion == 1 else ConvNorm(inputs, hidden, 1, activation=act)
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden, activation=act)
        self.project = ConvNorm(hidden, outputs, 1, activation=None)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


class _Fused(nn.Module):
    """Dense kxk expansion, linear 1x1 projection: fewer, larger kernels (EfficientNetV2, arXiv 2104.00298)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, expansion: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, kernel, stride, activation=act)
        self.project = ConvNorm(hidden, outputs, 1, activation=None)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.expand(x))
        return x + y if self.shortcut else y


class _Basic(nn.Module):
    """Two dense kxk convolutions and a shortcut, 1x1 where the shape changes (ResNet, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel, stride, activation=act)
        self.second = ConvNorm(outputs, outputs, kernel, activation=None)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, activation=None)
        self.activation = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.second(self.first(x)) + self.shortcut(x))


class _Mixer(MixerBlock):
    """The axial mixer with twofold hidden sizes and any activation; its row and column weights fit one side only."""

    def __init__(self, channels: int, side: int, act: type[nn.Module]) -> None:
        super().__init__(channels, side, token_ratio=2, channel_ratio=2)
        for mlp in (self.rows, self.columns, self.channels):
            mlp[1] = act()
