"""The runtimes: found by name, loaded when used, quiet about the user, and clear about what they cannot run.

``tests/export/test_runtimes.py`` runs them all on one converted model.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from samespace.sdk.errors import ConfigError, MissingExtraError, RuntimeFailure
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes import RUNTIMES, LoadedArtifact, RuntimeOptions, available, open_runtime, runtimes_for
from samespace.sdk.runtimes.coreml import CoremlRuntime
from samespace.sdk.runtimes.registry import runtime_class, why_unavailable

SIZE, DIM = 8, 3


def onnx_model(dtype: int = TensorProto.UINT8, layout: str = "nhwc", inputs: int = 1, dim: int = DIM) -> bytes:
    """Mean over the pixels, then a matrix: ``(n, 8, 8, 3) -> (n, dim)``."""
    shape = ["n", SIZE, SIZE, 3] if layout == "nhwc" else ["n", 3, SIZE, SIZE]
    weight = np.random.default_rng(1).normal(size=(3, dim)).astype(np.float32)
    axes = [1, 2] if layout == "nhwc" else [2, 3]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info(f"image{index or ''}", dtype, shape) for index in range(inputs)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(axes), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def loaded(
    data: bytes,
    *,
    format: Any = "onnx",
    dtype: Any = "uint8",
    layout: Any = "nhwc",
    name: str = "image",
    output: str = "embedding",
) -> LoadedArtifact:
    spec = Artifact(
        path=f"artifacts/model.{format}",
        format=format,
        precision="fp32",
        artifact_id="0" * 64,
        input=TensorSpec(name=name, dtype=dtype, layout=layout, dynamic_batch=True),
        output=output,
        recipe={},
        min_runtime="any",
    )
    return LoadedArtifact(spec, {"": data}, SIZE, DIM)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize(("dtype", "spec"), [(TensorProto.UINT8, "uint8"), (TensorProto.FLOAT, "float32")])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_onnx_obeys_the_dtype_and_layout_of_the_manifest(dtype: int, spec: str, layout: str, images: np.ndarray) -> None:
    with open_runtime(loaded(onnx_model(dtype, layout), dtype=spec, layout=layout)) as runtime:
        weight = np.random.default_rng(1).normal(size=(3, DIM)).astype(np.float32)
        np.testing.assert_allclose(runtime.run(images), images.mean((1, 2)) @ weight, rtol=1e-4, atol=1e-3)


def test_batches_give_what_single_images_give(images: np.ndarray) -> None:
    artifact = loaded(onnx_model())
    with open_runtime(artifact, options=RuntimeOptions(batch_size=1, threads=1)) as alone, open_runtime(artifact) as batched:
        np.testing.assert_array_equal(alone.run(images), batched.run(images))
        assert batched.run(images[:0]).shape == (0, DIM)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, SIZE, SIZE, 3), np.float32),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((2, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((2, 3, SIZE, SIZE), np.uint8),
    ],
)
def test_images_of_another_shape_or_dtype_are_refused(wrong: np.ndarray) -> None:
    with (
        open_runtime(loaded(onnx_model())) as runtime,
        pytest.raises(RuntimeFailure, match=r"uint8 of shape \(n, 8, 8, 3\); got"),
    ):
        runtime.run(wrong)


@pytest.mark.parametrize(
    ("artifact", "said"),
    [
        (loaded(onnx_model(), name="picture"), r"inputs are \['image'\], the manifest says 'picture'"),
        (loaded(onnx_model(), output="vector"), r"outputs are \['embedding'\], the manifest says 'vector'"),
        (loaded(onnx_model(), dtype="float32"), "'image' is uint8, the manifest says float32"),
        (loaded(onnx_model(inputs=2)), r"inputs are \['image', 'image1'\]"),
        (loaded(b""), "onnxruntime .* refuses it"),
        (loaded(b"garbage" * 100), "onnxruntime .* refuses it"),
        (loaded(onnx_model()[:-50]), "onnxruntime .* refuses it"),
        (loaded(b"garbage" * 100, format="tflite"), "TFLite interpreter refuses it"),
        (loaded(b"", format="tflite"), "TFLite interpreter refuses it"),
    ],
)
def test_an_artifact_that_is_not_what_the_manifest_says_is_refused(artifact: LoadedArtifact, said: str) -> None:
    with pytest.raises(RuntimeFailure, match=rf"artifacts/model\.{artifact.spec.format}: .*{said}"):
        open_runtime(artifact)


def test_an_answer_of_another_dimension_is_refused(images: np.ndarray) -> None:
    runtime = open_runtime(loaded(onnx_model(dim=DIM + 1)))
    with pytest.raises(RuntimeFailure, match=r"shape \(32, 4\), expected \(32, 3\)"):
        runtime.run(images)


def test_names_are_looked_up_and_mistakes_say_what_there_is() -> None:
    with pytest.raises(ConfigError, match=f"'onxx'; there are: {', '.join(RUNTIMES)}"):
        open_runtime(loaded(onnx_model()), "onxx")
    with pytest.raises(ConfigError, match=r"runtime 'tflite' runs tflite artifacts; artifacts/model.onnx is onnx: take onnx"):
        open_runtime(loaded(onnx_model()), "tflite")
    assert [(name, runtime_class(name).name) for name in RUNTIMES] == [(name, name) for name in RUNTIMES]
    assert runtimes_for("coreml", installed_only=False) == ("coreml", "coreml_reference")
    assert runtimes_for("onnx") == ("onnx",)


def test_core_ml_itself_is_refused_off_macos_with_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert not available("coreml")
    assert "coreml_reference" in (why_unavailable("coreml") or "")
    with pytest.raises(ConfigError, match="needs macOS; on this system use 'coreml_reference'"):
        CoremlRuntime(loaded(b"", format="coreml", dtype="image"))


@pytest.mark.parametrize(
    ("modules", "name", "extra"),
    [
        (("onnxruntime",), "onnx", "onnx"),
        (("ai_edge_litert", "tflite_runtime"), "tflite", "tflite"),
        (("onnx",), "coreml_reference", "coreml"),
        (("onnxruntime",), "coreml_reference", "coreml"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(modules: tuple[str, ...], name: str, extra: str) -> None:
    """In a process of its own, whose imports of these packages fail as they do where they are not installed."""
    script = f"""
import importlib.util, sys
import samespace.sdk.runtimes.registry as registry
real = importlib.util.find_spec
importlib.util.find_spec = lambda wanted, *more: None if wanted in {modules!r} else real(wanted, *more)
for module in {modules!r}:
    sys.modules[module] = None
print(registry.why_unavailable({name!r}))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"pip install 'samespace[{extra}]'" in answer.stdout


def test_no_runtime_for_a_format_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    message = str(MissingExtraError("tflite", "running a .tflite artifact"))
    for name in runtimes_for("tflite", installed_only=False):
        monkeypatch.setattr(runtime_class(name), "unavailable", classmethod(lambda cls: message))
    with pytest.raises(ConfigError, match=r"no runtime on this machine .*samespace\[tflite\]"):
        open_runtime(loaded(b"", format="tflite"))


def test_listing_runtimes_imports_no_engine() -> None:
    script = (
        "import sys\n"
        "from samespace.sdk.runtimes import RUNTIMES, available, runtimes_for\n"
        "print([available(name) for name in RUNTIMES], runtimes_for('coreml'))\n"
        "engines = {'onnxruntime', 'onnx', 'ai_edge_litert', 'tflite_runtime', 'coremltools', 'torch'}\n"
        "print(sorted(engines & set(sys.modules)))\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[1] == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_onnxruntime_opens_no_socket_and_leaves_no_file(tmp_path: Path) -> None:
    """Its Linux wheels carry telemetry: a database in the user's cache and name look-ups, at import."""
    (tmp_path / "model.onnx").write_bytes(onnx_model())
    home = tmp_path / "home"
    home.mkdir()
    script = """
import os, sys, pathlib
import numpy as np
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes import LoadedArtifact, open_runtime
spec = Artifact(path="m", format="onnx", precision="fp32", artifact_id="0" * 64, output="embedding", recipe={}, min_runtime="",
                input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True))
with open_runtime(LoadedArtifact(spec, {"": pathlib.Path(sys.argv[1]).read_bytes()}, 8, 3)) as runtime:
    runtime.run(np.zeros((2, 8, 8, 3), np.uint8))
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            pass
    print([link for link in links if link.startswith("socket:") or ".db" in link], "torch" in sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert answer.stdout.strip() == "[] False"
    assert list(home.rglob("*")) == []
