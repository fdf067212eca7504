"""A network with leaky ReLU where it had ReLU: what a small change of weights does is then seen in every unit.

LQF (Achille et al., CVPR 2021, arXiv 2012.11140, section 3) linearises such networks, with slope 0.2. The weights keep their
names and shapes; what they were trained for is recovered by ``samespace finetune leaky``.
"""

from typing import Any

from torch import nn

from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError

__all__ = ["build", "leaky"]

#: Of LQF.
SLOPE = 0.2


def leaky(network: nn.Module, slope: float = SLOPE) -> nn.Module:
    """The same network, changed in place: ``x`` above 0 and ``slope * x`` below; a ReLU6 loses its limit at 6 too."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(module, name, nn.LeakyReLU(slope))
    return network


def build(*, dim: int, image_size: int, family: str, arguments: dict[str, Any], slope: float = SLOPE) -> nn.Module:
    """A network of another family with leaky ReLU; ``samespace finetune leaky`` makes its records.

    Args:
        dim: as the base has it.
        image_size: as the base has it.
        family: of the base.
        arguments: of the base.
        slope: below 0; above 0 and below 1.

    Raises:
        ConfigError: arguments that cannot work.
    """
    if not 0 < slope < 1:
        raise ConfigError(f"model argument slope = {slope!r}: must be above 0 and below 1")
    return leaky(build_model(family, {**arguments, "dim": dim, "image_size": image_size}, weights_follow=True), slope)
