"""Reading a run directory: what ``samespace train`` leaves for the export.

models/NAME.json, models/NAME.safetensors   each model's record and float weights
space.json                                  the space's record
recipe.toml                                 read for controls (compatible = false), and for the successor of an upgrade
probes/images/*, probes/probes.json         encoded images of unseen classes, and their labels
probes/gallery.safetensors, gallery.json    a sample of the cloud model's gallery, and its labels
calibration/pictures.safetensors, labels.json   training pictures, the cloud model's embeddings of them, their labels
matrices.json                               measured retrieval between the models
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import safetensors.torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError, IntegrityError, SamespaceError
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["Calibration", "Run", "RunModel", "load_model", "read_run"]


@dataclass(frozen=True)
class RunModel:
    """A trained model: its name in the run, its record and the bytes of its weights (safetensors)."""

    name: str
    record: ModelRecord
    weights: bytes

    def build(self) -> nn.Module:
        """The network with its weights, in evaluation mode."""
        return load_model(self.record, self.weights, self.name)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Training pictures that quantisation is fitted to and judged by; never probes, which judge the result.

    Attributes:
        pictures: ``(n, s, s, 3)`` uint8 RGB at the training's source size.
        cloud: ``(n, dim)`` float32 unit-norm, the cloud model's embeddings of them.
        labels: n of them; most labels come twice, so that each picture has something to find.
    """

    pictures: npt.NDArray[np.uint8]
    cloud: npt.NDArray[np.float32]
    labels: tuple[str, ...]

    def prepared(self, preprocess: Preprocess) -> npt.NDArray[np.uint8]:
        """``(n, size, size, 3)`` uint8, as a device would prepare them."""
        return preprocess.batch([Image.fromarray(picture) for picture in self.pictures])


@dataclass(frozen=True)
class Run:
    """A run directory, read and checked.

    Attributes:
        models: by name; one of them has the role ``cloud`` and founded the space.
        controls: names of the models that were trained without a compatibility term, so do not embed into the space.
        probe_images: encoded images, and ``probe_labels`` their labels.
        gallery: ``(m, dim)`` float32 embeddings by the cloud model, and ``gallery_labels`` their labels.
        matrices: measured matrices, as the training wrote them.
        calibration: None where an older training wrote none.
        successor: name of the cloud model that an upgrade trained; None where the run founded its space.
    """

    path: Path
    models: dict[str, RunModel]
    controls: tuple[str, ...]
    space: SpaceRecord
    probe_images: tuple[bytes, ...]
    probe_labels: tuple[str, ...] | None
    gallery: npt.NDArray[np.float32]
    gallery_labels: tuple[str, ...] | None
    matrices: list[Any]
    calibration: Calibration | None = None
    successor: str | None = None

    @property
    def cloud(self) -> RunModel:
        """The model that founded the space."""
        return next(model for model in self.models.values() if model.record.model_id == self.space.founder_model_id)

    @property
    def newest(self) -> RunModel:
        """The cloud model that the edge models learnt from: of an upgrade its successor, else the founder."""
        return self.models[self.successor] if self.successor else self.cloud

    def choose(self, names: tuple[str, ...]) -> list[RunModel]:
        """The named models; without names, all but the controls.

        Raises:
            ConfigError: no model of that name; lists those there are.
        """
        for name in names:
            if name not in self.models:
                raise ConfigError(f"{self.path}: no model is called {name!r}; there are: {', '.join(self.models)}")
        chosen = names or tuple(name for name in self.models if name not in self.controls)
        return [self.models[name] for name in dict.fromkeys(chosen)]


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        ConfigError: there is none, or it is not complete.
        IntegrityError: weights that are not those of their record.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run directory; 'samespace train RECIPE -o {path}' makes one")
    records = sorted((path / "models").glob("*.json"))
    if not records:
        raise ConfigError(f"{path}: holds no trained model (models/*.json); is it a run directory, and has its training ended?")
    models = {file.stem: _read_model(file) for file in records}
    try:
        space = SpaceRecord.model_validate_json(_bytes(path / "space.json"))
    except ValidationError as error:
        raise ConfigError(f"{path / 'space.json'}: no space record: {_first(error)}") from None
    if space.founder_model_id not in [model.record.model_id for model in models.values()]:
        raise ConfigError(
            f"{path / 'space.json'}: its founder {space.founder_model_id} is none of the run's models; train again"
        )
    images = tuple(file.read_bytes() for file in sorted((path / "probes" / "images").glob("*")) if file.is_file())
    if not images:
        raise ConfigError(f"{path / 'probes' / 'images'}: holds no probe image; train again to the end")
    matrices = _json(path / "matrices.json")
    controls, successor = _roles(path / "recipe.toml")
    return Run(
        path,
        models,
        controls,
        space,
        images,
        _labels(path / "probes" / "probes.json", len(images)),
        gallery := _gallery(path / "probes" / "gallery.safetensors", space.dim),
        _labels(path / "probes" / "gallery.json", len(gallery)),
        matrices if isinstance(matrices, list) else [matrices],
        _calibration(path, space.dim),
        successor,
    )


def load_model(record: ModelRecord, weights: bytes, name: str = "") -> nn.Module:
    """Rebuild a network from its record and the safetensors bytes of its weights.

    Args:
        record: family and arguments.
        weights: all parameters and buffers.
        name: how messages call the model.

    Raises:
        IntegrityError: the weights are not those of the record, or do not fit the network.
    """
    name = name or record.name
    if digest(weights) != record.weights_sha256:
        raise IntegrityError(
            f"the weights of model {name!r} are cut off or changed (another SHA-256 than its record's); train again"
        )
    try:
        model = build_model(record.family, record.arguments, weights_follow=True)
        model.load_state_dict(safetensors.torch.load(weights), strict=True)
    except SamespaceError:
        raise
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise IntegrityError(f"the weights of model {name!r} do not fit its family {record.family!r}: {error}") from None
    return model.eval()


def _read_model(file: Path) -> RunModel:
    try:
        record = ModelRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{file}: no model record: {_first(error)}") from None
    weights = file.with_suffix(".safetensors")
    data = _bytes(weights)
    if digest(data) != record.weights_sha256:
        raise IntegrityError(f"{weights}: cut off or changed: its SHA-256 is not the one in {file.name}; train again")
    return RunModel(file.stem, record, data)


def _roles(file: Path) -> tuple[tuple[str, ...], str | None]:
    """Names of the controls, and of the cloud model that was trained into a finished run's space."""
    if not file.is_file():
        return (), None
    try:
        models = tomllib.loads(file.read_text()).get("models", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: broken TOML: {error}") from None
    clouds = [name for name, spec in models.items() if spec.get("role") == "cloud"]
    trained = [name for name in clouds if "run" not in models[name]] if len(clouds) > 1 else []
    return tuple(name for name, spec in models.items() if spec.get("compatible") is False), next(iter(trained), None)


def _gallery(file: Path, dim: int) -> npt.NDArray[np.float32]:
    try:
        rows = safetensors.numpy.load(_bytes(file))["embeddings"]
    except (SafetensorError, KeyError) as error:
        raise ConfigError(f"{file}: no tensor 'embeddings' can be read from it: {error}") from None
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ConfigError(f"{file}: embeddings of shape {rows.shape}, expected (m, {dim}) as the space says")
    return rows.astype(np.float32)


def _calibration(path: Path, dim: int) -> Calibration | None:
    file = path / "calibration" / "pictures.safetensors"
    if not file.is_file():
        return None
    try:
        tensors = safetensors.numpy.load(file.read_bytes())
        pictures, cloud = tensors["pictures"], tensors["cloud"]
    except (SafetensorError, KeyError) as error:
        raise ConfigError(f"{file}: no tensors 'pictures' and 'cloud' can be read from it: {error}") from None
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or cloud.shape != (len(pictures), dim):
        raise ConfigError(f"{file}: pictures of {pictures.shape}, embeddings of {cloud.shape}; the space has {dim} dimensions")
    return Calibration(pictures, cloud, _labels(path / "calibration" / "labels.json", len(pictures)) or ())


def _labels(file: Path, count: int) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    content = _json(file)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, list) or len(labels) != count:
        raise ConfigError(f'{file}: expected {{"labels": [...]}} with {count} labels')
    return tuple(str(label) for label in labels)


def _json(file: Path) -> Any:
    try:
        return json.loads(_bytes(file))
    except ValueError as error:
        raise ConfigError(f"{file}: broken JSON: {error}") from None


def _bytes(file: Path) -> bytes:
    if not file.is_file():
        raise ConfigError(f"{file}: is missing; the run is not complete, run 'samespace train' on it again")
    return file.read_bytes()


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(step) for step in first['loc'])}: {first['msg']}"
