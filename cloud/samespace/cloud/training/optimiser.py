"""AdamW with a one-cycle schedule that is a function of the step, not of a scheduler's state."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

__all__ = ["build_optimiser", "load_optimiser", "one_cycle", "optimiser_tensors", "set_step"]

#: As in torch's OneCycleLR: the first rate is the peak's 1/25, the last 1/10,000 of the first.
_FIRST, _LAST = 25.0, 25.0 * 1e4
#: beta1 moves against the rate, between these.
_BETAS = (0.85, 0.95)


def one_cycle(step: int, steps: int, peak: float, warmup: float) -> tuple[float, float]:
    """Learning rate and beta1 at ``step``.

    Smith & Topin, "Super-convergence" (2018, arXiv 1708.07120) with cosine annealing, the same numbers as torch's
    ``OneCycleLR(max_lr=peak, total_steps=steps, pct_start=warmup)``.

    Args:
        step: from 0 to ``steps - 1``.
        steps: of the whole stage.
        peak: the highest rate.
        warmup: share of the steps that climb to it, in (0, 1).
    """
    top = warmup * steps - 1
    low, high = _BETAS
    if step <= top:
        share = step / top if top else 1.0
        return _cosine(peak / _FIRST, peak, share), _cosine(high, low, share)
    share = (step - top) / (steps - 1 - top) if steps - 1 > top else 1.0
    return _cosine(peak, peak / _LAST, share), _cosine(low, high, share)


def build_optimiser(module: nn.Module, peak: float, weight_decay: float) -> AdamW:
    """AdamW over the trainable parameters of a module.

    Decay (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101) acts on matrices and kernels only: biases and norms have nothing to
    shrink for.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW([{**group, "peak": peak} for group in groups if group["params"]], lr=peak)


def set_step(optimiser: Optimizer, step: int, steps: int, warmup: float) -> float:
    """Set each group's rate and beta1 for ``step``; returns the first group's rate."""
    for group in optimiser.param_groups:
        group["lr"], beta = one_cycle(step, steps, group["peak"], warmup)
        group["betas"] = (beta, group["betas"][1])
    return optimiser.param_groups[0]["lr"]


def optimiser_tensors(optimiser: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state, ``parameter name:key`` -> tensor; empty before the first step."""
    return {
        f"{name}:{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def load_optimiser(optimiser: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`optimiser_tensors` gave, for a module of the same parameters."""
    parameters = dict(module.named_parameters())
    for full, value in tensors.items():
        name, key = full.rsplit(":", 1)
        parameter = parameters[name]
        # Moments lie as their parameter lies (channels last, on the device); the step count is a scalar on the CPU.
        placed = torch.empty_like(parameter).copy_(value) if key != "step" else value.clone()
        optimiser.state[parameter][key] = placed


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1 + math.cos(math.pi * share))
