"""Training a family: conflicting gradients, weights by uncertainty, and one backward pass over shared parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from samespace.cloud.training.conflicts import project_conflicts
from samespace.cloud.training.family import FamilyGradients, family_backward
from samespace.cloud.training.uncertainty import UncertaintyWeights


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_projection(gradients: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """The algorithm as it is printed, in double precision."""
    given = [gradient.double() for gradient in gradients]
    total = torch.zeros_like(given[0])
    for i, gradient in enumerate(given):
        own = gradient.clone()
        for j in torch.randperm(len(given), generator=generator).tolist():
            if j != i and torch.dot(own, given[j]) < 0:
                own = own - torch.dot(own, given[j]) / torch.dot(given[j], given[j]) * given[j]
        total += own
    return total.float()


@pytest.mark.parametrize("number", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_the_projection_equals_the_printed_algorithm(number: int, seed: int) -> None:
    gradients = list(torch.randn(number, 4, generator=chance(seed)))  # few dimensions: many conflicts
    expected = slow_projection(gradients, chance(seed))
    torch.testing.assert_close(project_conflicts(gradients, chance(seed)), expected, atol=1e-5, rtol=1e-4)


def test_gradients_that_agree_are_summed() -> None:
    gradients = list(torch.rand(4, 9, generator=chance()))
    torch.testing.assert_close(project_conflicts(gradients, chance()), torch.stack(gradients).sum(0))


@pytest.mark.parametrize("seed", range(8))
def test_of_two_objectives_neither_is_opposed(seed: int) -> None:
    first = torch.randn(6, generator=chance(seed))
    second = torch.randn(6, generator=chance(seed + 100)) - 2 * first  # a conflict
    assert first @ second < 0
    result = project_conflicts([first, second], chance())
    assert result @ first >= -1e-4
    assert result @ second >= -1e-4
    assert not torch.allclose(result, first + second)


def test_by_hand() -> None:
    """(1, 0) loses nothing to (0, 1); (1, 0) and (-1, 1) conflict: they become (1/2, 1/2) and (0, 1)."""
    right, up, back = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(project_conflicts([right, up]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(project_conflicts([right, back]), torch.tensor([0.5, 1.5]))


def test_the_order_is_drawn_and_follows_the_generator() -> None:
    gradients = list(torch.randn(5, 3, generator=chance(1)))
    assert torch.equal(project_conflicts(gradients, chance(7)), project_conflicts(gradients, chance(7)))
    results = [project_conflicts(gradients, chance(seed)) for seed in range(10)]
    assert any(not torch.allclose(results[0], other) for other in results)


def test_absent_and_zero_gradients_change_nothing() -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    expected = project_conflicts([first, second], chance())
    assert torch.equal(project_conflicts([None, first, None, second], chance()), expected)
    torch.testing.assert_close(project_conflicts([first, torch.zeros(2), second], chance()), expected)
    assert torch.equal(project_conflicts([torch.zeros(2), torch.zeros(2)], chance()), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one"):
        project_conflicts([None])


def test_uncertainty_settles_where_the_weight_is_one_over_the_loss() -> None:
    losses = {"cloud": 0.25, "phone": 1.0, "watch": 6.0}
    weights = UncertaintyWeights(tuple(losses))
    optimiser = torch.optim.Adam(weights.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        torch.stack([weights(name, torch.tensor(loss)) for name, loss in losses.items()]).sum().backward()
        optimiser.step()
    for name, weight in weights.weights().items():
        assert weight == pytest.approx(1 / losses[name], rel=1e-3)
        objective = weights(name, torch.tensor(losses[name]))
        assert objective.item() == pytest.approx(1 + math.log(losses[name]), abs=1e-3)


def test_a_harder_model_counts_for_less_and_its_gradient_is_scaled() -> None:
    weights = UncertaintyWeights(("a", "b"))
    with torch.no_grad():
        weights.log_variance.copy_(torch.tensor([0.0, math.log(4)]))
    loss = torch.tensor(3.0, requires_grad=True)
    weights("b", loss).backward()
    assert loss.grad is not None
    assert loss.grad.item() == pytest.approx(0.25)
    assert weights.weights() == pytest.approx({"a": 1.0, "b": 0.25})


def test_weights_stay_within_bounds_and_come_back() -> None:
    weights = UncertaintyWeights(("a",), bound=2.0)
    with torch.no_grad():
        weights.log_variance.fill_(50.0)
    assert weights.weights()["a"] == pytest.approx(math.exp(-2))
    optimiser = torch.optim.SGD(weights.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        weights("a", torch.tensor(1.0)).backward()
        optimiser.step()
    assert weights.weights()["a"] == pytest.approx(1.0, abs=0.01)


class Pair(nn.Module):
    """A trunk with two heads, which begin alike and are pulled apart: what one wants of the trunk opposes the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.spare = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
        self.heads["b"].load_state_dict(self.heads["a"].state_dict())

    @property
    def shared(self) -> list[nn.Parameter]:
        return [*self.trunk.parameters(), *self.spare.parameters()]

    def objectives(self) -> dict[str, Tensor]:
        x = self.trunk(torch.randn(5, 3, generator=chance()))
        a, b = (head(x) for head in self.heads.values())
        return {"a": (a - 2).square().mean(), "b": (b + 3).square().mean()}


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: value.grad for name, value in module.named_parameters()}


def test_without_projection_it_is_the_gradient_of_the_sum() -> None:
    pair, reference = Pair(), Pair()
    family_backward(pair.objectives(), pair.shared, project=False)
    torch.stack(list(reference.objectives().values())).sum().backward()
    expected = gradients(reference)
    for name, gradient in gradients(pair).items():
        if name.startswith("spare"):
            assert gradient is None
            assert expected[name] is None
        else:
            torch.testing.assert_close(gradient, expected[name])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def test_with_projection_shared_parameters_alone_differ() -> None:
    pair, reference = Pair(), Pair()
    family_backward(pair.objectives(), pair.shared, project=True, generator=chance())
    trunk = list(reference.trunk.parameters())
    each = [flat(torch.autograd.grad(reference.objectives()[name], trunk)) for name in ("a", "b")]
    assert each[0] @ each[1] < 0  # else nothing is tested
    found = flat([parameter.grad for parameter in pair.trunk.parameters() if parameter.grad is not None])
    torch.testing.assert_close(found, slow_projection(each, chance()), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found, each[0] + each[1])
    torch.stack(list(reference.objectives().values())).sum().backward()
    for own, expected in zip(pair.heads.parameters(), reference.heads.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)
    assert all(parameter.grad is None for parameter in pair.spare.parameters())


@pytest.mark.parametrize("project", [False, True])
def test_a_gradient_left_from_before_does_not_count(project: bool) -> None:
    pair, fresh = Pair(), Pair()
    for parameter in pair.shared:
        parameter.grad = torch.full_like(parameter, 9.0)
    for one in (pair, fresh):
        family_backward(one.objectives(), one.shared, project=project, generator=chance())
    for name, gradient in gradients(fresh).items():
        torch.testing.assert_close(gradients(pair)[name], gradient)


@pytest.mark.parametrize("project", [False, True])
def test_two_processes_make_of_their_halves_what_one_makes_of_the_whole(project: bool) -> None:
    """Averaging stands before the projection: the other order gives another step."""
    x = torch.randn(8, 3, generator=chance(3))

    def losses(pair: Pair, rows: Tensor) -> list[Tensor]:
        return [pair.heads[name](pair.trunk(rows)).sub(target).square().mean() for name, target in (("a", 2.0), ("b", -2.0))]

    def run(rows: Tensor, others: list[list[Tensor]], mine: list[Tensor]) -> Pair:
        """One process; ``others`` are the flat tensors that the other one brought to the same meetings."""
        pair, meetings = Pair(), iter(others)

        def average(values: Tensor) -> Tensor:
            mine.append(values.clone())
            return (values + next(meetings, [values])[0]) / 2

        step = FamilyGradients(
            pair.shared, project=project, generator=chance(), average=average, private=list(pair.heads.parameters())
        )
        for loss in losses(pair, rows):
            step.backward(loss)
        step.finish()
        return pair

    brought: list[Tensor] = []
    run(x[4:], [], brought)
    first = run(x[:4], [[values] for values in brought], [])
    whole = Pair()
    objectives = losses(whole, x)
    family_backward(dict(zip("ab", objectives, strict=True)), whole.shared, project=project, generator=chance())
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(first)[name], gradient, atol=1e-5, rtol=1e-4)


def test_memory_layouts_do_not_mix_up_the_weights() -> None:
    """A channels-last weight comes back as it lies."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    reference = nn.Conv2d(3, 4, 3, bias=False)
    reference.load_state_dict(convolution.state_dict())
    images = torch.randn(2, 3, 5, 5, generator=chance())
    target = torch.randn(2, 4, 3, 3, generator=chance(1))
    family_backward({"a": (convolution(images) * target).sum()}, list(convolution.parameters()), project=True)
    (reference(images) * target).sum().backward()
    assert convolution.weight.grad is not None
    torch.testing.assert_close(convolution.weight.grad, reference.weight.grad, check_stride=False, atol=1e-5, rtol=1e-4)
    assert convolution.weight.grad.stride() == convolution.weight.stride()
