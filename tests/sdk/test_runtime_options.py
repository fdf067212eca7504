"""The options of onnxruntime's runtimes do what they say, and nothing is reported to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes import LoadedArtifact, RuntimeOptions, open_runtime
from samespace.sdk.runtimes.onnx import load_onnxruntime, open_session

SIZE, DIM = 8, 4


def model() -> bytes:
    """A convolution by 1e38, then times 1e-38: infinite as it is written, 1 to 255 when the two are one convolution."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "large"], ["huge"]),
        helper.make_node("Mul", ["huge", "small"], ["map"]),
        helper.make_node("ReduceMean", ["map", "axes"], ["embedding"], keepdims=0),
    ]
    constants = {
        "large": np.full((DIM, 3, 1, 1), 1e38, np.float32),
        "small": np.full((DIM, 1, 1), 1e-38, np.float32),
        "axes": np.array([2, 3]),
    }
    graph = helper.make_graph(
        nodes,
        "two scales",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def loaded(data: bytes, format: Any = "onnx") -> LoadedArtifact:
    spec = Artifact(
        path=f"artifacts/model.{format}",
        format=format,
        precision="fp32",
        artifact_id="0" * 64,
        input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
        output="embedding",
        recipe={},
        min_runtime="",
    )
    return LoadedArtifact(spec, {"": data}, SIZE, DIM)


@pytest.fixture(scope="module")
def ort_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model as onnxruntime writes it in its own format, not optimised."""
    ort = load_onnxruntime()
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.save_model_format", "ORT")
    target = tmp_path_factory.mktemp("ort") / "model.ort"
    settings.optimized_model_filepath = str(target)
    ort.InferenceSession(model(), settings, providers=["CPUExecutionProvider"])
    return target.read_bytes()


def images(n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(40, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


def test_optimise_false_runs_the_graph_as_it_was_written() -> None:
    with open_runtime(loaded(model())) as runtime:
        expected = images().astype(np.float64).mean((1, 2)).sum(1)
        np.testing.assert_allclose(runtime.run(images()), expected[:, None].repeat(DIM, 1), rtol=1e-5)
    with open_runtime(loaded(model()), options=RuntimeOptions(optimise=False)) as runtime:
        assert np.isinf(runtime.run(images())).all()


@pytest.mark.parametrize("optimise", [True, False])
def test_fusions_beside_an_ort_graph_are_replayed_only_where_optimised(optimise: bool, ort_file: bytes) -> None:
    session = open_session(ort_file, "model.ort", optimise=optimise, stored_as="ORT")
    settings = session.get_session_options()
    if optimise:
        assert settings.get_session_config_entry("session.enable_saved_runtime_optimizations") == "1"
    else:
        assert settings.graph_optimization_level == load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL


def test_an_ort_file_runs_and_neither_format_passes_for_the_other(ort_file: bytes) -> None:
    with open_runtime(loaded(ort_file, "ort"), options=RuntimeOptions(threads=1, batch_size=2)) as runtime:
        assert runtime.name == "ort"
        assert runtime.version().startswith("onnxruntime ")
        assert runtime.run(images()).shape == (3, DIM)
    with pytest.raises(RuntimeFailure, match=r"artifacts/model\.ort: onnxruntime .* refuses it"):
        open_runtime(loaded(model(), "ort"))
    with pytest.raises(RuntimeFailure, match=r"artifacts/model\.onnx: onnxruntime .* refuses it"):
        open_runtime(loaded(ort_file, "onnx"))
    with pytest.raises(RuntimeFailure, match=r"artifacts/model\.ort: onnxruntime .* refuses it"):
        open_runtime(loaded(ort_file[: len(ort_file) // 2], "ort"))


@pytest.mark.parametrize("format", ["onnx", "ort"])
def test_a_provider_that_is_not_there_is_refused_with_those_that_are(format: str, ort_file: bytes) -> None:
    data = ort_file if format == "ort" else model()
    # The second exists, but not in the distribution that we install.
    for name in ("TurboExecutionProvider", "cpu", "DmlExecutionProvider"):
        with pytest.raises(ConfigError, match=rf"no execution provider '{name}'; it has: .*CPUExecutionProvider"):
            open_runtime(loaded(data, format), options=RuntimeOptions(providers=("CPUExecutionProvider", name)))


def test_providers_are_taken_in_their_order_and_the_cpu_comes_last() -> None:
    with open_runtime(loaded(model()), options=RuntimeOptions(providers=("CPUExecutionProvider",))) as runtime:
        assert np.isfinite(runtime.run(images())).all()
    assert open_session(model(), "model").get_providers() == ["CPUExecutionProvider"]


#: Imports onnxruntime in one way or another and tells what it opened: Python's sockets by an audit hook, the engine's own ones
#: and its files by the process's open files.
_CHILD = """
import os, sys
heard = []
sys.addaudithook(lambda event, arguments: heard.append(event) if event.startswith("socket.") else None)
if sys.argv[1] == "ours":
    from samespace.sdk.runtimes.onnx import load_onnxruntime
    ort = load_onnxruntime()
else:
    import onnxruntime as ort
    ort.get_available_providers()
opened = []
for name in os.listdir("/proc/self/fd"):
    try:
        opened.append(os.readlink(f"/proc/self/fd/{name}"))
    except OSError:
        pass
print(heard + [name for name in opened if name.startswith("socket:") or sys.argv[2] in name])
"""


def _traces(how: str, home: Path) -> tuple[str, list[Path]]:
    home.mkdir()
    # onnxruntime is silent by itself where CI is set, too.
    environment = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", _CHILD, how, str(home)], capture_output=True, text=True, check=True, env=environment
    )
    return answer.stdout.strip(), list(home.rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_loading_onnxruntime_opens_no_socket_and_writes_no_file(tmp_path: Path) -> None:
    assert _traces("ours", tmp_path / "home") == ("[]", [])


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_that_test_would_notice(tmp_path: Path) -> None:
    """The same look at a bare import: the wheels with telemetry leave a database behind."""
    version = tuple(int(part) for part in load_onnxruntime().__version__.split(".")[:2])
    if version < (1, 29):
        pytest.skip("this onnxruntime is older than its telemetry")
    seen, written = _traces("theirs", tmp_path / "home")
    assert ".onnxruntime" in seen
    assert any(path.suffix == ".db" for path in written)
