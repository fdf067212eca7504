"""Fake quantisation: its numbers against a slow reference and against onnxruntime, its gradients, and the traced network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from samespace.edge.models import build_model
from samespace.edge.models.fake_quant import ActivationRange, FakeQuantised, fake_quantise_weight
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.onnx import open_session

FAMILIES: dict[str, dict[str, Any]] = {
    "residual": {"width": 8, "stages": 2},
    "inverted_residual": {"width": 8, "stages": 2, "pooling": "map"},
    "mixer": {"width": 16, "depth": 1},
    "mobile": {},
    "wide_residual": {"width": 8, "stages": 2},
    "efficientnet_lite": {"pretrained": False, "train_trunk": True},
}


def images(count: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network(family: str, **more: Any) -> nn.Module:
    """With batch-norm statistics that are not those of a fresh network."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build_model(family, {"dim": 8, "image_size": 32, **FAMILIES[family], **more})
        model.train()
        with torch.no_grad():
            model(images(8, 3))
    return model.eval()


def calibrated(model: nn.Module, **options: Any) -> FakeQuantised:
    quantised = FakeQuantised(model, **options)
    quantised.calibrate([images(8, 1), images(8, 2)])
    return quantised


def slow_activation(values: list[float], low: float, high: float, bits: int) -> list[float]:
    """The definition, one number at a time in double precision; ``round`` takes ties to even."""
    low, high, top = min(low, 0.0), max(high, 0.0), 2**bits - 1
    scale = (high - low) / top
    zero = round(-low / scale)
    return [(min(max(round(x / scale) + zero, 0), top) - zero) * scale for x in values]


@pytest.mark.parametrize(("low", "high"), [(-1.7, 2.9), (0.0, 6.0), (0.5, 4.0), (-3.0, -1.0)])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_activation_is_rounded_as_defined(low: float, high: float, bits: int) -> None:
    one = ActivationRange(bits)
    one.observe(torch.tensor([low, high]))
    x = torch.linspace(low - 1, high + 1, 997)
    expected = torch.tensor(slow_activation(x.double().tolist(), low, high, bits))
    step = float(one.quantisation()[0])
    # In single precision a tie may go the other way; nothing else may.
    apart = (one(x) - expected).abs() > 1e-5
    ties = ((x / step) % 1 - 0.5).abs() < 1e-3
    assert not bool((apart & ~ties).any())
    assert one(torch.zeros(1)).item() == 0, "zero is a value of the grid: padding stays exact"


def test_a_weight_is_rounded_by_its_own_channel() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 1.0, 50.0, 0.0, 1.0]
    ).reshape(-1, 1, 1, 1)
    rounded = fake_quantise_weight(weight, 8)
    for channel, found in zip(weight.double(), rounded.double(), strict=True):
        scale = float(channel.abs().max()) / 127
        expected = [0.0 if scale == 0 else round(float(x) / scale) * scale for x in channel.flatten()]
        assert found.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_onnxruntime_computes_the_same_by_the_same_ranges() -> None:
    """QuantizeLinear and DequantizeLinear: per tensor uint8 for activations, per channel int8 for weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    one = ActivationRange()
    one.observe(torch.tensor([-1.3, 4.1]))
    scale, zero = one.quantisation()
    x = (images(4, 5) * 2).numpy()
    weight = images(6, 7).numpy() * np.array([1, 10, 0.1, 1, 3, 1e-4], np.float32).reshape(-1, 1, 1, 1)
    weight_scale = np.abs(weight).reshape(6, -1).max(1) / np.float32(127)
    constants = {
        "scale": np.float32(scale),
        "zero": np.uint8(zero),
        "weight_scale": weight_scale,
        "weight_zero": np.zeros(6, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        helper.make_node("QuantizeLinear", ["w", "weight_scale", "weight_zero"], ["wq"], axis=0),
        helper.make_node("DequantizeLinear", ["wq", "weight_scale", "weight_zero"], ["wy"], axis=0),
    ]
    shapes = {"x": x.shape, "w": weight.shape, "y": x.shape, "wy": weight.shape}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "qdq", [values["x"], values["w"]], [values["y"], values["wy"]], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    y, wy = open_session(model.SerializeToString(), "qdq").run(["y", "wy"], {"x": x, "w": weight})
    apart = np.abs(one(torch.from_numpy(x)).numpy() - y)
    assert (apart > 1e-6).mean() < 1e-3, "ties alone"
    assert apart.max() < 1.01 * float(scale)
    weights = np.abs(fake_quantise_weight(torch.from_numpy(weight)).numpy() - wy).reshape(6, -1)
    assert ((weights > 1e-5 * weight_scale[:, None]).mean(1) < 1e-3).all()
    assert (weights.max(1) < 1.01 * weight_scale).all()


def test_gradients_go_through_rounding_and_stop_where_it_clips() -> None:
    one = ActivationRange()
    one.observe(torch.tensor([-1.0, 2.0]))
    x = torch.tensor([-5.0, -0.503, 0.0, 0.7071, 1.99, 7.0], requires_grad=True)
    (one(x) * torch.arange(1.0, 7.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    factor = torch.randn(3, 2, 3, 3)
    (fake_quantise_weight(weight) * factor).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_nearly_what_it_did(family: str) -> None:
    model = network(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fine, coarse = calibrated(model), calibrated(model, weight_bits=3, activation_bits=3)
    x = images(8, 1)
    with torch.no_grad():
        exact = model(x)
        cosines = [F.cosine_similarity(exact, quantised(x)).min().item() for quantised in (fine, coarse)]
    assert cosines[0] > 0.99
    assert cosines[1] < cosines[0], "fewer bits, more loss: the network is really quantised"
    assert all(torch.equal(value, before[name]) for name, value in fine.network.state_dict().items())
    fine.train()(x).square().sum().backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in model.parameters())


def test_it_is_the_sum_of_its_parts() -> None:
    """A network of one layer of each kind, against the same steps written out."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    model(images(16, size=8))  # running statistics
    model.eval()
    quantised = FakeQuantised(model)
    x = images(16, 4, 8)
    quantised.calibrate([x])

    def rounded(value: torch.Tensor) -> torch.Tensor:
        one = ActivationRange()
        one.observe(value)
        return one(value)

    conv, norm, linear = model[0], model[1], model[4]
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded = conv.weight * factor.reshape(-1, 1, 1, 1)
    shift = norm.bias - norm.running_mean * factor
    # Ranges are those of the float network, so they are taken from its steps.
    hidden = F.relu(F.conv2d(x, folded, shift, padding=1))
    inner, outer = ActivationRange(), ActivationRange()
    inner.observe(hidden)
    outer.observe(linear(hidden.flatten(1)))
    step = inner(F.relu(F.conv2d(rounded(x), fake_quantise_weight(folded), shift, padding=1)))
    expected = outer(F.linear(step.flatten(1), fake_quantise_weight(linear.weight), linear.bias))
    with torch.no_grad():
        assert torch.allclose(quantised(x), expected, atol=float(outer.quantisation()[0]) * 1.01)
        assert (quantised(x) - expected).abs().mean() < 0.05 * outer.quantisation()[0], "but for ties the same"


def test_batch_norm_and_dropout_stand_still_in_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 30))
    quantised = FakeQuantised(model)
    quantised.calibrate([images(4)])
    quantised.train()
    assert torch.equal(quantised(images(4)), quantised(images(4)))
    assert model[1].num_batches_tracked == 0
    assert quantised.training
    assert not model.training


def test_a_share_of_a_training_batch_is_not_rounded() -> None:
    model = network("residual")
    quantised = calibrated(model, weight_bits=3, float_share=0.25)
    x = images(8, 1)
    with torch.no_grad():
        rounded, learning = quantised.eval()(x), quantised.train()(x)
        assert torch.equal(learning[:6], quantised.eval()(x[:6]))
        assert torch.allclose(learning[6:], model(x[6:]), atol=1e-6)
        assert not torch.allclose(rounded[6:], learning[6:], atol=1e-3), "in evaluation all are"


def test_ranges_follow_the_batches_only_when_asked() -> None:
    wide = 10 * images(8, 9)
    for momentum in (0.0, 0.25):
        quantised = calibrated(network("residual"), momentum=momentum)
        before = quantised.ranges["x"].high.item()
        quantised.eval()(wide)
        assert quantised.ranges["x"].high.item() == before, "an evaluation changes nothing"
        quantised.train()(wide)
        expected = before + momentum * (wide.max().item() - before)
        assert math.isclose(quantised.ranges["x"].high.item(), expected, rel_tol=1e-5)


def test_ranges_travel_with_the_state() -> None:
    model = network("residual")
    quantised, other = calibrated(model), FakeQuantised(network("residual"))
    other.load_state_dict(quantised.state_dict())
    with torch.no_grad():
        assert torch.equal(other(images(4)), quantised(images(4)))


def test_without_ranges_it_does_not_run() -> None:
    with pytest.raises(RuntimeError, match=r"call calibrate\(\)"):
        FakeQuantised(network("residual"))(images(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_a_network_that_branches_on_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"torch\.fx cannot trace it .* without branches"):
        FakeQuantised(Branching())
