"""Which stages belong together, over any two architectures; distance of feature maps of unlike sizes and widths."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samespace.cloud.losses import Batch, Need, Partner, Shape, StageShape
from samespace.cloud.losses.stage_features import StageFeatures, match_stages
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError


def strided(*strides: float) -> tuple[StageShape, ...]:
    return tuple(StageShape(4, stride) for stride in strides)


@pytest.mark.parametrize(
    ("own", "partner", "expected"),
    [
        ((2, 4, 8), (2, 4, 8), [(0, 0), (1, 1), (2, 2)]),
        ((2, 4, 8), (2, 4), [(0, 0), (1, 1)]),
        ((4, 8), (2, 4, 8, 16), [(0, 1), (1, 2)]),
        ((2, 4, 8, 16), (16,), [(3, 0)]),
        ((4, 4, 4, 4), (4, 4), [(1, 0), (3, 1)]),  # strides say nothing: half-way and the end
        ((2, 4, 4, 8), (2, 4, 8), [(0, 0), (2, 1), (3, 2)]),  # of two at one resolution the one at the like depth
        ((2, 4, 8), (16, 32, 64), [(0, 0), (1, 1), (2, 2)]),
    ],
)
def test_known_pairings(own: tuple[float, ...], partner: tuple[float, ...], expected: list[tuple[int, int]]) -> None:
    assert list(match_stages(strided(*own), strided(*partner))) == expected
    # Of two equally good ones the earlier stage counts, so that the other way round is the same.
    assert [(j, i) for i, j in match_stages(strided(*partner), strided(*own))] == expected


architectures = st.lists(st.sampled_from([1.0, 2.0, 4.0, 8.0, 16.0, 3.0]), min_size=1, max_size=5).map(
    lambda strides: strided(*sorted(strides))
)


@given(architectures, architectures)
def test_any_pairing_is_one_to_one_in_order_and_none_is_nearer_in_resolution(
    own: tuple[StageShape, ...], partner: tuple[StageShape, ...]
) -> None:
    pairs = match_stages(own, partner)
    count = min(len(own), len(partner))
    assert len(pairs) == count
    for (i, j), (after_i, after_j) in pairwise(pairs):
        assert i < after_i
        assert j < after_j

    def octaves(mine: tuple[int, ...], its: tuple[int, ...]) -> float:
        return sum(abs(math.log2(own[i].stride) - math.log2(partner[j].stride)) for i, j in zip(mine, its, strict=True))

    mine, its = zip(*pairs, strict=True)
    best = min(octaves(a, b) for a in combinations(range(len(own)), count) for b in combinations(range(len(partner)), count))
    assert octaves(mine, its) == pytest.approx(best, abs=1e-5)


@given(architectures)
def test_a_model_is_paired_with_itself_stage_by_stage(own: tuple[StageShape, ...]) -> None:
    assert match_stages(own, own) == tuple((i, i) for i in range(len(own)))


def slow_pool(image: Tensor, height: int, width: int) -> Tensor:
    """``(c, h, w)`` -> ``(c, height, width)``: each cell is the mean of all it touches."""
    _, h, w = image.shape
    cells = torch.zeros(len(image), height, width, dtype=image.dtype)
    for y in range(height):
        for x in range(width):
            top, bottom = y * h // height, math.ceil((y + 1) * h / height)
            left, right = x * w // width, math.ceil((x + 1) * w / width)
            cells[:, y, x] = image[:, top:bottom, left:right].mean((1, 2))
    return cells


@pytest.mark.parametrize("its_size", [(4, 4), (8, 8), (2, 2), (5, 3)])
def test_it_is_its_formula_at_any_two_sizes(its_size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = Shape(2, 4, stages=(StageShape(3, 4),), partner_stages=(StageShape(5, 4),))
    torch.manual_seed(0)
    loss = StageFeatures(shape).double()
    own = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    its = torch.randn(2, 5, *its_size, generator=generator, dtype=torch.float64)
    weight, bias = (parameter.detach() for parameter in loss.projections[0].parameters())
    expected = 0.0
    for image in range(2):
        pooled = slow_pool(its[image], 4, 4)
        for y in range(4):
            for x in range(4):
                seen = weight[:, :, 0, 0] @ own[image, :, y, x] + bias
                expected += 1 - (seen @ pooled[:, y, x] / (seen.norm() * pooled[:, y, x].norm())).item()
    batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), stages=(own,))
    assert loss(batch, Partner({Need.STAGES: (its,)})).item() == pytest.approx(expected / 32, rel=1e-9)


def test_the_maps_of_the_matched_stages_are_compared_and_no_others() -> None:
    shape = Shape(2, 4, stages=strided(4, 8), partner_stages=strided(2, 4, 8))
    loss = StageFeatures(shape).eval()
    own = (torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2))
    its = [torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2)]
    batch = Batch(torch.zeros(1, 4), torch.tensor([0]), stages=own)

    def value() -> float:
        return loss(batch, Partner({Need.STAGES: tuple(its)})).item()

    before = value()
    its[0] = -its[0]
    assert value() == before
    its[2] = -its[2]
    assert value() != before


def test_scales_of_the_networks_do_not_matter() -> None:
    shape = Shape(2, 4, stages=strided(4), partner_stages=strided(4))
    loss = StageFeatures(shape)
    batch = Batch(torch.zeros(2, 4), torch.tensor([0, 1]), stages=(torch.randn(2, 4, 3, 3),))
    its = torch.randn(2, 4, 3, 3)
    small, large = (loss(batch, Partner({Need.STAGES: (scale * its,)})).item() for scale in (0.1, 1000.0))
    assert small == pytest.approx(large, rel=1e-5)


def test_the_projections_belong_to_the_loss_and_teach_the_stages() -> None:
    """Two architectures of unlike depth, width and operators, as built for use."""
    edge: Any = build_model("inverted_residual", {"dim": 8, "image_size": 16, "width": 4, "stages": 3, "stem_stride": 1})
    cloud: Any = build_model("residual", {"dim": 8, "image_size": 16, "width": 8, "stages": 2, "stem_stride": 1})
    images = torch.randn(2, 3, 16, 16)
    own, its = edge.stages(images), cloud.stages(images)
    shapes = [tuple(StageShape(s.shape[1], 16 / s.shape[-1]) for s in maps) for maps in (own, its)]
    loss = StageFeatures(Shape(2, 8, shapes[0], shapes[1]))
    partner = Partner({Need.STAGES: tuple(stage.detach() for stage in its)})
    loss(Batch(torch.zeros(2, 8), torch.tensor([0, 1]), stages=tuple(own)), partner).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in edge.parameters())
    assert not {id(parameter) for parameter in loss.parameters()} & {id(parameter) for parameter in edge.parameters()}


@pytest.mark.parametrize(
    ("shape", "whose"), [(Shape(2, 4, (), strided(4)), "the trained model"), (Shape(2, 4, strided(4), ()), "the cloud model")]
)
def test_a_model_without_stages_is_refused(shape: Shape, whose: str) -> None:
    with pytest.raises(ConfigError, match=f"stage_features: {whose} gives no feature maps"):
        StageFeatures(shape)
