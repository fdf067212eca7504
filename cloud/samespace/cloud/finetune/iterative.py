"""The same optimum as :mod:`samespace.cloud.finetune.exact` for more images than fit a matrix: conjugate gradients.

A step needs one tangent and one pull over the images; no Jacobian is stored. What it gives up is the leave-one-out error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samespace.cloud.finetune.kfac import Precondition
from samespace.cloud.finetune.linear import Delta, Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.sdk.errors import ConfigError

__all__ = ["Approached", "approach", "curvature"]


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
    precondition: Precondition = dict,
    advance: Callable[[int, float], None] = lambda step, residual: None,
) -> Approached:
    """Solve ``(J^T J + mu A^T A + lambda) dw = J^T r`` (Hestenes & Stiefel 1952).

    Args:
        tolerance: relative residual at which it stops.
        steps: at most.
        precondition: gradient -> about ``(J^T J + ...)^-1 gradient``, see :func:`samespace.cloud.finetune.kfac.kfac`; fewer
            steps are needed with one.
        advance: told after each step how far it is.

    Raises:
        ConfigError: a tolerance that is not above 0.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance must be above 0, got {tolerance}")

    left = network.pull(problem.images, problem.wanted.to(problem.images.dtype))
    delta, turned = network.zero(), precondition(left)
    along = {name: value.clone() for name, value in turned.items()}
    begin, size, fall = _dot(left, left), _dot(left, left), _dot(left, turned)
    for step in range(1, steps + 1):
        if not size > tolerance**2 * begin:
            return Approached(delta, step - 1, (size / begin) ** 0.5 if begin else 0.0)
        bent = curvature(network, problem, along)
        length = fall / _dot(along, bent)
        _add(delta, along, length)
        _add(left, bent, -length)
        turned = precondition(left)
        before, fall, size = fall, _dot(left, turned), _dot(left, left)
        along = {name: turned[name] + fall / before * value for name, value in along.items()}
        advance(step, (size / begin) ** 0.5)
    return Approached(delta, steps, (size / begin) ** 0.5 if begin else 0.0)


def curvature(network: Linearised, problem: Problem, delta: Delta) -> dict[str, Tensor]:
    """``(J^T J + mu A^T A + lambda) delta``."""
    total = {name: problem.penalty * value for name, value in delta.items()}
    for rows, weight in ((problem.images, 1.0), (problem.anchors, problem.hold)):
        if rows is not None:
            _add(total, network.pull(rows, network.tangent(rows, delta)), weight)
    return total


def _add(total: dict[str, Tensor], more: Delta, weight: float = 1.0) -> None:
    for name, value in more.items():
        total[name] += weight * value


def _dot(a: Delta, b: Delta) -> float:
    return float(sum(torch.dot(a[name].flatten().double(), b[name].flatten().double()) for name in a))
