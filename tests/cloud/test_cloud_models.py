"""Cloud model families: same promises as the edge families, at data-centre width."""

import pytest
import torch

from samespace.edge.models import build_model, count, families
from samespace.sdk.errors import ConfigError

SMALL = {"dim": 16, "image_size": 32, "width": 8, "stem_width": 8}


def images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_the_family_is_registered() -> None:
    assert "wide_residual" in families()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"dim": 128, "depth": 2},
        {"pooling": "mean", "width": 16},
        {"image_size": 64, "stem_stride": 2},
        {"stages": 2, "stem_width": 4},
    ],
)
def test_the_output_has_the_dimension_asked_for(arguments: dict[str, object]) -> None:
    arguments = {**SMALL, **arguments}
    model = build_model("wide_residual", arguments).eval()
    with torch.no_grad():
        output = model(images(3, int(str(arguments["image_size"]))))
    assert output.shape == (3, arguments["dim"])
    assert output.dtype == torch.float32


def test_one_seed_gives_one_model_and_the_gradient_reaches_every_parameter() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(build_model("wide_residual", SMALL).train())
    first, second = (model(images(4, 32)) for model in models)
    assert torch.equal(first, second)
    (first * torch.randn(first.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert [name for name, value in models[0].named_parameters() if value.grad is None or not value.grad.abs().sum() > 0] == []


def test_the_cost_follows_from_the_layers() -> None:
    """Stem; for each stage two 3x3 convolutions and a 1x1 shortcut at half the resolution; the head at two positions."""
    expected = 32 * 32 * 27 * 8
    inputs, side = 8, 32
    for outputs in (8, 16, 32):
        side //= 2
        expected += side * side * (9 * inputs * outputs + 9 * outputs * outputs + inputs * outputs)
        inputs = outputs
    expected += 2 * 32 * 4 * 4 * 16
    assert count(build_model("wide_residual", SMALL), 32).macs == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"width": 1}, "width"), ({"image_size": 36}, "image_size"), ({"depth": 0}, "depth"), ({"deep": 1}, "deep")],
)
def test_a_wrong_argument_is_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build_model("wide_residual", {**SMALL, **arguments})
