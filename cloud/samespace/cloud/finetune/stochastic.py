"""The same optimum once more, a mini-batch a step: preconditioned stochastic gradient descent, as LQF trains (section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from samespace.cloud.finetune.iterative import curvature
from samespace.cloud.finetune.kfac import Precondition
from samespace.cloud.finetune.linear import Delta, Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.sdk.errors import ConfigError

__all__ = ["descend", "steepest"]


def descend(
    network: Linearised,
    problem: Problem,
    *,
    steps: int,
    rate: float,
    precondition: Precondition | None = None,
    batch: int = 64,
    momentum: float = 0.9,
    seed: int = 0,
    advance: Callable[[int, Delta], None] = lambda step, delta: None,
) -> dict[str, Tensor]:
    """dw after some steps; gradients are of the whole sum, estimated from a batch of images and as many anchors.

    Args:
        steps: to take; the rate falls to 0 along a cosine.
        rate: of a step: of the order of 1 with a preconditioner, far below 1 over the largest curvature without.
        precondition: see :func:`samespace.cloud.finetune.kfac.kfac`; none for plain descent.
        momentum: in [0, 1).
        seed: of the order of images.
        advance: told after each step how far it is; must not change dw.

    Raises:
        ConfigError: a number out of its range, or a dw that ran away.
    """
    if not (steps > 0 and rate > 0 and batch > 0 and 0 <= momentum < 1):
        raise ConfigError(f"steps, rate and batch must be above 0 and momentum in [0, 1), got {(steps, rate, batch, momentum)}")
    chance = torch.Generator().manual_seed(seed)
    delta, speed = network.zero(), network.zero()
    terms = [(problem.images, problem.wanted.to(problem.images.dtype), 1.0)]
    if len(problem.held):
        terms.append((problem.held, problem.wanted.new_zeros(len(problem.held), problem.wanted.shape[1]), problem.hold))
    orders = [_endless(len(images), min(batch, len(images)), chance) for images, _, _ in terms]
    for step in range(steps):
        gradient = {name: problem.penalty * value for name, value in delta.items()}
        for (images, wanted, weight), order in zip(terms, orders, strict=True):
            rows = next(order)
            missed = network.tangent(images[rows], delta) - wanted[rows]
            share = weight * len(images) / len(rows)
            for name, value in network.pull(images[rows], share * missed).items():
                gradient[name] += value
        if precondition is not None:
            gradient = precondition(gradient)
        length = rate * (1 + math.cos(math.pi * step / steps)) / 2
        for name in delta:
            speed[name] = momentum * speed[name] + (1 - momentum) * gradient[name]
            delta[name] -= length * speed[name]
        advance(step + 1, delta)
    if not all(bool(value.isfinite().all()) for value in delta.values()):
        raise ConfigError(f"the steps ran away; take a rate below {rate}")
    return delta


def _endless(count: int, batch: int, chance: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(count, generator=chance)
        yield from (order[start : start + batch] for start in range(0, count - batch + 1, batch))


def steepest(network: Linearised, problem: Problem, precondition: Precondition | None = None, turns: int = 12) -> float:
    """The largest eigenvalue of the (preconditioned) curvature, by power iteration: rates are told in its inverse."""
    chance = torch.Generator().manual_seed(0)
    along: dict[str, Tensor] = {}
    for name, shape in network.shapes.items():
        along[name] = torch.randn(shape, generator=chance).to(problem.images)
    size = 1.0
    for _ in range(turns):
        size = math.sqrt(sum(float(value.double().square().sum()) for value in along.values()))
        along = {name: value / size for name, value in along.items()}
        turned = curvature(network, problem, along)
        along = turned if precondition is None else precondition(turned)
    return math.sqrt(sum(float(value.double().square().sum()) for value in along.values()))
