"""The contrastive loss number by number, and its queue: what enters, when, and what leaves first."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses import Batch, Need, Partner, Shape
from samespace.cloud.losses.contrastive import Contrastive
from samespace.cloud.losses.matryoshka import at_every_width

SHAPE = Shape(classes=4, dim=3)


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def drawn(count: int, seed: int) -> tuple[Batch, Partner]:
    labels = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed))
    return Batch(unit(count, 3, seed=seed), labels), Partner({Need.EMBEDDING: unit(count, 3, seed=seed + 100)})


def slow(batch: Batch, its: list[list[float]], labels: list[int], temperature: float) -> float:
    """The formula of the docstring, number by number."""
    total = 0.0
    for row, label in zip(batch.embedding.tolist(), batch.labels.tolist(), strict=True):
        power = [math.exp(sum(a * b for a, b in zip(row, other, strict=True)) / temperature) for other in its]
        negatives = sum(p for p, other in zip(power, labels, strict=True) if other != label)
        terms = [-math.log(p / (p + negatives)) for p, other in zip(power, labels, strict=True) if other == label]
        total += sum(terms) / len(terms)
    return total / len(batch.labels)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_within_the_batch_it_is_its_formula(temperature: float) -> None:
    batch, partner = drawn(7, seed=1)
    loss = Contrastive(SHAPE, temperature=temperature, queue=0).double()
    expected = slow(batch, partner.embedding.tolist(), batch.labels.tolist(), temperature)
    for _ in range(2):  # nothing is kept
        assert loss(batch, partner).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("length", [1, 5, 8, 20, 64])
def test_the_queue_holds_the_last_ones_wherever_it_wraps_around(length: int) -> None:
    """Batches of unlike sizes, some longer than the queue: the loss is that over the batch and the last ones before it."""
    loss = Contrastive(SHAPE, temperature=0.2, queue=length).double()
    seen: list[list[float]] = []
    seen_labels: list[int] = []
    for step, count in enumerate([3, 6, 4, 9, 2, 6, 6]):
        batch, partner = drawn(count, seed=step)
        its = partner.embedding.tolist() + seen[-length:]
        labels = batch.labels.tolist() + seen_labels[-length:]
        assert loss(batch, partner).item() == pytest.approx(slow(batch, its, labels, 0.2), rel=1e-10)
        seen += partner.embedding.tolist()
        seen_labels += batch.labels.tolist()


def test_evaluation_leaves_the_queue_as_it_is() -> None:
    loss = Contrastive(SHAPE, queue=8).double()
    loss(*drawn(5, seed=0))
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.eval()
    loss(*drawn(5, seed=1))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_prefixes_see_the_same_queue_and_only_the_whole_enters_it() -> None:
    loss = Contrastive(SHAPE, temperature=0.2, queue=8).double()
    first, second = drawn(5, seed=0), drawn(4, seed=1)
    at_every_width(loss, *first, (2, 3))
    assert int((loss.state_dict()["queue_labels"] >= 0).sum()) == 5
    value = at_every_width(loss, *second, (2, 3)).item()
    batch, partner = second
    labels = batch.labels.tolist() + first[0].labels.tolist()
    expected = 0.0
    for width in (2, 3):
        its = torch.cat([partner.embedding, first[1].embedding])[:, :width]
        expected += slow(batch.first(width), F.normalize(its, dim=1).tolist(), labels, 0.2) / 2
    assert value == pytest.approx(expected, rel=1e-10)


def test_the_queue_resumes_from_a_checkpoint() -> None:
    loss, resumed = Contrastive(SHAPE, queue=8), Contrastive(SHAPE, queue=8)
    loss.double()
    resumed.double()
    loss(*drawn(5, seed=0))
    resumed.load_state_dict(loss.state_dict())
    for seed in (1, 2):
        assert resumed(*drawn(6, seed=seed)).item() == loss(*drawn(6, seed=seed)).item()


def test_with_one_class_there_is_nothing_to_tell_apart() -> None:
    embedding = unit(4, 3).requires_grad_()
    loss = Contrastive(SHAPE, queue=8).double()
    value = loss(Batch(embedding, torch.zeros(4, dtype=torch.int64)), Partner({Need.EMBEDDING: unit(4, 3, seed=1)}))
    value.backward()
    assert value.item() == 0
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() == 0


def test_other_pictures_of_a_class_are_positives_and_do_not_compete() -> None:
    """Right between two positives: neither is in the other's way, so that only the negative matters."""
    its = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    between = F.normalize(torch.tensor([[1.0, 1.0, 0.0]]), dim=1).expand(3, 3)
    loss = Contrastive(SHAPE, temperature=0.5, queue=0)
    value = loss(Batch(between[:2], torch.tensor([0, 0])), Partner({Need.EMBEDDING: its[:2]}))
    assert value.item() == 0
    value = loss(Batch(between, torch.tensor([0, 0, 0])), Partner({Need.EMBEDDING: its}))
    assert value.item() == 0
    own = torch.cat([between[:2], its[2:]])
    value = loss(Batch(own, torch.tensor([0, 0, 1])), Partner({Need.EMBEDDING: its}))
    one, third = math.log1p(math.exp(-(0.5**0.5) / 0.5)), math.log1p(2 * math.exp(-1 / 0.5))
    assert value.item() == pytest.approx((2 * one + third) / 3, rel=1e-5)
