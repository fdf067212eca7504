"""The supernet: a slice extracted is the slice in place; training touches the drawn path only; what is extracted exports."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from samespace.edge.models import build_model, count
from samespace.edge.models.blocks import StagedNet
from samespace.edge.search import Architecture, Block, SearchSpace, Supernet
from samespace.sdk.errors import ConfigError

CHOICES: dict[str, Any] = {
    "stem_strides": [1, 2],
    "stem_widths": [4, 8],
    "kernels": [3, 5],
    "expansions": [1, 2],
    "widths": [[4, 8], [8, 12]],
    "depths": [1, 2],
}


def images(number: int = 4, seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


def make(**choices: Any) -> Supernet:
    torch.manual_seed(0)
    net = build_model("mobile_supernet", {"dim": 8, "image_size": 16, **CHOICES, **choices})
    assert isinstance(net, Supernet)
    return net


def trained(steps: int = 6, **choices: Any) -> Supernet:
    """After some steps, with batch-norm statistics that are no longer those of a fresh network."""
    net = make(**choices).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        (net(images(8, step, net.space.image_size) * 2 + 0.5) - 1).square().mean().backward()
        optimiser.step()
    return net


def samples(space: SearchSpace, number: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return [space.sample(rng) for _ in range(number)]


@pytest.fixture(scope="module")
def net() -> Supernet:
    return trained(20)


@pytest.fixture
def supernet(net: Supernet) -> Supernet:
    return copy.deepcopy(net)


@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_what_is_extracted_computes_what_the_supernet_computes(pooling: str) -> None:
    supernet = trained(pooling=pooling).eval()
    drawn = samples(supernet.space, 25)
    assert {block.op for one in drawn for stage in one.stages for block in stage} == {"inverted", "fused", "basic", "mixer"}
    outputs = []
    for one in [*drawn, supernet.space.largest()]:
        supernet.activate(one)
        alone = supernet.extract(one)
        assert isinstance(alone, StagedNet)
        assert not alone.training
        with torch.no_grad():
            outputs.append(alone(images()))
            assert torch.equal(supernet(images()), outputs[-1])
    # The choices make a difference.
    assert len({tuple(output.flatten().tolist()) for output in outputs}) > 20


def test_in_training_mode_outputs_gradients_and_statistics_are_equal(supernet: Supernet) -> None:
    supernet.train()
    for one in samples(supernet.space, 12, seed=3):
        alone = supernet.extract(one)
        assert alone.training
        results = []
        for run in (alone, lambda x, one=one: supernet.forward_as(one, x)):
            supernet.zero_grad(set_to_none=True)
            x = images(6).requires_grad_()
            loss = (run(x) - 1).square().sum()
            loss.backward()
            results.append((loss.detach(), x.grad))
        torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)
        # The gradient of a shared weight is its slice's; the statistics moved in place.
        slices = supernet.extract(one).state_dict()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(slices[name], value, atol=1e-6, rtol=1e-5)
        total = sum(value.grad.square().sum() for value in supernet.parameters() if value.grad is not None)
        expected = sum(value.grad.square().sum() for value in alone.parameters() if value.grad is not None)
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_the_extracted_network_is_that_of_the_family_and_shares_nothing(supernet: Supernet) -> None:
    one = supernet.space.sample(random.Random(5))
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    alone = supernet.extract(one)
    fresh = build_model("mobile", one.arguments(supernet.space))
    fresh.load_state_dict(alone.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images()), alone.eval()(images()))
        for value in alone.state_dict().values():
            value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert count(alone, 16) == count(fresh, 16)
    assert all(value.requires_grad for value in alone.parameters())


def test_weights_are_shared_by_first_channels_and_kernel_centres(supernet: Supernet) -> None:
    def with_first(kernel: int, width: int) -> nn.Module:
        stages = ((Block(op="basic", kernel=kernel, width=width),), (Block(op="basic", width=8),))
        return supernet.extract(Architecture(stem_stride=1, stem_width=8, activation="relu", stages=stages))

    weight = "body.0.0.first.0.weight"
    large, small, narrow = (with_first(*sizes).state_dict()[weight] for sizes in ((5, 8), (3, 8), (3, 4)))
    assert torch.equal(small, large[:, :, 1:4, 1:4])
    assert torch.equal(narrow, small[:4])


def test_a_step_trains_the_drawn_path_only(supernet: Supernet) -> None:
    supernet.train()
    for seed in range(5):
        supernet.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        one = supernet.draw()
        torch.manual_seed(seed)
        before = {name: value.clone() for name, value in supernet.named_buffers()}
        supernet(images()).square().sum().backward()
        touched = {name for name, value in supernet.named_parameters() if value.grad is not None}
        blocks = {
            f"body.{s}.{p}.{f'mixer_{16 // one.stem_stride // 2 ** (s + 1)}' if block.op == 'mixer' else block.op}."
            for s, stage in enumerate(one.stages)
            for p, block in enumerate(stage)
        }
        side = 16 // one.stem_stride // 4
        path = (f"stems.{one.stem_stride}.", f"heads.map_{side}.", *blocks)
        assert all(name.startswith(path) for name in touched)
        assert all(any(name.startswith(prefix) for name in touched) for prefix in path)
        moved = {name for name, value in supernet.named_buffers() if not torch.equal(value, before[name])}
        assert moved
        assert all(name.startswith(path) for name in moved)


def test_training_draws_from_the_global_generator_and_evaluation_draws_nothing(supernet: Supernet) -> None:
    space = supernet.space
    keys = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        keys.append([supernet.draw().key for _ in range(4)])
    assert keys[0] == keys[1] != keys[2]
    assert len(set(keys[0])) > 1
    supernet.train()
    torch.manual_seed(1)
    first = space.sample(random.Random(int(torch.randint(2**62, ()).item())))
    copies = [copy.deepcopy(supernet) for _ in range(2)]
    torch.manual_seed(1)
    assert torch.equal(copies[0](images()), copies[1].forward_as(first, images()))
    state = torch.get_rng_state()
    supernet.eval()
    with torch.no_grad():
        assert torch.equal(supernet(images()), supernet(images()))
        supernet.extract(first)
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_is_the_active_architecture_the_largest_at_first(supernet: Supernet) -> None:
    supernet.eval()
    largest, other = supernet.space.largest(), supernet.space.sample(random.Random(1))
    with torch.no_grad():
        outputs = [supernet.forward_as(one, images()) for one in (largest, other)]
        assert torch.equal(supernet(images()), outputs[0])
        supernet.activate(other)
        assert torch.equal(supernet(images()), outputs[1])
    macs = [count(build_model("mobile", one.arguments(supernet.space)), 16).macs for one in samples(supernet.space, 50)]
    assert count(supernet.extract(largest), 16).macs >= max(macs)


def test_a_stranger_is_refused(supernet: Supernet) -> None:
    stranger = supernet.space.largest().model_copy(update={"stem_stride": 4})
    for refuse in (supernet.activate, supernet.extract, lambda one: supernet.forward_as(one, images())):
        with pytest.raises(ConfigError, match="stem_stride = 4"):
            refuse(stranger)


@pytest.mark.parametrize(("choices", "named"), [({"kernels": [2]}, "kernels: 2"), ({"kernel": [3]}, "kernel")])
def test_wrong_arguments_are_named(choices: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**choices)


def test_the_state_survives_a_file_and_names_do_not_change_with_the_path(supernet: Supernet) -> None:
    names = list(supernet.state_dict())
    supernet.train()
    for _ in range(3):
        supernet(images())
    assert list(supernet.state_dict()) == names
    other = make()
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(supernet.state_dict())))
    with torch.no_grad():
        for one in samples(supernet.space, 3):
            assert torch.equal(other.eval().forward_as(one, images()), supernet.eval().forward_as(one, images()))


def test_channels_last_gives_the_same(supernet: Supernet) -> None:
    placed = copy.deepcopy(supernet).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for mode in (False, True):
        for one in samples(supernet.space, 8):
            expected = supernet.train(mode).forward_as(one, images())
            torch.testing.assert_close(placed.train(mode).forward_as(one, images()), expected, atol=1e-4, rtol=1e-4)
    placed.train()(images()).sum().backward()


def test_training_lowers_the_loss_of_architectures_all_over_the_space() -> None:
    """Regression towards the colours of the picture's quarters: 200 single-path steps help ones that were hardly ever drawn."""
    quarters = images(64, 7, size=2)
    x = nn.functional.interpolate(quarters, size=16) + 0.3 * images(64, 8)
    wanted = quarters.flatten(1)[:, :8]

    def losses(net: Supernet) -> torch.Tensor:
        with torch.no_grad():  # in training mode: statistics of the batch
            return torch.stack([(net.forward_as(one, x) - wanted).square().mean() for one in samples(net.space, 8, seed=9)])

    net = make().train()
    before = losses(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(200):
        optimiser.zero_grad(set_to_none=True)
        (net(x) - wanted).square().mean().backward()
        optimiser.step()
    ratios = losses(net) / before
    assert ratios.max() < 0.9
    assert ratios.mean() < 0.65


#: Between them all operators and all activations, all stem strides, and all sizes of kernels.
EXPORTED = {
    "relu": [["fused", "mixer"], ["inverted", "basic"]],
    "relu6": [["basic", "fused"], ["basic", "mixer"]],
    "hardswish": [["inverted", "mixer"], ["fused", "inverted"]],
}


@pytest.mark.export
@pytest.mark.timeout(600)
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_extracted_networks_survive_their_export(format: str) -> None:
    from samespace.export.conversion import Job, convert
    from samespace.export.formats import exporter_class
    from samespace.export.formats.base import artifact_of
    from samespace.export.graph import DeviceGraph
    from samespace.export.run import RunModel
    from samespace.sdk.identity import ModelRecord, digest
    from samespace.sdk.metrics import cosine
    from samespace.sdk.preprocess import Preprocess
    from samespace.sdk.runtimes import LoadedArtifact, open_runtime

    supernet = trained(60, image_size=32, stem_strides=[1, 2, 4]).eval()
    preprocess = Preprocess(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    pictures = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    jobs, references = [], []
    for index, (activation, ops) in enumerate(EXPORTED.items()):
        stages = tuple(
            tuple(Block.model_validate({"op": op, "kernel": 3 + 2 * (index % 2), "expansion": 2, "width": 8}) for op in stage)
            for stage in ops
        )
        one = Architecture.model_validate(
            {"stem_stride": 2**index, "stem_width": 8, "activation": activation, "stages": stages}
        )
        net = supernet.extract(one)
        weights = safetensors.torch.save(net.state_dict())
        record = ModelRecord(
            name=activation,
            role="edge",
            family="mobile",
            arguments=one.arguments(supernet.space),
            dim=8,
            preprocess=preprocess,
            weights_sha256=digest(weights),
        )
        jobs.append(Job(RunModel(activation, record, weights), format, "fp32"))
        with torch.no_grad():
            references.append(DeviceGraph(net, preprocess)(torch.from_numpy(pictures)).numpy())
    exporter = exporter_class(format)
    for conversion, reference in zip(convert(jobs), references, strict=True):
        assert conversion.input.dynamic_batch
        loaded = LoadedArtifact(artifact_of(conversion, exporter, "fp32", "0" * 64), conversion.files, 32, 8)
        with open_runtime(loaded) as runtime:
            for batch in (pictures, pictures[:1]):
                assert cosine(runtime.run(batch), reference[: len(batch)]).min() >= 0.99999
