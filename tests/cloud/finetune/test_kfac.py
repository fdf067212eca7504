"""K-FAC as a preconditioner: exact where the theory says so, and the same optimum in fewer steps elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from samespace.cloud.finetune import Linearised, Problem, solve
from samespace.cloud.finetune.iterative import approach, curvature
from samespace.cloud.finetune.kfac import kfac
from samespace.cloud.finetune.problem import class_targets
from samespace.cloud.finetune.stochastic import descend, steepest
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError, DataError


def of(model: nn.Module, images: Tensor, penalty: float = 1.0, anchors: bool = False) -> tuple[Linearised, Problem]:
    chance = torch.Generator().manual_seed(1)
    linear = Linearised(model)
    outputs = linear.outputs(images)
    wanted = torch.randn(outputs.shape, generator=chance, dtype=images.dtype) - outputs
    held = torch.randn(3, *images.shape[1:], generator=chance, dtype=images.dtype) if anchors else None
    return linear, Problem(images, wanted, penalty, held)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def uneven() -> Tensor:
    """Inputs of which some are a thousand times larger than others, as features are."""
    return noise(80, 12) * torch.logspace(-2, 1, 12)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 3)).eval()


def convolutional() -> nn.Module:
    """Plain, depthwise and normed convolutions, and a linear end."""
    torch.manual_seed(0)
    return build_model("inverted_residual", {"dim": 4, "image_size": 16, "width": 4, "depth": 1, "stages": 2}).eval()


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(sum((a[name] - b[name]).square().sum() for name in b) / sum(b[name].square().sum() for name in b)) ** 0.5


def test_of_one_linear_layer_it_is_the_inverse_itself() -> None:
    torch.manual_seed(0)
    linear, problem = of(nn.Sequential(nn.Linear(5, 3)).double(), noise(40, 5).double(), penalty=1e-6)
    found = kfac(linear, problem)(linear.pull(problem.images, problem.wanted))
    assert apart(found, solve(linear, problem).delta) < 2e-3


@pytest.mark.parametrize("anchors", [False, True])
def test_conjugate_gradients_are_nearer_after_as_many_steps_with_it(anchors: bool) -> None:
    linear, problem = of(dense(), uneven(), 1e-2, anchors)
    exact = linear_outputs(linear, problem, solve(linear, problem).delta)
    plain = approach(linear, problem, steps=10).delta
    helped = approach(linear, problem, steps=10, precondition=kfac(linear, problem)).delta
    assert apart(linear_outputs(linear, problem, helped), exact) < apart(linear_outputs(linear, problem, plain), exact) / 2


def test_descent_by_batches_comes_nearer_with_it() -> None:
    linear, problem = of(dense(), uneven(), 1e-2)
    exact = linear_outputs(linear, problem, solve(linear, problem).delta)
    missed = {}
    for name, precondition in (("plain", None), ("kfac", kfac(linear, problem))):
        rate = 4 / steepest(linear, problem, precondition)
        delta = descend(linear, problem, steps=60, rate=rate, precondition=precondition, batch=40)
        missed[name] = apart(linear_outputs(linear, problem, delta), exact)
    assert missed["kfac"] < missed["plain"] / 2


def test_the_steepest_direction_is_that_of_the_curvature() -> None:
    torch.manual_seed(0)
    linear, problem = of(nn.Sequential(nn.Linear(4, 2)), noise(9, 4), anchors=True)
    columns = []
    for name, shape in linear.shapes.items():
        for place in range(shape.numel()):
            delta = linear.zero()
            delta[name].view(-1)[place] = 1
            columns.append(torch.cat([value.flatten() for value in curvature(linear, problem, delta).values()]))
    assert steepest(linear, problem, turns=200) == pytest.approx(
        float(torch.linalg.eigvalsh(torch.stack(columns))[-1]), rel=1e-3
    )


def test_every_kind_of_layer_has_a_part_in_it() -> None:
    linear, problem = of(convolutional(), noise(12, 3, 16, 16), 1e-2)
    exact = linear_outputs(linear, problem, solve(linear, problem).delta)
    found = approach(linear, problem, tolerance=1e-3, precondition=kfac(linear, problem)).delta
    assert set(found) == set(linear.shapes)
    assert apart(linear_outputs(linear, problem, found), exact) < 0.02


def test_frozen_layers_stay_frozen() -> None:
    model = convolutional().requires_grad_(False)
    linear, problem = of(model, noise(6, 3, 16, 16))
    kfac(linear, problem)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_steps_that_run_away_are_told() -> None:
    linear, problem = of(convolutional(), noise(6, 3, 16, 16))
    with pytest.raises(ConfigError, match="ran away"):
        descend(linear, problem, steps=200, rate=1e6)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": 0.0}, {"batch": 0}, {"momentum": 1.0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    linear, problem = of(convolutional(), noise(6, 3, 16, 16))
    with pytest.raises(ConfigError, match="must be above 0"):
        descend(linear, problem, **({"steps": 1, "rate": 0.1} | wrong))  # type: ignore[arg-type]


def test_class_targets_are_long_at_the_label() -> None:
    assert class_targets(torch.tensor([1, 0]), 3).tolist() == [[0, 15, 0], [15, 0, 0]]
    with pytest.raises(DataError, match="from 0 to 2"):
        class_targets(torch.tensor([3]), 3)


def linear_outputs(linear: Linearised, problem: Problem, delta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"outputs": linear.tangent(problem.images, delta)}
