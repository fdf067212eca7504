"""A model and an adapter behind it as one network, so that both are exported as one graph."""

import itertools
from typing import Any

import torch
from torch import nn

from samespace.edge.models.arguments import in_range
from samespace.edge.models.head import L2Norm
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError

__all__ = ["Adapted", "build"]


class Adapted(nn.Module):
    """``linear(e) + out(relu(...relu(hidden.0(e))))`` of the unit-norm embeddings ``e`` of ``base``: ``(n, dim)``, not normed.

    Args:
        base: gives ``(n, source_dim)``.
        source_dim: of its embeddings.
        dim: of the adapted ones.
        hidden: widths of the hidden layers; none for an affine map.
        bias: whether the linear part has one.
    """

    def __init__(self, base: nn.Module, source_dim: int, dim: int, hidden: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.base, self.norm = base, L2Norm()
        self.linear = nn.Linear(source_dim, dim, bias=bias)
        widths = (source_dim, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1], dim) if hidden else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedding = self.norm(self.base(x))
        mapped = self.linear(embedding)
        if self.out is None:
            return mapped
        for layer in self.hidden:
            embedding = torch.relu(layer(embedding))
        return mapped + self.out(embedding)


def build(
    *, dim: int, image_size: int, family: str, arguments: dict[str, Any], hidden: list[int] | None = None, bias: bool = False
) -> nn.Module:
    """An adapted model; ``samespace adapters fold`` makes its records.

    Args:
        dim: of the adapted embeddings.
        image_size: of the base.
        family: of the base.
        arguments: of the base, ``dim`` and ``image_size`` among them.
        hidden: widths of the adapter's hidden layers.
        bias: whether its linear part has one.

    Raises:
        ConfigError: arguments that cannot work.
    """
    if family == "adapted":
        raise ConfigError("an adapted model cannot be adapted again; fit one adapter to what it should give")
    if arguments.get("image_size") != image_size:
        raise ConfigError(f"model argument image_size = {image_size}: the base has {arguments.get('image_size')}")
    for width in hidden or ():
        in_range("hidden", width, 1, 65536)
    base = build_model(family, arguments, weights_follow=True)
    return Adapted(base, arguments["dim"], dim, tuple(hidden or ()), bias=bias)
