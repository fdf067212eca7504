"""A run directory of tiny, untrained models, one of each family, and its export; made once for all tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

from samespace.edge.models.registry import build_model
from samespace.export import Exported, Run, export_run, read_run
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.signing import SigningKey, TrustStore

#: Name in the run -> family, its own arguments, and the edge of its input.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "cloud": ("wide_residual", {"width": 8, "stages": 2}, 32),
    "residual": ("residual", {"width": 8}, 24),
    "inverted": ("inverted_residual", {}, 32),
    "mixer": ("mixer", {"width": 16, "depth": 2}, 32),
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
