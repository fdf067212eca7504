"""Fixtures that several tests of the client library share."""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from samespace.sdk.bundle import Bundle, artifact_id, write_bundle
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.signing import SigningKey, TrustStore


@pytest.fixture
def random_units():
    """``random_units(n, d)``: n random unit vectors, others at each call, the same in each run."""
    generator = np.random.default_rng(7)

    def make(n: int, d: int) -> np.ndarray:
        rows = generator.normal(size=(n, d))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return make


class Toy:
    """A model small enough to read: 4 x 4 mean pooling, a matrix, L2 norm; in NumPy and as a real ONNX graph.

    The cloud model and the edge model are such matrices, near to each other: they share a space. Each image shows one of 40
    patterns with noise, its class. All that a bundle needs is made here, and every fault that a check must catch.
    """

    size, dim, classes, probes = 16, 12, 40, 64

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.preprocess = Preprocess(size=self.size, fit="stretch")
        self.cloud = generator.normal(size=(48, self.dim)).astype(np.float32)
        self.edge = (self.cloud + 0.1 * generator.normal(size=self.cloud.shape)).astype(np.float32)
        self.stranger = generator.normal(size=self.cloud.shape).astype(np.float32)
        self.rotation = np.linalg.qr(generator.normal(size=(self.dim, self.dim)))[0].astype(np.float32)
        self._patterns = generator.integers(0, 256, (self.classes, 4, 4, 3))
        self._noise = generator
        self.images = tuple(self.image(index % self.classes) for index in range(self.probes))
        self.labels = tuple(self.label(index % self.classes) for index in range(self.probes))
        self.gallery_images = tuple(self.image(index % self.classes) for index in range(200))
        self.gallery_labels = tuple(self.label(index % self.classes) for index in range(200))
        self.model = ModelRecord(
            name="toy",
            role="edge",
            family="toy",
            arguments={"dim": self.dim, "image_size": self.size},
            dim=self.dim,
            preprocess=self.preprocess,
            weights_sha256=digest(self.edge.tobytes()),
        )
        founder = self.model.model_copy(update={"name": "toy-cloud", "weights_sha256": digest(self.cloud.tobytes())})
        self.space = SpaceRecord(name="toys", founder_model_id=founder.model_id, dim=self.dim)
        self.signer = SigningKey.new()
        self.trust = TrustStore(Path(tempfile.mkdtemp(prefix="samespace-test-trust-")))
        self.trust.add(self.signer.public, "toymaker")

    def label(self, index: int) -> str:
        return f"class-{index:02d}"

    def image(self, index: int) -> bytes:
        """A 24 x 20 PNG of a class, with noise of its own."""
        big = np.kron(self._patterns[index], np.ones((5, 6, 1)))
        noisy = np.clip(big + self._noise.normal(0, 40, big.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "PNG")
        return buffer.getvalue()

    def embed(self, images: Sequence[bytes], weights: np.ndarray) -> np.ndarray:
        """The reference: what the model with these weights gives, in float64."""
        tensors = self.preprocess.batch(images).astype(np.float64)
        pooled = tensors.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(-1, 48)
        rows = (pooled / 127.5 - 1) @ weights
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def graph(
        self,
        weights: np.ndarray,
        *,
        bgr: bool = False,
        rotation: np.ndarray | None = None,
        noise: float = 0.0,
        scale: float = 1.0,
    ) -> bytes:
        """The model as ONNX; the options are faults."""
        constants = {
            "blocks": np.array([-1, 4, 4, 4, 4, 3], np.int64),
            "flat": np.array([-1, 48], np.int64),
            "half": np.array(127.5, np.float32),
            "one": np.array(1, np.float32),
            "weights": weights.astype(np.float32),
            "order": np.array([2, 1, 0] if bgr else [0, 1, 2], np.int64),
            "rotation": np.eye(self.dim, dtype=np.float32) if rotation is None else rotation,
            "frequency": (40 * self.rotation).astype(np.float32),
            "noise": np.array(noise, np.float32),
            "scale": np.array(scale, np.float32),
        }
        node = helper.make_node
        nodes = [
            node("Cast", ["image"], ["x0"], to=TensorProto.FLOAT),
            node("Gather", ["x0", "order"], ["x1"], axis=3),
            node("Reshape", ["x1", "blocks"], ["x2"]),
            node("ReduceMean", ["x2"], ["x3"], axes=[2, 4], keepdims=0),
            node("Reshape", ["x3", "flat"], ["x4"]),
            node("Div", ["x4", "half"], ["x5"]),
            node("Sub", ["x5", "one"], ["x6"]),
            node("MatMul", ["x6", "weights"], ["x7"]),
            node("ReduceL2", ["x7"], ["n0"], axes=[1], keepdims=1),
            node("Div", ["x7", "n0"], ["x8"]),
            node("MatMul", ["x8", "frequency"], ["w0"]),
            node("Sin", ["w0"], ["w1"]),
            node("Mul", ["w1", "noise"], ["w2"]),
            node("Add", ["x8", "w2"], ["x9"]),
            node("MatMul", ["x9", "rotation"], ["x10"]),
            node("ReduceL2", ["x10"], ["n1"], axes=[1], keepdims=1),
            node("Div", ["x10", "n1"], ["x11"]),
            node("Mul", ["x11", "scale"], ["embedding"]),
        ]
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", self.size, self.size, 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", self.dim])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()

    def artifact(self, graph: bytes, precision: str = "fp32") -> tuple[Artifact, dict[str, bytes]]:
        spec = Artifact(
            path=f"artifacts/model.{precision}.onnx",
            format="onnx",
            precision=precision,
            artifact_id=artifact_id({"": graph}),
            input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
            output="embedding",
            recipe={"exporter": "tests"},
            min_runtime="onnxruntime 1.17",
        )
        return spec, {"": graph}

    def probe_set(self, **changes: object) -> ProbeSet:
        fields: dict[str, object] = {
            "images": self.images,
            "golden": self.preprocess.batch(self.images),
            "reference": self.embed(self.images, self.edge),
            "cloud": self.embed(self.images, self.cloud),
            "gallery": self.embed(self.gallery_images, self.cloud),
            "mistakes": {"bgr": self.embed(self.images, self.edge)},
            "probe_labels": self.labels,
            "gallery_labels": self.gallery_labels,
        }
        return ProbeSet(**(fields | changes))

    def write(
        self,
        path: Path,
        graph: bytes | None = None,
        *,
        precision: str = "fp32",
        probes: ProbeSet | None = None,
        gates: dict[str, dict[str, float]] | None = None,
        signed: bool = True,
        more_artifacts: Sequence[tuple[Artifact, dict[str, bytes]]] = (),
    ) -> Path:
        """A real bundle with one artifact, and more."""
        write_bundle(
            path,
            model=self.model,
            space=self.space,
            artifacts=[self.artifact(self.graph(self.edge) if graph is None else graph, precision), *more_artifacts],
            files={**(probes or self.probe_set()).to_files(), "evidence.json": b"[]"},
            gates=gates or {},
            signer=self.signer if signed else None,
        )
        return path

    def bundle(self, path: Path, graph: bytes | None = None, *, signed: bool = True, **options: object) -> Bundle:
        """A real bundle, written and opened."""
        return Bundle.open(self.write(path, graph, signed=signed, **options), trust=self.trust, allow_unsigned=not signed)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture
def toy_bundle(toy: Toy, tmp_path: Path) -> Callable[..., Bundle]:
    """``toy_bundle(graph=None, ...)``: a bundle of the toy, in a folder of its own."""
    paths = (tmp_path / f"toy-{index}.samespace" for index in range(100))
    return lambda *arguments, **options: toy.bundle(next(paths), *arguments, **options)
