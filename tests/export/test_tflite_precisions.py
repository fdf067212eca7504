"""TFLite in every precision, by both interpreters that devices have, against the torch model; and what 2.14 cannot run."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samespace.edge.models.registry import build_model
from samespace.export import DeviceGraph
from samespace.export.formats.base import Conversion
from samespace.export.formats.tflite import TfliteExporter
from samespace.export.formats.tflite_compact import compact
from samespace.export.formats.tflite_graph import Operator, layers_of, outside, read_operators
from samespace.export.formats.tflite_quantise import to_static
from samespace.export.formats.tflite_ranges import activation_ranges
from samespace.export.options import ExportOptions
from samespace.sdk.errors import ConfigError, ExportError
from samespace.sdk.metrics.agreement import cosine, worst_percentile
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.runtimes import LoadedArtifact, RuntimeOptions, available, open_runtime

pytestmark = [pytest.mark.export, pytest.mark.timeout(600)]

RUNTIMES = [
    "tflite",
    pytest.param(
        "tflite_runtime", marks=pytest.mark.skipif(not available("tflite_runtime"), reason="tflite-runtime is not installed")
    ),
]
#: Least worst-1 % cosine to torch.
BARS = {"fp32": 0.99999, "fp16": 0.999, "int8-dynamic": 0.98, "int8": 0.98}
EXPORTER = TfliteExporter()


@pytest.fixture(scope="module")
def converted(digits: Any) -> dict[str, Conversion]:
    """The trained network of real pictures in every precision."""
    options = ExportOptions(calibration=digits.calibration)
    return {precision: EXPORTER.convert(digits.graph, precision, options) for precision in EXPORTER.precisions}


class Mixer:
    """A small mixer: convolutions between transposes, and a FULLY_CONNECTED at its end."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model("mixer", {"dim": 24, "image_size": 16, "width": 12, "depth": 1}).train()
            with torch.no_grad():
                model(torch.randn(32, 3, 16, 16))
        self.graph = DeviceGraph(model, Preprocess(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)))
        self.pictures = np.random.default_rng(1).integers(0, 256, (17, 16, 16, 3), np.uint8)
        with torch.no_grad():
            self.reference = self.graph(torch.from_numpy(self.pictures)).numpy()
        self.options = ExportOptions(calibration=self.pictures)
        self.fp32 = EXPORTER.convert(self.graph, "fp32")

    def run(self, conversion: Conversion, runtime: str) -> np.ndarray:
        from samespace.export.formats.base import artifact_of

        spec = artifact_of(conversion, TfliteExporter, "int8-dynamic", "0" * 64)
        with open_runtime(LoadedArtifact(spec, conversion.files, 16, 24), runtime, RuntimeOptions(threads=1)) as opened:
            return opened.run(self.pictures)


@pytest.fixture(scope="module")
def mixer() -> Mixer:
    return Mixer()


def tensors(model: bytes) -> dict[str, np.dtype]:
    from ai_edge_litert.interpreter import Interpreter

    return {item["name"]: np.dtype(item["dtype"]) for item in Interpreter(model_content=model).get_tensor_details()}


# --- small -------------------------------------------------------------------------------------------


def spelled_out(model: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """The model with every vector written anew; its weights and its zero points."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree, builder = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0)), flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    weights = [b"" if one.data is None else bytes(one.data) for one in tree.buffers]
    coded = [one.quantization.zeroPoint for one in tree.subgraphs[0].tensors if one.quantization is not None]
    return bytes(builder.Output()), weights, [bytes(points) for points in coded if points is not None]


def test_a_file_says_nothing_twice_and_still_says_all(converted: dict[str, Conversion]) -> None:
    model = converted["int8"].files[""]
    longer, weights, zero_points = spelled_out(model)
    repeated = sum(map(len, zero_points)) - sum(map(len, set(zero_points)))
    assert len(longer) - len(model) > 0.9 * repeated > 0
    assert compact(longer) == compact(model) == model
    assert spelled_out(model) == (longer, weights, zero_points)
    # The interpreters may read weights where they lie.
    assert all(model.find(data) % 16 == 0 for data in weights if len(data) > 1000)


# --- right in both interpreters ---------------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", BARS)
def test_every_precision_agrees_with_torch_on_unseen_pictures(
    precision: str, runtime: str, digits: Any, converted: dict[str, Conversion]
) -> None:
    conversion = converted[precision]
    assert conversion.input.dtype == "uint8"
    assert conversion.input.dynamic_batch
    assert conversion.min_runtime == "TensorFlow Lite 2.14"
    artifact = digits.loaded(conversion.files[""], "tflite", precision)
    answers = {}
    for batch in (1, 3, 16):
        with open_runtime(artifact, runtime, RuntimeOptions(threads=1, batch_size=batch)) as opened:
            answers[batch] = opened.run(digits.unseen[: 200 if batch == 16 else 35])
    assert worst_percentile(cosine(answers[16], digits.reference), 1.0) >= BARS[precision]
    for batch in (1, 3):
        np.testing.assert_allclose(answers[batch], answers[16][:35], atol=1e-5 if precision in ("fp32", "fp16") else 2e-2)


def test_int8_is_a_quarter_of_the_size(converted: dict[str, Conversion]) -> None:
    sizes = {precision: conversion.size for precision, conversion in converted.items()}
    assert sizes["fp32"] >= 3.2 * sizes["int8"]
    assert sizes["fp32"] >= 3.2 * sizes["int8-dynamic"]
    assert sizes["fp32"] >= 1.9 * sizes["fp16"]


# --- what the old interpreter cannot run -------------------------------------------------------------


def test_dynamic_fully_connected_is_garbage_in_2_14_and_the_default_is_not(mixer: Mixer) -> None:
    """The planted case: nothing refuses or warns, so only running it tells."""
    safe = EXPORTER.convert(mixer.graph, "int8-dynamic", mixer.options)
    full = EXPORTER.convert(mixer.graph, "int8-dynamic", ExportOptions(min_litert="2.17"))
    assert safe.min_runtime == "TensorFlow Lite 2.14"
    assert full.min_runtime == "LiteRT 1.0 (TensorFlow Lite 2.17)"
    assert (safe.recipe["min_litert"], full.recipe["min_litert"]) == ("2.14", "2.17")
    for conversion in (safe, full):
        assert cosine(mixer.run(conversion, "tflite"), mixer.reference).min() >= 0.98
    if available("tflite_runtime"):
        assert cosine(mixer.run(safe, "tflite_runtime"), mixer.reference).min() >= 0.98
        assert worst_percentile(cosine(mixer.run(full, "tflite_runtime"), mixer.reference), 1.0) < 0.9


@pytest.mark.parametrize("version", ["two", "2", "2.x", "2.14.0.1", "", "-2.14", "2.13", "1.20", "2.3"])
def test_a_minimum_that_is_none_is_refused_before_any_work(version: str) -> None:
    with pytest.raises(ConfigError, match=rf"min_litert = '?{re.escape(version)}"):
        EXPORTER.convert(None, "int8-dynamic", ExportOptions(min_litert=version))  # type: ignore[arg-type]


# --- static int8 ------------------------------------------------------------------------------------


def test_the_input_stays_uint8_and_scaling_and_norm_stay_float(mixer: Mixer, converted: dict[str, Conversion]) -> None:
    for model in (EXPORTER.quantise(mixer.fp32.files[""], mixer.options), converted["int8"].files[""]):
        dtypes = tensors(model)
        assert dtypes["serving_default_args_0"] == np.uint8
        norm = {name: dtype for name, dtype in dtypes.items() if "L2Norm" in name}
        assert len(norm) >= 8
        assert set(norm.values()) <= {np.dtype(np.float32), np.dtype(np.int32)}
        last = max(place for place, operator in enumerate(read_operators(model)) if operator.weight)
        kinds = [operator.kind for operator in read_operators(model)]
        assert kinds[:4] == ["CAST", "MUL", "ADD", "QUANTIZE"]
        assert kinds.count("QUANTIZE") == 1 + kinds[4:].count("QUANTIZE")
        assert kinds[last + 1] == "DEQUANTIZE"
        assert "QUANTIZE" not in kinds[last + 1 :]
        assert sum(dtype == np.int8 for dtype in dtypes.values()) > 10


def test_a_graph_without_the_norm_is_refused() -> None:
    """The norm is found by the name of its module; one that is called otherwise must not slip into int8."""
    graph = [Operator("CAST", ("a",)), Operator("CONV_2D", ("b",), "w"), Operator("RSQRT", ("DeviceGraph/Norm_norm;1",))]
    with pytest.raises(ExportError, match="does not end with an L2Norm"):
        outside(graph)
    graph[-1] = Operator("RSQRT", ("DeviceGraph/samespace.edge.models.head.L2Norm_norm;1",))
    assert outside(graph) == (graph[0], graph[2])


def test_ranges_are_those_of_the_quantisers_own_slow_calibrator(mixer: Mixer) -> None:
    from ai_edge_quantizer import calibrator, quantizer, recipe_manager
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.utils import qsv_utils

    model = mixer.fp32.files[""]
    own = activation_ranges(model, mixer.pictures[:4])
    recipe = quantizer.Quantizer(model)
    recipe.add_static_config(".*", TFLOperationName.ALL_SUPPORTED, 8, 8)
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.get_quantization_recipe())
    slow = calibrator.Calibrator(model, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    slow.calibrate({"serving_default": [{"args_0": picture[None]} for picture in mixer.pictures[:4]]}, manager)
    theirs = {name: value for name, value in slow.get_model_qsvs().items() if value and name in own}
    assert len(theirs) >= 20
    for name, value in theirs.items():
        np.testing.assert_allclose(own[name], (value["min"].min(), value["max"].max()), rtol=1e-5, atol=1e-6)
    # More pictures can only widen them, and these do.
    wider = activation_ranges(model, mixer.pictures)
    assert all(wider[name][0] <= low and wider[name][1] >= high for name, (low, high) in own.items())
    assert wider != own


def test_a_bad_calibration_is_refused_before_any_work(mixer: Mixer) -> None:
    with pytest.raises(ConfigError, match="needs calibration pictures"):
        EXPORTER.convert(mixer.graph, "int8", ExportOptions())
    for wrong in (mixer.pictures[:, :8], mixer.pictures.astype(np.float32), mixer.pictures[0]):
        for attempt in (
            lambda options: EXPORTER.convert(mixer.graph, "int8", options),
            lambda options: EXPORTER.quantise(mixer.fp32.files[""], options),
        ):
            with pytest.raises(ConfigError, match=r"must be uint8 of shape \(n, 16, 16, 3\)"):
                attempt(ExportOptions(calibration=wrong))


def test_activations_that_are_all_but_0_are_refused_with_the_reason(mixer: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a network that was never trained: LiteRT cannot code the factor between two layers."""
    fp32 = mixer.fp32.files[""]
    first = next(operator.outputs[0] for operator in read_operators(fp32) if operator.weight)
    ranges = activation_ranges(fp32, mixer.pictures) | {first: (-1e-12, 1e-12)}
    monkeypatch.setattr("samespace.export.formats.tflite_quantise.activation_ranges", lambda model, pictures: ranges)
    with pytest.raises(
        ExportError, match=r"LiteRT refuses the tflite-int8 artifact: .*layer 'stem' gives at most \d.*e-1\d, too"
    ):
        EXPORTER.quantise(fp32, mixer.options)


# --- layers -----------------------------------------------------------------------------------------


def test_layers_are_called_after_the_torch_modules(mixer: Mixer, digits: Any, converted: dict[str, Conversion]) -> None:
    assert EXPORTER.layers(mixer.fp32.files[""]) == (
        *("stem", "0.rows.0", "0.rows.2", "0.columns.0", "0.columns.2", "0.channels.0", "0.channels.2"),
        "head.1.project",
    )
    names = EXPORTER.layers(converted["fp32"].files[""])
    modules = [name for name, module in digits.graph.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(names) == len(modules)
    for name, module in zip(names, modules, strict=True):
        # Containers that are only indexed do not show.
        assert f".{module}".endswith(f".{name}"), (name, module)


def test_two_layers_of_one_name_can_be_told_apart() -> None:
    same = [Operator("CONV_2D", (output,), "DeviceGraph/Net_model/torch.nn.modules.conv.Conv2d_0;") for output in "abc"]
    assert [*layers_of(same)] == ["0", "0_2", "0_3"]


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8"])
def test_float_layers_stay_in_float_and_no_others(precision: Any, mixer: Mixer) -> None:
    fp32 = mixer.fp32.files[""]
    layers = layers_of(read_operators(fp32))

    def float_weights(*left: str) -> set[str]:
        options = ExportOptions(calibration=mixer.pictures, float_layers=left)
        conversion = EXPORTER.convert(mixer.graph, precision, options)
        assert conversion.recipe["float_layers"] == list(left)
        dtypes = tensors(conversion.files[""])
        return {name for name, layer in layers.items() if dtypes[layer.weight] == np.float32}

    # Weights too small to be worth it stay in float by the quantiser's own choice.
    small = float_weights()
    assert len(small) < len(layers) / 2
    chosen = [name for name in layers if name not in small][:2]
    assert float_weights(*chosen) == small | set(chosen)
    with pytest.raises(ConfigError, match=r"no layer 'body\.7'; there are: stem, 0\.rows\.0"):
        float_weights("body.7")


def test_all_layers_in_float_are_nearly_the_float_model(mixer: Mixer) -> None:
    fp32 = mixer.fp32.files[""]

    def error(*left: str) -> float:
        data = EXPORTER.quantise(fp32, ExportOptions(calibration=mixer.pictures, float_layers=left))
        conversion = Conversion({"": data}, mixer.fp32.input, mixer.fp32.output)
        return float(1 - cosine(mixer.run(conversion, "tflite"), mixer.reference).mean())

    assert error(*EXPORTER.layers(fp32)) < error()


# --- the same bytes ---------------------------------------------------------------------------------


def test_recipes_tell_how_it_was_made(digits: Any, converted: dict[str, Conversion]) -> None:
    recipe = converted["int8"].recipe
    assert recipe["calibration"] == len(digits.calibration)
    assert recipe["ranges"] == "min-max"
    assert recipe["float_layers"] == []
    for precision in ("fp16", "int8-dynamic", "int8"):
        about = converted[precision].recipe
        assert {"exporter", "litert-torch", "torch", "ai-edge-quantizer", "scheme"} <= set(about)
    assert "quantiser" not in converted["fp32"].recipe


def test_the_same_bytes_come_out_in_any_process(mixer: Mixer, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(mixer.fp32.files[""])
    np.save(tmp_path / "pictures.npy", mixer.pictures)
    script = """
import hashlib, pathlib, sys
import numpy as np
from samespace.export.formats.tflite_quantise import to_dynamic, to_fp16, to_static
from samespace.export.options import ExportOptions
folder = pathlib.Path(sys.argv[1])
model, options = (folder / "model").read_bytes(), ExportOptions(calibration=np.load(folder / "pictures.npy"))
made = to_fp16(model), to_dynamic(model, "safe", options), to_dynamic(model, "full", options), to_static(model, options)
print(*[hashlib.sha256(data).hexdigest() for data in made])
"""
    answers = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    }
    assert len(answers) == 1
    assert hashlib.sha256(to_static(mixer.fp32.files[""], mixer.options)).hexdigest() in answers.pop().split()


def test_a_graph_that_was_trained_on_is_converted_anew(mixer: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precisions of one model share a conversion, but not beyond a change of its weights."""
    import litert_torch

    calls: list[nn.Module] = []
    real: Callable[..., Any] = litert_torch.convert
    monkeypatch.setattr(litert_torch, "convert", lambda graph, *more: (calls.append(graph), real(graph, *more))[1])
    assert EXPORTER.convert(mixer.graph, "fp32").files == mixer.fp32.files
    EXPORTER.convert(mixer.graph, "fp16")
    assert calls == []
    weight = next(parameter for parameter in mixer.graph.parameters() if parameter.ndim == 4)
    with torch.no_grad():
        weight += 1
    try:
        assert EXPORTER.convert(mixer.graph, "fp32").files != mixer.fp32.files
    finally:
        with torch.no_grad():
            weight -= 1
    assert len(calls) == 1
