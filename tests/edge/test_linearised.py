"""The explicit two-stream graph: the same numbers as forward-mode differentiation, in torch and in every exported format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from samespace.edge.models.head import L2Norm
from samespace.edge.models.leaky import leaky
from samespace.edge.models.linearised import SUPPORTED, two_streams
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError


def shaken(network: nn.Module) -> nn.Module:
    """Statistics as a trained network has them."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network.eval()


def compare(network: nn.Module, images: Tensor, trained: list[str]) -> None:
    chance = torch.Generator().manual_seed(3)
    weights = {name: value.detach() for name, value in network.named_parameters()}
    delta = {
        name: 0.02 * torch.randn(value.shape, generator=chance)
        if any(name.startswith(f"{one}.") for one in trained)
        else torch.zeros_like(value)
        for name, value in weights.items()
    }
    norm = L2Norm()
    values, tangents = jvp(lambda at: norm(functional_call(network, at, (images,))), (weights,), (delta,))
    graph = two_streams(network, trained)
    state = graph.state_dict()
    for name, change in delta.items():
        path, _, parameter = name.rpartition(".")
        key = f"layers.{path.replace('.', '/')}.delta_{parameter}"
        if key in state:
            state[key].copy_(change)
        else:
            assert not change.any(), "what changes has a place"
    assert tangents.abs().max() > 1e-3
    torch.testing.assert_close(graph(images), values + tangents, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("trained", [["head"], ["body.1"], ["stem", "body", "head"]])
@pytest.mark.parametrize("family", ["residual", "inverted_residual", "mixer", "wide_residual"])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_it_is_the_jacobian_vector_product(family: str, trained: list[str], slope: float) -> None:
    torch.manual_seed(0)
    network = shaken(build_model(family, {"dim": 8, "image_size": 32}))
    compare(leaky(network, slope) if slope else network, torch.randn(3, 3, 32, 32), trained)


@pytest.mark.parametrize("name", [name for name in SUPPORTED if name not in ("Conv2d", "Linear", "BatchNorm2d")])
def test_every_supported_layer(name: str) -> None:
    torch.manual_seed(0)
    arguments = {"ZeroPad2d": (1,), "AvgPool2d": (2,), "AdaptiveAvgPool2d": (4,)}.get(name, ())
    layer: nn.Module = getattr(nn, name)(*arguments)
    flat = [] if name == "Flatten" else [nn.Flatten()]
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), layer, *flat, nn.LazyLinear(5))
    images = 4 * torch.randn(3, 3, 10, 10)
    network(images)
    compare(shaken(network), images, ["0", "1", str(len(network) - 1)])


class Branch(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Product(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize(
    ("network", "trained", "said"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.MaxPool1d(2))), ["0"], "1.0: no tangent of MaxPool1d is known here"),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU()), ["0"], "1: no tangent of GELU is known here; known are AdaptiveAvgPool2d"),
        (Branch(3, 3), ["weight"], "torch.fx cannot trace this network"),
        (Product(3, 3), ["weight"], "mul: this operation has no tangent here"),
        (nn.Sequential(nn.Linear(3, 3)), ["0.weight"], "0: only some of its parameters change; name the layer"),
        (nn.Sequential(nn.Linear(3, 3)), [], "nothing that is trained reaches the embedding"),
        (
            nn.Sequential(nn.Linear(3, 3), nn.BatchNorm2d(3, affine=False)),
            ["0"],
            "1: a batch norm without statistics or weights",
        ),
    ],
)
def test_what_has_no_tangent_is_named(network: nn.Module, trained: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        two_streams(network, trained)


def test_a_slope_that_is_none_is_refused() -> None:
    arguments = {"dim": 8, "image_size": 32, "family": "residual", "arguments": {}, "slope": 1.5}
    with pytest.raises(ConfigError, match=r"slope = 1\.5"):
        build_model("leaky", arguments)
