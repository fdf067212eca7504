"""The same optimum as :mod:`samespace.cloud.finetune.exact` for more images than fit a matrix: conjugate gradients.

A step needs one tangent and one pull over the images; no Jacobian is stored. What it gives up is the leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samespace.cloud.finetune.linear import Delta, Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.sdk.errors import ConfigError

__all__ = ["Approached", "approach"]


@dataclass(frozen=True, eq=False)
class Approached:
    """An optimum, to a tolerance.

    Attributes:
        delta: dw, by parameter.
        steps: taken.
        residual: of the normal equations, relative to their right side; at most the tolerance unless the steps ran out.
    """

    delta: dict[str, Tensor]
    steps: int
    residual: float


def approach(
    network: Linearised,
    problem: Problem,
    *,
    tolerance: float = 1e-4,
    steps: int = 500,
    advance: Callable[[int, float], None] = lambda step, residual: None,
) -> Approached:
    """Solve ``(J^T J + mu A^T A + lambda) dw = J^T r`` (Hestenes & Stiefel 1952).

    Args:
        tolerance: relative residual at which it stops.
        steps: at most.
        advance: told after each step how far it is.

    Raises:
        ConfigError: a tolerance that is not above 0.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance must be above 0, got {tolerance}")

    def normal(delta: Delta) -> dict[str, Tensor]:
        total = {name: problem.penalty * value for name, value in delta.items()}
        for rows, weight in ((problem.images, 1.0), (problem.anchors, problem.hold)):
            if rows is not None:
                _add(total, network.pull(rows, network.tangent(rows, delta)), weight)
        return total

    left = network.pull(problem.images, problem.wanted.to(problem.images.dtype))
    delta, along = network.zero(), {name: value.clone() for name, value in left.items()}
    begin = size = _dot(left, left)
    for step in range(1, steps + 1):
        if not size > tolerance**2 * begin:
            return Approached(delta, step - 1, (size / begin) ** 0.5 if begin else 0.0)
        turned = normal(along)
        length = size / _dot(along, turned)
        _add(delta, along, length)
        _add(left, turned, -length)
        before, size = size, _dot(left, left)
        along = {name: left[name] + size / before * value for name, value in along.items()}
        advance(step, (size / begin) ** 0.5)
    return Approached(delta, steps, (size / begin) ** 0.5 if begin else 0.0)


def _add(total: dict[str, Tensor], more: Delta, weight: float = 1.0) -> None:
    for name, value in more.items():
        total[name] += weight * value


def _dot(a: Delta, b: Delta) -> float:
    return float(sum(torch.dot(a[name].flatten().double(), b[name].flatten().double()) for name in a))
