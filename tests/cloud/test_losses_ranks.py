"""Losses about neighbours, orders and anchors: against slow loops over numbers, at prefixes, and what state they keep."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses.asymmetric_margin import AsymmetricMargin
from samespace.cloud.losses.base import Batch, CompatibilityLoss, Gallery, Need, Partner, Shape
from samespace.cloud.losses.matryoshka import at_every_width
from samespace.cloud.losses.rank_difference import RankDifference
from samespace.cloud.losses.rank_order import RankOrder
from samespace.cloud.losses.registry import build_loss
from samespace.cloud.losses.structure_similarity import StructureSimilarity, spherical_kmeans
from samespace.sdk.errors import ConfigError

DIM, IMAGES, ROWS = 8, 7, 30
SHAPE = Shape(classes=4, dim=DIM)
NAMES = ("asymmetric_margin", "rank_difference", "rank_order", "structure_similarity")
SMALL = {
    "asymmetric_margin": {},
    "rank_difference": {"neighbours": 5},
    "rank_order": {"neighbours": 6},
    "structure_similarity": {"part": 4, "anchors": 6},
}


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def small(name: str) -> CompatibilityLoss:
    return build_loss(name, SHAPE, SMALL[name]).double()


@pytest.fixture
def gallery() -> Gallery:
    return Gallery(unit(ROWS, DIM, seed=5), torch.arange(ROWS) % 4)


@pytest.fixture
def batch(gallery: Gallery) -> Batch:
    rows = torch.tensor([3, 29, 0, 11, 7, 12, 20])
    return Batch(unit(IMAGES, DIM, seed=1), gallery.labels[rows], rows)


@pytest.fixture
def partner(gallery: Gallery, batch: Batch) -> Partner:
    """Its view of the augmented images is near its view of the plain ones, and not the same."""
    assert batch.rows is not None
    seen = F.normalize(gallery.embedding[batch.rows] + 0.3 * unit(IMAGES, DIM, seed=2), dim=1)
    return Partner({Need.EMBEDDING: seen, Need.GALLERY: gallery})


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = sum(math.exp(value - top) for value in logits)
    return [math.exp(value - top) / total for value in logits]


def test_rank_order_is_its_formula(batch: Batch, partner: Partner, gallery: Gallery) -> None:
    rows, columns = partner.embedding.tolist(), gallery.embedding.tolist()
    assert batch.rows is not None
    total = 0.0
    for ours, theirs, own in zip(batch.embedding.tolist(), rows, batch.rows.tolist(), strict=True):
        others = sorted((r for r in range(ROWS) if r != own), key=lambda r: -dot(theirs, columns[r]))
        near = [columns[r] for r in [own, *others][:6]]
        for a in near:
            for b in near:
                gap = dot(theirs, b) - dot(theirs, a)
                before = 0.5 if a is b else float(gap > 0)
                soft = 1 / (1 + math.exp(-(dot(ours, b) - dot(theirs, a)) / 0.2))
                total += (before - soft) ** 2 / 36
    loss = RankOrder(SHAPE, neighbours=6, temperature=0.2)
    assert loss(batch, partner).item() == pytest.approx(total / IMAGES, rel=1e-10)


def test_rank_order_prefers_the_partners_order() -> None:
    """Three neighbours on a circle: seen in the partner's order it costs less than seen in the opposite order."""

    def at(degrees: list[float]) -> Tensor:
        angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    partner = Partner({Need.EMBEDDING: at([0.0]), Need.GALLERY: Gallery(at([0.0, 40.0, 80.0]), torch.arange(3))})
    loss = RankOrder(Shape(3, 2), neighbours=3)
    same, opposite = (loss(Batch(at([x]), torch.tensor([0]), torch.tensor([0])), partner) for x in (5.0, 75.0))
    assert same < opposite


def test_asymmetric_margin_is_its_formula(batch: Batch, partner: Partner) -> None:
    theirs, labels = partner.embedding.tolist(), batch.labels.tolist()
    near, far = [], []
    for i, anchor in enumerate(batch.embedding.tolist()):
        for j, other in enumerate(theirs):
            cross, reference = dot(anchor, other), dot(theirs[i], other)
            if labels[i] == labels[j]:
                near.append(max(0.0, min(reference + 0.1, 1.0) - cross))
            else:
                far.append(max(0.0, cross - max(reference - 0.1, -1.0)))
    expected = sum(sum(part) / max(1, sum(value > 0 for value in part)) for part in (near, far))
    assert sum(value > 0 for value in far) < len(far), "some pairs must be satisfied, or the test shows little"
    assert AsymmetricMargin(SHAPE, margin=0.1)(batch, partner).item() == pytest.approx(expected, rel=1e-10)


def test_asymmetric_margin_asks_for_no_more_than_the_partner_reaches(batch: Batch, partner: Partner) -> None:
    """With the partner's own embedding nothing is left at margin 0; better separation than the partner's costs nothing."""
    raw = partner.embedding.clone().requires_grad_()
    value = AsymmetricMargin(SHAPE, margin=0.0)(Batch(raw, batch.labels), partner)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    axes = torch.eye(3, dtype=torch.float64)
    theirs = F.normalize(torch.tensor([[1.0, 0.2, 0.0], [0.2, 1.0, 0.0]], dtype=torch.float64), dim=1)
    better = F.normalize(theirs - 0.2 * theirs.flip(0), dim=1)
    labels = torch.tensor([0, 1])
    two = Partner({Need.EMBEDDING: theirs})
    loss = AsymmetricMargin(Shape(2, 3), margin=0.0)
    # Farther from the other class, but also farther from itself: only the latter is a fault.
    assert loss(Batch(better, labels), two).item() == pytest.approx(1 - (better * theirs).sum(1).mean().item(), rel=1e-9)
    assert loss(Batch(axes[[2, 2]], labels), two) > loss(Batch(better, labels), two)


def test_asymmetric_margin_of_one_class_has_no_negatives(partner: Partner) -> None:
    one = Batch(unit(IMAGES, DIM, seed=1).requires_grad_(), torch.zeros(IMAGES, dtype=torch.int64))
    value = AsymmetricMargin(SHAPE)(one, partner)
    (gradient,) = torch.autograd.grad(value, one.embedding)
    assert torch.isfinite(value)
    assert gradient.isfinite().all()


def test_rank_difference_is_its_formula(batch: Batch, partner: Partner) -> None:
    theirs, ours = partner.embedding.tolist(), batch.embedding.tolist()
    feature = math.sqrt(sum((1 - dot(e, g)) ** 2 for e, g in zip(ours, theirs, strict=True)) / IMAGES)
    wrong = right = 0.0
    for i in range(IMAGES):
        near = sorted((j for j in range(IMAGES) if j != i), key=lambda j: -dot(theirs[i], theirs[j]))[:4]
        parts = {True: 0.0, False: 0.0}
        for a in near:
            for b in near:
                expected = dot(theirs[i], theirs[a]) - dot(theirs[i], theirs[b])
                found = dot(ours[i], theirs[a]) - dot(ours[i], theirs[b])
                if expected * found:
                    parts[expected * found > 0] += ((found - expected) / (0.1 + abs(expected))) ** 2
        right += math.sqrt(parts[True]) / IMAGES
        wrong += math.sqrt(parts[False]) / IMAGES
    assert wrong > 0
    assert right > 0
    loss = RankDifference(SHAPE, neighbours=5, feature=4.0, wrong=3.0, right=0.5)
    assert loss(batch, partner).item() == pytest.approx(4 * feature + (3 * wrong + 0.5 * right) / 4, rel=1e-10)


@pytest.mark.parametrize("images", [1, 2, 3, IMAGES])
def test_rank_difference_of_equal_embeddings_is_nothing_at_any_batch_size(partner: Partner, images: int) -> None:
    """Its norms have no slope at 0; the gradient must be finite there nevertheless."""
    few = Partner({Need.EMBEDDING: partner.embedding[:images]})
    same = partner.embedding[:images].clone().requires_grad_()
    value = RankDifference(SHAPE)(Batch(same, torch.arange(images) % 4), few)
    (gradient,) = torch.autograd.grad(value, same)
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert gradient.isfinite().all()


def test_a_wrong_order_costs_more_than_a_right_one() -> None:
    """The same distance from the partner's difference of two neighbours, once beyond it and once across zero."""
    axes = torch.eye(3, dtype=torch.float64)
    theirs = torch.stack([axes[0], F.normalize(axes[0] + axes[1], dim=0), F.normalize(axes[0] + 2 * axes[2], dim=0)])
    partner = Partner({Need.EMBEDDING: theirs})
    reference = theirs @ theirs[0]
    gap = reference[1] - reference[2]
    loss = RankDifference(Shape(3, 3), neighbours=3, feature=0.0)

    def seen(difference: Tensor) -> Tensor:
        # The embedding of image 0 (not of unit length: the formula is about similarities) with that difference.
        direction = theirs[1] - theirs[2]
        row = direction * difference / direction.square().sum()
        return loss(Batch(torch.stack([row, theirs[1], theirs[2]]), torch.arange(3)), partner)

    assert seen(gap - 2 * gap) > seen(gap + 2 * gap) > seen(gap)


def slow_structure(embedding: Tensor, theirs: Tensor, anchors: list[Tensor], scale: float) -> float:
    total = 0.0
    for own, partner in zip(embedding.tolist(), theirs.tolist(), strict=True):
        for j, centroids in enumerate(anchors):
            codes = []
            for row in (partner, own):
                part = row[4 * j : 4 * j + 4]
                length = math.sqrt(dot(part, part))
                codes.append(softmax([scale * dot(part, anchor) / length for anchor in centroids.tolist()]))
            total += sum(p * math.log(p / q) for p, q in zip(*codes, strict=True))
    return total / (len(embedding) * len(anchors))


def gallery_anchors(gallery: Gallery, parts: int, count: int = 6) -> list[Tensor]:
    return [spherical_kmeans(F.normalize(gallery.embedding[:, 4 * j : 4 * j + 4], dim=1), count, 10) for j in range(parts)]


@pytest.mark.parametrize("training", [True, False])
def test_structure_similarity_is_its_formula(batch: Batch, partner: Partner, gallery: Gallery, training: bool) -> None:
    loss = StructureSimilarity(SHAPE, part=4, anchors=6, scale=7.0).double().train(training)
    slow = slow_structure(batch.embedding, partner.embedding, gallery_anchors(gallery, 2), 7.0)
    assert loss(batch, partner).item() == pytest.approx(slow, rel=1e-9)
    assert loss(Batch(partner.embedding, batch.labels), partner).item() == pytest.approx(0.0, abs=1e-12)


def test_structure_similarity_at_a_prefix_drops_the_sub_vector_that_is_cut(
    batch: Batch, partner: Partner, gallery: Gallery
) -> None:
    slow = slow_structure(batch.embedding, partner.embedding, gallery_anchors(gallery, 1), 10.0)
    for width in (4, 5, 7):
        value = small("structure_similarity")(batch.first(width), partner.first(width))
        assert value.item() == pytest.approx(slow, rel=1e-9)
    raw = batch.embedding.clone().requires_grad_()
    nothing = small("structure_similarity")(Batch(raw, batch.labels).first(3), partner.first(3))
    nothing.backward()
    assert nothing.item() == 0.0


def test_anchors_do_not_depend_on_which_width_came_first(batch: Batch, partner: Partner) -> None:
    wide_first, narrow_first = (StructureSimilarity(SHAPE, part=4, anchors=6).double() for _ in range(2))
    wide_first(batch, partner)
    narrow_first(batch.first(5), partner.first(5))
    assert narrow_first.used.tolist() == [6, 0]
    narrow_first(batch, partner)
    torch.testing.assert_close(narrow_first.anchors, wide_first.anchors)


def test_anchors_are_made_once_kept_in_a_checkpoint_and_made_without_chance(batch: Batch, partner: Partner) -> None:
    loss = StructureSimilarity(SHAPE, part=4, anchors=6).double()
    loss.eval()(batch, partner)
    assert not loss.used.any(), "evaluation must not change state"
    before = torch.get_rng_state()
    value = loss.train()(batch, partner)
    assert torch.equal(torch.get_rng_state(), before)

    # Another gallery later, after a restart: still the anchors of the first one.
    other = Partner({Need.EMBEDDING: partner.embedding, Need.GALLERY: Gallery(unit(9, DIM, seed=8), torch.arange(9) % 4)})
    restored = StructureSimilarity(SHAPE, part=4, anchors=6).double()
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored(batch, other), value)


def test_fewer_gallery_rows_than_anchors_are_all_anchors(batch: Batch, partner: Partner) -> None:
    few = unit(5, DIM, seed=9)
    loss = StructureSimilarity(SHAPE, part=4, anchors=64).double()
    loss(batch, Partner({Need.EMBEDDING: partner.embedding, Need.GALLERY: Gallery(few, torch.arange(5) % 4)}))
    assert loss.used.tolist() == [5, 5]
    torch.testing.assert_close(loss.anchors[0, :5], F.normalize(few[:, :4], dim=1))


def test_kmeans_finds_clusters_and_each_round_brings_centroids_nearer() -> None:
    centres = torch.eye(4, dtype=torch.float64)
    points = F.normalize(centres.repeat_interleave(20, 0) + 0.1 * unit(80, 4, seed=3), dim=1)
    found = spherical_kmeans(points, 4, rounds=10)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert sorted((found @ centres.T).argmax(1).tolist()) == [0, 1, 2, 3]
    cloud = unit(200, 5, seed=4)
    agreement = [(cloud @ spherical_kmeans(cloud, 8, rounds).T).amax(1).sum().item() for rounds in range(6)]
    assert agreement == sorted(agreement)
    assert agreement[-1] > agreement[0]


def test_dimension_that_sub_vectors_do_not_divide(gallery: Gallery, batch: Batch, partner: Partner) -> None:
    uneven = StructureSimilarity(SHAPE, part=3, anchors=4).double()
    assert uneven.anchors.shape == (2, 4, 3)
    changed = Batch(torch.cat([batch.embedding[:, :6], -batch.embedding[:, 6:]], dim=1), batch.labels)
    assert torch.equal(uneven(batch, partner), uneven(changed, partner))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [DIM, 5])
def test_gradient(name: str, width: int, batch: Batch, partner: Partner) -> None:
    loss = small(name).eval()
    raw = torch.randn(IMAGES, width, generator=torch.Generator().manual_seed(6), dtype=torch.float64, requires_grad=True)
    shown = partner.first(width).only(loss.needs)

    def objective(x: Tensor) -> Tensor:
        return loss(Batch(F.normalize(x, dim=1), batch.labels, batch.rows), shown)

    assert torch.autograd.gradcheck(objective, (raw,))
    assert torch.autograd.grad(objective(raw), raw)[0].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_turned_space_is_another_space(name: str, batch: Batch, partner: Partner) -> None:
    """Each compares with the partner's own rows: turning the trained space alone changes it, turning both does not."""
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7), dtype=torch.float64)).Q
    loss = small(name).eval()
    plain = loss(batch, partner)
    turned = Batch(batch.embedding @ turn, batch.labels, batch.rows)
    assert not torch.isclose(loss(turned, partner), plain, rtol=1e-3)
    if name != "structure_similarity":  # its sub-vectors are runs of coordinates, and no rotation keeps those
        both = Partner(
            {
                Need.EMBEDDING: partner.embedding @ turn,
                Need.GALLERY: Gallery(partner.gallery.embedding @ turn, partner.gallery.labels),
            }
        )
        torch.testing.assert_close(loss(turned, both), plain)


@pytest.mark.parametrize("name", NAMES)
def test_training_on_it_joins_the_partners_space(name: str, batch: Batch, partner: Partner) -> None:
    """Free embeddings, moved by this loss alone, end nearer to the partner's embedding of the same image than they began."""
    loss = small(name)
    raw = batch.embedding.clone().requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=0.02)
    before = (batch.embedding * partner.embedding).sum(1).mean()
    for _ in range(150):
        optimiser.zero_grad()
        loss(Batch(F.normalize(raw, dim=1), batch.labels, batch.rows), partner).backward()
        optimiser.step()
    after = (F.normalize(raw.detach(), dim=1) * partner.embedding).sum(1).mean()
    assert before < 0.3
    assert after > 0.6


@pytest.mark.parametrize("name", NAMES)
def test_every_width_of_a_matryoshka(name: str, batch: Batch, partner: Partner) -> None:
    loss = small(name)
    raw = batch.embedding.clone().requires_grad_()
    together = at_every_width(loss, Batch(raw, batch.labels, batch.rows), partner, (4, DIM))
    (gradient,) = torch.autograd.grad(together, raw)  # state that the first step makes must not spoil that step's gradient
    assert gradient.isfinite().all()
    apart = (loss(batch.first(4), partner.first(4)) + loss(batch, partner)) / 2
    assert together.item() == pytest.approx(apart.item(), rel=1e-9)


def test_neighbours_need_the_images_rows(batch: Batch, partner: Partner) -> None:
    with pytest.raises(ConfigError, match=r"Batch\.rows"):
        small("rank_order")(Batch(batch.embedding, batch.labels), partner)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rank_order", {"neighbours": 1}),
        ("rank_order", {"temperature": 0.0}),
        ("asymmetric_margin", {"margin": -0.1}),
        ("rank_difference", {"neighbours": 2}),
        ("rank_difference", {"wrong": -1.0}),
        ("structure_similarity", {"anchors": 1}),
        ("structure_similarity", {"part": 0}),
        ("structure_similarity", {"scale": 0.0}),
        ("structure_similarity", {"rounds": 2.5}),
    ],
)
def test_option_out_of_range_is_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"loss {name}: option {next(iter(options))}"):
        build_loss(name, SHAPE, options)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"loss {name}: unknown option 'topk'"):
        build_loss(name, SHAPE, {"topk": 3})
