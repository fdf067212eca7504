"""Linearised networks and their closed-form fine-tune, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from samespace.cloud.finetune import Linearised, Problem, exact, solve
from samespace.cloud.finetune.iterative import approach
from samespace.edge.models.head import L2Norm
from samespace.sdk.errors import ConfigError, DataError

seeds = st.integers(0, 2**16)
few = settings(max_examples=8, deadline=None)


def network(seed: int = 0) -> nn.Module:
    """Convolution, batch statistics, a kink, and the norm: what our families are made of, in float64."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
        L2Norm(),
    ).double()
    layers[1].running_mean.normal_()  # type: ignore[union-attr]
    layers[1].running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return layers


def pictures(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(linear: Linearised, seed: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=chance, dtype=torch.float64) for name, shape in linear.shapes.items()}


def full_jacobian(linear: Linearised, images: Tensor) -> Tensor:
    """``(n d, p)``: column by column, each from the tangent along one weight."""
    columns = []
    for name, shape in linear.shapes.items():
        for place in range(shape.numel()):
            delta = linear.zero()
            delta[name].view(-1)[place] = 1
            columns.append(linear.tangent(images, delta).flatten())
    return torch.stack(columns, 1)


def flat(delta: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in delta.values()])


@few
@given(seeds)
def test_the_tangent_is_what_the_network_does_for_a_small_change(seed: int) -> None:
    model, images = network(seed), pictures(4, seed)
    linear, step = Linearised(model), 1e-6
    delta, sides = drawn(linear, seed), []
    for sign in (1, -1):
        moved = network(seed)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter += sign * step * delta[name]
        sides.append(Linearised(moved).outputs(images))
    torch.testing.assert_close(linear.tangent(images, delta), (sides[0] - sides[1]) / (2 * step), rtol=1e-4, atol=1e-5)


@few
@given(seeds)
def test_pulling_back_and_single_jacobians_are_the_same_map(seed: int) -> None:
    linear, images = Linearised(network(seed), ["0", "5"]), pictures(3, seed)
    delta, rows = drawn(linear, seed), torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    along = (linear.tangent(images, delta) * rows).sum()
    torch.testing.assert_close(along, flat(linear.pull(images, rows)) @ flat(delta))
    parts = [linear.jacobian(images, [name]) @ delta[name].flatten() for name in linear.shapes]
    torch.testing.assert_close(torch.stack(parts).sum(0), linear.tangent(images, delta))


@few
@given(seeds, st.sampled_from([0.0, 0.5, 30.0]))
def test_the_solution_is_that_of_the_normal_equations(seed: int, hold: float) -> None:
    linear, images, anchors = Linearised(network(seed), ["0", "5"]), pictures(5, seed), pictures(3, seed + 1)
    wanted = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    problem = Problem(images, wanted, penalty=0.1, anchors=anchors if hold else None, hold=hold or 1.0)
    found = solve(linear, problem)
    j, a = full_jacobian(linear, images), full_jacobian(linear, anchors)
    matrix = j.T @ j + hold * a.T @ a + 0.1 * torch.eye(j.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(matrix, j.T @ wanted.flatten())
    torch.testing.assert_close(flat(found.delta), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.fitted, linear.tangent(images, found.delta), rtol=1e-6, atol=1e-8)
    if hold:
        drift = linear.tangent(anchors, found.delta).norm(dim=1)
        torch.testing.assert_close(found.drift, drift, rtol=1e-6, atol=1e-8)
        assert drift.max() <= problem.bound


@few
@given(seeds)
def test_left_out_is_what_solving_without_the_image_gives(seed: int) -> None:
    linear, images, anchors = Linearised(network(seed), ["5"]), pictures(6, seed), pictures(2, seed + 1)
    wanted = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = solve(linear, Problem(images, wanted, penalty=0.2, anchors=anchors))
    for out in range(6):
        others = [index for index in range(6) if index != out]
        without = solve(linear, Problem(images[others], wanted[others], penalty=0.2, anchors=anchors))
        torch.testing.assert_close(found.left_out[out], linear.tangent(images[[out]], without.delta)[0], rtol=1e-6, atol=1e-8)


@few
@given(seeds)
def test_a_wide_layer_is_solved_without_its_jacobian(seed: int) -> None:
    linear, images = Linearised(network(seed), ["0", "5"]), pictures(5, seed)
    wanted = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    narrow = solve(linear, Problem(images, wanted, penalty=0.2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_WIDE", 10)
        wide = solve(linear, Problem(images, wanted, penalty=0.2))
    torch.testing.assert_close(flat(wide.delta), flat(narrow.delta), rtol=1e-6, atol=1e-8)


@few
@given(seeds)
def test_influence_is_what_a_query_would_lose_without_the_image(seed: int) -> None:
    linear, images, anchors = Linearised(network(seed), ["0", "5"]), pictures(4, seed), pictures(2, seed + 1)
    wanted = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    queries = pictures(3, seed + 2)
    found = solve(linear, Problem(images, wanted, penalty=0.2, anchors=anchors), queries)
    for out in range(4):
        others = [index for index in range(4) if index != out]
        without = solve(linear, Problem(images[others], wanted[others], penalty=0.2, anchors=anchors))
        lost = linear.tangent(queries, found.delta) - linear.tangent(queries, without.delta)
        torch.testing.assert_close(found.influence[:, out], lost, rtol=1e-5, atol=1e-7)


@few
@given(seeds, st.booleans())
def test_conjugate_gradients_come_to_the_same_optimum(seed: int, held: bool) -> None:
    linear, images = Linearised(network(seed), ["0", "5"]), pictures(5, seed)
    options = {"penalty": 0.1, "anchors": pictures(3, seed + 1) if held else None, "hold": 2.0}
    wanted = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    told: list[float] = []
    found = approach(
        linear, Problem(images, wanted, **options), tolerance=1e-9, advance=lambda step, residual: told.append(residual)
    )
    assert found.residual <= 1e-9
    assert len(told) == found.steps > 1
    torch.testing.assert_close(
        flat(found.delta), flat(solve(linear, Problem(images, wanted, **options)).delta), rtol=1e-6, atol=1e-8
    )
    early = approach(linear, Problem(images, wanted, **options), tolerance=1e-9, steps=1)
    assert early.steps == 1
    assert early.residual > 1e-9, "who stops early is told so"


def test_the_more_anchors_are_held_the_less_they_drift() -> None:
    linear, images, anchors = Linearised(network()), pictures(6, 0), pictures(4, 1)
    wanted = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free = solve(linear, Problem(images, wanted)).delta
    drifts = [float(linear.tangent(anchors, free).norm(dim=1).max())]
    drifts += [float(solve(linear, Problem(images, wanted, anchors=anchors, hold=hold)).drift.max()) for hold in (1e-2, 1, 1e2)]
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < drifts[0] / 10


def posed(images: int, rows: int, dim: int, **options: float) -> Problem:
    return Problem(pictures(images, 0), torch.zeros(rows, dim), **options)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: Linearised(network(), ["head"]), ConfigError, "no parameters called 'head'; it has: 0, 1, 5"),
        (lambda: Linearised(nn.ReLU()), ConfigError, "no parameters that could be trained"),
        (lambda: Linearised(network()).tangent(pictures(1, 0), {}), ConfigError, "not of this network's trained parameters"),
        (lambda: solve(Linearised(network()), posed(2, 3, 3)), DataError, "one row of each image"),
        (lambda: solve(Linearised(network()), posed(0, 0, 3)), DataError, "0 images"),
        (
            lambda: solve(Linearised(network()), posed(2, 2, 3, penalty=0)),
            ConfigError,
            "must be above 0",
        ),
        (lambda: solve(Linearised(network()), posed(2, 2, 9000)), DataError, "at most 12000"),
    ],
)
def test_what_cannot_be_solved_is_said(call, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
