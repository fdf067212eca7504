"""Contextual similarity distillation number by number; which neighbours it looks at."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses import Batch, Gallery, Need, Partner, Shape
from samespace.cloud.losses.csd import ContextualSimilarity, neighbourhood
from samespace.sdk.errors import ConfigError

SHAPE = Shape(classes=4, dim=5)
ROWS = torch.tensor([7, 0, 12])
LABELS = torch.tensor([0, 1, 3])


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


@pytest.fixture
def partner() -> Partner:
    """Of images so augmented that each is anywhere but at its own row."""
    return Partner({Need.EMBEDDING: unit(3, 5, seed=1), Need.GALLERY: Gallery(unit(16, 5, seed=2), torch.arange(16) % 4)})


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def near(partner: Partner, count: int) -> list[list[int]]:
    """The image's own row, then the others by falling cosine."""
    gallery = partner.gallery.embedding.tolist()
    order = []
    for row, its in zip(ROWS.tolist(), partner.embedding.tolist(), strict=True):
        others = sorted((i for i in range(len(gallery)) if i != row), key=lambda i, its=its: -dot(its, gallery[i]))
        order.append([row, *others][:count])
    return order


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("count", "its_temperature", "own_temperature"), [(4, 0.1, 1.0), (2, 0.01, 0.5), (96, 0.05, 0.05)])
def test_it_is_its_formula(partner: Partner, count: int, its_temperature: float, own_temperature: float) -> None:
    own = unit(3, 5, seed=3)
    loss = ContextualSimilarity(SHAPE, neighbours=count, partner_temperature=its_temperature, temperature=own_temperature)
    gallery = partner.gallery.embedding.tolist()
    expected = 0.0
    for row, its, near_it in zip(own.tolist(), partner.embedding.tolist(), near(partner, count), strict=True):
        target = softmax([dot(its, gallery[i]) / its_temperature for i in near_it])
        seen = softmax([dot(row, gallery[i]) / own_temperature for i in near_it])
        expected += sum(p * math.log(p / q) for p, q in zip(target, seen, strict=True) if p > 0) / 3
    assert loss(Batch(own, LABELS, ROWS), partner).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 16, 96])
def test_an_image_is_the_first_of_its_neighbours_however_far_it_was_augmented_away(partner: Partner, count: int) -> None:
    found = neighbourhood(Batch(unit(3, 5), LABELS, ROWS), partner, count)
    assert found.tolist() == near(partner, count)
    assert found.shape == (3, min(count, 16))


def test_the_neighbours_of_a_prefix_are_those_in_the_prefix(partner: Partner) -> None:
    found = neighbourhood(Batch(unit(3, 5), LABELS, ROWS).first(2), partner.first(2), 6)
    assert found.tolist() == near(partner.first(2), 6)
    assert found.tolist() != near(partner, 6)


def test_an_equal_model_at_equal_temperatures_has_nothing_to_learn(partner: Partner) -> None:
    loss = ContextualSimilarity(SHAPE, neighbours=8, partner_temperature=0.1, temperature=0.1)
    assert loss(Batch(partner.embedding, LABELS, ROWS), partner).item() == pytest.approx(0, abs=1e-12)
    assert loss(Batch(unit(3, 5, seed=3), LABELS, ROWS), partner).item() > 0.01


def test_without_rows_it_says_what_is_missing(partner: Partner) -> None:
    with pytest.raises(ConfigError, match=r"needs Batch\.rows"):
        ContextualSimilarity(SHAPE)(Batch(unit(3, 5), LABELS), partner)
