"""int8 that saturates in 16 bits on x86 CPUs without VNNI is refused at export, whatever CPU exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from samespace.export.formats.onnx import OnnxExporter
from samespace.export.formats.onnx_int8 import Scheme, to_int8
from samespace.export.formats.ort import to_ort
from samespace.export.options import ExportOptions
from samespace.export.pair_sums import SATURATED, clipped_graph, layers_that_may_clip
from samespace.export.saturation import measure_saturation, refuse_saturation
from samespace.sdk.errors import ExportError
from samespace.sdk.metrics import cosine
from samespace.sdk.runtimes import RuntimeOptions, open_runtime
from samespace.sdk.runtimes.onnx import open_session

pytestmark = [pytest.mark.export, pytest.mark.timeout(600)]

#: Recipes that are known to fail on x86 CPUs without VNNI.
UNSAFE = {"U8S8": Scheme(reduce_range=False), "S8S8": Scheme("int8", reduce_range=False)}


@pytest.fixture(scope="module")
def fp32(digits: Any) -> Any:
    return onnx.load_model_from_string(OnnxExporter().convert(digits.graph, "fp32").files[""])


@pytest.fixture(scope="module")
def int8(fp32: Any, digits: Any) -> dict[str, bytes]:
    schemes = UNSAFE | {"safe": Scheme()}
    options = ExportOptions(calibration=digits.calibration)
    return {name: to_int8(fp32, options, scheme).SerializeToString() for name, scheme in schemes.items()}


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_unsafe_recipes_are_refused_with_the_reason_and_the_mend(
    name: str, format: str, int8: dict[str, bytes], digits: Any
) -> None:
    """On any CPU: the graph as written is good, so that no other gate would catch it on a CPU with VNNI."""
    data = to_ort(int8[name]) if format == "ort" else int8[name]
    loaded = digits.loaded(data, format, "int8")
    with open_runtime(loaded, options=RuntimeOptions(optimise=False)) as runtime:
        assert cosine(runtime.run(digits.unseen[:64]), digits.reference[:64]).min() >= 0.98
    said = rf"phone {format}-int8: saturation\. .*without VNNI .* limit 0\.98: .*'stem\.0' .*reduce_range=True .*float_layers"
    with pytest.raises(ExportError, match=said):
        refuse_saturation(loaded, digits.unseen[:64], "phone")


def test_the_default_recipe_cannot_saturate(int8: dict[str, bytes], digits: Any) -> None:
    assert layers_that_may_clip(onnx.load_model_from_string(int8["safe"])) == []
    found = refuse_saturation(digits.loaded(int8["safe"], "onnx", "int8"), digits.unseen[:64])
    assert found.here >= 0.999
    assert (found.without_vnni, found.layers) == (1.0, ())


def test_leaving_the_named_layers_in_float_is_a_mend(int8: dict[str, bytes], fp32: Any, digits: Any) -> None:
    before = measure_saturation(digits.loaded(int8["U8S8"], "onnx", "int8"), digits.unseen[:64])
    named = tuple(name for name, _ in before.layers)
    options = ExportOptions(digits.calibration, named)
    mended = to_int8(fp32, options, UNSAFE["U8S8"]).SerializeToString()
    after = refuse_saturation(digits.loaded(mended, "onnx", "int8"), digits.unseen[:64])
    assert before.without_vnni < 0.98 <= after.without_vnni
    assert set(dict(after.layers)).isdisjoint(named)


@pytest.mark.parametrize("name", UNSAFE)
def test_this_cpu_saturates_as_computed(name: str, int8: dict[str, bytes], digits: Any) -> None:
    """Where the CPU has no VNNI, onnxruntime itself is the judge of what is computed for such a CPU."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx2" not in flags or "vnni" in flags:
        pytest.skip("this CPU is no x86 without VNNI: onnxruntime does not saturate here")
    model = onnx.load_model_from_string(int8[name])
    session = open_session(clipped_graph(model, layers_that_may_clip(model)).SerializeToString(), "clipped")
    with open_runtime(digits.loaded(int8[name], "onnx", "int8")) as runtime:
        real = runtime.run(digits.unseen[:32])
    assert cosine(real, session.run(["embedding"], {"image": digits.unseen[:32]})[0]).min() >= 0.995
    assert measure_saturation(digits.loaded(int8[name], "onnx", "int8"), digits.unseen[:64]).here < 0.98


def test_a_difference_that_is_no_saturation_is_not_called_one(int8: dict[str, bytes], digits: Any) -> None:
    with pytest.raises(ExportError, match="16-bit saturation is not why: no layer saturates"):
        refuse_saturation(digits.loaded(int8["safe"], "onnx", "int8"), digits.unseen[:64], limit=1.0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "pads", "dilation"),
    [(4, 1, 1, (0, 0, 0, 0), 1), (3, 3, 2, (1, 1, 1, 1), 1), (5, 3, 1, (0, 1, 2, 0), 2), (1, 5, 2, (2, 2, 2, 2), 1)],
)
def test_a_convolution_clips_as_a_loop_over_its_pairs_does(
    channels: int, kernel: int, stride: int, pads: tuple[int, ...], dilation: int, signed: bool
) -> None:
    rng = np.random.default_rng(0)
    kind = np.int8 if signed else np.uint8
    images = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (2, channels, 9, 8)).astype(kind)
    weight = np.where(rng.random((6, channels, kernel, kernel)) < 0.8, 127, -20).astype(np.int8)
    scales, zero = rng.uniform(0.5, 2, 6).astype(np.float32), 17
    bias = rng.normal(size=6).astype(np.float32)
    attributes = {"strides": [stride] * 2, "pads": list(pads), "dilations": [dilation] * 2}
    rows, share = _clipped(images, kind(zero), weight, scales, bias, "Conv", attributes)
    expected, expected_share = _slow(images, zero, weight, scales, bias, stride, pads, dilation, 128 if signed else 0)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=0.5)
    assert share == pytest.approx(expected_share, abs=1e-6)
    assert 0 < share < 1


@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
def test_a_matrix_clips_as_a_convolution_of_one_pixel_does(operator: str) -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (4, 7)).astype(np.uint8)
    weight = rng.integers(-127, 128, (6, 7)).astype(np.int8)
    scales, bias = rng.uniform(0.5, 2, 6).astype(np.float32), rng.normal(size=6).astype(np.float32)
    transposed = {"transB": 1} if operator == "Gemm" else {}
    rows, _ = _clipped(data, np.uint8(9), weight if transposed else weight.T, scales, bias, operator, transposed)
    expected, _ = _slow(data[:, :, None, None], 9, weight[:, :, None, None], scales, bias, 1, (0, 0, 0, 0), 1, 0)
    without = bias if operator == "MatMul" else 0
    np.testing.assert_allclose(rows, expected[:, :, 0, 0] - without, rtol=1e-5, atol=0.5)


def _clipped(
    data: np.ndarray,
    zero: Any,
    weight: np.ndarray,
    scales: np.ndarray,
    bias: np.ndarray,
    operator: str,
    attributes: dict[str, Any],
) -> tuple[np.ndarray, float]:
    """One quantised layer, clipped: its result before it is quantised, and the share of pairs that were clipped."""
    axis = 1 if operator == "MatMul" else 0
    constants = {"scale": np.float32(1), "zero": zero, "weight": weight, "scales": scales, "out": np.float32(1), "bias": bias}
    inputs = ["x", "w"] if operator == "MatMul" else ["x", "w", "bias"]
    nodes = [
        helper.make_node("DequantizeLinear", ["data", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["w"], axis=axis),
        helper.make_node(operator, inputs, ["y"], name="layer", **attributes),
        helper.make_node("QuantizeLinear", ["y", "out"], ["quantised"]),
    ]
    kind = TensorProto.INT8 if data.dtype == np.int8 else TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("data", kind, data.shape)],
        [helper.make_tensor_value_info("quantised", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    layers = layers_that_may_clip(model)
    assert [layer.node.name for layer in layers] == ["layer"]
    clipped = clipped_graph(model, layers)
    clipped.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    rows, share = open_session(clipped.SerializeToString(), "layer").run(["y", "layer" + SATURATED], {"data": data})
    return rows, float(share)


def _slow(
    data: np.ndarray,
    zero: int,
    weight: np.ndarray,
    scales: np.ndarray,
    bias: np.ndarray,
    stride: int,
    pads: tuple[int, ...],
    dilation: int,
    moved: int,
) -> tuple[np.ndarray, float]:
    """Pair by pair, in integers."""
    top, left, bottom, right = pads
    moved_data = np.pad(data.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero) + moved
    outputs, channels, kernel, _ = weight.shape
    reach = (kernel - 1) * dilation + 1
    height, width = ((edge - reach) // stride + 1 for edge in moved_data.shape[2:])
    result = np.empty((len(data), outputs, height, width))
    clipped, count = 0, 0
    for n, m, row, column in np.ndindex(*result.shape):
        products = [
            int(moved_data[n, c, row * stride + i * dilation, column * stride + j * dilation]) * int(weight[m, c, i, j])
            for i in range(kernel)
            for j in range(kernel)
            for c in range(channels)
        ]
        products += [0] * (len(products) % 2)
        total = 0
        for first, second in zip(products[::2], products[1::2], strict=True):
            kept = min(max(first + second, -32768), 32767)
            clipped, count, total = clipped + (kept != first + second), count + 1, total + kept
        total -= (zero + moved) * int(weight[m].astype(np.int64).sum())
        result[n, m, row, column] = total * scales[m] + bias[m]
    return result, clipped / count
