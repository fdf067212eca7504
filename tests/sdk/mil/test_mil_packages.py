"""Reading packages and running them as a runtime: constants, images, batches, options, damage, and what is not known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.runtimes import RuntimeOptions, open_runtime
from samespace.sdk.runtimes.coreml_reference import FP16_TOLERANCE
from samespace.sdk.runtimes.mil.graph import UnsupportedError
from samespace.sdk.runtimes.mil.program import Operation, Program, TensorType
from samespace.sdk.runtimes.mil.translate import translate
from samespace.sdk.runtimes.mil.wire import Field, decode

ct = pytest.importorskip("coremltools")
torch = pytest.importorskip("torch")
mb = ct.converters.mil.Builder

RNG = np.random.default_rng(7)
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def test_unknown_operator_is_refused_by_name(mil: Any) -> None:
    files = mil.package(lambda x: [mb.cumsum(x=x, axis=1, name="y")])
    with pytest.raises(RuntimeFailure, match=r"operator 'cumsum' \(output 'y'\)"):
        open_runtime(mil.artifact(files, input_name="x"), "coreml_reference")


def test_unsupported_use_of_a_known_operator_is_refused_by_name() -> None:
    kind = TensorType("fp32", (1, 2))
    names = {"x": ("x",), "mode": ("mode",)}
    program = Program({"x": kind}, ("y",), (Operation("gelu", names, {"y": kind}),), {"mode": "CUBIC"}, {})
    with pytest.raises(UnsupportedError, match=r"operator 'gelu' \(output 'y'\): mode 'CUBIC'"):
        translate(program)


def test_image_inputs_get_the_channel_order_that_the_package_asks_for(mil: Any) -> None:
    """A package made for BGR gets BGR, as Core ML does it; so a BGR graph under RGB images is caught and not healed."""

    class FirstChannel(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((2, 3))[:, :2]

    images = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    means = images.mean((1, 2)).astype(np.float32)
    for order, expected in ((ct.colorlayout.RGB, means[:, :2]), (ct.colorlayout.BGR, means[:, :0:-1])):
        model = ct.convert(
            torch.jit.trace(FirstChannel(), torch.zeros(1, 3, 8, 8)),
            inputs=[ct.ImageType(name="image", shape=(1, 3, 8, 8), color_layout=order)],
            outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        with open_runtime(mil.artifact(mil.saved(model), dtype="image", size=8, dim=2), "coreml_reference") as runtime:
            np.testing.assert_allclose(runtime.run(images), expected, rtol=1e-5)


def test_a_flexible_batch_runs_in_one_call(mil: Any) -> None:
    class Flat(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :4] * 2

    model = ct.convert(
        torch.jit.trace(Flat(), torch.zeros(1, 3, 8, 8)),
        inputs=[ct.TensorType(name="image", shape=(ct.RangeDim(1, 64, 1), 3, 8, 8))],
        outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    images = np.random.default_rng(4).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    loaded = mil.artifact(mil.saved(model), dtype="float32", layout="nchw", size=8, dim=4, dynamic=True)
    with open_runtime(loaded, "coreml_reference") as runtime:
        np.testing.assert_array_equal(runtime.run(images), images[:, 0, :4, 0].astype(np.float32) * 2)


def test_damaged_packages_are_refused_with_one_message(mil: Any, image_package: dict[str, bytes]) -> None:
    damaged = {
        "no manifest": {k: v for k, v in image_package.items() if k != "Manifest.json"},
        "no model": {k: v for k, v in image_package.items() if k != MODEL},
        "no weights": {k: v for k, v in image_package.items() if "weight" not in k},
        "manifest is no JSON": {**image_package, "Manifest.json": b"\xff{"},
        "model is garbage": {**image_package, MODEL: b"\xff" * 500},
        "model is empty": {**image_package, MODEL: b""},
        "model cut": {**image_package, MODEL: image_package[MODEL][:-40]},
        "weights cut": {k: (v[:100] if k.endswith(".bin") else v) for k, v in image_package.items()},
    }
    for files in damaged.values():
        with pytest.raises(RuntimeFailure, match=r"artifacts/model\.mlpackage"):
            open_runtime(mil.artifact(files), "coreml_reference")


def test_an_image_that_is_neither_rgb_nor_bgr_is_refused(mil: Any, image_package: dict[str, bytes]) -> None:
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(image_package[MODEL])
    spec.description.input[0].type.imageType.colorSpace = ct.proto.FeatureTypes_pb2.ImageFeatureType.GRAYSCALE
    with pytest.raises(RuntimeFailure, match="neither RGB nor BGR"):
        open_runtime(mil.artifact({**image_package, MODEL: spec.SerializeToString()}), "coreml_reference")


def test_threads_and_optimisation_change_no_rounding(mil: Any, image_package: dict[str, bytes]) -> None:
    """fp16 roundings are a part of the graph's meaning: no optimisation may take them out."""
    images = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    rows = []
    for options in (RuntimeOptions(threads=1), RuntimeOptions(threads=2), RuntimeOptions(threads=1, optimise=False)):
        with open_runtime(mil.artifact(image_package), "coreml_reference", options) as runtime:
            rows.append(runtime.run(images))
    np.testing.assert_array_equal(rows[0], rows[1])
    # A sum in another order may fall on the other side of a rounding.
    np.testing.assert_allclose(rows[2], rows[0], atol=2 * FP16_TOLERANCE)
    # What comes out are fp16 numbers, as the program says.
    np.testing.assert_array_equal(rows[0], rows[0].astype(np.float16).astype(np.float32))


def test_wire_format_refuses_what_is_no_message() -> None:
    nested: dict[int, Field] = {2: Field("text", "string")}
    nested[1] = Field("inner", nested)
    assert decode(b"\x0a\x04\x12\x02hi", nested) == {"inner": {"text": "hi"}}
    for broken in (b"\x0a", b"\x0a\x05\x12", b"\x0b\x01", b"\x08\xff", b"\x12\x01\xff", b"\x0a\x7f" * 100):
        with pytest.raises(ValueError, match=r"."):
            decode(broken, nested)


def test_the_evaluator_needs_neither_torch_nor_coremltools(image_package: dict[str, bytes], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        "from samespace.sdk.runtimes.mil.program import read_package\n"
        "from samespace.sdk.runtimes.mil.translate import translate\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}\n"
        "import samespace.sdk.runtimes.coreml_reference as r, onnxruntime\n"
        "onnxruntime.InferenceSession(translate(read_package(files)))\n"
        "print(sorted({'torch', 'coremltools'} & set(sys.modules)))\n"
    )
    root = tmp_path / "model.mlpackage"
    for name, data in image_package.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    answer = subprocess.run([sys.executable, str(script), str(root)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
