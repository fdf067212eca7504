"""How much each model of a family counts, learnt with the models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["UncertaintyWeights"]


class UncertaintyWeights(nn.Module):
    r"""Weighs the objectives L_i of several models by their uncertainty: ``sum_i exp(-s_i) L_i + s_i``.

    Kendall, Gal & Cipolla, CVPR 2018 (arXiv 1705.07115), eq. 10, with ``s_i = log sigma_i^2`` learnt and s_i in the place of
    ``s_i / 2``, so that the optimum is ``s_i = log L_i`` and the weight ``1 / L_i``: the model that finds it harder counts for
    less, as SFSC (Wu et al., CVPR 2023) has it for the sub-models of one network. An L_i must be positive.

    AdamW all but undoes a constant factor of a gradient, so weights matter where models share parameters.

    Args:
        names: of the models.
        bound: every s_i stays in ``[-bound, bound]``, weights in ``[exp(-bound), exp(bound)]``.
    """

    def __init__(self, names: Sequence[str], bound: float = 5.0) -> None:
        super().__init__()
        self.names, self.bound = tuple(names), bound
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))

    def forward(self, name: str, loss: Tensor) -> Tensor:
        """``exp(-s) L + s`` of one model, a scalar with gradient; the sum over all models is what is minimised."""
        with torch.no_grad():
            # The parameter itself, not what is read from it: beyond the bound there would be no gradient to come back by.
            self.log_variance.clamp_(-self.bound, self.bound)
        s = self.log_variance[self.names.index(name)]
        return torch.exp(-s) * loss + s

    def weights(self) -> dict[str, float]:
        """``exp(-s)`` of each model."""
        values = self.log_variance.detach().clamp(-self.bound, self.bound).tolist()
        return {name: math.exp(-value) for name, value in zip(self.names, values, strict=True)}
