"""Relational distillation number by number, and what it is kept for: it says nothing about comparisons across the spaces."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses import Batch, Need, Partner, Shape
from samespace.cloud.losses.relational import Relational

SHAPE = Shape(classes=4, dim=3)
Row = list[float]


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def batch_of(rows: Tensor) -> Batch:
    return Batch(rows, torch.zeros(len(rows), dtype=torch.int64))


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def slow_distance(own: list[Row], its: list[Row]) -> float:
    pairs = [(i, j) for i in range(len(own)) for j in range(len(own)) if i != j]
    means = [sum(math.dist(rows[i], rows[j]) for i, j in pairs) / len(pairs) for rows in (own, its)]
    return sum(huber(math.dist(own[i], own[j]) / means[0] - math.dist(its[i], its[j]) / means[1]) for i, j in pairs) / len(
        pairs
    )


def cosine_at(rows: list[Row], i: int, j: int, k: int) -> float:
    """Of the angle at j, by the law of cosines."""
    a, b, c = math.dist(rows[i], rows[j]), math.dist(rows[k], rows[j]), math.dist(rows[i], rows[k])
    return (a * a + b * b - c * c) / (2 * a * b)


def slow_angle(own: list[Row], its: list[Row]) -> float:
    places = range(len(own))
    triplets = [(i, j, k) for i in places for j in places for k in places if len({i, j, k}) == 3]
    return sum(huber(cosine_at(own, *at) - cosine_at(its, *at)) for at in triplets) / len(triplets)


@pytest.mark.parametrize(("distance", "angle"), [(1.0, 2.0), (1.0, 0.0), (0.0, 1.0), (25.0, 50.0)])
def test_it_is_its_formula(distance: float, angle: float) -> None:
    own, its = unit(6, 3), unit(6, 5, seed=1)  # it does not even need spaces of one dimension
    expected = distance * slow_distance(own.tolist(), its.tolist()) + angle * slow_angle(own.tolist(), its.tolist())
    loss = Relational(SHAPE, distance_weight=distance, angle_weight=angle)
    assert loss(batch_of(own), Partner({Need.EMBEDDING: its})).item() == pytest.approx(expected, rel=1e-9)


def test_a_perfect_score_leaves_the_spaces_unrelated() -> None:
    its = unit(64, 16, seed=1)
    turned = its @ torch.linalg.qr(unit(16, 16, seed=2)).Q
    assert Relational(SHAPE)(batch_of(turned), Partner({Need.EMBEDDING: its})).item() == pytest.approx(0, abs=1e-12)
    nearest = (turned @ its.T).argmax(1)
    assert (nearest == torch.arange(64)).float().mean() < 0.2


@pytest.mark.parametrize("count", [1, 2])
def test_batches_too_small_for_a_term_do_without_it(count: int) -> None:
    own = unit(count, 3).requires_grad_()
    value = Relational(SHAPE)(batch_of(own), Partner({Need.EMBEDDING: unit(count, 3, seed=1)}))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)  # of a single distance the mean is itself
    assert own.grad is not None
    assert torch.isfinite(own.grad).all()


def test_equal_embeddings_keep_the_gradient_finite() -> None:
    own = unit(5, 3)
    own[1] = own[0]
    own.requires_grad_()
    Relational(SHAPE)(batch_of(own), Partner({Need.EMBEDDING: unit(5, 3, seed=1)})).backward()
    assert own.grad is not None
    assert torch.isfinite(own.grad).all()
    assert own.grad.abs().max() < 1e4
