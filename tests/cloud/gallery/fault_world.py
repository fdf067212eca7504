"""A space of two small convolutional models over real photographs, with fp32 and int8 artifacts that take values of any range,
and devices that make mistakes: planted by other code (OpenCV, torch) than the diagnosis has.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from PIL import Image
from sklearn.datasets import load_sample_images

from samespace.sdk.bundle import Bundle, artifact_id, write_bundle
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.signing import SigningKey, TrustStore

SIZE, DIM, PROBES = 32, 48, 64


def planted() -> ModuleType:
    """benchmarks/diagnosis/planted.py, which imports nothing of samespace."""
    path = Path(__file__).parents[3] / "benchmarks" / "diagnosis" / "planted.py"
    spec = importlib.util.spec_from_file_location("planted_faults", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_faults"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Planted:
    """A mistake by name; see PLANTS in planted.py."""

    cause: str
    stage: str
    name: str


#: Those of planted.py, so that tests have names before torch is imported; the world checks that they are the same.
PLANTS = tuple(
    Planted(*line.split())
    for line in """\
exif_ignored decode cv2
squashed fit torch
other_fit fit torch
crop_order fit torch
no_antialias resize cv2-linear
no_antialias resize torch-bilinear
filter_nearest resize cv2-nearest
filter_nearest resize torch-nearest-exact
filter_bicubic resize cv2-cubic
filter_bicubic resize torch-bicubic-antialias
filter_lanczos resize cv2-lanczos4
bgr colour cv2
layout layout numpy-planar
layout layout numpy-interleaved
no_mean_std values numpy-missing
mean_std_twice values numpy-twice
range_01 values numpy-unit
no_l2 norm numpy""".splitlines()
)


class FaultWorld:
    """Bundles ``cloud`` and ``phone`` below ``folder``; artifacts by precision."""

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(3)
        self.preprocess = Preprocess(size=SIZE, fit="crop")
        self.planted = planted()
        assert [(p.cause, p.stage, p.name) for p in self.planted.PLANTS] == [(p.cause, p.stage, p.name) for p in PLANTS]
        key = SigningKey.new()
        TrustStore.default().add(key.public, "fault-world")
        self.probes = _photos(PROBES, generator)
        golden = self.preprocess.batch(self.probes)
        weights = {"cloud": _weights(generator)}
        weights["phone"] = [w + 0.1 * np.abs(w).mean() * generator.normal(size=w.shape) for w in weights["cloud"]]
        weights["other"] = [w + 0.1 * np.abs(w).mean() * generator.normal(size=w.shape) for w in weights["cloud"]]
        self.graphs: dict[str, dict[str, bytes]] = {}
        for name, kernels in weights.items():
            bare = _graph(kernels, self.preprocess, np.zeros(DIM), normalised=False)
            centre = run(bare, golden.astype(np.float32)).mean(axis=0)
            fp32 = _graph(kernels, self.preprocess, -centre)
            self.graphs[name] = {"fp32": fp32, "int8": _int8(fp32, golden.astype(np.float32), folder)}
            self.graphs[name]["raw"] = _graph(kernels, self.preprocess, -centre, normalised=False)
        self.records = {name: _record(name, self.preprocess, graphs["fp32"]) for name, graphs in self.graphs.items()}
        self.space = SpaceRecord(name="faults", founder_model_id=self.records["cloud"].model_id, dim=DIM)
        cloud = run(self.graphs["cloud"]["fp32"], golden.astype(np.float32))
        self.bundles = {}
        for name in ("cloud", "phone"):
            reference = run(self.graphs[name]["fp32"], golden.astype(np.float32))
            probes = ProbeSet(images=self.probes, golden=golden, reference=reference, cloud=cloud, gallery=cloud)
            artifacts = [_artifact(precision, self.graphs[name][precision]) for precision in ("fp32", "int8")]
            path = folder / f"{name}.samespace"
            write_bundle(
                path,
                model=self.records[name],
                space=self.space,
                artifacts=artifacts,
                files={**probes.to_files(), "evidence.json": b"[]"},
                gates={"fp32": {"worst_cosine": 0.9999}, "int8": {"worst_cosine": 0.95}},
                signer=key,
            )
            self.bundles[name] = Bundle.open(path)

    def planted_as(self, plant: Planted) -> object:
        """The plant itself."""
        return next(p for p in self.planted.PLANTS if (p.cause, p.stage, p.name) == (plant.cause, plant.stage, plant.name))

    def artifact_id(self, name: str, precision: str) -> str:
        return artifact_id({"": self.graphs[name][precision]})

    def device(self, images: Sequence[bytes], plants: Sequence[object] = (), artifact: str = "fp32", model: str = "phone"):
        """``(n, d)`` what an app with these mistakes makes of the pictures; ``raw`` has no L2 norm."""
        values = self.planted.app_input(
            images,
            plants,
            size=SIZE,
            fit="crop",
            background=self.preprocess.background,
            mean=self.preprocess.mean,
            std=self.preprocess.std,
        )
        return run(self.graphs[model][artifact], values)


def run(graph: bytes, values: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": values.astype(np.float32)})[0]


def _photos(count: int, generator: np.random.Generator) -> tuple[bytes, ...]:
    sources, found = load_sample_images().images, []
    for index in range(count):
        source = sources[index % len(sources)]
        height, width = generator.integers(90, 300, 2)
        top, left = generator.integers(source.shape[0] - height), generator.integers(source.shape[1] - width)
        buffer = io.BytesIO()
        Image.fromarray(source[top : top + height, left : left + width]).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return tuple(found)


def _weights(generator: np.random.Generator) -> list[np.ndarray]:
    shapes = [(16, 3, 5, 5), (32, 16, 3, 3), (512, DIM)]
    return [generator.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0]) for shape in shapes]


def _graph(weights: Sequence[np.ndarray], preprocess: Preprocess, bias: np.ndarray, *, normalised: bool = True) -> bytes:
    node, scale = helper.make_node, (255 * np.asarray(preprocess.std, np.float32)).reshape(1, 3, 1, 1)
    constants = {
        "mean": (255 * np.asarray(preprocess.mean, np.float32)).reshape(1, 3, 1, 1),
        "std": scale,
        **{f"w{i}": w.astype(np.float32) for i, w in enumerate(weights)},
        "bias": bias.astype(np.float32),
    }
    nodes = [
        node("Transpose", ["image"], ["x0"], perm=[0, 3, 1, 2]),
        node("Sub", ["x0", "mean"], ["x1"]),
        node("Div", ["x1", "std"], ["x2"]),
        node("Conv", ["x2", "w0"], ["x3"], strides=[2, 2], pads=[2, 2, 2, 2], kernel_shape=[5, 5]),
        node("Relu", ["x3"], ["x4"]),
        node("Conv", ["x4", "w1"], ["x5"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Relu", ["x5"], ["x6"]),
        node("AveragePool", ["x6"], ["x7"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["x7"], ["x8"]),
        node("Gemm", ["x8", "w2", "bias"], ["x9" if normalised else "embedding"]),
    ]
    if normalised:
        nodes += [node("ReduceL2", ["x9"], ["norm"], axes=[1], keepdims=1), node("Div", ["x9", "norm"], ["embedding"])]
    graph = helper.make_graph(
        nodes,
        "faults",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _int8(graph: bytes, golden: np.ndarray, folder: Path) -> bytes:
    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"image": golden}])

        def get_next(self):
            return next(self.batches, None)

    source, target = folder / "source.onnx", folder / "int8.onnx"
    source.write_bytes(graph)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(target).graph.node)
    return target.read_bytes()


def _record(name: str, preprocess: Preprocess, graph: bytes) -> ModelRecord:
    role = "cloud" if name == "cloud" else "edge"
    return ModelRecord(
        name=name, role=role, family="toy", arguments={}, dim=DIM, preprocess=preprocess, weights_sha256=digest(graph)
    )


def _artifact(precision: str, graph: bytes) -> tuple[Artifact, dict[str, bytes]]:
    artifact = Artifact(
        path=f"artifacts/{precision}.onnx",
        format="onnx",
        precision=precision,
        artifact_id=artifact_id({"": graph}),
        input=TensorSpec(name="image", dtype="float32", dynamic_batch=True),
        output="embedding",
        recipe={"exporter": "tests"},
        min_runtime="onnxruntime 1.17",
    )
    return artifact, {"": graph}
