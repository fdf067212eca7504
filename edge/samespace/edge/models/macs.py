"""Multiply-accumulates and parameters of a network, counted where they happen."""

from typing import NamedTuple

import torch
from torch import nn

__all__ = ["Cost", "count"]


class Cost(NamedTuple):
    """What one image costs: multiply-accumulates of convolutions and linear layers, and parameters of all layers."""

    macs: int
    params: int


def count(model: nn.Module, size: int) -> Cost:
    """Run one ``(1, 3, size, size)`` image of zeros and count.

    Norms, activations and sums are not counted: they fold away or cost next to nothing. The model's mode and statistics
    are left as they were.
    """
    macs = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output.shape[-1] * output.shape[-2] * module.weight.numel()
        elif isinstance(module, nn.Linear):
            macs += output.numel() // output.shape[-1] * module.weight.numel()

    hooks = [layer.register_forward_hook(add) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    modes = [(layer, layer.training) for layer in model.modules()]
    weight = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes:
            layer.training = training
    return Cost(macs, sum(parameter.numel() for parameter in model.parameters()))
