"""Each loss against a slow loop and hand-made geometry, its gradient against finite differences; rules about partners."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses import (
    LOSSES,
    Batch,
    CompatibilityLoss,
    CosineSoftmax,
    Gallery,
    Need,
    Partner,
    PartnerHead,
    Regression,
    Shape,
    StageShape,
    build_loss,
)
from samespace.cloud.losses.registry import option_names
from samespace.sdk.errors import ConfigError

SHAPE = Shape(
    classes=5,
    dim=4,
    stages=(StageShape(2, 2), StageShape(3, 4)),
    partner_stages=(StageShape(3, 2), StageShape(2, 2), StageShape(4, 4)),
)
#: Options at which a loss has something to say about six images and a gallery of fourteen; defaults for all others.
OPTIONS: dict[str, dict[str, float]] = {
    "contrastive": {"queue": 8},
    "csd": {"neighbours": 5},
    "structure_similarity": {"part": 2},
}
#: All that look at the embedding with a partner in view; but for the negative control they tie the two spaces together.
CROSSING = sorted(
    name for name, kind in LOSSES.items() if kind.needs and kind.on_embedding and kind.joins and name != "relational"
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 3, 3, 1, 4, 2])


@pytest.fixture
def rows() -> Tensor:
    """Which rows of the gallery the six images are."""
    return torch.tensor([2, 7, 3, 11, 0, 8])


@pytest.fixture
def partner(labels: Tensor, rows: Tensor) -> Partner:
    embedding = unit(6, 4, seed=1)
    gallery = unit(14, 4, seed=4)
    gallery[rows] = F.normalize(embedding + 0.1 * unit(6, 4, seed=5), dim=1)  # augmented pictures are not quite the originals
    classes = torch.arange(14) % 5
    classes[rows] = labels
    return Partner(
        {
            Need.EMBEDDING: embedding,
            Need.HEAD: unit(5, 4, seed=2),
            Need.STAGES: (unit(6, 3, 4, 4, seed=6), unit(6, 2, 4, 4, seed=7), unit(6, 4, 3, 3, seed=8)),
            Need.GALLERY: Gallery(gallery, classes),
            Need.KNOWN: torch.arange(5) > 0,
            Need.TEACHERS: 16 * unit(6, 4, seed=13) @ unit(5, 4, seed=14).T,
        }
    )


@pytest.fixture
def stages() -> tuple[Tensor, ...]:
    """Feature maps of the trained model."""
    return unit(6, 2, 4, 4, seed=9), unit(6, 3, 2, 2, seed=10)


@pytest.fixture
def head() -> Tensor:
    """The trained model's own class weights."""
    return unit(5, 4, seed=12)


def registered(name: str) -> CompatibilityLoss:
    """A loss that changes no state."""
    torch.manual_seed(0)
    return build_loss(name, SHAPE, OPTIONS.get(name)).double().eval()


def slow_softmax(embedding: Tensor, head: Tensor, labels: Tensor, scale: float, margin: float, smoothing: float) -> float:
    """The formula of the docstring, number by number."""
    total = 0.0
    classes = len(head)
    for row, label in zip(embedding.tolist(), labels.tolist(), strict=True):
        logits = []
        for c, weight in enumerate(head.tolist()):
            cosine = sum(a * b for a, b in zip(row, weight, strict=True))
            cosine /= math.sqrt(sum(a * a for a in row)) * math.sqrt(sum(b * b for b in weight))
            logits.append(scale * (cosine - (margin if c == label else 0.0)))
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        for c, logit in enumerate(logits):
            target = smoothing / classes + (1 - smoothing if c == label else 0.0)
            total -= target * (logit - log_sum)
    return total / len(embedding)


@pytest.mark.parametrize(("scale", "margin", "smoothing"), [(16.0, 0.0, 0.0), (4.0, 0.3, 0.0), (8.0, 0.1, 0.2)])
def test_cosine_softmax_is_its_formula(labels: Tensor, scale: float, margin: float, smoothing: float) -> None:
    loss = CosineSoftmax(SHAPE, scale=scale, margin=margin, label_smoothing=smoothing).double()
    embedding = unit(6, 4)
    slow = slow_softmax(embedding, loss.weight.detach(), labels, scale, margin, smoothing)
    assert loss(Batch(embedding, labels), Partner({})).item() == pytest.approx(slow, rel=1e-10)


@pytest.mark.parametrize(("scale", "margin", "smoothing"), [(16.0, 0.0, 0.0), (4.0, 0.3, 0.0), (8.0, 0.1, 0.2)])
def test_partner_head_is_its_formula(labels: Tensor, partner: Partner, scale: float, margin: float, smoothing: float) -> None:
    loss = PartnerHead(SHAPE, scale=scale, margin=margin, label_smoothing=smoothing)
    embedding = unit(6, 4)
    slow = slow_softmax(embedding, partner.head, labels, scale, margin, smoothing)
    assert loss(Batch(embedding, labels), partner).item() == pytest.approx(slow, rel=1e-10)


def test_regression_is_one_minus_the_cosine_of_known_angles(labels: Tensor) -> None:
    angles = torch.tensor([0.0, 30.0, 60.0, 90.0, 120.0, 180.0], dtype=torch.float64).deg2rad()
    ours = torch.stack([angles.cos(), angles.sin()], dim=1)
    theirs = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(6, 2)
    expected = sum(1 - math.cos(math.radians(degrees)) for degrees in (0, 30, 60, 90, 120, 180)) / 6
    assert Regression(Shape(5, 2))(Batch(ours, labels), Partner({Need.EMBEDDING: theirs})).item() == pytest.approx(expected)


def test_softmax_at_hand_made_geometry() -> None:
    """Two orthogonal prototypes, an embedding on the first: the loss is log(1 + exp(-s))."""
    loss = CosineSoftmax(Shape(2, 2), scale=3.0)
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[7.0, 0.0], [0.0, 0.1]]))  # lengths must not matter
    batch = Batch(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert loss(batch, Partner({})).item() == pytest.approx(math.log(1 + math.exp(-3.0)), rel=1e-5)


def test_a_margin_makes_it_harder(labels: Tensor) -> None:
    torch.manual_seed(0)
    plain = CosineSoftmax(SHAPE).double()
    harder = CosineSoftmax(SHAPE, margin=0.2).double()
    harder.load_state_dict(plain.state_dict())
    batch = Batch(unit(6, 4), labels)
    assert harder(batch, Partner({})) > plain(batch, Partner({}))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_of_every_registered_loss(
    name: str, labels: Tensor, rows: Tensor, stages: tuple[Tensor, ...], head: Tensor, partner: Partner
) -> None:
    loss = registered(name)
    raw = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    maps = tuple(stage.requires_grad_() for stage in stages)
    seen = (raw,) if loss.on_embedding else maps

    def objective(*inputs: Tensor) -> Tensor:
        first, *rest = inputs
        embedding = F.normalize(first if loss.on_embedding else raw, dim=1)
        seen_maps = maps if loss.on_embedding else (first, rest[0])
        return loss(Batch(embedding, labels, rows, seen_maps, head), partner.only(loss.needs))

    assert torch.autograd.gradcheck(objective, (*seen, *loss.parameters()))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_registered_loss_declares_what_it_uses(
    name: str, labels: Tensor, rows: Tensor, stages: tuple[Tensor, ...], head: Tensor, partner: Partner
) -> None:
    """With just what it declared it works; what it did not declare is not there to be used."""
    loss = registered(name)
    declared = partner.only(loss.needs)
    assert torch.isfinite(loss(Batch(unit(6, 4), labels, rows, stages, head), declared))
    assert set(declared.supplied) == set(loss.needs)


@pytest.mark.parametrize("name", sorted(name for name, kind in LOSSES.items() if kind.on_embedding))
def test_every_loss_on_embeddings_is_one_of_the_prefix_alone(
    name: str, labels: Tensor, rows: Tensor, stages: tuple[Tensor, ...], head: Tensor, partner: Partner
) -> None:
    """At two coordinates of four it is finite, and the other two have no part in it."""
    loss = registered(name)
    batch = Batch(unit(6, 4).requires_grad_(), labels, rows, stages, head)
    value = loss(batch.first(2), partner.only(loss.needs).first(2))
    (gradient,) = torch.autograd.grad(value, batch.embedding)
    assert torch.isfinite(value)
    assert gradient[:, :2].abs().sum() > 0
    assert gradient[:, 2:].abs().sum() == 0


@pytest.mark.parametrize("name", CROSSING)
def test_what_crosses_the_spaces_notices_a_rotation(
    name: str, labels: Tensor, rows: Tensor, head: Tensor, partner: Partner
) -> None:
    """The trained model's space turned as a whole: all distances within it stay, those to the partner do not."""
    loss = registered(name)
    needed = partner.only(loss.needs)
    turned = [loss(Batch(unit(6, 4) @ turn, labels, rows, head=head @ turn), needed).item() for turn in rotations()]
    assert max(turned) - min(turned) > 1e-4


@pytest.mark.parametrize("name", sorted(name for name, kind in LOSSES.items() if not kind.joins))
def test_what_compares_classifications_does_not_notice_a_rotation(
    name: str, labels: Tensor, rows: Tensor, head: Tensor, partner: Partner
) -> None:
    loss, needed = registered(name), partner.only(LOSSES[name].needs)
    turned = [loss(Batch(unit(6, 4) @ turn, labels, rows, head=head @ turn), needed).item() for turn in rotations()]
    assert turned == pytest.approx([turned[0]] * len(turned), rel=1e-9)
    assert turned[0] > 1e-3


def test_the_negative_control_does_not_notice_a_rotation(labels: Tensor, partner: Partner) -> None:
    loss = registered("relational")
    turned = [loss(Batch(unit(6, 4) @ rotation, labels), partner.only(loss.needs)).item() for rotation in rotations()]
    assert turned == pytest.approx([turned[0]] * len(turned), rel=1e-9)
    assert turned[0] > 1e-3


def rotations() -> list[Tensor]:
    """Orthogonal ``(4, 4)``, the identity first."""
    generator = torch.Generator().manual_seed(11)
    drawn = [torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q for _ in range(4)]
    return [torch.eye(4, dtype=torch.float64), *drawn]


def test_an_undeclared_need_is_refused(labels: Tensor, partner: Partner) -> None:
    class Sneaky(CompatibilityLoss):
        needs = frozenset({Need.HEAD})

        def __init__(self, shape: Shape) -> None:
            super().__init__()

        def forward(self, batch: Batch, partner: Partner) -> Tensor:
            return partner.embedding.sum()

    with pytest.raises(ConfigError, match=r"embedding is not supplied: declare Need\.EMBEDDING"):
        Sneaky(SHAPE)(Batch(unit(6, 4), labels), partner.only(Sneaky.needs))


def test_a_partner_never_carries_a_gradient() -> None:
    with pytest.raises(ValueError, match="head must be detached"):
        Partner({Need.HEAD: unit(5, 4).requires_grad_()})


def test_unknown_loss_and_option_name_what_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"unknown loss 'regresion' \(did you mean 'regression'\?\)"):
        build_loss("regresion", SHAPE)
    with pytest.raises(ConfigError, match=r"unknown option 'scal' \(did you mean 'scale'\?\)"):
        build_loss("partner_head", SHAPE, {"scal": 3.0})
    with pytest.raises(ConfigError, match="it takes no options"):
        build_loss("regression", SHAPE, {"temperature": 3.0})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine_softmax", {"scale": 0.0}),
        ("cosine_softmax", {"scale": "warm"}),
        ("partner_head", {"margin": -0.1}),
        ("partner_head", {"label_smoothing": 1.0}),
        ("cosine_softmax", {"scale": math.nan}),
        ("contrastive", {"temperature": 0.0}),
        ("contrastive", {"queue": -1}),
        ("contrastive", {"queue": 1.5}),
        ("csd", {"neighbours": 1}),
        ("csd", {"partner_temperature": -0.1}),
        ("csd", {"temperature": 0.0}),
        ("relational", {"distance_weight": -1.0}),
        ("relational", {"angle_weight": math.inf}),
        ("simplex", {"classes": 1}),
        ("simplex", {"classes": 4}),  # fewer than the five classes of the data
        ("simplex", {"scale": 0.0}),
    ],
)
def test_option_out_of_range_is_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"loss {name}: option {next(iter(options))}"):
        build_loss(name, SHAPE, options)


def test_options_are_the_keyword_arguments() -> None:
    assert option_names("partner_head") == ("scale", "margin", "label_smoothing")
    assert option_names("regression") == ()
