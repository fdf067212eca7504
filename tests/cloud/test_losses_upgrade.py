"""Losses of upgrades against loops that follow their formulas number by number, and at hand-made geometry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samespace.cloud.losses import Batch, Gallery, Need, Partner, Shape, build_loss
from samespace.sdk.errors import ConfigError

SHAPE = Shape(classes=4, dim=3)
SCALE = 16.0
seeds = st.integers(0, 2**20)


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def drawn(seed: int, count: int = 6) -> tuple[Batch, Partner]:
    """A batch and a partner whose gallery is thirty pictures."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    batch = Batch(unit(count, 3, seed=seed), labels, head=unit(4, 3, seed=seed + 1))
    gallery = Gallery(unit(30, 3, seed=seed + 2), torch.arange(30) % 4)
    supplied = {Need.EMBEDDING: unit(count, 3, seed=seed + 3), Need.HEAD: unit(4, 3, seed=seed + 4), Need.GALLERY: gallery}
    supplied[Need.KNOWN] = torch.tensor([True, False, True, False])
    return batch, Partner({**supplied, Need.TEACHERS: SCALE * unit(count, 3, seed=seed + 5) @ unit(4, 3, seed=seed + 6).T})


def softmax(logits: list[float], temperature: float) -> list[float]:
    most = max(logits)
    parts = [math.exp((value - most) / temperature) for value in logits]
    return [part / sum(parts) for part in parts]


def logits(rows: Tensor, head: Tensor) -> list[list[float]]:
    return [[SCALE * sum(a * b for a, b in zip(row, weight, strict=True)) for weight in head.tolist()] for row in rows.tolist()]


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["kl", "logits"]), st.sampled_from([1.0, 4.0, 100.0]), st.booleans())
def test_focal_distillation_is_its_formula(seed: int, distance: str, temperature: float, costly: bool) -> None:
    batch, partner = drawn(seed)
    costs = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    batch = Batch(batch.embedding, batch.labels, head=batch.head, costs=costs if costly else None)
    assert batch.head is not None
    total = 0.0
    for i, (new, old) in enumerate(
        zip(logits(batch.embedding, batch.head), logits(partner.embedding, partner.head), strict=True)
    ):
        right = old.index(max(old)) == batch.labels[i]
        weight = 1 + (5 * (costs[i].item() if costly else 1) if right else 0)
        if distance == "logits":
            value = sum((a - b) ** 2 for a, b in zip(new, old, strict=True)) / 4 / 2
        else:
            p, q = softmax(old, temperature), softmax(new, temperature)
            value = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += weight * value
    loss = build_loss("focal_distillation", SHAPE, {"distance": distance, "temperature": temperature})
    assert loss(batch, partner).item() == pytest.approx(total / 6, rel=1e-6, abs=1e-9)


def test_at_a_high_temperature_both_distances_say_the_same() -> None:
    """Up to the logits' mean, which a softmax does not see: the reason for the square of the temperature."""
    batch, partner = drawn(0)
    assert batch.head is not None
    kl, plain = (
        build_loss("focal_distillation", SHAPE, {"distance": distance, "temperature": 1e4, "beta": 0.0})
        for distance in ("kl", "logits")
    )
    difference = SCALE * (batch.embedding @ batch.head.T - partner.embedding @ partner.head.T)
    means = difference.mean(1).square().mean().item() / 2
    assert kl(batch, partner).item() == pytest.approx(plain(batch, partner).item() - means, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from(["kl", "logits"]))
def test_focal_distillation_of_known_classes_does_not_look_at_others(seed: int, distance: str) -> None:
    batch, partner = drawn(seed)
    assert batch.head is not None
    loss = build_loss("focal_distillation", SHAPE, {"distance": distance, "classes": "known"})
    turned, others = batch.head.clone(), ~partner.known
    turned[others] = -turned[others]
    same = loss(Batch(batch.embedding, batch.labels, head=turned), partner)
    assert same.item() == pytest.approx(loss(batch, partner).item(), rel=1e-12)
    turned[partner.known] = -turned[partner.known]
    assert loss(Batch(batch.embedding, batch.labels, head=turned), partner).item() != pytest.approx(same.item(), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([0.0, 2.0]))
def test_margin_preserving_is_its_formula(seed: int, bias: float) -> None:
    batch, partner = drawn(seed)
    assert batch.head is not None
    known, total = partner.known.tolist(), 0.0
    for new, label in zip(logits(batch.embedding, batch.head), batch.labels.tolist(), strict=True):
        raised = [value + (0.0 if known[c] else bias) for c, value in enumerate(new)]
        total -= math.log(softmax(raised, 1.0)[label]) if known[label] else 0.0
    assert build_loss("margin_preserving", SHAPE, {"bias": bias})(batch, partner).item() == pytest.approx(total / 6, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_naive_reweighting_is_cross_entropy_where_the_old_model_was_right(seed: int) -> None:
    batch, partner = drawn(seed)
    assert batch.head is not None
    total = 0.0
    for i, (new, old) in enumerate(
        zip(logits(batch.embedding, batch.head), logits(partner.embedding, partner.head), strict=True)
    ):
        label = int(batch.labels[i])
        if old.index(max(old)) == label:
            total -= math.log(softmax(new, 1.0)[label])
    assert build_loss("naive_reweighting", SHAPE)(batch, partner).item() == pytest.approx(total / 6, rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([1.0, 2.0]), st.integers(0, 4), st.booleans())
def test_logit_difference_is_its_formula(seed: int, slack: float, power: float, top: int, true_class: bool) -> None:
    batch, partner = drawn(seed)
    assert batch.head is not None
    total = 0.0
    for i, new in enumerate(logits(batch.embedding, batch.head)):
        taught = partner.teachers[i].tolist()
        kept = [k for k in range(4) if true_class or k != batch.labels[i]]
        if 0 < top < 4:
            kept = sorted(kept, key=lambda k: -taught[k])[:top]
        total += sum(max(abs(new[k] - taught[k]) - slack, 0) ** power for k in kept) / len(kept)
    options = {"slack": slack, "power": power, "top": top, "true_class": true_class}
    assert build_loss("logit_difference", SHAPE, options)(batch, partner).item() == pytest.approx(total / 6, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 12))
def test_ract_is_its_formula(seed: int, top: int) -> None:
    batch, partner = drawn(seed, 8)
    own, old, t, total = batch.embedding.tolist(), partner.embedding.tolist(), 0.05, 0.0

    def part(a: list[float], b: list[float]) -> float:
        return math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / t)

    for i in range(8):
        others = [j for j in range(8) if batch.labels[j] != batch.labels[i]]
        negatives = [sorted((part(own[i], side[j]) for j in others), reverse=True)[:top] for side in (old, own)]
        positive = part(own[i], old[i])
        total -= math.log(positive / (positive + sum(map(sum, negatives))))
    assert build_loss("ract", SHAPE, {"top": top})(batch, partner).item() == pytest.approx(total / 8, rel=1e-6)


def test_ract_sees_new_negatives_where_others_do_not() -> None:
    """Two images of two classes that fall together in the new space alone: only the new side says so."""
    old = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    together = F.normalize(torch.tensor([[1.0, 1, 0], [1.0, 1, 0]], dtype=torch.float64), dim=1)
    loss = build_loss("ract", SHAPE)
    labels, partner = torch.tensor([0, 1]), Partner({Need.EMBEDDING: old})
    assert loss(Batch(together, labels), partner) > 10 * loss(Batch(old, labels), partner)


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans())
def test_lce_is_its_formula(seed: int, outliers: bool) -> None:
    batch, partner = drawn(seed)
    assert batch.head is not None
    rows, labels = partner.gallery.embedding.tolist(), partner.gallery.labels.tolist()
    centres, radii = [], []
    for c in range(4):
        members = [row for row, label in zip(rows, labels, strict=True) if label == c]
        mean = [sum(column) for column in zip(*members, strict=True)]
        centre = [value / math.sqrt(sum(x * x for x in mean)) for value in mean]
        cosines = torch.tensor([sum(a * b for a, b in zip(row, centre, strict=True)) for row in members], dtype=torch.float64)
        first, third = cosines.quantile(0.25).item(), cosines.quantile(0.75).item()
        radii.append(cosines.min().item() if outliers else max(cosines.min().item(), first - 1.5 * (third - first)))
        centres.append(centre)
    pairs = zip(batch.head.flatten().tolist(), [value for centre in centres for value in centre], strict=True)
    alignment = sum((a - b) ** 2 for a, b in pairs) / 12
    boundary = 0.0
    for row, label in zip(batch.embedding.tolist(), batch.labels.tolist(), strict=True):
        boundary += max(0.0, radii[label] - sum(a * b for a, b in zip(row, centres[label], strict=True))) / 6
    loss = build_loss("lce", SHAPE, {"outliers": outliers})
    assert loss(batch, partner).item() == pytest.approx(100 * alignment + boundary, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_hoc_is_its_formula(seed: int) -> None:
    batch, partner = drawn(seed)
    own, old, total = batch.embedding.tolist(), partner.embedding.tolist(), 0.0
    for i in range(6):
        scores = [10 * sum(a * b for a, b in zip(old[i], row, strict=True)) for row in own]
        pushed = [math.exp(score) for j, score in enumerate(scores) if batch.labels[j] != batch.labels[i]]
        total += (math.log(sum(pushed)) if pushed else 0.0) - scores[i]
    assert build_loss("hoc", SHAPE)(batch, partner).item() == pytest.approx(total / 6, rel=1e-9)


def test_credible_positives_count_for_more() -> None:
    """Two images of a class that the old model set apart: equal weights want both near both, credibility each near its own."""
    old = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    near, swapped = (Batch(rows, labels) for rows in (old, old[[1, 0, 2]]))
    partner = Partner({Need.EMBEDDING: old})
    equal, credible = (
        build_loss("contrastive", Shape(2, 2), {"queue": 0, "weigh": weigh}) for weigh in ("equal", "credibility")
    )
    assert equal(near, partner).item() == pytest.approx(equal(swapped, partner).item())
    assert credible(near, partner) < credible(swapped, partner) / 2


@pytest.mark.parametrize("name", ["focal_distillation", "margin_preserving", "naive_reweighting", "logit_difference", "lce"])
def test_what_reads_own_class_weights_says_that_there_are_none(name: str) -> None:
    batch, partner = drawn(0)
    with pytest.raises(ConfigError, match="cosine_softmax"):
        build_loss(name, SHAPE)(Batch(batch.embedding, batch.labels), partner)
