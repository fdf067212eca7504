"""Matryoshka: which widths there are, what counts at each of them, and that a loss stores only what it saw at full width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses import Batch, CompatibilityLoss, CosineSoftmax, Need, Partner, PartnerHead, Regression, Shape
from samespace.cloud.losses.matryoshka import at_every_width, widths

SHAPE = Shape(classes=5, dim=8)
LABELS = torch.tensor([0, 3, 3, 1])


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


@pytest.mark.parametrize(
    ("dim", "prefixes", "expected"),
    [
        (64, (), (64,)),
        (64, (32, 16), (16, 32, 64)),
        (48, (16, 32, 64), (16, 32, 48)),
        (32, (16, 32, 64), (16, 32)),
        (8, (16,), (8,)),
    ],
)
def test_widths_are_the_narrower_prefixes_and_the_whole(dim: int, prefixes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert widths(dim, prefixes) == expected


class Watching(CompatibilityLoss):
    """Notes what it is called with."""

    needs = frozenset({Need.EMBEDDING, Need.HEAD})

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        self.calls.append((batch.embedding, partner.embedding, partner.head))
        return torch.tensor(float(batch.embedding.shape[1]))


class Blind(Watching):
    on_embedding = False


def test_every_width_counts_alike_and_the_whole_comes_last() -> None:
    loss = Watching(SHAPE)
    embedding, its, head = unit(4, 8), unit(4, 8, seed=1), unit(5, 8, seed=2)
    value = at_every_width(loss, Batch(embedding, LABELS), Partner({Need.EMBEDDING: its, Need.HEAD: head}), (2, 4, 8))
    assert value.item() == pytest.approx((2 + 4 + 8) / 3)
    assert [own.shape[1] for own, _, _ in loss.calls] == [2, 4, 8]
    for seen in loss.calls:
        for rows, whole in zip(seen, (embedding, its, head), strict=True):
            width = rows.shape[1]
            expected = [[x / sum(y * y for y in row[:width]) ** 0.5 for x in row[:width]] for row in whole.tolist()]
            torch.testing.assert_close(rows, torch.tensor(expected, dtype=torch.float64))


def test_a_loss_that_does_not_look_at_the_embedding_counts_once() -> None:
    loss = Blind(SHAPE)
    partner = Partner({Need.EMBEDDING: unit(4, 8), Need.HEAD: unit(5, 8)})
    assert at_every_width(loss, Batch(unit(4, 8), LABELS), partner, (2, 4, 8)).item() == 8
    assert len(loss.calls) == 1


@pytest.mark.parametrize("width", [2, 5])
def test_the_classifiers_read_a_prefix_by_the_prefix_of_their_head(width: int) -> None:
    """As if there had never been more coordinates than that."""
    embedding, weight = unit(4, 8), 3 * unit(5, 8, seed=1)
    own = CosineSoftmax(SHAPE).double()
    narrow = CosineSoftmax(Shape(5, width)).double()
    with torch.no_grad():
        own.weight.copy_(weight)
        narrow.weight.copy_(weight[:, :width])
    cut = Batch(F.normalize(embedding[:, :width], dim=1), LABELS)
    expected = narrow(cut, Partner({})).item()
    assert own(Batch(embedding, LABELS).first(width), Partner({})).item() == pytest.approx(expected, rel=1e-12)
    assert own.head().shape == (5, 8)

    partner = Partner({Need.HEAD: F.normalize(weight, dim=1)})
    assert PartnerHead(SHAPE)(Batch(embedding, LABELS).first(width), partner.first(width)).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_perfect_agreement_of_all_coordinates_is_agreement_of_every_prefix() -> None:
    its = unit(4, 8, seed=1)
    partner = Partner({Need.EMBEDDING: its})
    assert at_every_width(Regression(SHAPE), Batch(its, LABELS), partner, (2, 4, 8)).item() == pytest.approx(0, abs=1e-12)
    # Coordinates in another order agree with themselves as a whole, yet no prefix is what the partner's is.
    turned = its.flip(1)
    whole = Regression(SHAPE)(Batch(turned, LABELS), Partner({Need.EMBEDDING: its.flip(1)})).item()
    prefixes = at_every_width(Regression(SHAPE), Batch(turned, LABELS), partner, (2, 4, 8)).item()
    assert whole == pytest.approx(0, abs=1e-12)
    assert prefixes > 0.1
