"""Diagnosing the toy's bundle: every kind of answer, from embeddings alone and with tensors; and an old bundle."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from samespace.sdk import Bundle, Embedder, TrustStore
from samespace.sdk.check.diagnosis import CAUSES, Diagnosis, diagnose
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values
from samespace.sdk.errors import DataError
from samespace.sdk.probes import ProbeSet
from samespace.sdk.signing import PublicKey

CORPUS = Path(__file__).parents[1] / "corpus"
FAULTS = ("bgr", "layout@planar", "layout@interleaved", "no_antialias", "filter_nearest@floor", "no_mean_std", "range_01")


class Device:
    """The toy's model in NumPy, and the tensors that it is fed."""

    def __init__(self, toy) -> None:
        self.toy = toy
        self.golden = toy.preprocess.batch(toy.images)

    def raw(self, values: np.ndarray) -> np.ndarray:
        pooled = values.astype(np.float64).reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(-1, 48)
        return ((pooled / 127.5 - 1) @ self.toy.edge).astype(np.float32)

    def embed(self, values: np.ndarray) -> np.ndarray:
        rows = self.raw(values)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def made(self, *faults: str) -> np.ndarray:
        recipe = Recipe.of(*faults)
        tensors = np.stack([faulty_tensors(self.toy.preprocess, image, [recipe])[0] for image in self.toy.images])
        return faulty_values(self.toy.preprocess, tensors, recipe.values)

    def fingerprints(self) -> dict[str, np.ndarray]:
        found = {name: self.embed(self.made(name)).astype(np.float16) for name in FAULTS}
        found["bgr+no_mean_std"] = self.embed(self.made("bgr", "no_mean_std"))[:32].astype(np.float16)
        return {**found, "no_l2": self.raw(self.golden)}


@pytest.fixture(scope="module")
def device(toy) -> Device:
    return Device(toy)


@pytest.fixture(scope="module")
def bundle(toy, device: Device, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("diagnosis") / "toy.samespace"
    return toy.bundle(path, probes=toy.probe_set(mistakes=device.fingerprints()))


def names(diagnosis: Diagnosis) -> tuple[str, ...]:
    return tuple(cause.name for cause in diagnosis.causes)


@pytest.mark.parametrize("live", [True, False])
def test_a_healthy_artifact_has_no_cause(bundle: Bundle, device: Device, live: bool) -> None:
    assert diagnose(bundle, "onnx-fp32", device.embed(device.golden), live=live).healthy
    assert diagnose(bundle, "onnx-fp32", device.embed(device.golden), device.golden, live=live).healthy


@pytest.mark.parametrize(
    ("cause", "plant"),
    [
        ("bgr", lambda tensors: tensors[..., [2, 1, 0]]),
        ("layout", lambda tensors: np.moveaxis(tensors, 3, 1).reshape(tensors.shape)),
        ("range_01", lambda tensors: tensors / 255),
        ("no_mean_std", lambda tensors: tensors / 2 + 127.5),
    ],
)
def test_a_planted_mistake_comes_first_and_says_what_to_do(bundle: Bundle, device: Device, cause: str, plant) -> None:
    diagnosis = diagnose(bundle, "onnx-fp32", device.embed(plant(device.golden.astype(np.float64))))
    assert names(diagnosis)[0] == cause
    assert diagnosis.causes[0].fit > 0.9
    assert diagnosis.causes[0].mend


def test_both_of_two_mistakes_are_named(bundle: Bundle, device: Device) -> None:
    rows = device.embed(device.golden[..., ::-1] / 2 + 127.5)
    assert set(names(diagnose(bundle, "onnx-fp32", rows))) == {"bgr", "no_mean_std"}


def test_the_norm_is_judged_apart_from_the_direction(bundle: Bundle, device: Device) -> None:
    assert names(diagnose(bundle, "onnx-fp32", device.raw(device.golden))) == ("no_l2",)
    assert set(names(diagnose(bundle, "onnx-fp32", device.raw(device.golden[..., ::-1])))) == {"no_l2", "bgr"}
    assert names(diagnose(bundle, "onnx-fp32", 3 * device.embed(device.golden))) == ("unknown",)


def test_rows_that_are_none_are_an_overflow(bundle: Bundle, device: Device) -> None:
    rows = device.embed(device.golden)
    rows[3], rows[5] = np.nan, 0
    assert names(diagnose(bundle, "onnx-fp32", rows)) == ("fp16_overflow",)
    assert names(diagnose(bundle, "onnx-fp32", np.full_like(rows, np.inf))) == ("fp16_overflow",)


@pytest.mark.parametrize("with_tensors", [False, True])
def test_what_nobody_knows_is_unknown(bundle: Bundle, device: Device, with_tensors: bool) -> None:
    for tensors in (np.rot90(device.golden, axes=(1, 2)), (255 * (device.golden / 255) ** 2.5).astype(np.uint8)):
        diagnosis = diagnose(
            bundle, "onnx-fp32", device.embed(tensors), np.ascontiguousarray(tensors) if with_tensors else None
        )
        assert names(diagnosis) == ("unknown",)


def test_another_model_is_another_revision(toy, bundle: Bundle, device: Device) -> None:
    other = toy.cloud + 0.1 * np.random.default_rng(9).normal(size=toy.cloud.shape)
    assert names(diagnose(bundle, "onnx-fp32", toy.embed(toy.images, other))) == ("other_revision",)
    assert names(diagnose(bundle, "onnx-fp32", toy.embed(toy.images, toy.edge) @ toy.rotation)) == ("other_revision",)


def test_tensors_show_what_embeddings_do_not(toy, device: Device, tmp_path: Path) -> None:
    """Without a single fingerprint the mistake is found in the tensors, and named when the embeddings suffer from it."""
    bundle = toy.bundle(tmp_path / "bare.samespace", probes=toy.probe_set(mistakes={}))
    tensors = np.ascontiguousarray(device.golden[..., ::-1])
    assert names(diagnose(bundle, "onnx-fp32", device.embed(tensors), tensors)) == ("bgr",)
    assert names(diagnose(bundle, "onnx-fp32", device.embed(tensors), device.golden)) != ("bgr",)
    assert diagnose(bundle, "onnx-fp32", device.embed(device.golden), device.golden).healthy


def test_embeddings_of_another_shape_are_refused(bundle: Bundle) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 12\).*probes for \(64, 12\)"):
        diagnose(bundle, "onnx-fp32", np.ones((3, 12), np.float32))


def test_an_unsigned_bundle_is_diagnosed_too(toy, device: Device, tmp_path: Path) -> None:
    probes = toy.probe_set(mistakes=device.fingerprints())
    bundle = toy.bundle(tmp_path / "unsigned.samespace", probes=probes, signed=False)
    assert names(diagnose(bundle, "onnx-fp32", device.embed(device.golden[..., ::-1]))) == ("bgr",)


@pytest.mark.parametrize("fault", ["nothing", "bgr", "range_01"])
def test_a_bundle_of_version_1_is_diagnosed_by_the_fingerprints_that_it_has(fault: str, tmp_path: Path) -> None:
    folder = CORPUS / "bundle-v1"
    trust = TrustStore(tmp_path / "trusted")
    trust.add(PublicKey.load(folder / "signer.pub.pem"), "corpus")
    old = Bundle.open(next(folder.glob("*.samespace")), trust=trust)
    probes = ProbeSet.from_bundle(old)
    fed = {"nothing": probes.golden, "bgr": probes.golden[..., ::-1], "range_01": probes.golden // 255}[fault]
    with Embedder.open(old, artifact="onnx-fp32") as embedder:
        rows = embedder.embed_tensors(np.ascontiguousarray(fed))
    found = names(diagnose(old, "onnx-fp32", rows))
    assert found[:1] == (() if fault == "nothing" else (fault,))


def test_the_documents_example_runs(bundle: Bundle, device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    tensors = np.ascontiguousarray(device.golden[..., ::-1])
    exec(example, {"bundle": bundle, "embeddings": device.embed(tensors), "tensors": tensors})
    assert capsys.readouterr().out.startswith("bgr: 100%: red and blue are exchanged: feed RGB")
    # Every cause is in the document's table.
    assert not [name for name in CAUSES if f"`{name}`" not in document]
