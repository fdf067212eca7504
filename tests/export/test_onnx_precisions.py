"""ONNX and ORT at every precision: near to the torch model, small, deterministic, and float where it must be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from samespace.export.formats.base import Conversion
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.formats.onnx_fp16 import to_fp16
from samespace.export.formats.onnx_graph import IMAGE, NORM
from samespace.export.formats.ort import OrtExporter, to_onnx, to_ort
from samespace.export.formats.ort_order import in_steady_order
from samespace.export.options import ExportOptions
from samespace.export.quantisation.layers import LayerQuantiser
from samespace.sdk.errors import ConfigError, ExportError
from samespace.sdk.metrics import cosine, worst_percentile
from samespace.sdk.runtimes import RuntimeOptions, open_runtime

pytestmark = [pytest.mark.export, pytest.mark.timeout(600)]

#: Least worst-1 % cosine to the torch model.
BARS = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.98}
NAMES = [f"{format}-{precision}" for format in ("onnx", "ort") for precision in BARS]


@pytest.fixture(scope="module")
def options(digits: Any) -> ExportOptions:
    return ExportOptions(calibration=digits.calibration)


@pytest.fixture(scope="module")
def conversions(digits: Any, options: ExportOptions) -> dict[str, Conversion]:
    made = {
        f"onnx-{precision}": OnnxExporter().convert(digits.graph, precision, options) for precision in ("fp32", "fp16", "int8")
    }
    return made | {"ort-int8": OrtExporter().convert(digits.graph, "int8", options)}


@pytest.fixture(scope="module")
def files(conversions: dict[str, Conversion]) -> dict[str, bytes]:
    """All six; the float ORT files are made of the ONNX files, as the exporter does."""
    made = {name: conversion.files[""] for name, conversion in conversions.items()}
    return made | {f"ort-{precision}": to_ort(made[f"onnx-{precision}"]) for precision in ("fp32", "fp16")}


@pytest.mark.parametrize("name", NAMES)
def test_it_embeds_real_pictures_as_the_torch_model_does(name: str, files: dict[str, bytes], digits: Any) -> None:
    format, precision = name.split("-")
    with open_runtime(digits.loaded(files[name], format, precision)) as runtime:
        rows = runtime.run(digits.unseen)
    assert rows.dtype == np.float32
    assert worst_percentile(cosine(rows, digits.reference)) >= BARS[precision]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_any_size_gives_what_single_pictures_give(name: str, files: dict[str, bytes], digits: Any) -> None:
    loaded = digits.loaded(files[name], *name.split("-"))
    with open_runtime(loaded, options=RuntimeOptions(batch_size=1)) as runtime:
        alone = runtime.run(digits.unseen[:16])
    with open_runtime(loaded) as runtime:
        for size in (16, 3, 1):
            np.testing.assert_allclose(runtime.run(digits.unseen[:size]), alone[:size], atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_two_million_weights_take_a_half_and_less_than_a_third(format: str, files: dict[str, bytes], digits: Any) -> None:
    assert sum(weight.numel() for weight in digits.graph.model.parameters()) > 2_000_000
    sizes = {precision: len(files[f"{format}-{precision}"]) for precision in BARS}
    assert sizes["fp32"] / sizes["fp16"] >= 1.95
    assert sizes["fp32"] / sizes["int8"] >= 3.2


def test_layers_are_called_as_the_modules_of_the_torch_model(files: dict[str, bytes], digits: Any) -> None:
    names = OnnxExporter().layers(files["onnx-fp32"])
    modules = {
        name: module
        for name, module in digits.graph.model.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    }
    assert names == tuple(modules)
    # The way through ORT and back loses none.
    assert OrtExporter().layers(files["ort-fp32"]) == names
    every = [node.name for node in onnx.load_model_from_string(files["onnx-fp32"]).graph.node]
    assert len(set(every)) == len(every)
    assert all(isinstance(exporter(), LayerQuantiser) for exporter in (OnnxExporter, OrtExporter))


@pytest.mark.parametrize("name", ["onnx-fp16", "onnx-int8"])
def test_scaling_and_norm_stay_float32(name: str, files: dict[str, bytes]) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(files[name]), strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert (types["image"], types["embedding"]) == (TensorProto.UINT8, TensorProto.FLOAT)
    outside = [node for node in graph.node if node.name.startswith((IMAGE, NORM))]
    assert {node.op_type for node in outside} >= {"Cast", "Sqrt", "ReduceSum"}
    for node in outside:
        assert {types[value] for value in (*node.input, *node.output)} <= {
            TensorProto.UINT8 if node.op_type == "Cast" else TensorProto.FLOAT,
            TensorProto.INT64,
            TensorProto.FLOAT,
        }
    made_by = {value: node.op_type for node in graph.node for value in node.output}
    inner = [value for node in outside for value in node.input if node.name.startswith(NORM) and value in made_by]
    # It is quantised or cast before the norm, not within.
    assert "QuantizeLinear" not in {made_by[value] for value in inner}
    assert sum(made_by[value] == "Cast" for value in set(inner)) == (1 if name == "onnx-fp16" else 0)


def test_weights_of_the_network_are_fp16_or_7_bits_per_channel(files: dict[str, bytes]) -> None:
    half = onnx.load_model_from_string(files["onnx-fp16"])
    assert {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) > 1 and "model." in tensor.name} == {
        TensorProto.FLOAT16
    }
    tensors = {tensor.name: tensor for tensor in onnx.load_model_from_string(files["onnx-int8"]).graph.initializer}
    weights = [name.removesuffix("_quantized") for name in tensors if name.endswith("weight_quantized")]
    assert len(weights) == len(OnnxExporter().layers(files["onnx-fp32"]))
    for name in weights:
        weight = numpy_helper.to_array(tensors[f"{name}_quantized"])
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64
        assert numpy_helper.to_array(tensors[f"{name}_scale"]).shape == (len(weight),)


@pytest.mark.parametrize("norm", [1e-2, 600.0, 6000.0])
def test_fp16_has_no_overflow_however_long_the_embedding_is(norm: float, files: dict[str, bytes], digits: Any) -> None:
    model = onnx.load_model_from_string(files["onnx-fp32"])
    with torch.inference_mode():
        pixels = torch.from_numpy(digits.unseen).permute(0, 3, 1, 2) / 127.5 - 1
        factor = norm / float(digits.graph.model(pixels).norm(dim=1).max())
    for tensor in model.graph.initializer:
        if tensor.name.startswith("model.head.1.project"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    half = to_fp16(model).SerializeToString()
    with open_runtime(digits.loaded(half, "onnx", "fp16")) as runtime:
        rows = runtime.run(digits.unseen)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert cosine(rows, digits.reference).min() >= 0.999


def test_a_weight_that_fp16_cannot_hold_is_named(files: dict[str, bytes]) -> None:
    model = onnx.load_model_from_string(files["onnx-fp32"])
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "model.stem.0.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e6), tensor.name))
    with pytest.raises(ExportError, match=r"weight 'model\.stem\.0\.weight' reaches .*, fp16 ends at 65504"):
        to_fp16(model)


@pytest.mark.parametrize(("exporter", "format"), [(OnnxExporter(), "onnx"), (OrtExporter(), "ort")])
def test_chosen_layers_stay_in_float_with_their_activations(
    exporter: Any, format: str, files: dict[str, bytes], digits: Any, options: ExportOptions
) -> None:
    chosen = ("stem.0", "body.1.0.layers.1.0")
    mixed = exporter.quantise(files[f"{format}-fp32"], ExportOptions(options.calibration, chosen))
    model = onnx.load_model_from_string(to_onnx(mixed) if format == "ort" else mixed)
    made_by = {value: node for node in model.graph.node for value in node.output}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node.op_type)
    layers = {node.name: node for node in model.graph.node if node.op_type == "Conv"}
    assert tuple(layers) == exporter.layers(files[f"{format}-fp32"])
    for name, node in layers.items():
        quantised = node.input[1] in made_by and made_by[node.input[1]].op_type == "DequantizeLinear"
        assert quantised == (name not in chosen)
    # The activation is float too: nothing is rounded between the two.
    assert readers[layers["stem.0"].output[0]] == ["Clip"]
    with open_runtime(digits.loaded(mixed, format, "int8")) as runtime:
        rows = runtime.run(digits.unseen)
    assert worst_percentile(cosine(rows, digits.reference)) >= BARS["int8"]


def test_all_layers_in_float_are_the_float_model(files: dict[str, bytes], digits: Any, options: ExportOptions) -> None:
    exporter = OnnxExporter()
    every = ExportOptions(options.calibration, exporter.layers(files["onnx-fp32"]))
    model = onnx.load_model_from_string(exporter.quantise(files["onnx-fp32"], every))
    assert not any(tensor.data_type == TensorProto.INT8 for tensor in model.graph.initializer)


@pytest.mark.parametrize("exporter", [OnnxExporter(), OrtExporter()])
def test_what_cannot_be_calibrated_is_refused(exporter: Any, files: dict[str, bytes], digits: Any) -> None:
    fp32 = files[f"{exporter.format}-fp32"]
    for wrong, said in (
        (ExportOptions(), "static int8 needs calibration pictures: .*ExportOptions"),
        (ExportOptions(digits.calibration[:0]), "needs calibration pictures"),
        (ExportOptions(digits.calibration[:, :24, :24]), r"uint8 of shape \(n, 32, 32, 3\), .*; got uint8 \(128, 24, 24, 3\)"),
        (ExportOptions(digits.calibration.astype(np.float32)), "got float32"),
        (ExportOptions(digits.calibration, ("stem.1",)), r"no layer 'stem\.1'; there are: stem\.0, body"),
    ):
        with pytest.raises(ConfigError, match=said):
            exporter.quantise(fp32, wrong)


def test_the_same_model_gives_the_same_bytes(
    conversions: dict[str, Conversion], files: dict[str, bytes], options: ExportOptions
) -> None:
    # Converting is converting to fp32 and quantising that.
    assert OnnxExporter().quantise(files["onnx-fp32"], options) == files["onnx-int8"]
    for precision in BARS:
        assert to_ort(files[f"onnx-{precision}"]) == to_ort(files[f"onnx-{precision}"])
    assert conversions["onnx-int8"].files != conversions["onnx-fp32"].files


@pytest.mark.xfail(strict=False, reason="known defect: in some processes an int8 ORT file comes out in another order")
def test_the_same_model_gives_the_same_bytes_in_ort_format(files: dict[str, bytes], options: ExportOptions) -> None:
    assert OrtExporter().quantise(files["ort-fp32"], options) == files["ort-int8"]


def test_an_ort_file_of_an_unknown_layout_is_refused_and_a_known_one_is_kept(files: dict[str, bytes]) -> None:
    data = files["ort-int8"]
    assert in_steady_order(data) == data
    with pytest.raises(ExportError, match="layout that is not known"):
        in_steady_order(data[:4] + b"TFL3" + data[8:])


@pytest.mark.parametrize("name", NAMES)
def test_no_file_says_where_it_was_made(name: str, files: dict[str, bytes]) -> None:
    for secret in (str(Path.cwd()), str(Path.home()) + "/", sys.prefix, "site-packages", "/tmp"):
        assert secret.encode() not in files[name]


def test_recipes_say_how_int8_was_made(conversions: dict[str, Conversion]) -> None:
    for name in ("onnx-int8", "ort-int8"):
        recipe = conversions[name].recipe
        assert recipe["calibration"] == 128
        assert recipe["ranges"] == "min-max"
        assert recipe["reduce_range"] is True
        assert recipe["float_layers"] == []
        assert {"torch", "onnx", "onnxruntime", "opset"} <= set(recipe)
    assert conversions["ort-int8"].recipe["session"] == {"session.enable_saved_runtime_optimizations": "1"}


@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_without_optimisations_int8_runs_as_it_was_written(format: str, files: dict[str, bytes], digits: Any) -> None:
    loaded = digits.loaded(files[f"{format}-int8"], format, "int8")
    rows = []
    for optimise in (True, False):
        with open_runtime(loaded, options=RuntimeOptions(optimise=optimise)) as runtime:
            rows.append(runtime.run(digits.unseen))
    # Integer kernels round in another place than float ones: nearly, but not bit by bit the same.
    assert cosine(rows[0], rows[1]).min() >= 0.999
    assert not np.array_equal(rows[0], rows[1])
