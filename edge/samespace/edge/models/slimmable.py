"""Slimmable residual networks: one set of weights for several widths (Yu et al., ICLR 2019, arXiv 1812.08928).

A narrower network takes the first channels of every weight. The mean and variance of a layer differ from width to width, so
each width has batch norms of its own ("switchable" batch norm, their section 3.3); all else is shared. Each width is an
ordinary network of the family ``residual`` (:meth:`SlimmableResidual.extract`): nothing but the training knows of the sharing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from samespace.edge.models import residual
from samespace.edge.models.arguments import in_range
from samespace.edge.models.blocks import StagedNet
from samespace.edge.models.head import Pooling
from samespace.sdk.errors import ConfigError

__all__ = ["FAMILY", "SlimmableResidual", "Width", "build"]

#: The family that every width belongs to.
FAMILY = "residual"


def build(
    *,
    dim: int,
    image_size: int,
    widths: Sequence[int] = (8, 16, 24),
    depth: int = 1,
    stages: int = 3,
    stem_stride: int = 1,
    pooling: Pooling = "mean",
    shortcut: bool = True,
) -> "SlimmableResidual":
    """A slimmable network over :func:`samespace.edge.models.residual.build`, whose arguments these are.

    Trained as one model it learns its greatest width alone: a recipe trains the others by giving each a model that ``shares``.

    Args:
        dim: of the embedding, at every width.
        image_size: edge of the square input in pixels.
        widths: channels of the stem, ascending, each once; 1 to 16 of them.
        depth: basic blocks a stage.
        stages: how often the resolution is halved after the stem.
        stem_stride: 1 for icons, 2 for photos.
        pooling: see :data:`samespace.edge.models.head.Pooling`.
        shortcut: False leaves the shortcuts out.

    Raises:
        ConfigError: an argument out of range.
    """
    if isinstance(widths, str) or not isinstance(widths, Sequence) or not 1 <= len(widths) <= 16:
        raise ConfigError(f"model argument widths = {widths!r}: must be a list of 1 to 16 widths, such as [8, 16, 24]")
    for index, width in enumerate(widths):
        in_range(f"widths[{index}]", width, 4, 1024)
    if list(widths) != sorted(set(widths)):
        raise ConfigError(f"model argument widths = {list(widths)}: must ascend, each width once")
    common = {"dim": dim, "image_size": image_size, "depth": depth, "stages": stages, "stem_stride": stem_stride}
    return SlimmableResidual(tuple(widths), {**common, "pooling": pooling, "shortcut": shortcut})


class SlimmableResidual(nn.Module):
    """``(n, 3, image_size, image_size)`` float32 -> ``(n, dim)`` float32, *not* L2-normalised, at the greatest width.

    Args:
        widths: ascending.
        common: arguments of the family ``residual``, without ``width``.

    Attributes:
        widths: as given.
        net: the network of the greatest width, which holds the shared weights and that width's own batch norms.
        norms: batch norms of each smaller width (by its number as text), in the order of ``net.modules()``.
    """

    def __init__(self, widths: tuple[int, ...], common: dict[str, Any]) -> None:
        super().__init__()
        self.widths = widths
        self._common = dict(common)
        self.net = residual.build(**self.arguments(widths[-1]))
        self._shapes = {
            width: {name: value.shape for name, value in self._bare(width).state_dict().items()} for width in widths
        }
        self._places = [name for name, module in self.net.named_modules() if isinstance(module, nn.BatchNorm2d)]
        self.norms = nn.ModuleDict(
            {
                str(width): nn.ModuleList(nn.BatchNorm2d(self._shapes[width][f"{place}.weight"][0]) for place in self._places)
                for width in widths[:-1]
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps at the greatest width; see :meth:`samespace.edge.models.blocks.StagedNet.stages`."""
        return self.net.stages(x)

    @property
    def head(self) -> nn.Module:
        """From the last feature map of the greatest width to its embedding."""
        return self.net.head

    def arguments(self, width: int) -> dict[str, Any]:
        """What builds one width as a model of the family ``residual``; plain JSON values."""
        return {**self._common, "width": width}

    def at(self, width: int) -> "Width":
        """The network of one width, as a module without weights of its own.

        Raises:
            ConfigError: there is no such width.
        """
        return Width(self, self._known(width))

    def extract(self, width: int) -> StagedNet:
        """One width as a network of the family ``residual``: a copy, with that width's batch-norm statistics.

        It is in this network's mode and on its device, and computes what :meth:`at` computes.

        Raises:
            ConfigError: there is no such width.
        """
        net = self._bare(self._known(width)).to_empty(device=next(self.parameters()).device)
        net.load_state_dict(self.slices(width))
        return net.train(self.net.training)

    def slices(self, width: int) -> dict[str, torch.Tensor]:
        """The state dictionary of one width: views of the shared weights, and that width's own batch norms.

        Raises:
            ConfigError: there is no such width.
        """
        own = self._norms_of(self._known(width))
        full = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {name: own[name] if name in own else _first(full[name], shape) for name, shape in self._shapes[width].items()}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that more than one width uses: all but the batch norms; none where there is one width."""
        own = {f"{place}.{key}" for place in self._places for key in ("weight", "bias")}
        return [value for name, value in self.net.named_parameters() if name not in own] if len(self.widths) > 1 else []

    def _norms_of(self, width: int) -> dict[str, torch.Tensor]:
        if width == self.widths[-1]:
            return {}  # they are the network's own
        norms = zip(self._places, self.norms[str(width)], strict=True)  # pyright: ignore[reportArgumentType] - a ModuleList
        return {
            f"{place}.{name}": value
            for place, norm in norms
            for name, value in (*norm.named_parameters(), *norm.named_buffers())
        }

    def _bare(self, width: int) -> StagedNet:
        """One width without weights; nothing is drawn from any generator."""
        with torch.device("meta"):
            return residual.build(**self.arguments(width))

    def _known(self, width: int) -> int:
        if width not in self.widths:
            raise ConfigError(f"no width {width} in this slimmable network; it has {', '.join(map(str, self.widths))}")
        return width


class Width(nn.Module):
    """One width of a slimmable network; its weights, statistics and mode are the network's, not its own.

    ``forward``, ``stages`` and ``head`` are those of :class:`~samespace.edge.models.blocks.StagedNet`.
    """

    def __init__(self, network: SlimmableResidual, width: int) -> None:
        super().__init__()
        self.width = width
        # In a tuple it is no submodule: each weight is in one state dictionary and in one optimiser.
        self._network = (network,)

    @property
    def network(self) -> SlimmableResidual:
        """The network that it is a part of."""
        return self._network[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional_call(self.network.net, self.network.slices(self.width), (x,))

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        slices = {f"net.{name}": value for name, value in self.network.slices(self.width).items()}
        return functional_call(_Maps(self.network.net), slices, (x,))

    def head(self, x: torch.Tensor) -> torch.Tensor:
        slices = self.network.slices(self.width)
        own = {name.removeprefix("head."): value for name, value in slices.items() if name.startswith("head.")}
        return functional_call(self.network.head, own, (x,))

    def extract(self) -> StagedNet:
        """See :meth:`SlimmableResidual.extract`."""
        return self.network.extract(self.width)


class _Maps(nn.Module):
    """A network whose call gives its feature maps."""

    def __init__(self, net: StagedNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.net.stages(x)


def _first(full: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A view: the first channels, in and out."""
    for axis, size in enumerate(shape):
        full = full.narrow(axis, 0, size)
    return full
