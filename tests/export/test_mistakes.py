"""Fingerprints: exact, small, kept where they make a difference; and mistakes that torch plants are named in a real model."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from samespace.export import Run
from samespace.export.mistakes import fingerprints
from samespace.export.torch_runtime import embed
from samespace.sdk.bundle import Bundle, artifact_id, write_bundle
from samespace.sdk.check.diagnosis import diagnose
from samespace.sdk.check.diagnosis.hypotheses import PAIR_PROBES
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.metrics import cosine
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.signing import SigningKey, TrustStore


class Planted:
    """A model of the run behind a cropping preprocessing, with probes that are not square and partly turned by EXIF."""

    def __init__(self, run: Run) -> None:
        model = run.models["residual"]
        self.preprocess = model.record.preprocess.model_copy(update={"fit": "crop"})
        self.record = model.record.model_copy(update={"preprocess": self.preprocess})
        self.network = model.build()
        self.images = tuple(_picture(index) for index in range(48))
        self.golden = self.preprocess.batch(self.images)
        self.mistakes = fingerprints(self.network, self.record, self.images, self.golden)
        self.space = run.space

    def embed(self, values: np.ndarray, **how: bool) -> np.ndarray:
        return embed(self.network, self.record, values, **how)

    def bundle(self, path: Path, trust: tuple[SigningKey, TrustStore]) -> Bundle:
        reference = self.embed(self.golden)
        probes = ProbeSet(self.images, self.golden, reference, reference, reference, self.mistakes)
        write_bundle(
            path,
            model=self.record,
            space=self.space,
            artifacts=[(_never_run(), {"": b"never run"})],
            files=probes.to_files(),
            gates={},
            signer=trust[0],
        )
        return Bundle.open(path, trust=trust[1])


def _never_run() -> Artifact:
    """An artifact of which only the embeddings are there, as of an app's on a phone."""
    return Artifact(
        path="artifacts/model.fp32.onnx",
        format="onnx",
        precision="fp32",
        artifact_id=artifact_id({"": b"never run"}),
        input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
        output="embedding",
        recipe={},
        min_runtime="none",
    )


def _picture(index: int) -> bytes:
    generator = np.random.default_rng(index)
    coarse = Image.fromarray(generator.integers(0, 256, (28, 36, 3), dtype=np.uint8))
    exif = Image.Exif()
    if index % 3 == 0:
        exif[0x0112] = 6
    file = io.BytesIO()
    coarse.resize((120, 90 - index % 5), Image.Resampling.BICUBIC).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.fixture(scope="module")
def planted(run: Run) -> Planted:
    return Planted(run)


@pytest.fixture(scope="module")
def bundle(planted: Planted, trust: tuple[SigningKey, TrustStore], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return planted.bundle(tmp_path_factory.mktemp("mistakes") / "planted.samespace", trust)


def test_fingerprints_are_small_and_what_the_model_gives(planted: Planted) -> None:
    made = planted.mistakes
    assert {"bgr", "no_antialias", "exif_ignored", "squashed", "no_mean_std", "layout@planar", "bgr+no_mean_std"} <= made.keys()
    for name, rows in made.items():
        assert rows.dtype == (np.float32 if name == "no_l2" else np.float16)
        assert len(rows) == (PAIR_PROBES if "+" in name else 48)
    unit = planted.embed(planted.golden, mean_std=False)
    assert cosine(made["no_mean_std"].astype(np.float32), unit).min() > 0.99999
    assert np.abs(np.linalg.norm(made["no_l2"], axis=1) - 1).max() > 0.01
    mean, std = (np.array(values) for values in (planted.preprocess.mean, planted.preprocess.std))
    once = (planted.golden / 255 - mean) / std
    twice = planted.embed(255 * once)  # the graph's own scaling, mean and std come on top
    assert cosine(made["mean_std_twice"].astype(np.float32), twice).min() > 0.99999


def test_a_mistake_that_changes_nothing_has_no_fingerprint(run: Run) -> None:
    model = run.models["residual"]
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file, "PNG")
    images = (file.getvalue(),) * 3
    made = fingerprints(model.build(), model.record, images, model.record.preprocess.batch(images))
    assert model.record.preprocess.size == 24
    assert "bgr" in made
    for name in ("no_antialias", "squashed", "crop_order", "exif_ignored", "filter_nearest@floor"):
        assert not [key for key in made if name in key.split("+")]


@pytest.mark.parametrize(
    ("cause", "mode", "antialias"),
    [
        ("no_antialias", "bilinear", False),
        ("filter_nearest", "nearest", False),
        ("filter_bicubic", "bicubic", False),
        ("filter_bicubic", "bicubic", True),
    ],
)
def test_resizes_that_torch_makes_are_named(bundle: Bundle, planted: Planted, cause: str, mode: str, antialias: bool) -> None:
    rows = planted.embed(np.stack([_resized(image, planted.preprocess, mode, antialias) for image in planted.images]))
    assert diagnose(bundle, "onnx-fp32", rows).causes[0].name == cause


def test_two_mistakes_of_an_app_are_both_named(bundle: Bundle, planted: Planted) -> None:
    tensors = np.stack([_resized(image, planted.preprocess, "bilinear", False) for image in planted.images])
    found = {cause.name for cause in diagnose(bundle, "onnx-fp32", planted.embed(tensors[..., ::-1])).causes}
    assert found == {"no_antialias", "bgr"}
    assert diagnose(bundle, "onnx-fp32", planted.embed(planted.golden)).healthy


def test_what_is_not_among_the_fingerprints_is_unknown(bundle: Bundle, planted: Planted) -> None:
    for tensors in (planted.golden[:, :, ::-1].transpose(0, 2, 1, 3), planted.golden // 64 * 64):
        diagnosis = diagnose(bundle, "onnx-fp32", planted.embed(tensors))
        assert [cause.name for cause in diagnosis.causes] == ["unknown"]


def _resized(image: bytes, preprocess: Preprocess, mode: str, antialias: bool) -> np.ndarray:
    """Shorter edge to the size, centre cut; the turn by 90 degrees of EXIF orientation 6 by NumPy."""
    source = Image.open(io.BytesIO(image))
    pixels = np.array(source.convert("RGB"))
    if source.getexif().get(0x0112) == 6:
        pixels = np.rot90(pixels, -1).copy()
    size, (height, width) = preprocess.size, pixels.shape[:2]
    scale = size / min(height, width)
    target = (int(height * scale + 0.5), int(width * scale + 0.5))
    smooth = {} if mode == "nearest" else {"align_corners": False, "antialias": antialias}
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    made = functional.interpolate(planes, size=target, mode=mode, **smooth).round().clamp(0, 255)[0].permute(1, 2, 0)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return made[top : top + size, left : left + size].byte().numpy()
