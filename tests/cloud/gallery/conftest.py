"""Fixtures that the tests of the gallery share."""

import io
import json
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psycopg
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from samespace.cloud.gallery.embedded import EmbeddedPostgres
from samespace.cloud.gallery.evidence import Evidence, verified_evidence
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.stores import Stores, open_stores
from samespace.cloud.gallery.successor import Successor
from samespace.cloud.gallery.upgrading import record_of
from samespace.cloud.upgrades import Generation, Pictures, UpgradeReport, measure_chain
from samespace.sdk.bundle import Bundle, artifact_id, write_bundle
from samespace.sdk.cli import main
from samespace.sdk.gallery.client import proof_of
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.signing import SigningKey, TrustStore


class GalleryWorld:
    """Real bundles small enough to read, and pictures for them.

    A model is 4 x 4 mean pooling, a matrix and the L2 norm, as a real ONNX graph. ``phone``'s matrix is near to
    ``cloud``'s, so it shares its space; ``stranger`` was "trained" alone, with the same name, dimension and
    preprocessing.
    """

    size, dim, pictures = 16, 24, 64

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(5)
        self.folder = folder
        self.generator = generator
        self.preprocess = Preprocess(size=self.size, fit="stretch")
        self.signer = SigningKey.new()
        # There may be several worlds at a time: each is trusted under a name of its own.
        TrustStore.default().add(self.signer.public, f"gallery-world-{self.signer.public.key_id}")
        matrix = generator.normal(size=(48, self.dim))
        self.weights = {
            "cloud": matrix,
            "phone": matrix + 0.35 * generator.normal(size=matrix.shape),
            "stranger": generator.normal(size=matrix.shape),
            "successor": matrix + 0.2 * np.random.default_rng(6).normal(size=matrix.shape),
        }
        self.probes = [self.picture() for _ in range(self.pictures)]
        self.records = {name: self._record(name) for name in self.weights}
        self.space = SpaceRecord(name="tests", founder_model_id=self.records["cloud"].model_id, dim=self.dim)
        self.images = folder / "images"
        for index in range(40):
            path = self.images / f"class-{index % 8}" / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.picture())

    def picture(self) -> bytes:
        """A PNG of soft random colours, other ones at each call."""
        return _png(self.generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))

    def embed(self, name: str, images: Sequence[bytes], *, bgr: bool = False) -> np.ndarray:
        """The reference, in NumPy."""
        tensors = self.preprocess.batch(images).astype(np.float64)[..., :: -1 if bgr else 1]
        pooled = tensors.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(-1, 48)
        rows = (pooled / 127.5 - 1) @ self.weights[name]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def bundle(self, name: str, *, bgr: bool = False, signed: bool = True, space: SpaceRecord | None = None) -> Path:
        """The path of a model's bundle; ``bgr`` plants the fault into the graph, under the model's good name and
        evidence.
        """
        key = f"{name}{'-bgr' if bgr else ''}{'' if signed else '-unsigned'}{'' if space is None else '-' + space.name}"
        path = self.folder / f"{key}.samespace"
        if path.exists():
            return path
        probes = ProbeSet(
            images=tuple(self.probes),
            golden=self.preprocess.batch(self.probes),
            reference=self.embed(name, self.probes),
            cloud=self.embed("cloud", self.probes),
            gallery=self.embed("cloud", self.probes),
            mistakes={"bgr": self.embed(name, self.probes, bgr=True)},
        )
        graph = self._graph(name, bgr)
        artifact = Artifact(
            path="artifacts/model.onnx",
            format="onnx",
            precision="fp32",
            artifact_id=artifact_id({"": graph}),
            input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
            output="embedding",
            recipe={"exporter": "tests"},
            min_runtime="onnxruntime 1.17",
        )
        write_bundle(
            path,
            model=self.records[name],
            space=space or self.space,
            artifacts=[(artifact, {"": graph})],
            files={**probes.to_files(), "evidence.json": b'[{"pair": "tests"}]'},
            gates={"fp32": {"worst_cosine": 0.99999}},
            signer=self.signer if signed else None,
        )
        return path

    def evidence(self, name: str, **options: object) -> Evidence:
        """What a gallery is shown of a bundle, verified."""
        return verified_evidence(proof_of(Bundle.open(self.bundle(name, **options))), TrustStore.default())

    def founded(self, gallery: Gallery) -> Gallery:
        """``gallery`` with the world's space in it and the phone introduced."""
        images = [self.picture() for _ in range(48)]
        gallery.found(self.evidence("cloud"), images, self.embed("cloud", images))
        gallery.members.introduce(self.evidence("phone"))
        return gallery

    def admitted(self, gallery: Gallery, name: str) -> Claim:
        """The claim of a model that shook hands."""
        manifest = Bundle.open(self.bundle(name)).manifest
        claim = Claim(manifest.space_id, manifest.model_id, manifest.artifacts[0].artifact_id, "numpy")
        challenge, images = gallery.challenge(claim)
        return gallery.admitted(gallery.answer(challenge, self.embed(name, images)).token)

    def upgrade_report(self, new: str, old: str = "cloud", *, classes: int = 30, noise: int = 12) -> UpgradeReport:
        """How an upgrade does on pictures of some classes: one picture of each, changed by a little noise."""
        generator = np.random.default_rng(9)
        centres = generator.integers(40, 216, (classes, 4, 4, 3))
        sides = {}
        for side in ("query", "gallery"):
            coarse = np.repeat(centres, 4, axis=0) + generator.integers(-noise, noise + 1, (4 * classes, 4, 4, 3))
            sides[side] = [_png(pixels.astype(np.uint8)) for pixels in coarse]
        labels = [f"class {index // 4}" for index in range(4 * classes)]
        chain = [
            Generation(name, self.records[name].model_id, self.embed(name, sides["query"]), self.embed(name, sides["gallery"]))
            for name in (old, new)
        ]
        sources = ["scanner" if index % 2 else "camera" for index in range(len(labels))]
        queries = {"key": [f"q{index}" for index in range(len(labels))], "class": labels, "source": sources}
        return measure_chain(chain, Pictures(queries, labels))

    def registered(self, gallery: Gallery, new: str = "successor", old: str = "cloud", **options: int) -> Successor:
        """Let a model be the successor of the one that serves."""
        gallery.members.introduce(self.evidence(new))
        report = self.upgrade_report(new, old, **options).model_dump_json().encode()
        images = [challenge.image for challenge in gallery.registry.challenges(self.records[old].model_id)]
        return gallery.upgrades.register(report, record_of(report, self.space), "signer", self.embed(new, images), "operator")

    def _record(self, name: str) -> ModelRecord:
        return ModelRecord(
            name="same name",
            role="cloud" if name in ("cloud", "successor") else "edge",
            family="toy",
            arguments={},
            dim=self.dim,
            preprocess=self.preprocess,
            weights_sha256=digest(self.weights[name].tobytes()),
        )

    def _graph(self, name: str, bgr: bool) -> bytes:
        constants = {
            "blocks": np.array([-1, 4, 4, 4, 4, 3], np.int64),
            "flat": np.array([-1, 48], np.int64),
            "half": np.array(127.5, np.float32),
            "one": np.array(1, np.float32),
            "order": np.array([2, 1, 0] if bgr else [0, 1, 2], np.int64),
            "weights": self.weights[name].astype(np.float32),
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
            node("ReduceL2", ["x7"], ["norm"], axes=[1], keepdims=1),
            node("Div", ["x7", "norm"], ["embedding"]),
        ]
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", self.size, self.size, 3])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", self.dim])],
            [numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _png(coarse: np.ndarray) -> bytes:
    """Few pixels as a soft picture."""
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((40, 40), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def gallery_world(tmp_path_factory: pytest.TempPathFactory) -> GalleryWorld:
    return GalleryWorld(tmp_path_factory.mktemp("gallery-world"))


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for a server that may run as another user: pytest's own folders are for this user only."""
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as folder:
        yield Path(folder) / "data"


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[Path]:
    """A database folder as it is after the first start and stop; making one takes seconds, copying it does not."""
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as folder:
        with EmbeddedPostgres(Path(folder) / "data"):
            pass
        yield Path(folder) / "data"


@pytest.fixture
def used_folder(data_folder: Path, postgres_template: Path) -> Path:
    """A folder that an embedded server has used before."""
    subprocess.run(["cp", "-a", str(postgres_template), str(data_folder)], check=True)
    return data_folder


@pytest.fixture(scope="session")
def postgres_server(postgres_template: Path) -> Iterator[str]:
    """URL of one embedded PostgreSQL for all tests."""
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as folder:
        subprocess.run(["cp", "-a", str(postgres_template), f"{folder}/data"], check=True)
        with EmbeddedPostgres(Path(folder) / "data") as server:
            yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of its own."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.database)])
def gallery_stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    """Every kind of store, empty."""
    url = None if request.param == "memory" else request.getfixturevalue("postgres_url")
    with open_stores(database=url, memory=url is None) as stores:
        yield stores


@pytest.fixture
def founded_gallery(gallery_stores: Stores, gallery_world: GalleryWorld) -> Iterator[Gallery]:
    """A gallery that holds the world's space, with every kind of store."""
    with Gallery(gallery_stores.registry, gallery_stores.index) as gallery:
        yield gallery_world.founded(gallery)


class Served:
    """``samespace gallery serve`` in a process of its own, ready to answer."""

    def __init__(self, *options: str) -> None:
        command = [
            sys.executable,
            "-c",
            "from samespace.sdk.cli import main; main()",
            "gallery",
            "serve",
            "--json",
            "--port",
            "0",
        ]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.ready = json.loads(line)
        self.url = self.ready["url"]

    def stop(self) -> int:
        """As Ctrl-C or a service manager does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()
        return self.process.returncode

    def kill(self) -> None:
        """As a power cut does."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def serve(data_folder: Path) -> Iterator[Callable[..., Served]]:
    """``serve("--memory", ...)``; what still runs at the end is stopped, before the folder that it may use is
    deleted.
    """
    started: list[Served] = []

    def make(*options: str) -> Served:
        started.append(Served(*options))
        return started[-1]

    yield make
    for served in started:
        if served.process.poll() is None:
            served.stop()


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, " ".join(err.split())


@pytest.fixture
def run(capsys):
    """``run("gallery", "search", ...)`` in this process."""

    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(end.value.code or 0, captured.out, captured.err)

    return call
