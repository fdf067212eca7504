"""Slimmable networks: each width is an ordinary network, weights are shared, batch norms are not."""

import inspect
import json
from typing import Any

import pytest
import torch
from torch import nn

from samespace.edge.models import build_model, count, residual, slimmable
from samespace.edge.models.slimmable import SlimmableResidual
from samespace.sdk.errors import ConfigError

WIDTHS = (4, 6, 8)


def build(seed: int = 0, **arguments: Any) -> SlimmableResidual:
    torch.manual_seed(seed)
    network = build_model("slimmable_residual", {"dim": 5, "image_size": 8, "stages": 2, "widths": WIDTHS, **arguments})
    assert isinstance(network, SlimmableResidual)
    return network


def images(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def seasoned(network: SlimmableResidual) -> SlimmableResidual:
    """With statistics that differ from width to width, as training leaves them."""
    network.train()
    with torch.no_grad():
        for number, width in enumerate(network.widths):
            network.at(width)(images(seed=number) * (1 + number) + number)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize(
    "arguments", [{}, {"depth": 2, "pooling": "map"}, {"stem_stride": 2, "stages": 1}, {"shortcut": False}]
)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_can_be_taken_out_as_an_ordinary_network(width: int, arguments: dict[str, Any]) -> None:
    network = seasoned(build(**arguments))
    record = json.loads(json.dumps(network.arguments(width)))
    ordinary = build_model("residual", record).eval()
    ordinary.load_state_dict(network.extract(width).state_dict())
    view = network.at(width)
    with torch.no_grad():
        torch.testing.assert_close(view(images()), ordinary(images()))
        torch.testing.assert_close(view.head(view.stages(images())[-1]), ordinary(images()))
        assert [one.shape for one in view.stages(images())] == [one.shape for one in ordinary.stages(images())]  # pyright: ignore[reportCallIssue]
    assert count(view.network.extract(width), 8) == count(ordinary, 8)


def test_called_it_is_its_greatest_width() -> None:
    network = seasoned(build())
    with torch.no_grad():
        torch.testing.assert_close(network(images()), network.at(WIDTHS[-1])(images()))
        assert not torch.allclose(network(images()), network.at(WIDTHS[0])(images()))


def test_what_was_taken_out_shares_nothing() -> None:
    network = seasoned(build())
    before = network.at(6)(images()).detach()
    out = network.extract(6)
    with torch.no_grad():
        for value in (*out.parameters(), *out.buffers()):
            value.zero_()
    torch.testing.assert_close(network.at(6)(images()).detach(), before)


def test_the_widths_share_weights_and_each_has_norms_of_its_own() -> None:
    """A step of the narrowest width moves the first channels of the shared weights, its own norms, and nothing else."""
    network = seasoned(build()).train()
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    narrow = network.at(4)
    narrow(images()).square().sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    moved = {name: (value - before[name]) != 0 for name, value in network.state_dict().items()}
    assert not any(moved[name].any() for name in moved if name.startswith(("norms.6", "norms.8")))
    assert any(moved[name].any() for name in moved if name.startswith("norms.4"))
    kernel = moved["net.body.0.0.first.0.weight"]  # (16, 8, 3, 3), of which the narrowest has (8, 4, 3, 3)
    assert kernel[:8, :4].any()
    assert not kernel[8:].any()
    assert not kernel[:, 4:].any()
    statistics = [name for name in moved if "running" in name and moved[name].any()]
    assert statistics
    assert all(name.startswith("norms.4") for name in statistics)


def test_the_gradient_is_that_of_the_ordinary_network() -> None:
    network = seasoned(build()).train()
    ordinary = network.extract(6)
    network.at(6)(images()).square().sum().backward()
    ordinary(images()).square().sum().backward()
    whole = network.net.get_parameter("body.1.0.second.0.weight").grad
    part = ordinary.get_parameter("body.1.0.second.0.weight").grad
    assert whole is not None
    assert part is not None
    torch.testing.assert_close(whole[: part.shape[0], : part.shape[1]], part)


def test_together_the_widths_reach_every_parameter() -> None:
    network = build().train()
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    for width in WIDTHS:
        (network.at(width)(images()) * weight).sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []
    shared = {id(parameter) for parameter in network.shared_parameters()}
    norms = {id(parameter) for norm in network.modules() if isinstance(norm, nn.BatchNorm2d) for parameter in norm.parameters()}
    assert shared | norms == {id(parameter) for parameter in network.parameters()}
    assert not shared & norms


def test_a_width_has_no_weights_of_its_own() -> None:
    view = build().at(4)
    assert list(view.parameters()) == []
    assert view.state_dict() == {}


def test_it_starts_as_the_widest_alone_would() -> None:
    network = build(seed=3)
    torch.manual_seed(3)
    alone = residual.build(dim=5, image_size=8, stages=2, width=WIDTHS[-1])
    for name, value in alone.state_dict().items():
        assert torch.equal(value, network.net.state_dict()[name])


def test_it_takes_all_arguments_of_the_family_of_its_widths() -> None:
    own, ordinary = (inspect.signature(builder).parameters for builder in (slimmable.build, residual.build))
    assert set(own) - {"widths"} == set(ordinary) - {"width"}
    assert all(own[name].default == ordinary[name].default for name in own if name != "widths")


@pytest.mark.parametrize("widths", [(), (8, 4), (4, 4), (4, 2000), (4, 6.5), 8, "48", (2, 8)])
def test_wrong_widths_are_named(widths: Any) -> None:
    with pytest.raises(ConfigError, match="widths"):
        build(widths=widths)


def test_an_unknown_width_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no width 5.*4, 6, 8"):
        build().at(5)
    with pytest.raises(ConfigError, match="no width 5"):
        build().extract(5)
