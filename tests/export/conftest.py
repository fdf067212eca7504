"""A run directory of tiny, untrained models, one of each family, and its export; made once for all tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

from samespace.edge.models.registry import build_model
from samespace.export import DeviceGraph, Exported, Run, export_run, read_run
from samespace.export.torch_runtime import embed
from samespace.sdk.bundle import write_bundle
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes import LoadedArtifact
from samespace.sdk.signing import SigningKey, TrustStore

#: Name in the run -> family, its own arguments, and the edge of its input. Every kind of block of each family, and each once:
#: conversions take as long as a network is deep.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "cloud": ("wide_residual", {"width": 8, "stages": 2}, 32),
    "residual": ("residual", {"width": 8}, 24),
    "inverted": ("inverted_residual", {"stages": 1}, 32),
    "mixer": ("mixer", {"width": 16, "depth": 1}, 32),
    # At 64 pixels its last map is 2 x 2; of a 1 x 1 map the converter makes a reshape that fixes the batch.
    "photo": ("efficientnet_lite", {"pretrained": False}, 64),
}
DIM = 16

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Call it with names from :data:`MODELS` for a run directory with these models; the cloud model is always in, and may be
    wider than the others (``narrow``)."""

    def make(*names: str, control: str | None = None, narrow: int | None = None) -> Path:
        path = tmp_path_factory.mktemp("run")
        (path / "models").mkdir()
        (path / "probes" / "images").mkdir(parents=True)
        records = {
            name: _write_model(path / "models", name, DIM if name == "cloud" or narrow is None else narrow)
            for name in dict.fromkeys(("cloud", *names))
        }
        space = SpaceRecord(name="icons", founder_model_id=records["cloud"].model_id, dim=DIM)
        (path / "space.json").write_text(space.model_dump_json())
        rng = np.random.default_rng(3)
        for index in range(64):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            picture = io.BytesIO()
            coarse.resize((90 + index % 3, 80), Image.Resampling.BICUBIC).save(picture, "PNG")
            (path / "probes" / "images" / f"{index:03d}.png").write_bytes(picture.getvalue())
        labels = [f"class {index % 8}" for index in range(64)]
        (path / "probes" / "probes.json").write_text(json.dumps({"labels": labels}))
        gallery = rng.normal(size=(64, DIM)).astype(np.float32)
        gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
        (path / "probes" / "gallery.safetensors").write_bytes(safetensors.numpy.save({"embeddings": gallery}))
        (path / "probes" / "gallery.json").write_text(json.dumps({"labels": labels}))
        (path / "matrices.json").write_text(json.dumps([{"query": "mixer", "gallery": "cloud", "recall1": 0.5}]))
        if control:
            (path / "recipe.toml").write_text(f"[models.{control}]\ncompatible = false\n")
        return path

    return make


def _write_model(folder: Path, name: str, dim: int) -> ModelRecord:
    family, own, size = MODELS[name]
    arguments = {"dim": dim, "image_size": size, **own}
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model = build_model(family, arguments)
        model.train()
        with torch.no_grad():
            model(torch.randn(16, 3, size, size))  # batch-norm statistics that are not those of a fresh network
    weights = safetensors.torch.save(model.state_dict())
    record = ModelRecord(
        name=name,
        role="cloud" if name == "cloud" else "edge",
        family=family,
        arguments=arguments,
        dim=dim,
        # Unlike in all three channels, so that exchanged channels show.
        preprocess=Preprocess(size=size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
        weights_sha256=digest(weights),
    )
    (folder / f"{name}.json").write_text(record.model_dump_json())
    (folder / f"{name}.safetensors").write_bytes(weights)
    return record


@pytest.fixture(scope="session")
def run(make_run: MakeRun) -> Run:
    """A run with one model of each family."""
    return read_run(make_run(*MODELS))


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> tuple[SigningKey, TrustStore]:
    """A key, and a trust store that knows it."""
    key, store = SigningKey.new(), TrustStore(tmp_path_factory.mktemp("trust"))
    store.add(key.public, "tests")
    return key, store


@pytest.fixture(scope="session")
def exported(run: Run, trust: tuple[SigningKey, TrustStore], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Every model of the run in every format; minutes of work."""
    folder = tmp_path_factory.mktemp("bundles")
    models = run.choose(())
    written = export_run(run, models, [folder / f"{model.name}.samespace" for model in models], trust[0])
    return {item.name: item for item in written}


@dataclass(frozen=True, eq=False)
class Digits:
    """A mobile-like network of 2.4 M parameters, trained on real pictures, whose int8 really saturates in 16 bits.

    Attributes:
        graph: 32 x 32 pixels, 768 dimensions.
        calibration: ``(128, 32, 32, 3)`` uint8, of the training.
        unseen: ``(200, 32, 32, 3)`` uint8 that it was not trained on, and ``reference`` its ``(200, 768)`` embeddings of them.
    """

    graph: DeviceGraph
    calibration: npt.NDArray[np.uint8]
    unseen: npt.NDArray[np.uint8]
    reference: npt.NDArray[np.float32]

    def loaded(self, data: bytes, format: Any, precision: Any) -> LoadedArtifact:
        """Bytes of an exported graph, as if read from a bundle."""
        spec = Artifact(
            path=f"artifacts/model.{precision}.{format}",
            format=format,
            precision=precision,
            artifact_id=digest(data),
            input=TensorSpec(name="image", dtype="uint8", layout="nhwc", dynamic_batch=True),
            output="embedding",
            recipe={},
            min_runtime="",
        )
        return LoadedArtifact(spec, {"": data}, 32, 768)


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Scikit-learn's handwritten digits, dark on white, and a network trained on most of them for one epoch."""
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    small = 255 - np.clip(rows.reshape(-1, 8, 8) * 16, 0, 255).astype(np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(picture).resize((32, 32)).convert("RGB")) for picture in small])
    arguments = {"dim": 768, "image_size": 32, "width": 24, "depth": 1, "stages": 2, "stem_stride": 2, "pooling": "map"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("inverted_residual", arguments)
        classifier = torch.nn.Linear(768, 10)
        optimiser = torch.optim.SGD([*model.parameters(), *classifier.parameters()], lr=0.1, momentum=0.9)
        for batch in torch.randperm(1500).split(50):
            pixels = torch.from_numpy(pictures[batch]).permute(0, 3, 1, 2) / 127.5 - 1
            loss = torch.nn.functional.cross_entropy(classifier(model(pixels)), torch.from_numpy(labels[batch]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    graph = DeviceGraph(model, Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    unseen = pictures[1500:1700]
    with torch.inference_mode():
        reference = graph(torch.from_numpy(unseen)).numpy()
    return Digits(graph, pictures[:128], unseen, reference)


@pytest.fixture(scope="session")
def digits_bundle(digits: Digits) -> Callable[..., Path]:
    """Writes a bundle of the network of ``digits`` with ONNX models, precision by precision; its gallery are the pictures
    that are no probes.
    """

    def written(path: Path, key: SigningKey, models: dict[str, bytes]) -> Path:
        record = ModelRecord(
            name="digits",
            role="edge",
            family="inverted_residual",
            arguments={},
            dim=768,
            preprocess=digits.graph.preprocess,
            weights_sha256=digest(digits.reference.tobytes()),
        )
        images = []
        for picture in digits.unseen[:96]:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            images.append(buffer.getvalue())
        reference, gallery = digits.reference[:96], digits.reference[96:]
        probes = ProbeSet(tuple(images), digits.unseen[:96], reference, reference, gallery)
        artifacts = []
        for precision, data in models.items():
            loaded = digits.loaded(data, "onnx", precision)
            artifacts.append((loaded.spec, dict(loaded.files)))
        space = SpaceRecord(name="digits", founder_model_id=record.model_id, dim=768)
        files = {**probes.to_files(), "evidence.json": b"[]"}
        write_bundle(path, model=record, space=space, artifacts=artifacts, files=files, signer=key)
        return path

    return written


@pytest.fixture(scope="session")
def noise_pictures() -> Callable[[int, int], list[npt.NDArray[np.uint8]]]:
    """Call it with a count and a seed for ``(40, 40, 3)`` uint8 pictures of coloured clouds."""

    def make(count: int, seed: int) -> list[npt.NDArray[np.uint8]]:
        rng = np.random.default_rng(seed)
        coarse = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)) for _ in range(count)]
        return [np.asarray(picture.resize((40, 40), Image.Resampling.BICUBIC)) for picture in coarse]

    return make


@pytest.fixture(scope="session")
def calibrated(
    make_run: MakeRun,
    noise_pictures: Callable[[int, int], list[npt.NDArray[np.uint8]]],
) -> Run:
    """A run with calibration pictures, two of each label, and two more models: ``plain``, and ``planted`` that int8 ruins."""
    path = make_run()
    images = noise_pictures(96, 1)
    cloud = read_run(path).cloud
    tensors = {
        "pictures": np.stack(images),
        "cloud": embed(cloud.build(), cloud.record, cloud.record.preprocess.batch(images)),
    }
    (path / "calibration").mkdir()
    (path / "calibration" / "pictures.safetensors").write_bytes(safetensors.numpy.save(tensors))
    labels = [f"thing {index // 2}" for index in range(len(images))]
    (path / "calibration" / "labels.json").write_text(json.dumps({"labels": labels}))
    _write_plain_and_planted(path, Preprocess(size=24).batch(images))
    return read_run(path)


def _write_plain_and_planted(path: Path, tensors: npt.NDArray[np.uint8]) -> None:
    """A plain network that tells the pictures apart; and the same function in float, but one channel between two layers is a
    thousand times larger, and its reader smaller."""
    arguments = {"dim": DIM, "image_size": 24, "width": 12, "stages": 2, "shortcut": False}
    pixels = torch.from_numpy(tensors).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        network = build_model("residual", arguments)
        network.train()
        for _ in range(60):  # until the batch norm's statistics are those of the pictures
            network(pixels)
        network.eval()
        # Without most of the mean, which all pictures have in common, embeddings differ as those of a trained network do.
        state = network.state_dict()
        state["head.project.bias"] -= 0.8 * network(pixels).mean(0)
    for name in ("plain", "planted"):
        if name == "planted":
            for part in ("weight", "bias"):
                state[f"body.0.0.first.1.{part}"][0] *= 1000
            state["body.0.0.second.0.weight"][:, 0] /= 1000
        weights = safetensors.torch.save(state)
        record = ModelRecord(
            name=name,
            role="edge",
            family="residual",
            arguments=arguments,
            dim=DIM,
            preprocess=Preprocess(size=24),
            weights_sha256=digest(weights),
        )
        (path / "models" / f"{name}.json").write_text(record.model_dump_json())
        (path / "models" / f"{name}.safetensors").write_bytes(weights)
