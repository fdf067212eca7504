"""Core ML at every precision: agreement, sizes, targets, equal bytes; and the tables of palettised weights."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from samespace.export import DeviceGraph, TorchRuntime
from samespace.export.conversion import Job, convert
from samespace.export.formats.base import Conversion, Precision
from samespace.export.formats.coreml import CoremlExporter
from samespace.export.formats.coreml_palette import group_size, palette
from samespace.export.options import ExportOptions
from samespace.export.run import RunModel
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest
from samespace.sdk.runtimes.coreml_reference import EMBEDDING_TOLERANCE
from samespace.sdk.runtimes.mil.program import Program, read_package

pytestmark = [pytest.mark.export, pytest.mark.timeout(600)]

FAMILY = "mobile"
#: What a family of all operators must reach, untrained; of palette4 only that it is the same model.
FLOORS: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.98, "palette6": 0.97, "palette4": 0.5}
#: Each precision for iOS 17, and the one that differs most for 18.
CASES: tuple[tuple[Precision, int], ...] = (
    ("fp32", 17), ("fp16", 17), ("int8", 17), ("palette6", 17), ("palette4", 17), ("palette4", 18)
)  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark whose matrix has all families; here one of them stands for all."""
    file = Path(__file__).parents[2] / "benchmarks" / "coreml_precisions.py"
    spec = importlib.util.spec_from_file_location("coreml_precisions", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def conversions(bench: ModuleType) -> dict[tuple[Precision, int], Conversion]:
    model, record = bench.example(FAMILY)
    graph = DeviceGraph(model, record.preprocess)
    return {case: CoremlExporter().convert(graph, case[0], ExportOptions(min_ios=case[1])) for case in CASES}


def program(conversion: Conversion) -> Program:
    return read_package(conversion.files)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-iOS{case[1]}")
def test_each_precision_embeds_as_the_torch_model_does(
    case: tuple[Precision, int], bench: ModuleType, conversions: dict[tuple[Precision, int], Conversion]
) -> None:
    model, record = bench.example(FAMILY)
    pictures = bench.noise(32)
    row = bench.measure(FAMILY, *case, conversions[case], pictures, TorchRuntime(model, record).run(pictures))
    assert row.worst >= FLOORS[case[0]]
    if case[0] == "fp32":
        # Two unit vectors of 16 components that differ by no more than the evaluator's tolerance in each.
        assert row.worst >= 1 - bench.DIM * EMBEDDING_TOLERANCE**2 / 2 - 1e-6


def test_compressed_weights_are_as_small_as_they_say(conversions: dict[tuple[Precision, int], Conversion]) -> None:
    """The weights alone: of a model this small the program is a large part of the package."""
    weights = {
        case: len(conversion.files["Data/com.apple.CoreML/weights/weight.bin"]) for case, conversion in conversions.items()
    }
    whole = weights["fp32", 17]
    for precision, ratio in (("fp16", 1.9), ("int8", 3.2), ("palette6", 3.8), ("palette4", 5.5)):
        assert whole / weights[precision, 17] > ratio, precision


def test_the_program_is_of_the_kind_that_the_target_knows(conversions: dict[tuple[Precision, int], Conversion]) -> None:
    for (precision, ios), conversion in conversions.items():
        assert conversion.min_runtime == conversion.recipe["target"] == f"iOS{ios}"
        assert conversion.recipe["compute"] == ("fp32" if precision == "fp32" else "fp16")
        kinds = {operation.kind for operation in program(conversion).operations if operation.kind.startswith("constexpr_")}
        expected = {"int8": {"constexpr_affine_dequantize"}, "palette6": {"constexpr_lut_to_dense"}}
        assert kinds == expected.get("palette6" if precision == "palette4" else precision, set())
        # The image goes in as it is, and the norm is computed in float.
        assert program(conversion).images == {"image": "RGB"}
        assert conversion.recipe.get("bits") == {"int8": 8, "palette6": 6, "palette4": 4}.get(precision)


def test_from_ios_18_on_groups_of_channels_have_tables_of_their_own(
    conversions: dict[tuple[Precision, int], Conversion],
) -> None:
    assert conversions["palette4", 17].recipe["group_sizes"] == {}
    groups = conversions["palette4", 18].recipe["group_sizes"]
    assert groups
    found = program(conversions["palette4", 18])
    grids = [
        (found.constants[operation.inputs["indices"][0]].shape[0], found.constants[operation.inputs["lut"][0]].shape[0])
        for operation in found.operations
        if operation.kind == "constexpr_lut_to_dense"
    ]
    assert sorted(channels // tables for channels, tables in grids if tables > 1) == sorted(groups.values())
    assert len(grids) == conversions["palette4", 18].recipe["compressed"]


def test_equal_models_give_equal_bytes_in_another_process(
    bench: ModuleType, conversions: dict[tuple[Precision, int], Conversion]
) -> None:
    model, record = bench.example(FAMILY)
    weights = safetensors.torch.save(model.state_dict())
    run_model = RunModel(FAMILY, record.model_copy(update={"weights_sha256": digest(weights)}), weights)
    (again,) = convert([Job(run_model, "coreml", "palette4", ExportOptions(min_ios=18))])
    assert again.files == conversions["palette4", 18].files
    assert again.recipe == conversions["palette4", 18].recipe


def test_a_target_that_there_is_not_is_refused_before_the_work(bench: ModuleType) -> None:
    graph = DeviceGraph(nn.Identity(), bench.example(FAMILY)[1].preprocess)
    for ios in (15, 19):
        with pytest.raises(ConfigError, match=rf"iOS {ios} .* min_ios may be 16, 17, 18"):
            CoremlExporter().convert(graph, "fp16", ExportOptions(min_ios=ios))


class Large(nn.Module):
    """An embedding whose squares do not fit fp16, from two layers of which one may stay in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 2)
        self.second = nn.Conv2d(32, 16, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x).relu()).mean((2, 3))
        return 600 * y / (y * y).sum(1, keepdim=True).sqrt()


@pytest.fixture(scope="module")
def large() -> Large:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Large().eval()


def test_the_norm_does_not_overflow_in_fp16(bench: ModuleType, large: Large) -> None:
    record = bench.example(FAMILY)[1]
    pictures = bench.noise(8)
    reference = TorchRuntime(large, record).run(pictures)
    conversion = CoremlExporter().convert(DeviceGraph(large, record.preprocess), "fp16")
    assert bench.measure("large", "fp16", 17, conversion, pictures, reference).worst >= 0.999


def test_layers_stay_in_float_by_name(bench: ModuleType, large: Large) -> None:
    graph = DeviceGraph(large, bench.example(FAMILY)[1].preprocess)
    with pytest.raises(ConfigError, match=r"no weight is called 'third'; there are: \w+") as caught:
        CoremlExporter().convert(graph, "int8", ExportOptions(float_layers=("third",)))
    names = str(caught.value).rpartition("there are: ")[2].split(", ")
    assert len(names) == 2
    kept = CoremlExporter().convert(graph, "int8", ExportOptions(float_layers=(names[1],)))
    assert kept.recipe["left_in_float"] == [names[1]]
    assert sum(operation.kind.startswith("constexpr_") for operation in program(kept).operations) == 1


def test_int8_activations_of_another_quantiser_are_evaluated(tmp_path: Path) -> None:
    """W8A8 by torch's own export quantisation: quantise, dequantise and integer weights, against torch's quantised graph."""
    ct = pytest.importorskip("coremltools")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    from samespace.sdk.runtimes.mil.translate import translate
    from samespace.sdk.runtimes.onnx import open_session

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8),
        ).eval()  # fmt: skip
        x = torch.rand(8, 1, 3, 16, 16)
    prepared: Any = prepare_pt2e(
        torch.export.export(net, (x[0],)).module(),
        XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)),
    )
    for picture in x:
        prepared(picture)
    quantised: Any = convert_pt2e(prepared, fold_quantize=True)
    model = ct.convert(
        torch.export.export(quantised, (x[0],)).run_decompositions({}),
        inputs=[ct.TensorType(name="x", shape=tuple(x[0].shape))],
        outputs=[ct.TensorType(name="y", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    model.save(str(tmp_path / "m.mlpackage"))
    root = tmp_path / "m.mlpackage"
    found = read_package({p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()})
    assert {"quantize", "dequantize", "constexpr_affine_dequantize"} <= {operation.kind for operation in found.operations}
    session = open_session(translate(found), "w8a8")
    for picture in x:
        np.testing.assert_allclose(session.run(None, {"x": picture.numpy()})[0], quantised(picture).detach(), atol=1e-6)


def test_tables_are_the_best_that_there_are() -> None:
    """Against all ways to cut the sorted weights into as many runs: of one-dimensional clusters the best are runs."""
    rng = np.random.default_rng(5)
    for bits, count in ((1, 12), (2, 12)):
        for _ in range(10):
            weights = rng.normal(0, 1, (3, count // 3)).astype(np.float16)
            table, indices = palette(weights, bits)
            assert table.dtype == np.float16
            assert (np.diff(table) >= 0).all()
            ordered = np.sort(weights.ravel().astype(np.float64))
            least = min(
                sum(part.var() * len(part) for part in np.split(ordered, cuts))
                for cuts in itertools.combinations(range(1, count), 2**bits - 1)
            )
            found = np.square(table[indices].astype(np.float64) - weights.ravel()).sum()
            assert found <= least + 1e-4  # the centres are rounded to fp16


def test_few_distinct_weights_are_exact() -> None:
    weights = np.tile(np.float16([0, -1.5, 2.25]), (4, 2))
    table, indices = palette(weights, 2)
    np.testing.assert_array_equal(table[indices].reshape(weights.shape), weights)
    assert table.shape == (4,)


def test_groups_are_divisors_that_pay() -> None:
    assert group_size((64, 576), 4) == 16
    assert group_size((68, 576), 4) == 17
    assert group_size((64, 9, 1, 1), 4) == 64  # so few weights that the tables would cost more than they save
    assert group_size((23, 576), 6) == 23  # a prime number of channels
